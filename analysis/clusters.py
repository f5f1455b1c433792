"""Questions that belong together: those of one template or source file are no independent units.

A run's questions.jsonl may name the cluster of each question. Then intervals draw clusters, tests flip the signs of
clusters, and standard errors are those of sums over clusters. Without names every question is a cluster of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scaling.records.records import PromptedQuestion

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Clusters:
    """Which of Q questions belong together, in G clusters.

    Attributes:
        of: the number of each question's cluster, [Q], 0 to G - 1, each of which has a question.
    """

    of: NDArray[np.int64]

    @classmethod
    def single(cls, questions: int) -> Clusters:
        """Every question on its own."""
        return cls(np.arange(questions))

    @property
    def sizes(self) -> Floats:
        """How many questions each cluster has, [G]."""
        return np.bincount(self.of).astype(np.float64)

    @property
    def number(self) -> int:
        """G, the number of clusters."""
        return int(self.of.max()) + 1

    @property
    def are_questions(self) -> bool:
        """Whether every question is a cluster of its own."""
        return self.number == len(self.of)

    def sums(self, values: Floats) -> Floats:
        """The sums over the questions of each cluster, [G]. values: [Q]."""
        sums: Floats = np.bincount(self.of, weights=values).astype(np.float64)
        return sums

    def only(self, rows: NDArray[np.bool_]) -> Clusters | None:
        """The clusters of some questions, numbered anew; None as of `clusters_of`. rows: [Q], which questions."""
        return _informative(Clusters(np.unique(self.of[rows], return_inverse=True)[1]))


def clusters_of(runs: Sequence[Sequence[PromptedQuestion]]) -> Clusters | None:
    """The clusters that the questions of some runs name.

    A run of an older version names none, so each question's cluster is taken from the first run that names it. A question
    that no run gives a cluster is one of its own.

    Args:
        runs: for each run its questions. They are the same in all runs and have the same order.

    Returns:
        None where no two questions share a cluster, or where all of them do: one cluster alone tells nothing of others.
    """
    names = [next((one.cluster for one in asked if one.cluster is not None), None) for asked in zip(*runs, strict=True)]
    keys = [(name, 0) if name is not None else (None, place) for place, name in enumerate(names)]
    places = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    found = Clusters(np.array([places[key] for key in keys], dtype=np.int64))
    return _informative(found)


def _informative(found: Clusters) -> Clusters | None:
    """The clusters; None where each question is its own, or where there is one alone, which tells nothing of others."""
    return None if found.are_questions or found.number == 1 else found
