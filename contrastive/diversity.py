"""Measures how much thoughts differ: between the paths of one question, and between questions.

A thought is one path's L x D values, taken as one vector. All functions are pure. The letters of the shapes are explained
in `contrastive.thinker`.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

_SAME = 0.99  # two paths whose cosine is larger count as one


def path_cosine(thoughts: Tensor) -> Tensor:
    """Cosine between every two paths, a mean over the questions, [N, N] float32. thoughts: [B, N, L, D]."""
    unit = normalize(thoughts.float().flatten(2), dim=-1)
    return (unit @ unit.transpose(1, 2)).mean(0)


def question_cosine(thoughts: Tensor) -> float | None:
    """Mean cosine between the thoughts of two different questions on the same path; None for a single question.

    Near 1, all questions have the same thoughts, which then say nothing about the question. thoughts: [B, N, L, D].
    """
    unit = normalize(thoughts.float().flatten(2), dim=-1).transpose(0, 1)
    number = unit.shape[1]
    if number < 2:
        return None
    # For unit vectors, the cosines of all ordered pairs add up to the squared length of the vectors' sum. That counts each
    # vector with itself, too, where the cosine is 1.
    pairs = unit.sum(1).square().sum(-1) - number
    return float((pairs / (number * (number - 1))).mean())


def mean_off_diagonal(matrix: Tensor) -> float | None:
    """Mean of the entries of an [N, N] matrix that are not on its diagonal. None for a single path."""
    number = len(matrix)
    return float((matrix.sum() - matrix.trace()) / (number * (number - 1))) if number > 1 else None


def effective_rank(thoughts: Tensor) -> float:
    """Effective rank of a question's N thoughts (Roy and Vetterli, 2007), a mean over the questions.

    It is exp of the entropy of the singular values, after these were divided by their sum. It is 1 where all paths point in
    one direction, and N where they are orthogonal and equally long. thoughts: [B, N, L, D].
    """
    values = torch.linalg.svdvals(thoughts.float().flatten(2))
    shares = values / values.sum(-1, keepdim=True).clamp(min=1e-30)
    return float(torch.special.entr(shares).sum(-1).exp().mean())


def dead_paths(cosines: Tensor) -> list[int]:
    """Paths that repeat an earlier path: their cosine with it is above 0.99. cosines: [N, N], from `path_cosine`."""
    return [path for path in range(1, len(cosines)) if bool((cosines[path, :path] > _SAME).any())]
