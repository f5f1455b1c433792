"""Helpers for the forward pass of a transformers model: masks, hidden states, keys and values.

`agree` compares two ways of computing the same states. This module knows nothing of thoughts or engines.
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

# what a model's code may raise for a kind of input that it does not support
MODEL_ERRORS = (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError, LookupError, AssertionError)


class CaptureCache(Cache):
    """A cache that records the keys and values of one forward pass and changes nothing.

    Attributes:
        keys: of each layer, [B, H, T, d], with H heads of width d.
        values: the same for values.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        assert layer_idx <= len(self.keys), "layers must come in order"
        if layer_idx == len(self.keys):  # and not computed again in gradient checkpointing
            self.keys.append(key_states)
            self.values.append(value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return 0


def decoder_of(model: PreTrainedModel) -> Any:
    """The part of a model that computes its last hidden states. A model without such a part is returned itself."""
    part = model.base_model
    return model.get_decoder() if part is model else part


def hidden_states(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Computes a model's last hidden states, [B, S, D]. inputs: as of the model's own forward pass."""
    states: Tensor | None = getattr(decoder_of(model)(**inputs), "last_hidden_state", None)
    if states is None:
        states = model(**inputs, output_hidden_states=True).hidden_states[-1]
    return states


def layer_states(model: PreTrainedModel, *, layer: int, **inputs: Any) -> Tensor:
    """The hidden states after one layer, [B, S, D].

    Args:
        model: the model.
        layer: 1 for the first layer, -1 for the last, whose states are those after the final norm.
        inputs: as of the model's own forward pass.
    """
    states: Tensor = decoder_of(model)(**inputs, output_hidden_states=True).hidden_states[layer]
    return states


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Pads token ids on the right, where causal attention never looks. Returns ids and mask, both [B, T] int64."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True).to(device), mask.to(device)


def attention_masks(
    config: Any, allowed: Tensor, positions: Tensor, dtype: torch.dtype, key_positions: Tensor | None = None
) -> Any:
    """Makes the additive attention masks [B, 1, Q, K] that a transformers model takes.

    Layers with a sliding window see only keys that are less than a window behind the query. Layers with chunks see only
    keys of the query's own chunk.

    Args:
        config: the model's config, which says what kinds of layers it has.
        allowed: [B, Q, K] bool, True where a query may see a key, apart from windows and chunks.
        positions: [B, Q] int64, positions of the queries.
        dtype: of the masks.
        key_positions: [B, K] int64, positions of the keys; None for 0 .. K-1.

    Returns:
        One mask, or a dict with one mask for each kind of layer where the model has several kinds.
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
def gradient_checkpointing(model: PreTrainedModel | None, *, active: bool) -> Iterator[None]:
    """While entered, layers compute their activations again in the backward pass instead of keeping them in memory.

    model: None changes nothing, and so does `active` False.
    """
    modules = model.modules() if active and model is not None else ()
    layers = [module for module in modules if isinstance(module, GradientCheckpointingLayer)]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def agree(actual: Tensor, expected: Tensor) -> bool:
    """Whether two ways of computing the rows [R, S, *] differ by no more than rounding explains.

    In half precision, rounding alone can throw a single row far off, whichever way it is computed. So the worst row does
    not count there, if there are at least three.
    """
    off = differences(actual, expected)
    if expected.dtype.itemsize >= 4:
        return float(off.max()) < 1e-3
    by_row = off.mean(dim=1).sort().values
    return float(by_row[-2 if len(by_row) > 2 else -1]) < 0.05


@contextmanager
def finely(model: PreTrainedModel) -> Iterator[None]:
    """While entered, layers that round what they read to a few bits round it finely.

    Two ways of computing the same can then be compared: otherwise the last bit of a state may decide how another one is
    rounded. Such layers have an attribute `fine`, which is True meanwhile.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "fine")]
    for layer in layers:
        layer.fine = True
    try:
        yield
    finally:
        for layer in layers:
            layer.fine = False


def differences(actual: Tensor, expected: Tensor) -> Tensor:
    """Distance of each vector of the rows [R, S, *] from the expected one, relative to its length, [R, S] float32."""
    actual, expected = actual.float(), expected.float()
    off: Tensor = (actual - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-30)
    return off.nan_to_num(nan=torch.inf)
