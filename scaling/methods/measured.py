"""Measures how far a method's latent paths differ, while its prompts are made, so that a report can show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from contrastive.diversity import path_cosine
from scaling.engines.base import SoftPrompt
from scaling.methods.base import PromptSource
from scaling.records.records import PathCosines, Question


class Measured:
    """Makes the prompts of another method unchanged, and records the cosines between the thoughts of its paths."""

    def __init__(self, method: PromptSource, *, num_paths: int, record: Callable[[PathCosines], None]):
        """
        Args:
            method: makes the prompts.
            num_paths: N, the latent paths that are compared with each other, whichever are asked for.
            record: takes the cosines of one question, whenever its prompts are made.
        """
        self._method, self._num_paths, self._record = method, num_paths, record

    def prompts(self, question: Question, paths: Sequence[int]) -> list[SoftPrompt]:
        prompts = self._method.prompts(question, range(self._num_paths))
        if self._num_paths > 1 and len(prompts[0].thoughts):
            cosines = path_cosine(torch.stack([prompt.thoughts for prompt in prompts])[None])
            rows = tuple(tuple(round(value, 4) for value in row) for row in cosines.tolist())
            self._record(PathCosines(question.id, rows))
        return [prompts[path] for path in paths]
