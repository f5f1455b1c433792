"""How far thoughts differ, between paths and between questions. Pure functions; letters as in `contrastive.thinker`.

A thought is one path's L x D values, taken as one vector.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

_SAME = 0.99  # cosine from which two paths count as one


def path_cosine(thoughts: Tensor) -> Tensor:
    """Mean over the questions of the cosine between every two paths, [N, N] float32; thoughts: [B, N, L, D]."""
    unit = normalize(thoughts.float().flatten(2), dim=-1)
    return (unit @ unit.transpose(1, 2)).mean(0)


def question_cosine(thoughts: Tensor) -> float | None:
    """Mean cosine between the thoughts of two different questions on the same path; 1 is a thought that says nothing of
    its question. thoughts: [B, N, L, D]. None for a single question."""
    unit = normalize(thoughts.float().flatten(2), dim=-1).transpose(0, 1)
    number = unit.shape[1]
    if number < 2:
        return None
    # the sum over all pairs is the squared length of the sum; each vector with itself gives 1
    pairs = unit.sum(1).square().sum(-1) - number
    return float((pairs / (number * (number - 1))).mean())


def mean_off_diagonal(matrix: Tensor) -> float | None:
    """Mean of an [N, N] matrix without its diagonal. None for a single path."""
    number = len(matrix)
    return float((matrix.sum() - matrix.trace()) / (number * (number - 1))) if number > 1 else None


def effective_rank(thoughts: Tensor) -> float:
    """exp of the entropy of the singular values' shares (Roy and Vetterli, 2007) of a question's N thoughts, mean over the
    questions: 1 where all paths are one direction, N where they are orthogonal and of one length. thoughts: [B, N, L, D]."""
    values = torch.linalg.svdvals(thoughts.float().flatten(2))
    shares = values / values.sum(-1, keepdim=True).clamp(min=1e-30)
    return float(torch.special.entr(shares).sum(-1).exp().mean())


def dead_paths(cosines: Tensor) -> list[int]:
    """Paths that follow an earlier one: their cosine with it is above 0.99. cosines: [N, N], as of `path_cosine`."""
    return [path for path in range(1, len(cosines)) if bool((cosines[path, :path] > _SAME).any())]
