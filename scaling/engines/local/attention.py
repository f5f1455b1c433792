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
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from scaling.engines.local.decoder import on_device
from scaling.engines.local.kernels import attend

NAME = "shared_prefix"
KEYS = 64  # attended to at a time where results must not depend on how many there are
_QUERIES = (
    32  # what the CPU's attention kernel works on at a time; in one call at most _MOST, as it takes more from 192 on
)
_MOST = 160
_UNSUPPORTED = ("softcap", "s_aux", "position_bias", "cache")

Part = tuple[Tensor, Tensor]  # output [R, G * X, H, d] and log-sum-exp of its scores [R, G * X, H, 1]


@dataclass(eq=False)
class Groups:
    """Which rows share which group of a level. index: [S, m] rows of each group, filled up with row 0; place: [R] where
    row r stands in the flattened index."""

    index: Tensor
    place: Tensor

    @classmethod
    def of(cls, group: Sequence[int], *, num_groups: int, device: torch.device) -> Groups:
        """group: the group of each row. Made on the host, as a device would have to tell how large the largest one is."""
        members: list[list[int]] = [[] for _ in range(num_groups)]
        for row, number in enumerate(group):
            members[number].append(row)
        most = max(map(len, members))
        place = [0] * len(group)
        for number, rows in enumerate(members):
            for rank, row in enumerate(rows):
                place[row] = number * most + rank
        index = [row for rows in members for row in (*rows, *[0] * (most - len(rows)))]
        both = on_device([*index, *place], device)
        return cls(both[: len(index)].view(num_groups, most), both[len(index) :])


@dataclass(eq=False)
class SharedLevel:
    """One level as the attention of a single forward pass sees it.

    keys, values: [S, H, T, d] a layer; lengths: [S] keys that count; starts: [S] position of the first of them;
    positions: [R, X] of the queries. even: whether all groups in use have T keys, so that no mask is needed. slots: which
    of the keys the groups are, [S] int64, where these are not the first S.
    """

    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    lengths: Tensor
    starts: Tensor
    groups: Groups
    positions: Tensor
    even: bool
    slots: Tensor | None = None
    _masks: dict[int | None, Tensor | None] = field(default_factory=dict)

    def attend(self, layer: int, by_head: Tensor, *, scale: float, window: int | None) -> Part:
        """by_head: [H, R, G * X, d], the queries with the key heads in front, where those of a group lie side by side."""
        packed = self._by_group(by_head)
        mask = self._mask(window, by_head.shape[2] // self.positions.shape[1], packed.dtype)
        return self._by_row(partial_attention(packed, self.keys[layer], self.values[layer], mask, scale), by_head)

    def attend_fixed(self, layer: int, by_head: Tensor, *, scale: float, window: int | None) -> list[Part]:
        """The same in parts of KEYS keys, each worked out in products of one size. T is a multiple of KEYS."""
        packed = self._by_group(by_head)
        queries = packed.shape[2]
        missing = -queries % _QUERIES
        mask = self._mask(window, by_head.shape[2] // self.positions.shape[1], packed.dtype)
        assert mask is not None, "the same steps whether or not all keys are seen"
        assert self.slots is not None
        packed, mask = pad(packed, (0, 0, 0, missing)), mask if mask.shape[2] == 1 else pad(mask, (0, 0, 0, missing))
        found = []
        for keys in _chunks(self.keys[0].shape[2]):
            key, value = (states[layer][:, :, keys].index_select(0, self.slots) for states in (self.keys, self.values))
            several = [
                partial_attention(packed[:, :, some], key, value, _rows_of(mask, some)[..., keys], scale)
                for some in (slice(start, start + _MOST) for start in range(0, packed.shape[2], _MOST))
            ]
            out, lse = (torch.cat(kind, dim=1)[:, :queries] for kind in zip(*several, strict=True))
            found.append(self._by_row((out, lse), by_head))
        return found

    def _by_group(self, by_head: Tensor) -> Tensor:
        """Queries [H, R, G * X, d] as [S, H, m * G * X, d], those of a group one after the other."""
        heads, _, length, width = by_head.shape
        num_groups, most = self.groups.index.shape
        packed = by_head.index_select(1, self.groups.index.flatten())
        return packed.view(heads, num_groups, most * length, width).transpose(0, 1)

    def _by_row(self, part: Part, by_head: Tensor) -> Part:
        heads, _, length, _ = by_head.shape
        out, lse = (states.reshape(self.groups.index.numel(), length, heads, -1) for states in part)
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
    the last query: query x of X sees lengths - X + 1 + x of them. fixed: whether a row's result must be the same, bit for
    bit, whatever the number of rows, groups and keys: every product then has one size. causal: whether a row's own keys
    are those of its X queries and no others, as in a prefill.
    """

    shared: Sequence[SharedLevel]
    positions: Tensor
    starts: Tensor
    lengths: Tensor
    fixed: bool = False
    causal: bool = False
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """query: [R, H * G, X, d]; key, value: [R, H, T, d], the rows' own. Returns [R, X, H * G, d]."""
        rows, all_heads, length, width = query.shape
        heads = key.shape[1]
        group = all_heads // heads
        packed = query.reshape(rows, heads, group * length, width)
        by_head = packed.transpose(0, 1).contiguous() if self.shared else packed
        if self.causal and length > 1 and (window is None or window >= length):
            parts = [causal_attention(query, key, value, scale)]
        else:
            mask = self._mask(window, group, key.shape[2], query.dtype)
            # a prefill is of one row, whose own keys are as many whatever else is computed
            chunks = _chunks(key.shape[2]) if self.fixed and length == 1 else [slice(None)]
            own = [(key[:, :, keys], value[:, :, keys], mask[..., keys]) for keys in chunks]
            parts = [partial_attention(packed, *seen, scale) for seen in own]
        for level in self.shared:
            if self.fixed:
                parts += level.attend_fixed(layer, by_head, scale=scale, window=window)
            else:
                parts.append(level.attend(layer, by_head, scale=scale, window=window))
        merged = (merge_in_order if self.fixed else merge)(parts).reshape(rows, group, length, heads, width)
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


def merge_in_order(parts: Sequence[Part]) -> Tensor:
    """`merge` part by part, in float32 or wider: a part of which a row sees nothing adds zeros, wherever it stands."""
    top = parts[0][1]
    for _, lse in parts[1:]:
        top = torch.maximum(top, lse)
    total, merged = torch.zeros_like(top), top.new_zeros(parts[0][0].shape)
    for out, lse in parts:
        weight = (lse - top).exp()
        total += weight
        merged += out * weight
    return (merged / total).to(parts[0][0].dtype)


def _chunks(num_keys: int) -> list[slice]:
    return [slice(start, start + KEYS) for start in range(0, num_keys, KEYS)]


def _rows_of(mask: Tensor, queries: slice) -> Tensor:
    """The mask of some queries, which is one for all where it does not tell them apart."""
    return mask if mask.shape[2] == 1 else mask[:, :, queries]


def partial_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Part:
    """Softmax attention and the log-sum-exp of its scores, float32 or wider.

    query: [B, H, Q, d]; key, value: [B, H, T, d]; mask: additive, broadcastable to [B, H, Q, T]. Returns [B, Q, H, d] and
    [B, Q, H, 1]. A query that sees no key gets a finite output and a log-sum-exp that no other level's can be smaller than.
    """
    out, lse = attend(query, key, value, mask, scale, causal=False)
    return out.transpose(1, 2), lse.transpose(1, 2).unsqueeze(-1)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Part:
    """Attention of X queries to their own X keys, each to those up to itself, without the mask that says so.

    query: [R, H * G, X, d]; key, value: [R, H, X, d]. Returns [R, G * X, H, d] and [R, G * X, H, 1].
    """
    rows, all_heads, length, width = query.shape
    heads = key.shape[1]
    group = all_heads // heads
    keys, values = (states.repeat_interleave(group, dim=1) if group > 1 else states for states in (key, value))
    out, lse = attend(query, keys, values, None, scale, causal=True)
    out = out.reshape(rows, heads, group * length, width).transpose(1, 2)
    return out, lse.reshape(rows, heads, group * length).transpose(1, 2).unsqueeze(-1)


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
