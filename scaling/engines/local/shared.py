"""Three levels of keys and values: a question's prefix held once, a path's segment once, and each sample's own tokens.

The *segment* is what follows the prefix: soft thoughts and suffix, or the last token of a prompt that has neither.
Letters as in `attention`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from contrastive.forward import CaptureCache
from contrastive.windows import switches
from scaling.engines.base import KeysAndValues, SoftPrompt
from scaling.engines.embedded import embedded
from scaling.engines.local import attention
from scaling.engines.local.attention import Groups, Levels, SharedLevel
from scaling.engines.local.beginning import Beginning
from scaling.engines.local.decoder import batches, index_of, on_device
from scaling.engines.local.levels import OwnKeys, Store
from scaling.models.signatures import positions_to_keep

# what prompts share: token ids, or keys and values that were read already
Shared = tuple[int, ...] | KeysAndValues


@dataclass(frozen=True, eq=False)
class _Split:
    """The two pieces of a prompt. length: tokens of the first; after: of the segment, which is never empty."""

    prefix: Shared
    length: int
    after: int


@dataclass(frozen=True, eq=False)
class _Held:
    """Where a prompt's keys are, and the logits [V] after it."""

    prefix: Shared
    prefix_slot: int
    segment_slot: int
    length: int
    logits: Tensor


@dataclass(eq=False)
class _Grouping:
    """Which rows of a pass share what."""

    prefixes: _Users
    segments: _Users


@dataclass(eq=False)
class _Users:
    """slots: [S] int64 of a store, those that the groups use; None for the first ones."""

    groups: Groups
    slots: Tensor | None = None


class SharedPrefixDecoder:
    """Raises ValueError or NotImplementedError where the model does not take its attention from outside.

    block: rows of every decoding pass, filled up with rows that nobody reads; no product's size, hence no result, then
    depends on what else is decoded, as long as prompts are held one at a time. None for one pass of all rows.
    """

    share_prefix = True

    def __init__(self, model: PreTrainedModel, *, num_rows: int, max_new_tokens: int, block: int | None = None) -> None:
        attention.install(model)
        self._block, self._multiple = block, attention.KEYS if block else 1
        num_rows = -(-num_rows // (block or 1)) * (block or 1)
        self._model = model
        device = model.device
        self._prefixes, self._segments = Store(device), Store(device)
        # none where a result must not depend on what was read before, or where keys change with the length of the text
        self._beginning = None if block or switches(model) else Beginning()
        self._own = OwnKeys(num_rows, max_new_tokens, device, multiple=self._multiple)
        self._held: dict[SoftPrompt, _Held] = {}
        self._prefix_slots: dict[Shared, int] = {}
        self._prefix_users: Counter[Shared] = Counter()
        # of each row: its slots in the two stores, which only the host looks at, and the length of its prompt
        self._slots = [(0, 0)] * num_rows
        self._starts = torch.zeros(num_rows, dtype=torch.long, device=device)
        self._groupings: dict[int, _Grouping] = {}  # by the first row of a pass; the same until rows or stores change
        # a model's own mask is never looked at, but it would take time to make: anything of four axes is passed through
        self._no_mask = torch.zeros(1, 1, 1, 1, dtype=model.dtype, device=device)

    @property
    def used(self) -> int:
        return self._own.used

    @property
    def bytes_per_token(self) -> int:
        return self._prefixes.bytes_per_token or self._segments.bytes_per_token

    def hold(self, prompts: Sequence[SoftPrompt]) -> int:
        split = [_split(prompt) for prompt in prompts]
        new = {one.prefix: one.length for one in split if one.prefix not in self._prefix_slots}
        unread = [prefix for prefix in new if isinstance(prefix, tuple)]
        saved = 0
        if unread and self._beginning and not self._beginning.known:
            self._compute_prefixes([unread.pop(0)])
        for batch in batches([len(prefix) for prefix in unread]):
            saved += self._compute_prefixes([unread[number] for number in batch])
        for prefix in new:
            if isinstance(prefix, KeysAndValues):
                self._take_in(prefix)
        for batch in batches([one.after for one in split]):
            # pieces of one length only, so that nothing is padded and the last position is the last token of all
            for length in {split[number].after for number in batch}:
                self._compute_segments([prompts[number] for number in batch if split[number].after == length], length)
        self._groupings.clear()
        return sum(new.values()) - saved + sum(one.after for one in split)

    def drop(self, prompt: SoftPrompt) -> None:
        held = self._held.pop(prompt)
        self._segments.remove(held.segment_slot)
        self._prefix_users[held.prefix] -= 1
        if not self._prefix_users[held.prefix]:
            del self._prefix_users[held.prefix]
            self._prefixes.remove(self._prefix_slots.pop(held.prefix))
        self._groupings.clear()

    def place(self, rows: Sequence[int], prompts: Sequence[SoftPrompt]) -> Tensor:
        held = [self._held[prompt] for prompt in prompts]
        device = self._starts.device
        self._starts[index_of(rows, device)] = on_device([h.length for h in held], device)
        for row, h in zip(rows, held, strict=True):
            self._slots[row] = (h.prefix_slot, h.segment_slot)
        self._own.clear(rows)
        self._own.used = max(self._own.used, max(rows) + 1)
        self._groupings.clear()
        return torch.stack([h.logits for h in held])

    def remove(self, rows: Sequence[int]) -> list[int]:
        order = self._own.remove(rows)
        self._starts[: len(order)] = self._starts[on_device(order, self._starts.device)]
        self._slots[: len(order)] = [self._slots[row] for row in order]
        self._groupings.clear()
        return order

    def step(self, tokens: Tensor) -> Tensor:
        if self._block is None:
            return self._pass(tokens, slice(self.used))
        filled = -(-self.used // self._block) * self._block
        self._own.clear(range(self.used, filled))
        self._starts[self.used : filled] = self._starts[:1]
        self._slots[self.used : filled] = self._slots[:1] * (filled - self.used)
        tokens = pad(tokens, (0, filled - self.used))
        starts = range(0, filled, self._block)
        passes = [slice(start, start + self._block) for start in starts]
        return torch.cat([self._pass(tokens[rows], rows) for rows in passes])[: self.used]

    def _pass(self, tokens: Tensor, rows: slice) -> Tensor:
        """Feeds some rows one token each. Logits after it."""
        self._own.extend(rows)
        grouping = self._grouping(rows)
        lengths, starts = self._own.lengths[rows], self._starts[rows]
        positions = (starts + lengths - 1)[:, None]
        shared = [
            level
            for store, users in ((self._prefixes, grouping.prefixes), (self._segments, grouping.segments))
            if (level := self._level(store, users, positions))
        ]
        inputs = self._model.get_input_embeddings()(tokens)[:, None]
        return self._forward(inputs, self._own, Levels(shared, positions, starts, lengths, fixed=bool(self._block)))

    def _grouping(self, rows: slice) -> _Grouping:
        if rows.start not in self._groupings:
            prefixes, segments = zip(*self._slots[rows], strict=True)
            self._groupings[rows.start] = _Grouping(
                self._users(self._prefixes, prefixes), self._users(self._segments, segments)
            )
        return self._groupings[rows.start]

    def _users(self, store: Store, slots: Sequence[int]) -> _Users:
        """slots: the slot that each row uses."""
        device = self._starts.device
        if self._block is None:
            return _Users(Groups.of(slots, num_groups=store.num_groups, device=device))
        used = sorted(set(slots))
        number = {slot: n for n, slot in enumerate(used)}
        if len(used) == 1:  # at least two: a call with a single product could spread it over all threads
            used *= 2
        groups = Groups.of([number[slot] for slot in slots], num_groups=len(used), device=device)
        return _Users(groups, on_device(used, device))

    def _level(self, store: Store, users: _Users, positions: Tensor) -> SharedLevel | None:
        """A store as the queries at `positions` see it; None where it holds no token."""
        if store.longest == 0:
            return None
        keys, values = store.view(multiple=self._multiple)
        slots = slice(store.num_groups) if users.slots is None else users.slots
        lengths, starts = store.lengths[slots], store.starts[slots]
        even = store.even and self._block is None
        return SharedLevel(keys, values, lengths, starts, users.groups, positions, even, users.slots)

    def _compute_prefixes(self, prefixes: list[tuple[int, ...]]) -> int:
        """Padded on the right, where causal attention never looks. Returns how many tokens were known from earlier ones."""
        beginning, device = self._beginning, self._starts.device
        common = beginning.narrow(prefixes) if beginning and beginning.known else 0
        rest = [prefix[common:] for prefix in prefixes]
        width = max(1, *map(len, rest))  # at least one token goes through the model, even if none is asked for
        padded = [[*own, *[0] * (width - len(own))] for own in rest]
        inputs = self._model.get_input_embeddings()(on_device(padded, device))
        levels = self._own_level(torch.full((len(prefixes),), common, device=device), width)
        caught = CaptureCache()
        if beginning and common:
            levels.shared = [beginning.level(levels.positions)]
        self._forward(inputs, caught, levels)
        if beginning and common:
            caught = beginning.before(caught)
        elif beginning and not beginning.known:
            beginning.start(prefixes[0], caught)
        slots = self._prefixes.add(caught, [len(prefix) for prefix in prefixes], start=[0] * len(prefixes))
        self._prefix_slots.update(zip(prefixes, slots, strict=True))
        return common * len(prefixes)

    def _take_in(self, read: KeysAndValues) -> None:
        """Holds what a method has read."""
        caught = CaptureCache()
        caught.keys, caught.values = [keys[None] for keys in read.keys], [values[None] for values in read.values]
        self._prefix_slots[read] = self._prefixes.add(caught, [read.keys[0].shape[1]], start=[0])[0]

    def _compute_segments(self, prompts: list[SoftPrompt], length: int) -> None:
        inputs = torch.stack([embedded(self._model, prompt)[-length:] for prompt in prompts])
        split = [_split(prompt) for prompt in prompts]
        used = [self._prefix_slots[one.prefix] for one in split]
        starts = on_device([one.length for one in split], inputs.device)
        levels = self._own_level(starts, length)
        if level := self._level(self._prefixes, self._users(self._prefixes, used), levels.positions):
            levels.shared = [level]
        caught = CaptureCache()
        logits = self._forward(inputs, caught, levels)
        slots = self._segments.add(caught, [length] * len(prompts), start=[one.length for one in split])
        for prompt, one, slot, last in zip(prompts, split, slots, logits, strict=True):
            self._held[prompt] = _Held(one.prefix, self._prefix_slots[one.prefix], slot, len(prompt), last)
            self._prefix_users[one.prefix] += 1

    def _own_level(self, starts: Tensor, length: int) -> Levels:
        """Rows of `length` tokens at once, from position `starts` on: the causal attention of a prefill."""
        positions = starts[:, None] + torch.arange(length, device=starts.device)
        lengths = torch.full_like(starts, length)
        return Levels([], positions, starts, lengths, fixed=self._block is not None, causal=True)

    def _forward(self, inputs: Tensor, cache: Cache, levels: Levels) -> Tensor:
        """Logits [rows, V] after the last position of inputs [rows, X, D]."""
        output = self._model(
            inputs_embeds=inputs,
            attention_mask=self._no_mask,
            position_ids=levels.positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=positions_to_keep(inputs),
            levels=levels,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def _split(prompt: SoftPrompt) -> _Split:
    """What other prompts may share, and the segment after it."""
    if prompt.read is not None:
        return _Split(prompt.read, len(prompt) - len(prompt.suffix), len(prompt.suffix))
    after = len(prompt) - len(prompt.prefix)
    prefix, after = (prompt.prefix, after) if after else (prompt.prefix[:-1], 1)
    return _Split(prefix, len(prefix), after)
