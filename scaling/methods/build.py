"""Builds the method that a run's settings name.

Each method is written in a file of its own. This is the only list of which class builds which method.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scaling.config import RunConfig
from scaling.methods.assist import AssistCoTParts
from scaling.methods.base import Method, Parts, Surroundings, Tell
from scaling.methods.ccot import CCoTParts
from scaling.methods.coconut import CoconutParts
from scaling.methods.cot import ChainOfThoughtParts
from scaling.methods.custom import CustomParts
from scaling.methods.kinds import KINDS, Trait
from scaling.methods.lora import LoraParts
from scaling.methods.softcot import PlaceholderParts, SoftCoTParts
from scaling.models import int8
from scaling.models.loading import LanguageModel
from scaling.tasks.task import LoadedTask

_PARTS: dict[str, type[Parts]] = {
    **{name: SoftCoTParts for name, kind in KINDS.items() if kind.has(Trait.THINKER)},
    **{"cot": ChainOfThoughtParts, "cot-unk": PlaceholderParts, "assist-cot": AssistCoTParts, "lora": LoraParts},
    "coconut": CoconutParts,
    "ccot": CCoTParts,
}


@dataclass(frozen=True, eq=False)
class Built:
    """A method that is ready to run.

    Attributes:
        method: makes the prompts.
        config: the settings; sizes that the method's checkpoint decides are filled in.
        assistant: the model that thinks or writes hints, None where the method has none.
    """

    method: Method
    config: RunConfig
    assistant: LanguageModel | None = None


def parts_of(config: RunConfig, task: LoadedTask) -> Parts:
    """Reads the parts of a resolved config's method, such as its checkpoint, before any model is loaded.

    Raises UsageError where one is missing or cannot be used.
    """
    return _PARTS.get(config.method, CustomParts).read(config, task)


def build(config: RunConfig, task: LoadedTask, dtype: torch.dtype, tell: Tell) -> Built:
    """Loads the models of a resolved config and builds its method.

    Args:
        config: resolved settings, with device and dtype chosen.
        task: the questions that are asked.
        dtype: of the models' weights.
        tell: shows the user a line of text.

    Raises:
        UsageError: a part of the method cannot be used, or does not fit the models.
    """
    parts = parts_of(config, task)
    surroundings = Surroundings(parts.config, task, dtype, tell)
    method = parts.build(surroundings)
    if config.quantize:  # only now, as an adapter is merged into plain weights
        int8.quantise(method.backbone)
    return Built(method, parts.config, surroundings.assistant if parts.config.assisted else None)
