"""Intervals that a run and a report give alike. Standard library only."""

from __future__ import annotations

from math import sqrt

_Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution


def wilson_interval(successes: int, total: int) -> tuple[float | None, float | None]:
    """95 % Wilson score interval of a share over questions. Fewer than two questions show no spread, so no interval."""
    if total < 2:
        return None, None
    share, scale = successes / total, 2 * (total + _Z**2)
    centre = (2 * total * share + _Z**2) / scale
    spread = _Z / scale * sqrt(4 * total * share * (1 - share) + _Z**2)
    # exact at both ends, where rounding would leave a little beside 0 and 1
    return 0.0 if successes == 0 else centre - spread, 1.0 if successes == total else centre + spread
