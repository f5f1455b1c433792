"""A method whose latent paths are compared as they are made, so that a report can show how far they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from contrastive.diversity import path_cosine
from scaling.engines.base import SoftPrompt
from scaling.methods.base import PromptSource
from scaling.records.records import PathCosines, Question


class Measured:
    """Makes the prompts of `method`, unchanged, and gives `record` the cosines of all `num_paths` paths of each question."""

    def __init__(self, method: PromptSource, *, num_paths: int, record: Callable[[PathCosines], None]):
        self._method, self._num_paths, self._record = method, num_paths, record

    def prompts(self, question: Question, paths: Sequence[int]) -> list[SoftPrompt]:
        prompts = self._method.prompts(question, range(self._num_paths))
        if self._num_paths > 1 and len(prompts[0].thoughts):
            cosines = path_cosine(torch.stack([prompt.thoughts for prompt in prompts])[None])
            rows = tuple(tuple(round(value, 4) for value in row) for row in cosines.tolist())
            self._record(PathCosines(question.id, rows))
        return [prompts[path] for path in paths]
