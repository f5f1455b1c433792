"""Intervals that a run and a report give alike. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson_interval(successes: float, total: float) -> tuple[float | None, float | None]:
    """95 % Wilson score interval of a share over questions. Fewer than two questions show no spread, so no interval."""
    if total < 2:
        return None, None
    share, scale = successes / total, 2 * (total + _Z**2)
    centre = (2 * total * share + _Z**2) / scale
    spread = _Z / scale * sqrt(4 * total * share * (1 - share) + _Z**2)
    # exact at both ends, where rounding would leave a little beside 0 and 1
    return 0.0 if successes == 0 else centre - spread, 1.0 if successes == total else centre + spread


def wilson_of_chains(right: Sequence[int], chains: int) -> tuple[float | None, float | None]:
    """95 % interval of a share over chains, several of each question, which are often right or wrong together.

    It is the Wilson interval of as many independent chains as would have the same standard error over questions (the
    effective sample size; Korn and Graubard, Survey Methodology 24, 1998). These are at least as many as the questions and
    at most as many as the chains. With one chain of each question it is `wilson_interval`.

    Args:
        right: number of right chains of each question.
        chains: number of chains of each question.
    """
    number, share = len(right), sum(right) / (len(right) * chains)
    if number < 2:
        return None, None
    squared_error = sum((count / chains - share) ** 2 for count in right) / (number - 1) / number
    if share in (0, 1):
        effective = float(number)
    elif squared_error == 0:
        effective = float(number * chains)
    else:
        effective = min(max(share * (1 - share) / squared_error, number), number * chains)
    return wilson_interval(share * effective, effective)
