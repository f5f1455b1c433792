"""Models that are published quantised: recognised by their config, and checked before their weights are read.

transformers loads them, by the package that made them. What cannot be loaded here is refused in a sentence: transformers
itself passes over a quantisation that it does not know, and what it makes of the weights then is noise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig
from transformers.quantizers import AutoHfQuantizer, HfQuantizer
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from scaling.records.errors import UsageError, one_line

_BITS = ("bits", "num_bits", "nbits", "weight_bits", "w_bit")  # names that methods have for the bits of a weight
_INSTEAD = "or take a model that is not quantised"
_COMMAND = "pip install "  # in messages of transformers, which name packages like `a>=1.0` without quotation marks
_UNQUOTED = re.compile(rf"(?<={_COMMAND})([^`']*?)([\w\[\],-]+[<>=]=[\w.]+)(?=`)")


@dataclass(frozen=True)
class Quantisation:
    """How a model's weights are published.

    Attributes:
        method: by transformers' name, as `gptq`.
        bits: of a weight; None where the config does not say.
    """

    method: str
    bits: int | None

    def __str__(self) -> str:
        return f"{self.method}, {self.bits} bits" if self.bits else self.method

    def to_dict(self) -> dict[str, Any]:
        """As it is in run.json."""
        return {"method": self.method, **({"bits": self.bits} if self.bits else {})}


def quantisation_of(config: PretrainedConfig) -> Quantisation | None:
    """How the weights of a model with this config are quantised; None where they are not."""
    given = _given(config)
    if given is None:
        return None
    method = given.get("quant_method") or ("bitsandbytes" if _loads_in_bits(given) else "unknown")
    method = str(getattr(method, "value", method))  # a member of transformers' own enumeration once a model is loaded
    return Quantisation(method, _loads_in_bits(given) or _bits(given) or _bits_in_name(method))


def refuse_unloadable(config: PretrainedConfig, *, name: str, device: str) -> None:
    """Raises UsageError where quantised weights cannot be loaded here; does nothing for weights that are not quantised.

    Args:
        config: the model's, as it is published.
        name: the model as the user named it.
        device: where it is to be loaded.
    """
    how, given = quantisation_of(config), _given(config)
    if how is None or given is None:
        return
    said = f"`{name}` is published quantised ({how}), "
    if not _known(how.method, given):
        raise UsageError(
            f"{said}which this version of transformers does not know: `pip install -U transformers`, {_INSTEAD}."
        )
    try:
        quantizer: HfQuantizer = AutoHfQuantizer.from_config(dict(given), pre_quantized=True)
        quantizer.validate_environment(device_map={"": device}, weights_only=True)
    except (
        Exception
    ) as error:  # what is missing, or wrong with device or config, every method says by an error of its own
        raise UsageError(
            f"{said}which cannot be loaded on {device} here: {_needed(error)}; install what is missing, {_INSTEAD}."
        ) from None


def refuse_untrainable(model: Any, *, name: str) -> None:
    """Raises UsageError where no gradient goes through a quantised model. name: as the user named it."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and not quantizer.is_trainable:
        how = quantisation_of(model.config)
        raise UsageError(f"`{name}` is quantised ({how}) so that nothing can be trained through it: {_INSTEAD[3:]}.")


def _given(config: PretrainedConfig) -> dict[str, Any] | None:
    """What a config says of its quantisation; None where it says nothing. Before and after loading its type is another."""
    given = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    return dict(given if isinstance(given, Mapping) else given.to_dict()) if given else None


def _known(method: str, given: Mapping[str, Any]) -> bool:
    return method in AUTO_QUANTIZATION_CONFIG_MAPPING or _loads_in_bits(given) is not None


def _loads_in_bits(given: Mapping[str, Any]) -> int | None:
    """The bits that bitsandbytes has, which names no method in old configs."""
    return 4 if given.get("load_in_4bit") else 8 if given.get("load_in_8bit") else None


def _bits(given: Any) -> int | None:
    """The first number of bits that the config names of weights, at any depth."""
    return next(_all_bits(given), None)


def _all_bits(given: Any) -> Iterator[int]:
    if not isinstance(given, Mapping):
        return
    yield from (given[key] for key in _BITS if type(given.get(key)) is int)
    if (number := _bits_in_name(given.get("weights"))) is not None:  # as `int8`
        yield number
    for key, value in given.items():
        if key not in ("input_activations", "output_activations", "kv_cache_scheme"):
            yield from _all_bits(value)


def _bits_in_name(name: object) -> int | None:
    """The number that a name ends in, as in `fp8` or `int4`."""
    found = re.search(r"(?:fp|int|float)(\d+)$", name) if isinstance(name, str) else None
    return int(found[1]) if found else None


def _needed(error: Exception) -> str:
    """What the error says, with commands for pip that a shell takes as they are."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"it needs the package {error.name} (`pip install {error.name}`)"
    text = one_line(error, limit=300).rstrip(".")
    return _UNQUOTED.sub(r"\1'\2'", text)
