"""Plain batching: every row holds its whole prompt. For models with plain keys and values that take masks from outside.

Each prompt is computed once and its keys and values copied to its samples' rows. Letters as in `attention`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from contrastive.forward import attention_masks
from scaling.engines.base import KeysAndValues, SoftPrompt
from scaling.engines.embedded import embedded
from scaling.engines.local.decoder import batches
from scaling.engines.local.levels import OwnKeys
from scaling.models.signatures import last_logits_only


@dataclass(frozen=True, eq=False)
class _Held:
    """keys, values: [H, T, d] a layer; logits: [V] after the prompt."""

    keys: list[Tensor]
    values: list[Tensor]
    logits: Tensor


class PlainDecoder:
    share_prefix = False

    def __init__(self, model: PreTrainedModel, *, num_rows: int, max_new_tokens: int) -> None:
        self._model, self._last_only = model, last_logits_only(model)
        self._max_new_tokens = max_new_tokens
        self._own = OwnKeys(num_rows, max_new_tokens, model.device)
        self._held: dict[SoftPrompt, _Held] = {}

    @property
    def used(self) -> int:
        return self._own.used

    @property
    def bytes_per_token(self) -> int:
        return self._own.bytes_per_token

    def hold(self, prompts: Sequence[SoftPrompt]) -> int:
        unread = [prompt for prompt in prompts if prompt.read is None]
        for batch in batches([len(prompt) for prompt in unread]):
            self._compute([unread[number] for number in batch])
        for prompt in prompts:
            if prompt.read is not None:
                self._go_on(prompt, prompt.read)
        return sum(map(len, prompts))

    def drop(self, prompt: SoftPrompt) -> None:
        del self._held[prompt]

    def place(self, rows: Sequence[int], prompts: Sequence[SoftPrompt]) -> Tensor:
        held = [self._held[prompt] for prompt in prompts]
        self._own.reserve(max(map(len, prompts)) + self._max_new_tokens)
        for row, prompt in zip(rows, held, strict=True):
            self._own.put(row, prompt.keys, prompt.values)
        self._own.used = max(self._own.used, max(rows) + 1)
        return torch.stack([h.logits for h in held])

    def remove(self, rows: Sequence[int]) -> list[int]:
        return self._own.remove(rows)

    def step(self, tokens: Tensor) -> Tensor:
        longest = self._own.extend()
        positions = self._own.lengths[: self.used, None] - 1
        seen = torch.arange(longest, device=positions.device) <= positions
        inputs = self._model.get_input_embeddings()(tokens)[:, None]
        mask = attention_masks(self._model.config, seen[:, None], positions, inputs.dtype)
        return self._forward(inputs, self._own, mask, positions)

    def _compute(self, prompts: list[SoftPrompt]) -> None:
        """Padded on the left, so that the last position is the last token of all."""
        inputs = [embedded(self._model, prompt) for prompt in prompts]
        longest = max(map(len, inputs))
        padded = torch.stack([torch.nn.functional.pad(row, (0, 0, longest - len(row), 0)) for row in inputs])
        mask = torch.stack([torch.arange(-longest, 0, device=padded.device) >= -len(row) for row in inputs]).long()
        # no config: every layer keeps all its keys, and a sliding window is the mask's business
        cache = DynamicCache()
        logits = self._forward(padded, cache, mask, (mask.cumsum(-1) - 1).clamp(min=0))
        for row, prompt in enumerate(prompts):
            keys = [layer.keys[row, :, -len(prompt) :] for layer in cache.layers]
            values = [layer.values[row, :, -len(prompt) :] for layer in cache.layers]
            self._held[prompt] = _Held(keys, values, logits[row])

    def _go_on(self, prompt: SoftPrompt, read: KeysAndValues) -> None:
        """Computes the suffix of a prompt whose other tokens a method has read."""
        cache, before = DynamicCache(), len(prompt) - len(prompt.suffix)
        for layer, (keys, values) in enumerate(zip(read.keys, read.values, strict=True)):
            cache.update(keys[None], values[None], layer)
        inputs = embedded(self._model, prompt)[None, before:]
        positions = torch.arange(before, len(prompt), device=inputs.device)[None]
        seen = torch.arange(len(prompt), device=inputs.device) <= positions[0, :, None]
        mask = attention_masks(self._model.config, seen[None], positions, inputs.dtype)
        logits = self._forward(inputs, cache, mask, positions)
        held = cache.layers
        self._held[prompt] = _Held([one.keys[0] for one in held], [one.values[0] for one in held], logits[0])

    def _forward(self, inputs: Tensor, cache: Cache, mask: Any, positions: Tensor) -> Tensor:
        """Logits [rows, V] after the last position of inputs [rows, X, D]."""
        output = self._model(
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            **self._last_only(inputs),
        )
        logits: Tensor = output.logits[:, -1]
        return logits
