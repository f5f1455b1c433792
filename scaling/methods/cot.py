"""Chain of thought, zero-shot or few-shot: no soft tokens, one path; M samples are self-consistency (arXiv 2203.11171)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scaling.engines.base import SoftPrompt
from scaling.models.loading import LanguageModel
from scaling.prompts import PromptBuilder, as_asked
from scaling.records.costs import RunCosts
from scaling.records.records import PromptedQuestion, Question
from scaling.tasks.task import Task


class ChainOfThought:
    """The plain prompt, whatever the path. exemplars: solved questions that stand before it."""

    def __init__(self, backbone: LanguageModel, *, task: Task, exemplars: Sequence[Question] = ()):
        self._builder = PromptBuilder(backbone.tokenizer, task=task, exemplars=exemplars)
        self._backbone = backbone
        self._empty = torch.empty(0, backbone.width)

    def prompts(self, question: Question, paths: Sequence[int]) -> list[SoftPrompt]:
        prompt = self._builder.backbone(question, num_slots=0)
        return [SoftPrompt(question.id, path, prompt.prefix, self._empty, prompt.suffix) for path in paths]

    def asked(self, question: Question) -> PromptedQuestion:
        return as_asked(question, self._builder.backbone(question, num_slots=0), num_slots=0, assistant_tokens=0)

    def costs(self) -> RunCosts:
        return RunCosts(self._backbone.costs)
