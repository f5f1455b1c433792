"""From a run's settings to its method. The only list of what builds which method: each is written in a file of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scaling.config import RunConfig
from scaling.methods.assist import AssistCoTParts
from scaling.methods.base import Method, Parts, Surroundings, Tell
from scaling.methods.cot import ChainOfThoughtParts
from scaling.methods.custom import CustomParts
from scaling.methods.lora import LoraParts
from scaling.methods.softcot import PlaceholderParts, SoftCoTParts
from scaling.models.loading import LanguageModel
from scaling.tasks.catalogue import Task

_SOFT = ("softcot++", "softcot", "softcot-p", "softcot-dropout", "softcot-gumbel")
_PARTS: dict[str, type[Parts]] = {
    **dict.fromkeys(_SOFT, SoftCoTParts),
    **{"cot": ChainOfThoughtParts, "cot-unk": PlaceholderParts, "assist-cot": AssistCoTParts, "lora": LoraParts},
}


@dataclass(frozen=True, eq=False)
class Built:
    """A method that is ready to run.

    Attributes:
        config: the settings, with what its checkpoint decides filled in.
        assistant: the model that thinks or writes notes, None where the method has none.
    """

    method: Method
    config: RunConfig
    assistant: LanguageModel | None = None


def parts_of(config: RunConfig, task: Task) -> Parts:
    """Reads the parts of a resolved config's method. Raises UsageError where one is missing, or cannot be used."""
    return _PARTS.get(config.method, CustomParts).read(config, task)


def build(config: RunConfig, task: Task, dtype: torch.dtype, tell: Tell) -> Built:
    """Loads the models of a resolved config and makes its method. Raises UsageError where something does not fit."""
    parts = parts_of(config, task)
    surroundings = Surroundings(parts.config, task, dtype, tell)
    method = parts.build(surroundings)
    return Built(method, parts.config, surroundings.assistant if parts.config.assisted else None)
