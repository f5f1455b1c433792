"""SoftCoT (one path, arXiv 2502.12134), SoftCoT++ (N paths, arXiv 2505.11484) and all else that puts vectors in slots."""

from __future__ import annotations

from collections.abc import Sequence

from scaling.engines.base import SoftPrompt
from scaling.methods.thoughts import Thoughts
from scaling.models.loading import LanguageModel
from scaling.prompts import PromptBuilder, as_asked
from scaling.records.costs import RunCosts
from scaling.records.records import PromptedQuestion, Question
from scaling.tasks.task import Task


class SoftCoT:
    """Thoughts between the hint markers, path k those of the source's path k.

    The source decides what the method is: a thinker, perturbed thoughts, placeholders (CoT-Unk) or a control. The words
    around the slots are the same for all of them.
    """

    def __init__(self, backbone: LanguageModel, thoughts: Thoughts, *, task: Task, num_slots: int):
        """num_slots: L of the prompt, also where a control leaves the slots empty."""
        self._backbone = backbone
        self._num_slots = num_slots
        self._prompts = PromptBuilder(backbone.tokenizer, task=task)
        self.thoughts = thoughts

    def prompts(self, question: Question, paths: Sequence[int]) -> list[SoftPrompt]:
        prompt = self._prompts.backbone(question, num_slots=self._num_slots)
        thoughts = self.thoughts(question)
        return [SoftPrompt(question.id, path, prompt.prefix, thoughts[path], prompt.suffix) for path in paths]

    def asked(self, question: Question) -> PromptedQuestion:
        prompt = self._prompts.backbone(question, num_slots=self._num_slots)
        return as_asked(
            question, prompt, num_slots=self.thoughts.num_tokens, assistant_tokens=self.thoughts.reads(question)
        )

    def costs(self) -> RunCosts:
        assistant = self.thoughts.assistant
        return RunCosts(self._backbone.costs, assistant.costs if assistant else None, self.thoughts.projection)
