"""A frozen model reads a prefix once, without gradient, and continues it with gradient for what follows.

Only what stands after the soft tokens depends on what is trained. The keys and values of everything before are computed
once for a question and shared by its paths. That takes a model with plain keys and values, and masks from outside;
`can_extend` tries whether one is. `states_after` serves every other causal model, too: it reads the prefix anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from contrastive.forward import MODEL_ERRORS, CaptureCache, agree, attention_masks, decoder_of, hidden_states, pad_right
from contrastive.windows import lengths, narrowed

Output = Callable[..., Tensor]  # a model's forward pass: (model, inputs_embeds=..., ...) to [B, S, *]


@dataclass(frozen=True, eq=False)
class Prefix:
    """keys, values: [B, H, P, d] a layer, without gradient; seen: [B, P] bool, False for padding, which is on the right."""

    keys: list[Tensor]
    values: list[Tensor]
    seen: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each prefix, [B] int64."""
        return self.seen.sum(-1)


class _PrefixCache(Cache):
    """Gives every row its prefix's keys before its own, and keeps nothing: a layer computed again sees the same."""

    def __init__(self, prefix: Prefix) -> None:
        super().__init__(layers=[])
        self._prefix = prefix

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        keys, values = self._prefix.keys[layer_idx], self._prefix.values[layer_idx]
        return _after(keys, key_states), _after(values, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return int(self._prefix.seen.shape[1])


def _after(prefix: Tensor, own: Tensor) -> Tensor:
    """prefix: [B, H, P, d], own: [B * n, H, S, d], n rows of each in turn; [B * n, H, P + S, d]."""
    times = len(own) // len(prefix)
    return torch.cat([prefix.repeat_interleave(times, dim=0) if times > 1 else prefix, own], dim=2)


@torch.no_grad()
def prefill(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Prefix:
    """Keys and values of a frozen model for input_ids [B, P] int64, padded on the right; attention_mask: [B, P] int64."""
    capture = CaptureCache()
    decoder_of(model)(
        inputs_embeds=model.get_input_embeddings()(input_ids),
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=capture,
        use_cache=True,
    )
    return Prefix(capture.keys, capture.values, attention_mask.bool())


def extend(
    model: PreTrainedModel,
    prefix: Prefix,
    inputs: Tensor,
    positions: Tensor,
    allowed: Tensor,
    *,
    output: Output | None = None,
) -> Tensor:
    """What `output` makes of what follows the prefixes, [B * n, S, *], n rows of each in turn, with gradient by the inputs.

    inputs: [B * n, S, D] embeddings; positions: [B * n, S] int64; allowed: [S, S] bool, True where a query (row) may see a
    key (column) of its own row. The whole prefix is seen by all. output: `hidden_states`, unless another is given.
    """
    rows, length = inputs.shape[:2]
    before = prefix.seen.repeat_interleave(rows // len(prefix.seen), dim=0)
    seen = torch.cat([before[:, None].expand(-1, length, -1), allowed.expand(rows, -1, -1)], dim=2)
    behind = torch.arange(before.shape[1], device=inputs.device).expand(rows, -1)
    return (output or hidden_states)(
        model,
        inputs_embeds=inputs,
        attention_mask=attention_masks(
            model.config, seen, positions, inputs.dtype, torch.cat([behind, positions], dim=1)
        ),
        position_ids=positions,
        past_key_values=_PrefixCache(prefix),
        use_cache=True,
    )


def states_after(
    model: PreTrainedModel,
    prefixes: Sequence[Sequence[int]],
    inputs: Tensor,
    *,
    output: Output | None = None,
) -> Tensor:
    """What `output` makes of n continuations of each prefix, [B, n, S, *], with gradient by the inputs.

    prefixes: token ids; inputs: [B, n, S, D] embeddings, padded on the right where a continuation is shorter. Right for
    every causal model: the sequences of one prefix have one length, so nothing is padded on the left, and none is masked.
    """
    batch, times, length, width = inputs.shape
    longest = max(map(len, prefixes)) + length
    if can_extend(model, longest=longest):
        ids, mask = pad_right(prefixes, inputs.device)
        before = prefill(model, ids, mask)
        steps = torch.arange(length, device=inputs.device)
        positions = (before.lengths[:, None] + steps).repeat_interleave(times, dim=0)
        causal = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
        found = extend(model, before, inputs.view(-1, length, width), positions, causal, output=output)
        return found.view(batch, times, length, -1)
    return torch.stack(
        [_without_cache(model, *each, output or hidden_states) for each in zip(prefixes, inputs, strict=True)]
    )


def _without_cache(model: PreTrainedModel, prefix: Sequence[int], inputs: Tensor, output: Output) -> Tensor:
    """[n, S, *] for the continuations [n, S, D] of one prefix, without any cache."""
    ids = torch.tensor([prefix], dtype=torch.long, device=inputs.device)
    before = model.get_input_embeddings()(ids).to(inputs.dtype).expand(len(inputs), -1, -1)
    return output(model, inputs_embeds=torch.cat([before, inputs], dim=1), use_cache=False)[:, len(prefix) :]


_trials: WeakKeyDictionary[PreTrainedModel, dict[frozenset[int], bool]] = WeakKeyDictionary()


def can_extend(model: PreTrainedModel, *, longest: int | None = None) -> bool:
    """Whether `prefill` and `extend` give a model's own states for sequences of at most `longest` tokens.

    Tried once on a few tokens, beyond the model's windows where `longest` is, against a forward pass without cache.
    """
    known = _trials.setdefault(model, {})
    beyond = lengths(model, longest=longest)
    if beyond not in known:
        known[beyond] = _try_extending(model, longest)
    return known[beyond]


@torch.no_grad()
def _try_extending(model: PreTrainedModel, longest: int | None) -> bool:
    """Two prefixes of different lengths, and after each two paths in one row, as the thinker lays them out."""
    paths, steps = 2, 3
    size = model.config.get_text_config().vocab_size
    ids = (torch.arange(3, 300, 7, device=model.device) % size).tolist()
    prefixes = [ids[:11], ids[11:14]]  # beyond a window of the trial, and within it
    inputs = model.get_input_embeddings()(torch.tensor(ids[14 : 14 + 2 * paths * steps], device=model.device))
    inputs = inputs.view(2, paths, steps, -1)
    with narrowed(model, longest=longest):
        expected = torch.stack(
            [_without_cache(model, *each, hidden_states) for each in zip(prefixes, inputs, strict=True)]
        )
        try:
            before = prefill(model, *pad_right(prefixes, model.device))
            positions = before.lengths[:, None] + torch.arange(steps, device=model.device).repeat(paths)
            found = extend(
                model, before, inputs.flatten(1, 2), positions, path_mask(paths, steps, model.device)
            ).view_as(expected)
        except MODEL_ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
    return agree(found.flatten(0, 1), expected.flatten(0, 1))


def path_mask(num_paths: int, num_slots: int, device: torch.device) -> Tensor:
    """[N * L, N * L] bool, True where a slot (row) may see a slot (column): those of its own path up to itself."""
    path = torch.arange(num_paths, device=device).repeat_interleave(num_slots)
    return (path[:, None] == path).tril()
