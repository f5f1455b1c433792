"""One row at a time: every row has a cache of the model's own, or none at all. Slow, and right for any causal model.

Nothing is padded and nothing masked, so that recurrent state, position biases and caches of any make are what they are when
the model reads a single text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from contrastive.windows import switches
from scaling.engines.base import SoftPrompt
from scaling.engines.embedded import embedded
from scaling.engines.local.decoder import compacted
from scaling.models.signatures import last_logits_only
from scaling.records.errors import UsageError

_CACHES = ("past_key_values", "cache_params", "state")  # what models call it, in results and arguments alike


@dataclass(eq=False)
class _Text:
    """What was read so far. embeddings: [T, D]; logits: [V] after it; caches: by the name of the model's argument."""

    embeddings: Tensor
    logits: Tensor
    caches: dict[str, Any]

    def copied(self) -> _Text:
        return _Text(self.embeddings, self.logits, copy.deepcopy(self.caches))


class SingleRowDecoder:
    """Keeps what the model's own cache keeps. Raises ValueError where it has none."""

    share_prefix = False
    _cached = True

    def __init__(self, model: PreTrainedModel, *, num_rows: int, max_new_tokens: int) -> None:
        del num_rows, max_new_tokens  # nothing is allocated ahead
        self._model, self._last_only = model, last_logits_only(model)
        self._switches = switches(model)
        self._held: dict[SoftPrompt, _Text] = {}
        self._rows: list[_Text] = []

    @property
    def used(self) -> int:
        return len(self._rows)

    @property
    def bytes_per_token(self) -> int:
        """On average over the prompts held: a recurrent state does not grow with the text."""
        tokens = sum(len(text.embeddings) for text in self._held.values())
        return sum(_bytes(text.caches, set()) for text in self._held.values()) // max(1, tokens)

    def hold(self, prompts: Sequence[SoftPrompt]) -> int:
        for prompt in prompts:
            if prompt.read is not None:
                raise UsageError(
                    "the backbone decodes one text at a time, from a cache of its own, and cannot go on from keys and "
                    "values that a method gives it: take another backbone, or another `--method`."
                )
            self._held[prompt] = self._read(embedded(self._model, prompt))
        return sum(map(len, prompts))

    def drop(self, prompt: SoftPrompt) -> None:
        del self._held[prompt]

    def place(self, rows: Sequence[int], prompts: Sequence[SoftPrompt]) -> Tensor:
        started = {row: self._held[prompt].copied() for row, prompt in zip(rows, prompts, strict=True)}
        count = max(len(self._rows), max(rows) + 1)
        self._rows = [started[row] if row in started else self._rows[row] for row in range(count)]
        return torch.stack([started[row].logits for row in rows])

    def remove(self, rows: Sequence[int]) -> list[int]:
        order = compacted(self.used, rows)
        self._rows = [self._rows[row] for row in order]
        return order

    def step(self, tokens: Tensor) -> Tensor:
        following = self._model.get_input_embeddings()(tokens)
        self._rows = [self._read_on(text, token) for text, token in zip(self._rows, following, strict=True)]
        return torch.stack([text.logits for text in self._rows])

    def _read_on(self, text: _Text, token: Tensor) -> _Text:
        """text with one more token, whose embedding is [D]."""
        embeddings = torch.cat([text.embeddings, token[None]])
        if not self._cached or len(text.embeddings) in self._switches:
            return self._read(embeddings)
        return self._forward(embeddings, token[None], text.caches)

    def _read(self, embeddings: Tensor) -> _Text:
        found = self._forward(embeddings, embeddings, {})
        if self._cached and not found.caches:
            raise ValueError("it keeps nothing of what it has read")
        return found

    def _forward(self, embeddings: Tensor, new: Tensor, caches: dict[str, Any]) -> _Text:
        """embeddings: [T, D] of the whole text; new: those that the caches do not hold yet."""
        given: dict[str, Any] = {"use_cache": self._cached, **caches, **self._last_only(new[None])}
        output = self._model(inputs_embeds=new[None], **given)
        kept = {name: output[name] for name in _CACHES if self._cached and output.get(name) is not None}
        return _Text(embeddings, output.logits[0, -1], kept)


class RereadingDecoder(SingleRowDecoder):
    """Reads the whole text again for every token: for models whose caches do not give what they read at once."""

    _cached = False


def _bytes(value: Any, seen: set[int]) -> int:
    """Bytes of the tensors in a cache, whatever it is made of."""
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(_bytes(part, seen) for part in value.values())
    if isinstance(value, list | tuple):
        return sum(_bytes(part, seen) for part in value)
    return _bytes(vars(value), seen) if type(value).__module__.startswith("transformers.cache_utils") else 0
