"""Assist-CoT: the assistant writes its notes as text, and the backbone reads them where soft thoughts would stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from scaling.engines.base import SoftPrompt
from scaling.methods.hints import Hint
from scaling.models.loading import LanguageModel
from scaling.prompts import Prompt, PromptBuilder, as_asked
from scaling.records.costs import RunCosts
from scaling.records.records import PromptedQuestion, Question
from scaling.tasks.task import Task


class AssistCoT:
    """One hint for each question, decoded greedily, the same for all samples. Its tokens count as the method's cost."""

    def __init__(
        self,
        backbone: LanguageModel,
        assistant: LanguageModel,
        *,
        task: Task,
        questions: Sequence[Question],
        write: Callable[[dict[str, tuple[int, ...]]], dict[str, Hint]],
    ):
        """questions: all that will be asked. write: the hints for the assistant's prompts, both by question id."""
        self._backbone, self._assistant = backbone, assistant
        self._builder = PromptBuilder(backbone.tokenizer, task=task)
        builder = PromptBuilder(assistant.tokenizer, task=task)
        self._requests = {question.id: builder.hint_request(question) for question in questions}
        self._hints = write(self._requests)
        self._empty = torch.empty(0, backbone.width)

    def prompts(self, question: Question, paths: Sequence[int]) -> list[SoftPrompt]:
        prompt = self._prompt(question)
        return [SoftPrompt(question.id, path, prompt.prefix, self._empty, prompt.suffix) for path in paths]

    def asked(self, question: Question) -> PromptedQuestion:
        return as_asked(
            question,
            self._prompt(question),
            num_slots=0,
            assistant_tokens=len(self._requests[question.id]),
            hint_tokens=self._hints[question.id].num_tokens,
        )

    def costs(self) -> RunCosts:
        return RunCosts(self._backbone.costs, self._assistant.costs)

    def _prompt(self, question: Question) -> Prompt:
        return self._builder.backbone(question, num_slots=0, notes=self._hints[question.id].text)
