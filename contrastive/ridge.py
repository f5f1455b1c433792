"""Reads known values from vectors by ridge regression, with cross-validation: is a fact there for a linear map to take?

Knows vectors, no models and no questions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

_STRENGTHS = torch.logspace(-4, 3, 15, dtype=torch.float64)  # of the penalty, where features have mean square 1


def folds_of(groups: Sequence[Hashable], number: int) -> list[list[int]]:
    """Places 0 .. len(groups) - 1 in `number` parts of about one size; places of equal groups are in one part.

    A part may be empty where there are fewer groups than parts.
    """
    sizes = Counter(groups)
    parts: list[list[int]] = [[] for _ in range(number)]
    part_of = {}
    filled = [0] * number
    for group, size in sorted(sizes.items(), key=lambda item: -item[1]):  # equal sizes stay in their order
        part_of[group] = min(range(number), key=filled.__getitem__)
        filled[part_of[group]] += size
    for place, group in enumerate(groups):
        parts[part_of[group]].append(place)
    return parts


def cross_validated(states: Tensor, values: Tensor, folds: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Predicts the values of each part from a regression on the other parts.

    The strength of the penalty is chosen on these other parts alone, by leaving out one row at a time.

    Args:
        states: [Q, F], one row for each question.
        values: [Q, C]. For classes: 1 for the row's own class and 0 for others.
        folds: the parts, from `folds_of`.

    Returns:
        Predicted values, and the mean of the rows that were learned from, which is what can be said without a state; both
        [Q, C] float64.
    """
    states, values = states.double(), values.double()
    predicted, plain = torch.zeros_like(values), torch.zeros_like(values)
    for tested in filter(len, folds):
        learned = torch.ones(len(states), dtype=torch.bool)
        learned[list(tested)] = False
        mean = values[learned].mean(0)
        plain[~learned] = mean
        predicted[~learned] = mean + _predict(states[learned], values[learned] - mean, states[~learned])
    return predicted, plain


def _predict(learned: Tensor, values: Tensor, tested: Tensor) -> Tensor:
    """Centred values of the tested rows. learned: [n, F]; values: [n, C], centred; tested: [m, F]."""
    centre, spread = learned.mean(0), learned.std(0, unbiased=False).clamp(min=1e-6)
    learned, tested = (learned - centre) / spread, (tested - centre) / spread
    width = learned.shape[1]
    kernel = learned @ learned.T / width  # [n, n]: rows are far fewer than features
    scales, basis = torch.linalg.eigh(kernel)
    rotated = basis.T @ values
    best, weights = torch.inf, torch.zeros_like(values)
    for strength in _STRENGTHS:
        shrunk = (scales / (scales + strength)).clamp(min=0)
        # how much of each row's own value is in its prediction; the mean takes 1/n of it
        own = (basis.square() @ shrunk + 1 / len(values)).clamp(max=1 - 1e-6)
        left_out = (values - basis @ (shrunk[:, None] * rotated)) / (1 - own)[:, None]
        error = float(left_out.square().sum())
        if error < best:
            best, weights = error, basis @ (rotated / (scales + strength)[:, None])
    return tested @ learned.T / width @ weights
