"""The KV cache in two parts: a `Store` for what rows share, `OwnKeys` for what each row has decoded itself.

Buffers are allocated ahead and written in place. Knows slots and lengths, no prompts, no requests, no sampling.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import Cache

from contrastive.forward import CaptureCache
from scaling.engines.local.decoder import compacted, index_of, on_device

_SLOTS, _TOKENS = 8, 64  # a store grows by at least so much


class Store:
    """Keys and values of shared pieces of prompt, one slot each.

    lengths: [S] int64 tokens in each slot; starts: [S] int64 position of its first token.
    """

    def __init__(self, device: torch.device) -> None:
        self.lengths = torch.zeros(0, dtype=torch.long, device=device)
        self.starts = torch.zeros(0, dtype=torch.long, device=device)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._used: dict[int, int] = {}  # slot -> tokens
        self._free: list[int] = []
        self._next = 0

    def add(self, filled: CaptureCache, lengths: Sequence[int], *, start: Sequence[int]) -> list[int]:
        """Takes in pieces; filled holds [B, H, T, d] a layer, of which the first lengths[b] tokens count. Returns slots."""
        slots = [self._slot() for _ in lengths]
        self._reserve(filled, max(slots) + 1, filled.keys[0].shape[2])
        device = self.lengths.device
        rows = on_device(slots, device)
        for own, new in zip(self._keys + self._values, filled.keys + filled.values, strict=True):
            own[rows, :, : new.shape[2]] = new
        self.lengths[rows], self.starts[rows] = on_device([[*lengths], [*start]], device)
        self._used.update(zip(slots, lengths, strict=True))
        return slots

    def remove(self, slot: int) -> None:
        del self._used[slot]
        heapq.heappush(self._free, slot)

    @property
    def num_groups(self) -> int:
        """Slots up to the last one in use; the lowest free ones are filled first, so few of them are empty."""
        return max(self._used, default=-1) + 1

    @property
    def bytes_per_token(self) -> int:
        return _bytes_per_token(self._keys + self._values)

    @property
    def longest(self) -> int:
        return max(self._used.values(), default=0)

    @property
    def even(self) -> bool:
        return len(set(self._used.values())) <= 1

    def view(self, *, multiple: int = 1) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values [S, H, T, d] a layer, cut to the slots and the length in use, that rounded up to `multiple`."""
        at = (slice(self.num_groups), slice(None), slice(-(-self.longest // multiple) * multiple))
        return [keys[at] for keys in self._keys], [values[at] for values in self._values]

    def _slot(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._next += 1
        return self._next - 1

    def _reserve(self, like: CaptureCache, slots: int, tokens: int) -> None:
        if not self._keys:
            # zeros, as a masked key is still multiplied: what was in memory before might be NaN
            self._keys = [states.new_zeros(0, states.shape[1], 0, states.shape[3]) for states in like.keys]
            self._values = [states.new_zeros(0, states.shape[1], 0, states.shape[3]) for states in like.values]
        have_slots, _, have_tokens, _ = self._keys[0].shape
        if slots <= have_slots and tokens <= have_tokens:
            return
        slots = have_slots if slots <= have_slots else max(slots, 2 * have_slots, _SLOTS)
        tokens = have_tokens if tokens <= have_tokens else -(-tokens // _TOKENS) * _TOKENS
        more = (0, 0, 0, tokens - have_tokens, 0, 0, 0, slots - have_slots)
        self._keys = [pad(states, more) for states in self._keys]
        self._values = [pad(states, more) for states in self._values]
        self.lengths = pad(self.lengths, (0, slots - have_slots))
        self.starts = pad(self.starts, (0, slots - have_slots))


class OwnKeys(Cache):
    """Keys and values that R rows have decoded themselves: row r's token t at [r, :, t].

    lengths: [R] int64 tokens held by each row; only the first `used` rows count. The host counts them, too, as it would
    have to wait for a device to tell. multiple: T is rounded up to it, and so is the capacity.
    """

    def __init__(self, num_rows: int, capacity: int, device: torch.device, *, multiple: int = 1) -> None:
        super().__init__(layers=[])
        capacity = -(-capacity // multiple) * multiple
        self._multiple = multiple
        self.lengths = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._counts = [0] * num_rows
        self.used = 0
        self._shape = (num_rows, capacity)
        self._rows = torch.arange(num_rows, device=device)
        self._span = slice(0)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._longest = 0

    @property
    def bytes_per_token(self) -> int:
        return _bytes_per_token(self._keys + self._values)

    def reserve(self, capacity: int) -> None:
        """Rows can then hold `capacity` tokens."""
        more = capacity - self._shape[1]
        if more > 0:
            self._shape = (self._shape[0], capacity)
            self._keys = [pad(states, (0, 0, 0, more)) for states in self._keys]
            self._values = [pad(states, (0, 0, 0, more)) for states in self._values]

    def put(self, row: int, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Starts a row with tokens computed elsewhere, [H, T, d] a layer."""
        if not self._keys:
            for key_states, value_states in zip(keys, values, strict=True):
                self._allocate(key_states[None], value_states[None])
        for own, new in zip(self._keys + self._values, [*keys, *values], strict=True):
            own[row, :, : new.shape[1]] = new
        self.lengths[row] = self._counts[row] = keys[0].shape[1]

    def clear(self, rows: Sequence[int]) -> None:
        """Rows hold nothing any more."""
        self.lengths[index_of(rows, self.lengths.device)] = 0
        for row in rows:
            self._counts[row] = 0

    def move(self, source: int, target: int) -> None:
        """Copies a row over another one."""
        length = self._counts[source]
        self.lengths[target] = self._counts[target] = length
        for states in self._keys + self._values:
            states[target, :, :length] = states[source, :, :length]

    def remove(self, rows: Sequence[int]) -> list[int]:
        """Frees rows; the last ones move into their places. Returns the old numbers of the rows that are left, in order."""
        order = compacted(self.used, rows)
        for target, source in enumerate(order):
            if source != target:
                self.move(source, target)
        self.used = len(order)
        return order

    def extend(self, rows: slice | None = None) -> int:
        """Makes room for one more token in each of `rows`, else in all that are in use: those of the next pass. Returns how
        many the longest of them then has."""
        self._span = slice(self.used) if rows is None else rows
        self._at = self.lengths[self._span].clone()
        self.lengths[self._span] += 1
        counts = [count + 1 for count in self._counts[self._span]]
        self._counts[self._span], self._longest = counts, max(counts)
        return self._longest

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Called by the model's attention with the new token's [n, H, 1, d]; returns the rows' own [n, H, T, d]."""
        if layer_idx == len(self._keys):
            self._allocate(key_states, value_states)
        keys, values, rows = self._keys[layer_idx], self._values[layer_idx], self._rows[self._span]
        keys[rows, :, self._at] = key_states[:, :, 0]
        values[rows, :, self._at] = value_states[:, :, 0]
        longest = -(-self._longest // self._multiple) * self._multiple
        return keys[self._span, :, :longest], values[self._span, :, :longest]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return self._longest - 1

    def _allocate(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, capacity = self._shape
        for states, buffers in ((key_states, self._keys), (value_states, self._values)):
            buffers.append(states.new_zeros(rows, states.shape[1], capacity, states.shape[3]))


def _bytes_per_token(buffers: Sequence[Tensor]) -> int:
    """buffers: [S, H, T, d] of all layers."""
    return sum(states.shape[1] * states.shape[3] * states.itemsize for states in buffers)
