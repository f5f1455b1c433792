"""Differences between the losses of the same questions under two conditions, with their standard errors and intervals.

What differs from question to question alike under both conditions cancels out, so the interval is that of the difference
alone. Knows no models.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

_COVERAGE = 0.95  # share of the intervals that hold the true value


@dataclass(frozen=True)
class Estimate:
    """A figure over questions, and how sure it is.

    Attributes:
        value: the figure.
        error: its standard error over questions; None where there are fewer than two.
        low: lower end of its 95 % interval, by Student's t; None as for `error`.
        high: upper end.
        questions: number of questions.
    """

    value: float
    error: float | None
    low: float | None
    high: float | None
    questions: int

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """1 where the whole interval is above zero, -1 where it is below, and 0 where zero is in it or there is none."""
        if self.low is None or self.high is None:
            return 0
        return 1 if self.low > 0 else -1 if self.high < 0 else 0

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:+.4f}"
        return f"{self.value:+.4f} ({self.low:+.4f} to {self.high:+.4f})"


def mean_difference(
    higher: Sequence[float | None] | None, lower: Sequence[float | None] | None, tokens: Sequence[float]
) -> Estimate | None:
    """The difference of two losses in nats a token, paired by question: that of `higher` less that of `lower`.

    The value is the sum of all differences divided by the number of all tokens, so that it is the difference of two losses
    over all tokens. Its standard error is that of a ratio of two means (Cochran, Sampling Techniques, 6.4). Where all
    targets have one length, that is the deviation of the differences divided by the root of their number.

    Args:
        higher: one loss, for each question summed over its target tokens, in nats; None for a question without it.
        lower: the other loss.
        tokens: scored tokens of each question, as they are weighted in the losses.

    Returns:
        The difference over the questions that have both losses. None where no question has.
    """
    if higher is None or lower is None:
        return None
    rows = [
        (high - low, count)
        for high, low, count in zip(higher, lower, tokens, strict=True)
        if high is not None and low is not None
    ]
    if not rows:
        return None
    total = sum(count for _, count in rows)
    value = sum(difference for difference, _ in rows) / total
    share = len(rows) / total  # one question's tokens beside those of the mean question
    return _estimate(value, [share * (difference - value * count) for difference, count in rows])


def explained_variance(before: Sequence[float], after: Sequence[float]) -> Estimate | None:
    """The share of the variance of `before` over questions that is gone in `after`: 1 - var(after) / var(before).

    Both are centred over questions, so that a change which is the same for all of them explains nothing. It is 1 where
    `after` is the same for all questions, 0 where it is `before` and a constant, and negative where it varies more.

    Args:
        before: a value of each question.
        after: the same under the other condition.

    Returns:
        None where `before` does not vary.
    """
    (centred, was), (left, now) = _centred(before), _centred(after)
    if not was > 0:
        return None
    # the influence of each question on the quotient (the delta method)
    influences = [(now / was * (x * x - was) - (y * y - now)) / was for x, y in zip(centred, left, strict=True)]
    return _estimate(1 - now / was, influences)


def _centred(values: Sequence[float]) -> tuple[list[float], float]:
    """The values less their mean, and their variance."""
    mean = sum(values) / len(values)
    centred = [value - mean for value in values]
    return centred, sum(x * x for x in centred) / len(values)


def _estimate(value: float, influences: Iterable[float]) -> Estimate:
    """An estimate whose error is that of the mean of the questions' influences on it, which add up to zero."""
    from scipy.stats import t as student  # here, as importing it takes longer than all the rest

    squares = [x * x for x in influences]
    number = len(squares)
    if number < 2:
        return Estimate(value, None, None, None, number)
    error = math.sqrt(sum(squares) / (number - 1) / number)
    reach = error * float(student.ppf((1 + _COVERAGE) / 2, number - 1))
    return Estimate(value, error, value - reach, value + reach, number)
