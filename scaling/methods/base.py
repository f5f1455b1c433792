"""What a method is: it turns a question into one soft prompt for each latent path. Knows no engine and no answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from scaling.engines.base import SoftPrompt
from scaling.records.costs import RunCosts
from scaling.records.records import PromptedQuestion, Question


class Method(Protocol):
    """Makes prompts; which paths and how many samples of each is the sampler's business."""

    def prompts(self, question: Question, paths: Sequence[int]) -> list[SoftPrompt]:
        """The soft prompts of the asked paths, in that order."""
        ...

    def asked(self, question: Question) -> PromptedQuestion:
        """The question's prompt and its lengths, without computing any thoughts."""
        ...

    def costs(self) -> RunCosts:
        """What the method's models cost."""
        ...
