"""Finds the sequence lengths at which a model changes what it computes, and makes them small for a trial.

Such lengths are those of sliding windows, of chunks, and those from which LongRoPE uses other rotary frequencies. In real
models they are thousands of tokens, which a trial of a few tokens would never exceed. For a trial they are therefore set
to small values on the model itself, and restored afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

# Names of such lengths in the configs and layers of transformers. From position floor_scale on, Llama 4 scales its queries.
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "attention_window_size",
    "index_topk",
    "floor_scale",
)
# for longer sequences, LongRoPE uses other frequencies
_SWITCH = "original_max_position_embeddings"
TRIAL_WINDOW, TRIAL_SWITCH = 7, 12  # tokens: windows, and where the frequencies change, of a model in a trial

_Place = tuple[Any, str]  # where a length stands: an object and its attribute, or a dict and its key


def setting(config: Any, name: str) -> Any:
    """A value of a config. None where it has no such value, or where the value differs between layers."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # raised by configs that hold one value for each layer
        return None


def switches(model: PreTrainedModel) -> frozenset[int]:
    """Lengths above which a model computes other keys for all earlier tokens, so that its cache is no longer valid."""
    places = [place for config in _configs(model) for place in _rope_places(config)]
    return frozenset(_value(owner, name) for owner, name in places if _is_longrope(owner))


def lengths(model: PreTrainedModel, *, longest: int | None = None) -> frozenset[int]:
    """Lengths at which the model changes. longest: only those that a sequence of so many tokens exceeds; None for all."""
    values = {_value(*place) for place in _places(model)}
    return frozenset(value for value in values if longest is None or value < longest)


@contextmanager
def narrowed(model: PreTrainedModel, *, longest: int | None = None) -> Iterator[None]:
    """While entered, all windows have TRIAL_WINDOW tokens, and the frequencies change at TRIAL_SWITCH tokens.

    Args:
        model: is changed in place, and restored on leaving.
        longest: tokens of the longest sequence that the model will read. Lengths that it does not exceed are left alone.
    """
    before = [(place, _value(*place)) for place in _places(model)]
    changed = [(place, value) for place, value in before if longest is None or value < longest]
    try:
        for (owner, name), value in changed:
            _set(owner, name, min(value, TRIAL_SWITCH if name == _SWITCH else TRIAL_WINDOW))
        yield
    finally:
        for (owner, name), value in changed:
            _set(owner, name, value)


def _places(model: PreTrainedModel) -> list[_Place]:
    """Where the model holds lengths at which it changes: in its configs, and in layers that copied them."""
    places: list[_Place] = []
    for config in _configs(model):
        places += [(config, name) for name in _WINDOWS if _is_length(setting(config, name))]
        places += _rope_places(config)
    for module in model.modules():
        places += [(module, name) for name in _WINDOWS if _is_length(vars(module).get(name))]
    return places


def _configs(model: PreTrainedModel) -> list[Any]:
    """The configs of the model and of its parts, without repetitions."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    configs += [config.get_text_config() for config in configs if hasattr(config, "get_text_config")]
    return list({id(config): config for config in configs}.values())


def _rope_places(config: Any) -> list[_Place]:
    """Where a config holds the length at which the rotary frequencies change."""
    rope = setting(config, "rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    # the parameters are one dict for the whole model, or hold a dict for each kind of layer
    dicts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    return [(part, _SWITCH) for part in dicts if _is_length(part.get(_SWITCH))]


def _is_longrope(rope: dict[str, Any]) -> bool:
    return rope.get("rope_type", rope.get("type")) == "longrope"


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _value(owner: Any, name: str) -> int:
    """The length at a place."""
    return int(owner[name] if isinstance(owner, dict) else getattr(owner, name))


def _set(owner: Any, name: str, value: int) -> None:
    """Changes the length at a place."""
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)
