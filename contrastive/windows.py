"""The lengths at which a model changes what it computes: sliding windows, chunks, and other rotary frequencies.

Real models have windows of thousands of tokens. A trial of a few tokens would never leave them, so for a trial they are
made small on the model itself, and then put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

# as transformers names them, in configs and in layers. floor_scale: Llama 4 scales queries by their position from there on
_WINDOWS = (
    "sliding_window",
    "sliding_window_size",
    "attention_chunk_size",
    "attention_window_size",
    "index_topk",
    "floor_scale",
)
# LongRoPE has other frequencies for sequences that are longer
_SWITCH = "original_max_position_embeddings"
TRIAL_WINDOW, TRIAL_SWITCH = 7, 12  # tokens, of a model in a trial

_Place = tuple[Any, str]  # an object with the attribute, or a dict with the key, of this name


def setting(config: Any, name: str) -> Any:
    """A value of a config; None where it has none of this name, or where its layers differ in it."""
    try:
        return getattr(config, name, None)
    except RuntimeError:  # what a config says that has one for each layer
        return None


def switches(model: PreTrainedModel) -> frozenset[int]:
    """Lengths above which the keys of all earlier tokens are others, so that a cache from before does not hold."""
    places = [place for config in _configs(model) for place in _rope_places(config)]
    return frozenset(_value(of, name) for of, name in places if _is_longrope(of))


def lengths(model: PreTrainedModel, *, longest: int | None = None) -> frozenset[int]:
    """All lengths at which the model changes, those only that a sequence of `longest` tokens exceeds."""
    values = {_value(*place) for place in _places(model)}
    return frozenset(value for value in values if longest is None or value < longest)


@contextmanager
def narrowed(model: PreTrainedModel, *, longest: int | None = None) -> Iterator[None]:
    """While entered, every window is of TRIAL_WINDOW tokens and the frequencies change at TRIAL_SWITCH.

    longest: of the sequences that the model is going to read, in tokens; what they do not exceed stays as it is.
    """
    before = [(place, _value(*place)) for place in _places(model)]
    changed = [(place, value) for place, value in before if longest is None or value < longest]
    try:
        for (of, name), value in changed:
            _set(of, name, min(value, TRIAL_SWITCH if name == _SWITCH else TRIAL_WINDOW))
        yield
    finally:
        for (of, name), value in changed:
            _set(of, name, value)


def _places(model: PreTrainedModel) -> list[_Place]:
    found: list[_Place] = []
    for config in _configs(model):
        found += [(config, name) for name in _WINDOWS if _is_length(setting(config, name))]
        found += _rope_places(config)
    for module in model.modules():
        found += [(module, name) for name in _WINDOWS if _is_length(vars(module).get(name))]
    return found


def _configs(model: PreTrainedModel) -> list[Any]:
    """The model's configs and those of its parts, each once."""
    configs = [module.config for module in model.modules() if hasattr(module, "config")]
    configs += [config.get_text_config() for config in configs if hasattr(config, "get_text_config")]
    return list({id(config): config for config in configs}.values())


def _rope_places(config: Any) -> list[_Place]:
    rope = setting(config, "rope_parameters")
    rope = rope if isinstance(rope, dict) else {}
    dicts = [
        rope,
        *(part for part in rope.values() if isinstance(part, dict)),
    ]  # one for each kind of layer, or one in all
    return [(part, _SWITCH) for part in dicts if _is_length(part.get(_SWITCH))]


def _is_longrope(rope: dict[str, Any]) -> bool:
    return rope.get("rope_type", rope.get("type")) == "longrope"


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _value(of: Any, name: str) -> int:
    return int(of[name] if isinstance(of, dict) else getattr(of, name))


def _set(of: Any, name: str, value: int) -> None:
    if isinstance(of, dict):
        of[name] = value
    else:
        setattr(of, name, value)
