"""A cache of prompts that a frozen model has read: their keys and values, and the states of their positions.

Epochs and validations read the same prompts again. While `caching` is entered, each is read once, as far as memory allows.
A prompt is then read by itself, after the beginning that all of them have in common. So what the cache gives depends neither
on the batch in which a prompt came first, nor on what fits into memory, nor on whether a training was interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from contrastive import prefix
from contrastive.forward import hidden_states, pad_right
from contrastive.prefix import WORTH_SHARING, Output, Prefix, read_on, read_prefix

Prompt = tuple[int, ...]

# by model, the caches that are in use
_caches: WeakKeyDictionary[PreTrainedModel, list[_PromptCache]] = WeakKeyDictionary()


@contextmanager
def caching(prompts: Iterable[tuple[PreTrainedModel, Iterable[Sequence[int]]]], *, limit: int) -> Iterator[None]:
    """While entered, `prefill` and `read_states` keep what the models have read of these prompts.

    Args:
        prompts: models, and the token ids of the prompts that each will read again.
        limit: bytes that all models may keep together. Prompts that come when it is reached are read anew each time.
    """
    memory = _Memory(limit)
    entered = [(_caches.setdefault(model, []), _PromptCache(model, of_model, memory)) for model, of_model in prompts]
    for caches, cache in entered:
        caches.append(cache)
    try:
        yield
    finally:
        for caches, cache in entered:
            caches.remove(cache)


@torch.no_grad()
def prefill(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Prefix:
    """As `prefix.prefill`, from the cache where all the prompts are ones that it keeps."""
    cache, prompts = _cache_of(model, input_ids, attention_mask)
    return cache.keys(prompts) if cache else prefix.prefill(model, input_ids, attention_mask)


@torch.no_grad()
def read_states(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, *, output: Output) -> Tensor:
    """What `output` computes for each position of prompts, [B, P, *], from the cache where it keeps all of them.

    Args:
        model: a frozen model, one that `can_extend`.
        input_ids: [B, P] int64, padded on the right.
        attention_mask: [B, P] int64, 0 for padding.
        output: of the positions; the cache knows it again if it is the same object.
    """
    cache, prompts = _cache_of(model, input_ids, attention_mask)
    if cache:
        return cache.states(prompts, output)
    return read_prefix(model, input_ids, attention_mask, output=output)[1]


class _Memory:
    """So many bytes."""

    def __init__(self, free: int) -> None:
        self._free = free

    def take(self, tensors: Iterable[Tensor]) -> bool:
        """Whether the tensors fit into what is free, which is then less."""
        size = sum(tensor.nbytes for tensor in tensors)
        fits = size <= self._free
        self._free -= size if fits else 0
        return fits


class _PromptCache:
    """What a model has read of some prompts, each by itself.

    Attributes:
        prompts: those that it keeps.
    """

    def __init__(self, model: PreTrainedModel, prompts: Iterable[Sequence[int]], memory: _Memory) -> None:
        self.prompts = {tuple(prompt) for prompt in prompts if prompt}
        self._model, self._memory = model, memory
        self._kept: dict[tuple[Output | None, Prompt], list[Tensor]] = {}
        self._beginning = _beginning(self.prompts)
        self._begun: Prefix | None = None

    def keys(self, prompts: Sequence[Prompt]) -> Prefix:
        """Keys and values of prompts."""
        rows = [self._once(None, prompt, self._read_keys) for prompt in prompts]
        longest = max(own[0].shape[2] for own in rows)
        tensors = [
            torch.cat([pad(own, (0, 0, 0, longest - own.shape[2])) for own in layer])
            for layer in zip(*rows, strict=True)
        ]
        if self._begun:
            first = [each.expand(len(rows), -1, -1, -1) for each in (*self._begun.keys, *self._begun.values)]
            tensors = [torch.cat(both, dim=2) for both in zip(first, tensors, strict=True)]
        layers = len(tensors) // 2
        return Prefix(tensors[:layers], tensors[layers:], pad_right(prompts, self._model.device)[1].bool())

    def states(self, prompts: Sequence[Prompt], output: Output) -> Tensor:
        """What `output` computes for each position of prompts, [B, P, *]."""
        rows = [self._once(output, prompt, partial(self._read_states, output)) for prompt in prompts]
        return pad_sequence([states for [states] in rows], batch_first=True)

    def _once(self, kind: Output | None, prompt: Prompt, read: Callable[[Prompt], list[Tensor]]) -> list[Tensor]:
        found = self._kept.get((kind, prompt))
        if found is None:
            with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode could be in no backward pass
                found = read(prompt)
            if self._memory.take(found):
                self._kept[kind, prompt] = found
        return found

    def _read_keys(self, prompt: Prompt) -> list[Tensor]:
        """Keys of all layers, then values, of what follows the common beginning: [1, H, S, d] each."""
        ids, mask = pad_right([prompt], self._model.device)
        common = len(self._beginning)
        if not common:
            whole = prefix.prefill(self._model, ids, mask)
        else:
            if self._begun is None:
                self._begun = prefix.prefill(self._model, ids[:, :common], mask[:, :common])
            whole, _ = read_on(self._model, self._begun, ids, mask, output=hidden_states)
        return [each[:, :, common:].contiguous() for each in (*whole.keys, *whole.values)]

    def _read_states(self, output: Output, prompt: Prompt) -> list[Tensor]:
        return [read_prefix(self._model, *pad_right([prompt], self._model.device), output=output)[1][0]]


def _beginning(prompts: Collection[Prompt]) -> Prompt:
    """The first tokens that all prompts share, where each keeps one of its own and it is worth the while."""
    if len(prompts) < 2:
        return ()
    first, last = min(prompts), max(prompts)  # what these share, all those between them share
    common = min(prefix.common_beginning([first, last]), min(map(len, prompts)) - 1)
    return first[:common] if common >= WORTH_SHARING else ()


def _cache_of(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor
) -> tuple[_PromptCache | None, list[Prompt]]:
    """The cache that keeps all of these prompts, and the prompts."""
    caches = _caches.get(model)
    if not caches:
        return None, []
    prompts = [tuple(ids[seen].tolist()) for ids, seen in zip(input_ids, attention_mask.bool(), strict=True)]
    return next((cache for cache in caches if cache.prompts.issuperset(prompts)), None), prompts
