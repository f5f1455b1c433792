"""A method whose latent paths are compared as they are made, so that a report can show how far they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from contrastive.diversity import path_cosine
from scaling.engines.base import SoftPrompt
from scaling.methods.base import Method
from scaling.records.costs import RunCosts
from scaling.records.records import PathCosines, PromptedQuestion, Question


class Measured:
    """Makes the prompts of `method`, unchanged, and tells `record` the cosines of all `num_paths` paths of each question."""

    def __init__(self, method: Method, *, num_paths: int, record: Callable[[PathCosines], None]):
        self._method, self._num_paths, self._record = method, num_paths, record

    def prompts(self, question: Question, paths: Sequence[int]) -> list[SoftPrompt]:
        prompts = self._method.prompts(question, range(self._num_paths))
        if self._num_paths > 1 and len(prompts[0].thoughts):
            cosines = path_cosine(torch.stack([prompt.thoughts for prompt in prompts])[None])
            rows = tuple(tuple(round(value, 4) for value in row) for row in cosines.tolist())
            self._record(PathCosines(question.id, rows))
        return [prompts[path] for path in paths]

    def asked(self, question: Question) -> PromptedQuestion:
        return self._method.asked(question)

    def costs(self) -> RunCosts:
        return self._method.costs()
