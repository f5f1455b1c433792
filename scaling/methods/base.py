"""What a method is, and what it is made from.

A method turns a question into one soft prompt for each latent path. It knows no engine and no answers. It comes to be in two
steps: its `Parts` are read and checked while no model is loaded, and then build the method in its `Surroundings`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch

from scaling.config import RunConfig
from scaling.engines.base import SoftPrompt
from scaling.models import devices
from scaling.models.loading import LanguageModel
from scaling.prompts import Prompt, PromptBuilder, prompt_identity
from scaling.records.costs import RunCosts
from scaling.records.errors import UsageError
from scaling.records.records import PromptedQuestion, Question
from scaling.tasks.task import LoadedTask

Tell = Callable[[str], None]


class PromptSource(Protocol):
    """Makes prompts; which paths and how many samples of each is the sampler's business."""

    def prompts(self, question: Question, paths: Sequence[int]) -> list[SoftPrompt]:
        """The soft prompts of the asked paths, in that order."""
        ...


class Method(PromptSource, Protocol):
    """A method that is ready to run.

    Attributes:
        backbone: the model that decodes; its weights may be the method's own.
    """

    backbone: LanguageModel

    def asked(self, question: Question) -> PromptedQuestion:
        """The question's prompt and its lengths, without computing any thoughts."""
        ...

    def prepare(self, questions: Sequence[Question], tell: Tell) -> None:
        """Computes what these questions need of models that will not be there later, as an engine takes their device."""
        ...

    def identity(self) -> dict[str, Any]:
        """What run.json says of models and checkpoints that the method uses. Another value is another run."""
        ...

    def costs(self) -> RunCosts:
        """What the method's models cost."""
        ...


class Surroundings:
    """What a method may use: the run's settings and questions, and its models, each loaded when it is first asked for.

    Attributes:
        config: all settings, resolved.
        task: the questions that are asked.
        dtype: of the models.
        tell: takes a line that the user should read.
    """

    def __init__(self, config: RunConfig, task: LoadedTask, dtype: torch.dtype, tell: Tell):
        self.config, self.task, self.dtype, self.tell = config, task, dtype, tell
        self._fingerprint: str | None = None  # of a backbone that was loaded for the method alone

    @property
    def num_paths(self) -> int:
        """N, the number of latent paths."""
        return self.config.num_paths

    @property
    def soft_tokens(self) -> int:
        """L, the number of slots in the prompt."""
        return self.config.num_slots

    @property
    def device(self) -> torch.device:
        """Where thoughts are computed."""
        return torch.device(self.config.thinking_device)

    @cached_property
    def backbone(self) -> LanguageModel:
        """`--backbone`, shared with others: its weights must stay as they are. With engines of another process it has its
        input embeddings alone, and none where a prompt has no slots."""
        return devices.load_backbone(self.config, self.dtype)

    @property
    def loaded_backbone(self) -> LanguageModel | None:
        """The same, None where it has not been asked for yet."""
        return self.__dict__.get("backbone")

    def own_backbone(self) -> LanguageModel:
        """`--backbone` once more, as an object that nobody else has and whose weights may be changed."""
        model = devices.load_backbone(self.config, self.dtype, own=True)
        self._fingerprint = model.fingerprint
        return model

    @property
    def backbone_fingerprint(self) -> str:
        """Of `--backbone` as it was loaded, before a method changed any weights of its own copy."""
        return self._fingerprint or self.backbone.fingerprint

    @cached_property
    def assistant(self) -> LanguageModel:
        """`--assistant`: the same object as the backbone where both are the same weights in this process."""
        config = self.config
        if not config.assisted:
            raise UsageError(f"`--method` {config.method} uses an assistant: add Trait.ASSISTANT to its `traits`.")
        return self.backbone if devices.assistant_is_backbone(config) else devices.load_assistant(config, self.dtype)

    def prompt(self, question: Question) -> Prompt:
        """The token ids that the backbone reads before and after the question's slots."""
        return self._prompts.backbone(question, num_slots=self.soft_tokens)

    @cached_property
    def _prompts(self) -> PromptBuilder:
        return PromptBuilder.of(self.backbone, task=self.task.definition)

    def to_thinking_device(self, *modules: torch.nn.Module) -> Callable[[], None]:
        """A function that moves these to where the assistant thinks, after it has ended an engine that holds that device."""
        return devices.move_to_thinking_device(self.config, *modules)


@dataclass(frozen=True, eq=False)
class Parts(ABC):
    """What a method is made of besides its models: read and checked before these are loaded.

    Attributes:
        config: the settings, with what a checkpoint decides filled in.
        exemplars: solved questions that stand before every asked one.
    """

    config: RunConfig
    exemplars: tuple[Question, ...] = ()

    @classmethod
    @abstractmethod
    def read(cls, config: RunConfig, task: LoadedTask) -> Parts:
        """The parts of a resolved config's method. Raises UsageError where one is missing, or cannot be used."""

    @abstractmethod
    def build(self, surroundings: Surroundings) -> Method:
        """The method, whose models are loaded for it. Raises UsageError where something does not fit."""

    def identity(self) -> dict[str, Any]:
        """What run.json will say of these parts, as far as it is known without models."""
        return {}

    def refuse_unfit(self, backbone: LanguageModel, assistant: LanguageModel | None) -> None:  # noqa: B027
        """Raises UsageError where they do not fit the models, of which the shapes are enough; no weights are read."""


def model_identity(backbone: LanguageModel) -> dict[str, Any]:
    """What run.json says of every run's prompts and backbone."""
    return {**prompt_identity(backbone.tokenizer), "backbone_fingerprint": backbone.fingerprint}
