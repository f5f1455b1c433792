"""Runs a model on a prefix once and continues after it.

Where the model is frozen, only the soft tokens and what follows them depend on the trained parameters. The keys and values
of everything before are therefore computed once for a question, without gradient, and shared by its paths; and those of a
beginning that several questions have in common once for them all. This works for models with an ordinary key-value cache
that accept an attention mask from outside; `can_extend` finds out by a trial.
`states_after` works for every causal model: for the others it runs the prefix again each time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from contrastive.forward import MODEL_ERRORS, CaptureCache, agree, attention_masks, finely, hidden_states, pad_right
from contrastive.windows import lengths, narrowed

WORTH_SHARING = 8  # tokens of a common beginning; fewer take longer to be read apart than they save

Output = Callable[..., Tensor]  # a model's forward pass: (model, inputs_embeds=..., ...) to [B, S, *]


@dataclass(frozen=True, eq=False)
class Prefix:
    """The keys and values of prefixes that a model has read.

    Attributes:
        keys: of each layer, [B, H, P, d], with H heads of width d.
        values: the same for values.
        seen: [B, P] bool, False for padding, which is on the right.
    """

    keys: list[Tensor]
    values: list[Tensor]
    seen: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each prefix, [B] int64."""
        return self.seen.sum(-1)


def after_prefix(prefix: Tensor, own: Tensor) -> Tensor:
    """Joins prefixes [B, H, P, d] and the n rows that follow each, [B * n, H, S, d], to [B * n, H, P + S, d]."""
    times = len(own) // len(prefix)
    return torch.cat([prefix.repeat_interleave(times, dim=0) if times > 1 else prefix, own], dim=2)


class _PrefixCache(Cache):
    """A cache that puts the prefix's keys and values before those of each row, and stores nothing.

    As it stores nothing, a layer that is computed again in gradient checkpointing gets the same keys and values.
    """

    def __init__(self, prefix: Prefix) -> None:
        super().__init__(layers=[])
        self._prefix = prefix

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        keys, values = self._prefix.keys[layer_idx], self._prefix.values[layer_idx]
        return after_prefix(keys, key_states), after_prefix(values, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return int(self._prefix.seen.shape[1])


class _JoiningCache(_PrefixCache):
    """The same, but it keeps what it returned: prefixes and what follows them, as longer prefixes.

    Attributes:
        joined: by layer, keys and values.
    """

    def __init__(self, prefix: Prefix) -> None:
        super().__init__(prefix)
        self.joined: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        self.joined[layer_idx] = super().update(key_states, value_states, layer_idx)
        return self.joined[layer_idx]


@torch.no_grad()
def prefill(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Prefix:
    """Runs a frozen model on prefixes and returns their keys and values, without gradient. Arguments as of `read_prefix`."""
    return read_prefix(model, input_ids, attention_mask)[0]


def read_prefix(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, *, output: Output = hidden_states
) -> tuple[Prefix, Tensor]:
    """Runs a model on prefixes. A gradient flows through all that is returned.

    The beginning that all have in common, such as that of a chat template, an instruction or solved examples, is read once.

    Args:
        model: the model, one that `can_extend`.
        input_ids: [B, P] int64, padded on the right.
        attention_mask: [B, P] int64, 0 for padding.
        output: what is computed for each position.

    Returns:
        The keys and values of the prefixes, and what `output` computes, [B, P, *].
    """
    # every row keeps at least one token of its own
    common = min(common_beginning(input_ids.tolist()), int(attention_mask.sum(-1).min()) - 1)
    if len(input_ids) < 2 or common < WORTH_SHARING:
        return _read(model, input_ids, attention_mask, output)
    once, first = _read(model, input_ids[:1, :common], attention_mask[:1, :common], output)
    whole, rest = read_on(model, once, input_ids, attention_mask, output=output)
    return whole, torch.cat([first.expand(len(input_ids), -1, -1), rest], dim=1)


def read_on(
    model: PreTrainedModel, once: Prefix, input_ids: Tensor, attention_mask: Tensor, *, output: Output
) -> tuple[Prefix, Tensor]:
    """Reads what is left of prefixes whose beginning a model has read. A gradient flows through all that is returned.

    Args:
        model: the model.
        once: the beginning, a single one without padding, that all the prefixes have in common.
        input_ids: [B, P] int64, the whole prefixes, padded on the right.
        attention_mask: [B, P] int64, 0 for padding.
        output: what is computed for each position after the beginning.

    Returns:
        The keys and values of the whole prefixes, and what `output` computes.
    """
    common = once.seen.shape[1]
    rows, width = len(input_ids), input_ids.shape[1] - common
    shared = Prefix(
        [keys.expand(rows, -1, -1, -1) for keys in once.keys],
        [values.expand(rows, -1, -1, -1) for values in once.values],
        once.seen.expand(rows, -1),
    )
    cache = _JoiningCache(shared)
    rest = _after(
        model,
        shared,
        model.get_input_embeddings()(input_ids[:, common:]),
        torch.arange(common, common + width, device=input_ids.device).expand(rows, -1),
        torch.ones(width, width, dtype=torch.bool, device=input_ids.device).tril(),
        output,
        cache,
    )
    keys, values = zip(*(cache.joined[layer] for layer in sorted(cache.joined)), strict=True)
    return Prefix([*keys], [*values], attention_mask.bool()), rest


def _read(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, output: Output) -> tuple[Prefix, Tensor]:
    """As `read_prefix`, each prefix by itself."""
    capture = CaptureCache()
    states = output(
        model,
        inputs_embeds=model.get_input_embeddings()(input_ids),
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=capture,
        use_cache=True,
    )
    return Prefix(capture.keys, capture.values, attention_mask.bool()), states


def common_beginning(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all rows of token ids share."""
    return sum(1 for _ in takewhile(lambda ids: len(set(ids)) == 1, zip(*rows, strict=False)))


def extend(
    model: PreTrainedModel,
    prefix: Prefix,
    inputs: Tensor,
    positions: Tensor,
    allowed: Tensor,
    *,
    output: Output | None = None,
) -> Tensor:
    """Runs a model on n rows of inputs after each prefix, with gradient for the inputs.

    Args:
        model: the frozen model.
        prefix: B prefixes that it has read.
        inputs: [B * n, S, D] embeddings; first the n rows of the first prefix, then those of the second, and so on.
        positions: [B * n, S] int64.
        allowed: [S, S] bool, True where a query (row) may see a key (column) of its own row. All see the whole prefix.
        output: what is computed for each position; `hidden_states` by default.

    Returns:
        [B * n, S, *], whatever `output` computes.
    """
    return _after(model, prefix, inputs, positions, allowed, output or hidden_states, _PrefixCache(prefix))


def _after(
    model: PreTrainedModel,
    prefix: Prefix,
    inputs: Tensor,
    positions: Tensor,
    allowed: Tensor,
    output: Output,
    cache: _PrefixCache,
) -> Tensor:
    """As `extend`. cache: of the prefix."""
    rows, length = inputs.shape[:2]
    before = prefix.seen.repeat_interleave(rows // len(prefix.seen), dim=0)
    seen = torch.cat([before[:, None].expand(-1, length, -1), allowed.expand(rows, -1, -1)], dim=2)
    behind = torch.arange(before.shape[1], device=inputs.device).expand(rows, -1)
    return output(
        model,
        inputs_embeds=inputs,
        attention_mask=attention_masks(
            model.config, seen, positions, inputs.dtype, torch.cat([behind, positions], dim=1)
        ),
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
    )


def states_after(
    model: PreTrainedModel,
    prefixes: Sequence[Sequence[int]],
    inputs: Tensor,
    *,
    output: Output | None = None,
    before: Prefix | None = None,
) -> Tensor:
    """Runs a model on n continuations of each prefix, with gradient for the inputs. Works for every causal model.

    A model that cannot `extend` gets the sequences of one prefix at a time. These have one length, so that they need no
    padding on the left and no mask, which some models do not support.

    Args:
        model: the frozen model.
        prefixes: token ids of the B prefixes.
        inputs: [B, n, S, D] embeddings, padded on the right where a continuation is shorter.
        output: what is computed for each position; `hidden_states` by default.
        before: the prefixes as the model has read them, where it did so before.

    Returns:
        [B, n, S, *], whatever `output` computes.
    """
    batch, times, length, width = inputs.shape
    longest = max(map(len, prefixes)) + length
    if can_extend(model, longest=longest):
        before = before or prefill(model, *pad_right(prefixes, inputs.device))
        steps = torch.arange(length, device=inputs.device)
        positions = (before.lengths[:, None] + steps).repeat_interleave(times, dim=0)
        causal = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
        outputs = extend(model, before, inputs.view(-1, length, width), positions, causal, output=output)
        return outputs.view(batch, times, length, -1)
    return torch.stack(
        [_without_cache(model, *each, output or hidden_states) for each in zip(prefixes, inputs, strict=True)]
    )


def _without_cache(model: PreTrainedModel, prefix: Sequence[int], inputs: Tensor, output: Output) -> Tensor:
    """Output [n, S, *] for n continuations [n, S, D] of one prefix, computed without a cache."""
    ids = torch.tensor([prefix], dtype=torch.long, device=inputs.device)
    before = model.get_input_embeddings()(ids).to(inputs.dtype).expand(len(inputs), -1, -1)
    return output(model, inputs_embeds=torch.cat([before, inputs], dim=1), use_cache=False)[:, len(prefix) :]


# results of trials, by model and by the lengths at which it changes that a trial had to exceed
_trials: WeakKeyDictionary[PreTrainedModel, dict[frozenset[int], bool]] = WeakKeyDictionary()


def can_extend(model: PreTrainedModel, *, longest: int | None = None) -> bool:
    """Whether `prefill` and `extend` compute the same states as the model does by itself.

    This is tried once, on a few tokens, against a forward pass without a cache. Where sequences of `longest` tokens exceed
    a window of the model, the trial exceeds it, too.

    Args:
        model: the frozen model.
        longest: tokens of the longest sequence that the answer is to hold for; None for any length.
    """
    known = _trials.setdefault(model, {})
    beyond = lengths(model, longest=longest)
    if beyond not in known:
        known[beyond] = _try_extending(model, longest)
    return known[beyond]


@torch.no_grad()
def _try_extending(model: PreTrainedModel, longest: int | None) -> bool:
    """The trial of `can_extend`: two prefixes of different lengths, and after each two paths in one row, as in a thinker."""
    paths, steps = 2, 3
    size = model.config.get_text_config().vocab_size
    ids = (torch.arange(3, 300, 7, device=model.device) % size).tolist()
    prefixes = [ids[:11], ids[11:14]]  # one is longer than TRIAL_WINDOW, the other is shorter
    inputs = model.get_input_embeddings()(torch.tensor(ids[14 : 14 + 2 * paths * steps], device=model.device))
    inputs = inputs.view(2, paths, steps, -1)
    with narrowed(model, longest=longest), finely(model):
        expected = torch.stack(
            [_without_cache(model, *each, hidden_states) for each in zip(prefixes, inputs, strict=True)]
        )
        try:
            before = prefill(model, *pad_right(prefixes, model.device))
            positions = before.lengths[:, None] + torch.arange(steps, device=model.device).repeat(paths)
            extended = extend(
                model, before, inputs.flatten(1, 2), positions, path_mask(paths, steps, model.device)
            ).view_as(expected)
        except MODEL_ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
    return agree(extended.flatten(0, 1), expected.flatten(0, 1))


def path_mask(num_paths: int, num_slots: int, device: torch.device) -> Tensor:
    """Attention mask of N paths of L slots in one row, [N * L, N * L] bool.

    True where a slot (row) may see a slot (column): it sees the slots of its own path up to itself.
    """
    path = torch.arange(num_paths, device=device).repeat_interleave(num_slots)
    return (path[:, None] == path).tril()
