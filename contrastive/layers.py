"""Runs the layers of a model one at a time, so that what a layer gets can be kept, and only that layer need be computed.

The model itself says what its layers are called with: masks, positions and whatever else its family needs. This works for
models whose layers pass one tensor on; `can_run_layers` finds out by a trial.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from contrastive.forward import MODEL_ERRORS, agree, attention_masks, decoder_of
from contrastive.prefix import Prefix


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """The layers of a model, the first one first."""
    return [module for module in decoder_of(model).modules() if isinstance(module, GradientCheckpointingLayer)]


class LayerCache(Cache):
    """A cache that puts what was read before in front of each layer's keys and values, and keeps both.

    A layer that is computed twice leaves the same behind.

    Attributes:
        own: by layer, the keys and values [B, H, S, d] after the prefix: those it was made with, and what was read since.
    """

    def __init__(
        self,
        keys: Mapping[int, Tensor] | Sequence[Tensor] = (),
        values: Mapping[int, Tensor] | Sequence[Tensor] = (),
        *,
        before: Mapping[int, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        """
        Args:
            keys: by layer, those of the prefixes, [B, H, P, d]; empty for no prefix. A layer that is not run needs none.
            values: the same for values.
            before: by layer, keys and values of what was read after the prefixes so far.
        """
        super().__init__(layers=[])
        self._keys, self._values, self._before = keys, values, dict(before or {})
        self.own = dict(self._before)

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        if layer_idx in self._before:
            keys, values = self._before[layer_idx]
            key_states, value_states = torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)
        self.own[layer_idx] = key_states, value_states
        if not len(self._keys):
            return key_states, value_states
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Nothing: positions and masks are always given, so that no model needs to count."""
        del layer_idx
        return 0


@dataclass(frozen=True, eq=False)
class LayerCalls:
    """What the layers of a model are called with for some positions.

    Attributes:
        inputs: what the first layer gets for the inputs that they were made with, [B, S, D].
    """

    inputs: Tensor
    _layers: list[nn.Module]
    _calls: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def run(self, states: Tensor, first: int, last: int) -> Tensor:
        """The states [B, S, D] after the layers first .. last - 1, counted from 0. states: those before them."""
        for layer, (rest, named) in zip(self._layers[first:last], self._calls[first:last], strict=True):
            states = layer(states, *rest, **named)
        return states


def layer_calls(model: PreTrainedModel, inputs: Tensor, **given: Any) -> LayerCalls:
    """Finds out what the layers of a model are called with, without computing any of them.

    Args:
        model: the model.
        inputs: [B, S, D] embeddings.
        given: mask, positions, cache and so on, as of the model's own forward pass.
    """
    layers, calls = layers_of(model), list[tuple[tuple[Any, ...], dict[str, Any]]]()
    received: list[Tensor] = []

    def record(states: Tensor, *rest: Any, **named: Any) -> Tensor:
        received.append(states)
        calls.append((rest, named))
        return states

    replaced = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = record
    try:
        decoder_of(model)(inputs_embeds=inputs, use_cache=True, **given)
    finally:
        for layer, forward in zip(layers, replaced, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward
    return LayerCalls(received[0], layers, calls)


def calls_for_prompts(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, cache: Cache) -> LayerCalls:
    """What the layers are called with for texts [B, T] that are padded on the right."""
    positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    embedded = model.get_input_embeddings()(input_ids)
    length = input_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=embedded.device).tril()
    allowed = causal & attention_mask.bool()[:, None]
    masks = attention_masks(model.config, allowed, positions, embedded.dtype)
    return layer_calls(model, embedded, attention_mask=masks, position_ids=positions, past_key_values=cache)


def calls_after(
    model: PreTrainedModel, seen: Tensor, inputs: Tensor, cache: LayerCache, *, read: int = 0
) -> LayerCalls:
    """What the layers are called with for inputs that follow prefixes.

    Args:
        model: the model.
        seen: [B, P] bool, False for the padding of the prefixes, which is on the right.
        inputs: [B, S, D] embeddings. Each sees its prefix, the inputs read before, and the new ones up to itself.
        cache: holds the keys and values of the prefixes and of the inputs read before.
        read: number of inputs read before.
    """
    batch, length = inputs.shape[:2]
    device, total = inputs.device, read + length
    own = seen.sum(-1)[:, None] + torch.arange(total, device=device)
    behind = torch.arange(seen.shape[1], device=device).expand(batch, -1)
    causal = torch.ones(total, total, dtype=torch.bool, device=device).tril()[read:]
    allowed = torch.cat([seen[:, None].expand(-1, length, -1), causal.expand(batch, -1, -1)], dim=2)
    positions = own[:, read:]
    masks = attention_masks(model.config, allowed, positions, inputs.dtype, torch.cat([behind, own], dim=1))
    return layer_calls(model, inputs, attention_mask=masks, position_ids=positions, past_key_values=cache)


@torch.no_grad()
def read_up_to(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, layer: int) -> tuple[Prefix, Tensor]:
    """Reads prompts, without gradient.

    Args:
        model: the model.
        input_ids: [B, P] int64, padded on the right.
        attention_mask: [B, P] int64, 0 for padding.
        layer: number of the layer whose states are wanted, 1 for the first.

    Returns:
        The keys and values of the prompts, and the states of their last tokens after that layer, [B, D].
    """
    cache = LayerCache()
    calls = calls_for_prompts(model, input_ids, attention_mask, cache)
    states = calls.run(calls.inputs, 0, layer)
    calls.run(states, layer, len(layers_of(model)))
    keys, values = zip(*(cache.own[number] for number in range(len(cache.own))), strict=True)
    last = states[torch.arange(len(states), device=states.device), attention_mask.sum(-1) - 1]
    return Prefix(list(keys), list(values), attention_mask.bool()), last


# results of trials, by model
_trials: WeakKeyDictionary[PreTrainedModel, bool] = WeakKeyDictionary()


def can_run_layers(model: PreTrainedModel) -> bool:
    """Whether a model's layers, run one at a time, compute what the model computes. This is tried once, on a few tokens."""
    if model not in _trials:
        _trials[model] = _try_layers(model)
    return _trials[model]


@torch.no_grad()
def _try_layers(model: PreTrainedModel) -> bool:
    """The trial of `can_run_layers`: twelve tokens, the last four of them after a prefix."""
    layers = layers_of(model)
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(3, 87, 7, device=model.device)[None] % size
    embedded, caught = model.get_input_embeddings()(ids), list[Tensor]()
    if len(layers) < 1:
        return False
    hook = layers[-1].register_forward_hook(lambda _, __, states: caught.append(states))
    try:
        decoder_of(model)(inputs_embeds=embedded, use_cache=False)
        prefix, _ = read_up_to(model, ids[:, :8], torch.ones_like(ids[:, :8]), 1)
        cache = LayerCache(prefix.keys, prefix.values)
        calls = calls_after(model, prefix.seen, embedded[:, 8:], cache)
        found = calls.run(calls.inputs, 0, len(layers))
        return isinstance(caught[0], Tensor) and len(cache.own) == len(layers) and agree(found, caught[0][:, 8:])
    except MODEL_ERRORS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False
    finally:
        hook.remove()
