"""Attention over several levels of keys at once: levels that many rows share, and each row's own keys.

Every level is attended to by itself, for all the queries that share it in one call, and the results are merged by their
log-sum-exp, which gives exactly the attention over all keys together (Hydragen, arXiv 2402.05099). Plugs into
transformers as an attention function; without `levels` it is the library's own SDPA.

R rows, X queries of a row, S groups of rows that share a level, H key heads, G query heads a key head, T keys, d width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "shared_prefix"
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")

Part = tuple[Tensor, Tensor]  # output [R, G * X, H, d] and log-sum-exp of its scores [R, G * X, H, 1]


@dataclass(eq=False)
class Groups:
    """Which rows share which group of a level. index: [S, m] rows of each group, filled up with row 0; place: [R] where
    row r stands in the flattened index."""

    index: Tensor
    place: Tensor

    @classmethod
    def of(cls, group: Tensor, *, num_groups: int) -> Groups:
        """group: [R] int64, the group of each row."""
        order = group.argsort(stable=True)
        counts = group.bincount(minlength=num_groups)
        ordered = group[order]
        rank = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[ordered]
        most = int(counts.max())
        index = group.new_zeros(num_groups, most)
        index[ordered, rank] = order
        place = torch.empty_like(group)
        place[order] = ordered * most + rank
        return cls(index, place)


@dataclass(eq=False)
class SharedLevel:
    """One level as the attention of a single forward pass sees it.

    keys, values: [S, H, T, d] a layer; lengths: [S] keys that count; starts: [S] position of the first of them;
    positions: [R, X] of the queries. even: whether all groups in use have T keys, so that no mask is needed.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    lengths: Tensor
    starts: Tensor
    groups: Groups
    positions: Tensor
    even: bool
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def attend(self, layer: int, by_head: Tensor, *, scale: float, window: int | None) -> Part:
        """by_head: [H, R, G * X, d], the queries with the key heads in front, where those of a group lie side by side."""
        heads, _, length, width = by_head.shape
        num_groups, most = self.groups.index.shape
        packed = by_head.index_select(1, self.groups.index.flatten())
        packed = packed.view(heads, num_groups, most * length, width).transpose(0, 1)
        mask = self._mask(window, length // self.positions.shape[1], packed.dtype)
        parts = partial_attention(packed, self.keys[layer], self.values[layer], mask, scale)
        out, lse = (part.reshape(num_groups * most, length, heads, -1) for part in parts)
        return out.index_select(0, self.groups.place), lse.index_select(0, self.groups.place)

    def _mask(self, window: int | None, group: int, dtype: torch.dtype) -> Tensor | None:
        if window not in self._masks:
            self._masks[window] = self._make_mask(window, group, dtype)
        return self._masks[window]

    def _make_mask(self, window: int | None, group: int, dtype: torch.dtype) -> Tensor | None:
        """[S, 1, 1, T], or [S, 1, m * G * X, T] where a window makes queries differ; None where all see all."""
        if window is None and self.even:
            return None
        keys = torch.arange(self.keys[0].shape[2], device=self.lengths.device)
        hidden = (keys >= self.lengths[:, None])[:, None, None]
        if window is not None:
            queries = self.positions[self.groups.index].unsqueeze(2).expand(-1, -1, group, -1).flatten(1)
            behind = (self.starts[:, None] + keys)[:, None]
            hidden = hidden | (queries[:, :, None] - behind >= window)[:, None]
        return additive(hidden, dtype)


@dataclass(eq=False)
class Levels:
    """Everything one forward pass attends to. own: what a query may not see of its row's own keys.

    positions: [R, X] of the queries; starts: [R] position of a row's first own key; lengths: [R] own keys that count at
    the last query: query x of X sees lengths - X + 1 + x of them.
    """

    shared: Sequence[SharedLevel]
    positions: Tensor
    starts: Tensor
    lengths: Tensor
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """query: [R, H * G, X, d]; key, value: [R, H, T, d], the rows' own. Returns [R, X, H * G, d]."""
        rows, all_heads, length, width = query.shape
        heads = key.shape[1]
        group = all_heads // heads
        packed = query.reshape(rows, heads, group * length, width)
        mask = self._mask(window, group, key.shape[2], query.dtype)
        parts = [partial_attention(packed, key, value, mask, scale)]
        if self.shared:
            by_head = packed.transpose(0, 1).contiguous()
            parts += [level.attend(layer, by_head, scale=scale, window=window) for level in self.shared]
        merged = merge(parts).reshape(rows, group, length, heads, width)
        return merged.permute(0, 2, 3, 1, 4).reshape(rows, length, all_heads, width)

    def _mask(self, window: int | None, group: int, num_keys: int, dtype: torch.dtype) -> Tensor:
        if window not in self._masks:
            keys = torch.arange(num_keys, device=self.lengths.device)
            seen = self.lengths[:, None] - (self.positions[:, -1:] - self.positions)
            hidden = keys >= seen[:, :, None]
            if window is not None:
                hidden = hidden | (self.positions[:, :, None] - (self.starts[:, None] + keys)[:, None] >= window)
            if hidden.shape[1] > 1:
                hidden = hidden.repeat(1, group, 1)
            self._masks[window] = additive(hidden.unsqueeze(1), dtype)
        return self._masks[window]


def merge(parts: Sequence[Part]) -> Tensor:
    """Attention over the union of the parts' keys: their outputs, weighted by the softmax of their log-sum-exps."""
    if len(parts) == 1:
        return parts[0][0]
    weights = torch.stack([lse for _, lse in parts]).softmax(0).to(parts[0][0].dtype)
    merged = parts[0][0] * weights[0]
    for (out, _), weight in zip(parts[1:], weights[1:], strict=True):
        merged.addcmul_(out, weight)
    return merged


def partial_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Part:
    """Softmax attention and the log-sum-exp of its scores, float32 or wider.

    query: [B, H, Q, d]; key, value: [B, H, T, d]; mask: additive, broadcastable to [B, H, Q, T]. Returns [B, Q, H, d] and
    [B, Q, H, 1]. A query that sees no key gets a finite output and a log-sum-exp that no other level's can be smaller than.
    """
    if query.device.type == "cpu":
        out, lse = _flash_on_cpu(query, key, value, attn_mask=mask, scale=scale)
    else:
        scores = (query @ key.transpose(-1, -2)).float() * scale
        if mask is not None:
            scores += mask
        lse = scores.logsumexp(-1)
        out = (scores - lse.unsqueeze(-1)).exp().to(value.dtype) @ value
    return out.transpose(1, 2), lse.transpose(1, 2).unsqueeze(-1)


_flash_on_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool mask to additive one. Not minus infinity: a row that sees no key of a level must not become NaN."""
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min / 2)


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    levels: Levels | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in every layer. sliding_window: of this layer, in tokens, where it has one."""
    if levels is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)  # type: ignore[no-any-return]
    unknown = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if unknown:
        raise NotImplementedError(f"attention with {unknown[0]}")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = levels.attend(layer, query, key, value, scale=scale, window=sliding_window)
    return out, None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def install(model: PreTrainedModel) -> str:
    """Makes the model use this attention. Returns the name of the one it had. Raises ValueError where it cannot."""
    before = str(model.config._attn_implementation)
    model.set_attn_implementation(NAME)
    return before
