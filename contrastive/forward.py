"""What a forward pass of a transformers model takes and gives: masks, hidden states, keys and values, and how two ways of
computing the same are compared. Knows no thoughts and no engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from contrastive.windows import setting

# what a model's own code raises where it does not take what it is given
MODEL_ERRORS = (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError, LookupError, AssertionError)


class CaptureCache(Cache):
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


def decoder_of(model: PreTrainedModel) -> Any:
    """The part of a model that computes its last hidden states: the model itself where it has no such part."""
    found = model.base_model
    return model.get_decoder() if found is model else found


def hidden_states(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """A model's last hidden states, [B, S, D]."""
    found: Tensor | None = getattr(decoder_of(model)(**inputs), "last_hidden_state", None)
    if found is None:
        found = model(**inputs, output_hidden_states=True).hidden_states[-1]
    return found


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [B, T] int64, padded on the right, where causal attention never looks."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True).to(device), mask.to(device)


def attention_masks(
    config: Any, allowed: Tensor, positions: Tensor, dtype: torch.dtype, key_positions: Tensor | None = None
) -> Any:
    """The additive masks [B, 1, Q, K] that a transformers model takes, one per kind of layer where it has several.

    allowed: [B, Q, K] bool; positions: [B, Q] of the queries; key_positions: [B, K], or None for 0 .. K-1. Layers with a
    sliding window see only keys less than a window behind, and those with chunks only keys of the query's own chunk.
    """
    config = config.get_text_config()
    lowest = torch.finfo(dtype).min
    full = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, lowest).unsqueeze(1)
    kinds = set(getattr(config, "layer_types", None) or ())
    window, chunk = setting(config, "sliding_window"), setting(config, "attention_chunk_size")
    if kinds == {"full_attention"} or (window is None and chunk is None):
        return full
    if key_positions is None:
        key_positions = torch.arange(allowed.shape[2], device=positions.device)[None]
    queries, keys = positions[:, :, None], key_positions[:, None, :]
    masks = {"full_attention": full}
    if window is not None:
        masks["sliding_attention"] = full.masked_fill((queries - keys >= window).unsqueeze(1), lowest)
    if chunk is not None:
        masks["chunked_attention"] = full.masked_fill((queries // chunk != keys // chunk).unsqueeze(1), lowest)
    return masks if kinds else masks.get("sliding_attention", full)


@contextmanager
def gradient_checkpointing(model: PreTrainedModel, *, active: bool) -> Iterator[None]:
    """While entered, each layer's activations are computed again in the backward pass instead of being kept."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if active else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two ways of computing the rows [R, S, *] differ by no more than rounding explains.

    In half precision a single row may be thrown far off by rounding alone, whichever way it is computed.
    """
    off = differences(found, expected)
    if expected.dtype.itemsize >= 4:
        return float(off.max()) < 1e-3
    by_row = off.mean(dim=1).sort().values
    return float(by_row[-2 if len(by_row) > 2 else -1]) < 0.05


def differences(found: Tensor, expected: Tensor) -> Tensor:
    """How far off the vectors of the rows [R, S, *] are, relative to the expected ones' lengths, [R, S] float32."""
    found, expected = found.float(), expected.float()
    off: Tensor = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-30)
    return off.nan_to_num(nan=torch.inf)
