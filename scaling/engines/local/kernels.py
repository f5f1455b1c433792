"""Softmax attention with the log-sum-exp of its scores, by whichever of torch's kernels the device has.

None of them holds a score matrix for all queries. The public `scaled_dot_product_attention` keeps the log-sum-exp to itself,
so these are the operators below it. What it does for them must be done here: their bias has a stride for every axis and
rows that begin at multiples of _ALIGNMENT numbers, and the log-sum-exp of one of them is padded.

B batches, H heads, Q queries, T keys, d width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_efficient_attention, can_use_flash_attention
from torch.nn.functional import pad

_ALIGNMENT = 16  # as torch pads a bias for its own kernels (aten/native/transformers/attention.cpp, preprocess_mask)
_SCORES = 1 << 25  # that are held at once where there is no kernel: 128 MB in float32

Attended = tuple[Tensor, Tensor]  # output [B, H, Q, d] and log-sum-exp [B, H, Q]
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, bool], Attended]

_cpu: Any = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash: Any = torch.ops.aten._scaled_dot_product_flash_attention
_efficient: Any = torch.ops.aten._scaled_dot_product_efficient_attention


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Attended:
    """Softmax attention and the natural log-sum-exp of its scores, float32 or wider.

    Args:
        query: [B, H, Q, d].
        key, value: [B, H, T, d].
        mask: additive, of the queries' dtype, broadcastable to [B, H, Q, T]; None for no mask.
        scale: of the scores.
        causal: whether query q sees keys 0 to q alone; Q is then T, and there is no mask.

    Returns:
        [B, H, Q, d] and [B, H, Q].
    """
    return kernel_for(query, key, value, mask, causal)(query, key, value, mask, scale, causal)


def kernel_for(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Kernel:
    """Chooses the kernel. On CUDA torch itself is asked what the GPU, the types and the sizes allow. As `attend`."""
    kind = query.device.type
    if kind == "cpu":
        return on_cpu
    if kind == "cuda":
        given = SDPAParams(query, key, value, None, 0.0, causal, False)
        if mask is None and can_use_flash_attention(given):
            return flash
        if can_use_efficient_attention(given):
            return efficient
    return in_blocks


def on_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Attended:
    """The CPU's flash kernel. As `attend`."""
    out, lse = _cpu(query, key, value, 0.0, causal, attn_mask=mask, scale=scale)
    return out, lse


def flash(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Attended:
    """FlashAttention, for half precision without a mask. As `attend`."""
    assert mask is None, "it takes none"
    out, lse, *_ = _flash(query, key, value, 0.0, causal, False, scale=scale)
    return out, lse


def efficient(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Attended:
    """Memory-efficient attention: float32 as well, and with a mask. As `attend`."""
    bias = None if mask is None else _aligned(mask.expand(*query.shape[:3], key.shape[2]))
    out, lse, *_ = _efficient(query, key, value, bias, True, 0.0, causal, scale=scale)
    return out, lse[..., : query.shape[2]]  # padded to a multiple of 32


def in_blocks(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, causal: bool) -> Attended:
    """Matrix products, for some queries at a time, for devices, types and sizes that no kernel is for. As `attend`."""
    batches, heads, queries, _ = query.shape
    number, wide = key.shape[2], torch.promote_types(query.dtype, torch.float32)
    keys, values = key.to(wide).transpose(-1, -2), value.to(wide)
    size = max(1, _SCORES // (batches * heads * number))
    found = []
    for start in range(0, queries, size):
        some = slice(start, min(start + size, queries))
        scores = query[:, :, some].to(wide) @ keys * scale
        if mask is not None:
            scores += mask if mask.shape[2] == 1 else mask[:, :, some]
        if causal:
            at = torch.arange(number, device=query.device)
            scores = scores.masked_fill(at > at[some, None], -torch.inf)
        lse = scores.logsumexp(-1)
        found.append(((scores - lse.unsqueeze(-1)).exp() @ values, lse))
    out, lse = (torch.cat(kind, dim=2) for kind in zip(*found, strict=True))
    return out.to(value.dtype), lse


def _aligned(bias: Tensor) -> Tensor:
    """bias [B, H, Q, T], its rows moved apart where they do not begin at multiples of _ALIGNMENT numbers."""
    strides = [stride for stride, size in zip(bias.stride(), bias.shape, strict=True) if size > 1][:-1]
    if bias.stride(-1) == 1 and not any(stride % _ALIGNMENT for stride in strides):
        return bias
    # axes that are only repeated are padded once
    once = bias[tuple(slice(1) if stride == 0 else slice(None) for stride in bias.stride())]
    return pad(once, (0, -once.shape[-1] % _ALIGNMENT))[..., : once.shape[-1]].expand(bias.shape)
