"""A frozen model reads a prefix once, without gradient, and continues it with gradient for what follows.

Only what stands after the soft tokens depends on what is trained. The keys and values of everything before are computed
once for a question and shared by its paths. Works with every decoder-only model of transformers: a cache and a mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer


class Caught(Cache):
    """A cache that only keeps what passes through it. keys, values: [B, H, T, d] a layer."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        assert layer_idx == len(self.keys), "layers must come in order"
        self.keys.append(key_states)
        self.values.append(value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return 0


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


class _Continued(Cache):
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
def read(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Prefix:
    """Keys and values of a frozen model for input_ids [B, P] int64, padded on the right; attention_mask: [B, P] int64."""
    caught = Caught()
    model.base_model(
        inputs_embeds=model.get_input_embeddings()(input_ids),
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=caught,
        use_cache=True,
    )
    return Prefix(caught.keys, caught.values, attention_mask.bool())


def go_on(model: PreTrainedModel, prefix: Prefix, inputs: Tensor, positions: Tensor, allowed: Tensor) -> Tensor:
    """Last hidden states [B * n, S, D] of what follows the prefixes, n rows of each in turn, with gradient by the inputs.

    inputs: [B * n, S, D] embeddings; positions: [B * n, S] int64; allowed: [S, S] bool, True where a query (row) may see a
    key (column) of its own row. The whole prefix is seen by all.
    """
    rows, length = inputs.shape[:2]
    before = prefix.seen.repeat_interleave(rows // len(prefix.seen), dim=0)
    seen = torch.cat([before[:, None].expand(-1, length, -1), allowed.expand(rows, -1, -1)], dim=2)
    behind = torch.arange(before.shape[1], device=inputs.device).expand(rows, -1)
    states: Tensor = model.base_model(
        inputs_embeds=inputs,
        attention_mask=attention_masks(
            model.config, seen, positions, inputs.dtype, torch.cat([behind, positions], dim=1)
        ),
        position_ids=positions,
        past_key_values=_Continued(prefix),
        use_cache=True,
    ).last_hidden_state
    return states


def attention_masks(
    config: Any, allowed: Tensor, positions: Tensor, dtype: torch.dtype, key_positions: Tensor | None = None
) -> Any:
    """The additive masks [B, 1, Q, K] that a transformers model takes, one per kind of layer where it has several.

    allowed: [B, Q, K] bool; positions: [B, Q] of the queries; key_positions: [B, K], or None for 0 .. K-1. Layers with a
    sliding window see only keys less than a window behind.
    """
    lowest = torch.finfo(dtype).min
    full = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, lowest).unsqueeze(1)
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    if window is None or kinds == {"full_attention"}:
        return full
    if key_positions is None:
        key_positions = torch.arange(allowed.shape[2], device=positions.device)[None]
    far = positions[:, :, None] - key_positions[:, None, :] >= window
    sliding = full.masked_fill(far.unsqueeze(1), lowest)
    return {"full_attention": full, "sliding_attention": sliding} if kinds else sliding


@contextmanager
def recomputed(model: PreTrainedModel, *, active: bool) -> Iterator[None]:
    """While entered, each layer's activations are computed again in the backward pass instead of being kept."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if active else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
