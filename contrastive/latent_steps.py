"""Latent steps: a model reads its own last hidden state as its next input, instead of a token (arXiv 2412.06769).

The prefixes are read once. Then each latent step is one forward pass of one position for all rows: the paths of a question
share the keys and values of its prefix, and each row keeps those of its own thoughts. A model that cannot go on from keys
and values reads everything again at each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from contrastive.forward import attention_masks, hidden_states, pad_right
from contrastive.prefix import Output, Prefix, after_prefix, can_extend, read_prefix

Noise = Callable[[int, Tensor], Tensor]  # (number of the thought from 0, thoughts [B, N, D]) to what is added to them


class Rows:
    """Rows that a model reads bit by bit: the N rows of a question begin with its prefix.

    A gradient flows through everything that was read, unless it is switched off.

    Attributes:
        paths: N, rows of each question.
        last: the last hidden states of the prefixes' last tokens, [B, D].
    """

    paths: int
    last: Tensor

    def __init__(self, model: PreTrainedModel, prefixes: Sequence[Sequence[int]], *, paths: int) -> None:
        """Reads the prefixes. prefixes: token ids of the B questions; paths: N, rows of each."""
        assert all(prefixes), "a thought follows a token"
        self._model, self.paths = model, paths

    def read(self, inputs: Tensor, *, output: Output | None = None) -> Tensor:
        """Reads on in all rows.

        Args:
            inputs: [B, N, S, D] embeddings, padded on the right where this is the last part of a row.
            output: what is computed for each position; `hidden_states` by default.

        Returns:
            [B, N, S, *], whatever `output` computes.
        """
        raise NotImplementedError


class _CachedRows(Rows):
    """Rows of a model that goes on from keys and values."""

    def __init__(self, model: PreTrainedModel, prefixes: Sequence[Sequence[int]], *, paths: int) -> None:
        super().__init__(model, prefixes, paths=paths)
        self._prefix, states = read_prefix(model, *pad_right(prefixes, model.device))
        self.last = states[torch.arange(len(states), device=states.device), self._prefix.lengths - 1]
        self._own: list[tuple[Tensor, Tensor]] = []  # of each layer, keys and values of what was read after the prefix
        self._length = 0

    def read(self, inputs: Tensor, *, output: Output | None = None) -> Tensor:
        batch, paths, length, _ = inputs.shape
        device, total = inputs.device, self._length + length
        # a row's own positions follow its prefix, whose padding no row sees
        own = (self._prefix.lengths[:, None] + torch.arange(total, device=device)).repeat_interleave(paths, dim=0)
        seen = self._prefix.seen.repeat_interleave(paths, dim=0)
        behind = torch.arange(seen.shape[1], device=device).expand(len(seen), -1)
        causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()[self._length :]
        allowed = torch.cat([seen[:, None].expand(-1, length, -1), causal.expand(len(seen), -1, -1)], dim=2)
        positions, key_positions = own[:, self._length :], torch.cat([behind, own], dim=1)
        cache = _GrowingCache(self._prefix, self._own, self._length)
        states = (output or hidden_states)(
            self._model,
            inputs_embeds=inputs.flatten(0, 1),
            attention_mask=attention_masks(self._model.config, allowed, positions, inputs.dtype, key_positions),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        self._own, self._length = [cache.own[layer] for layer in sorted(cache.own)], total
        return states.view(batch, paths, length, -1)


class _GrowingCache(Cache):
    """A cache for one forward pass: what each row has read so far stands before what it reads now.

    It does not change what it was made of. A layer that is computed again in gradient checkpointing therefore gets the same.

    Attributes:
        own: by layer, the keys and values of all that the rows have read after their prefixes, now included.
    """

    def __init__(self, prefix: Prefix, before: Sequence[tuple[Tensor, Tensor]], length: int) -> None:
        super().__init__(layers=[])
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self._prefix, self._before, self._length = prefix, before, length

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        keys, values = key_states, value_states
        if self._before:
            keys = torch.cat([self._before[layer_idx][0], keys], dim=2)
            values = torch.cat([self._before[layer_idx][1], values], dim=2)
        self.own[layer_idx] = keys, values
        return after_prefix(self._prefix.keys[layer_idx], keys), after_prefix(self._prefix.values[layer_idx], values)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return int(self._prefix.seen.shape[1]) + self._length


class _RecomputedRows(Rows):
    """Rows of a model that reads everything again each time.

    The rows of one question go together: they have one length, so that they need no padding on the left and no mask.
    """

    def __init__(self, model: PreTrainedModel, prefixes: Sequence[Sequence[int]], *, paths: int) -> None:
        super().__init__(model, prefixes, paths=paths)
        embed = model.get_input_embeddings()
        ids = [torch.tensor([prefix], dtype=torch.long, device=model.device) for prefix in prefixes]
        self._read = [embed(each) for each in ids]  # all that rows have read, [1, P, D], later [N, P + S, D]
        self.last = torch.cat([self._output(hidden_states, each)[:, -1] for each in self._read])

    def read(self, inputs: Tensor, *, output: Output | None = None) -> Tensor:
        self._read = [
            torch.cat([before.expand(len(rows), -1, -1), rows], dim=1)
            for before, rows in zip(self._read, inputs, strict=True)
        ]
        length = inputs.shape[2]
        return torch.stack([self._output(output or hidden_states, each)[:, -length:] for each in self._read])

    def _output(self, output: Output, inputs: Tensor) -> Tensor:
        return output(self._model, inputs_embeds=inputs, use_cache=False)


def rows_of(model: PreTrainedModel, prefixes: Sequence[Sequence[int]], *, paths: int = 1, more: int) -> Rows:
    """Rows that begin with prefixes, which the model reads.

    Args:
        model: any causal model.
        prefixes: token ids of the B questions.
        paths: N, rows of each question.
        more: how many positions will at most be read after the prefixes.
    """
    cached = can_extend(model, longest=max(map(len, prefixes)) + more)
    return (_CachedRows if cached else _RecomputedRows)(model, prefixes, paths=paths)


def think(rows: Rows, *, steps: int, noise: Noise | None = None) -> Tensor:
    """Computes the thoughts that follow the prefixes. The first is the state of a prefix's last token.

    All but the last thought are read. Who goes on reads that one first.

    Args:
        rows: whose prefixes were read, and nothing else.
        steps: n, thoughts of each row.
        noise: is asked at each step for what is added to the thoughts, before they are read and returned.

    Returns:
        [B, N, n, D], in the model's type.
    """
    state = rows.last[:, None].expand(-1, rows.paths, -1)
    thoughts: list[Tensor] = []
    for step in range(steps):
        if step:
            state = rows.read(thoughts[-1][:, :, None])[:, :, 0]
        thoughts.append(state if noise is None else (state + noise(step, state)).to(state.dtype))
    return torch.stack(thoughts, dim=2) if thoughts else state.new_empty(*state.shape[:2], 0, state.shape[2])


@torch.no_grad()
def latent_thoughts(
    model: PreTrainedModel,
    prefixes: Sequence[Sequence[int]],
    *,
    steps: int,
    paths: int = 1,
    noise: Noise | None = None,
) -> Tensor:
    """Computes the thoughts of questions, without gradient.

    Args:
        model: any causal model.
        prefixes: token ids of the B questions, with the token that begins a thought at the end.
        steps: n, thoughts of each path.
        paths: N, of each question. Without noise they are all the same.
        noise: as of `think`.

    Returns:
        [B, N, n, D] float32.
    """
    return think(rows_of(model, prefixes, paths=paths, more=steps), steps=steps, noise=noise).float()
