"""Confidence intervals, tests and power. The unit is the question: its completions never count as independent.

All values are shares, or differences of shares, as fractions of 1. Intervals have 95 % confidence. One question alone gives
no interval. This module knows nothing of runs, votes or costs.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from scaling.records.intervals import wilson_interval

Floats = NDArray[np.float64]
Method = Literal["BCa", "percentile"]

LEVEL = 0.95  # confidence of intervals
POWER = 0.8
_WORK = 200_000_000  # most values drawn for one interval or test
_FEWEST, _MOST = 999, 9999  # resamples
_AT_ONCE = 20_000_000  # most values in memory at once
_BCA_UP_TO = 1000  # questions; with more, the correction is too small to see in a plot, and its jackknife too slow
_T_BELOW = 100  # questions; with fewer, resamples of differences that are mostly zero vary too little
_ALIKE = 1e-12  # values that deviate less than this are equal: sums in another order differ by rounding


@dataclass(frozen=True)
class Interval:
    """A value with a 95 % interval. low and high are None where there is one question only, or no variation."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SeedPart:
    """What the seeds of one method add to the variance of a mean over Q questions: lasting + passing / Q.

    Attributes:
        lasting: the part that more questions do not reduce, because some seeds are better than others.
        passing: the part that more questions do reduce, because seeds answer each question differently.
        freedom: degrees of freedom, the number of seeds - 1.
    """

    lasting: float
    passing: float
    freedom: int


@dataclass(frozen=True)
class Difference:
    """A paired difference of two means over the same questions.

    Attributes:
        interval: the difference with its interval.
        p_value: two-sided; None for a single question.
        deviation: standard deviation of the questions' differences; 0 where all are equal.
        num_questions: number of pairs.
        seeds: what the seeds add to the variance, for each method that has several.
    """

    interval: Interval
    p_value: float | None
    deviation: float
    num_questions: int
    seeds: tuple[SeedPart, ...] = ()


def wilson(successes: int, total: int) -> Interval:
    """The share successes / total of questions, with the Wilson score interval."""
    return Interval(successes / total, *wilson_interval(successes, total))


def bootstrap(values: ArrayLike, *, method: Method | None = None, seed: int = 0) -> list[Interval]:
    """The mean over questions of each column, with a bootstrap interval over questions (Efron 1987).

    The same questions are drawn for all columns. A column without variation gets no interval, because all its resamples are
    equal.

    Args:
        values: [Q, C].
        method: None for BCa up to 1,000 questions and percentile above.
        seed: of the resamples.

    Returns:
        One interval for each of the C columns.
    """
    data = np.asarray(values, dtype=float)
    questions = len(data)
    means = data.mean(axis=0)
    varied = data.std(axis=0) > _ALIKE
    low, high = np.full((2, data.shape[1]), np.nan)
    if questions > 1 and varied.any():
        method = method or ("BCa" if questions <= _BCA_UP_TO else "percentile")
        low[varied], high[varied] = _bootstrap_ends(data[:, varied], method, seed)
    return [
        Interval(float(mean), float(low[c]), float(high[c]))
        if varied[c] and questions > 1
        else Interval(float(mean), None, None)
        for c, mean in enumerate(means)
    ]


def bootstrap_shares(values: ArrayLike, *, seed: int = 0) -> list[Interval]:
    """As `bootstrap`, for shares: a column of zeros only, or of ones only, gets the Wilson interval."""
    questions = len(np.asarray(values))
    return [
        wilson(int(interval.value) * questions, questions)
        if interval.low is None and interval.value in (0.0, 1.0)
        else interval
        for interval in bootstrap(values, seed=seed)
    ]


def _bootstrap_ends(data: Floats, method: Method, seed: int) -> tuple[Floats, Floats]:
    """The lower and the upper ends of the intervals of the columns of `data` [Q, C], [C] each."""
    resamples = int(np.clip(_WORK // data.size, _FEWEST, _MOST))
    result = stats.bootstrap(
        (data,),
        np.mean,
        axis=0,
        confidence_level=LEVEL,
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // data.size),
        method=method,
        rng=np.random.default_rng(seed),
    )
    return result.confidence_interval.low, result.confidence_interval.high


def interval_of_ratio(above: Floats, below: Floats, *, seed: int = 0) -> Interval | None:
    """The ratio mean(above) / mean(below) over questions, with a percentile bootstrap interval.

    Args:
        above: the numerators, [Q].
        below: the denominators, [Q].
        seed: of the resamples.

    Returns:
        None where the mean of the denominators is 0.
    """
    if below.mean() == 0:
        return None
    value = float(above.mean() / below.mean())
    if len(above) < 2:
        return Interval(value, None, None)
    resamples = int(np.clip(_WORK // len(above), _FEWEST, _MOST))
    rng = np.random.default_rng(seed)
    batch = max(1, _AT_ONCE // len(above))
    ratios: list[float] = []
    while len(ratios) < resamples:
        drawn = rng.integers(0, len(above), (min(batch, resamples - len(ratios)), len(above)))
        bottom = below[drawn].mean(axis=1)
        ratios += (above[drawn].mean(axis=1) / np.where(bottom > 0, bottom, np.nan)).tolist()
    low, high = np.nanquantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def paired_difference(first: Sequence[Floats], second: Sequence[Floats], *, seed: int = 0) -> Difference:
    """The mean of first - second over the same questions, with its interval and test.

    With one seed each, the test is a sign-flip permutation test of the questions' differences. The interval is a t interval
    below 100 questions and a bootstrap interval from there on.

    With several seeds, both questions and seeds are random, and crossed. The variance of the mean is then the variance from
    the questions' differences plus the variance from the means of each method's seeds. Interval and test are those of a t
    distribution with Satterthwaite's degrees of freedom. This counts the residual twice, so intervals are rather too wide
    than too narrow. A method with a single seed adds no variance of its own: its seed is taken as given.

    Args:
        first: for each seed of the first method its values, [Q].
        second: likewise of the second method.
        seed: of the resamples and sign flips.
    """
    gaps = np.mean(first, axis=0) - np.mean(second, axis=0)
    questions = len(gaps)
    if questions < 2:
        return Difference(Interval(float(gaps.mean()), None, None), None, 0.0, questions)
    several = _over_seeds(gaps, [first, second])
    if several:
        return several
    return Difference(interval_of_difference(gaps, seed=seed), sign_flip(gaps, seed=seed), _deviation(gaps), questions)


def interval_of_difference(gaps: Floats, *, seed: int = 0) -> Interval:
    """The mean of the questions' differences with its interval, whose ends lie between -1 and 1.

    Even if the differences of all Q questions are equal, a share u of all possible questions may have another difference.
    The interval takes u = 1 - 0.05^(1 / Q): if the share was larger, Q questions would all miss it with a chance below 5 %.
    The other differences lie between -1 and 1, so the true mean lies within u of (1 - u) * value.

    Args:
        gaps: differences of shares, [Q] with Q >= 2, for one seed of each method.
        seed: of the resamples.
    """
    value, deviation, questions = float(gaps.mean()), _deviation(gaps), len(gaps)
    if not deviation:
        unseen = float(1 - (1 - LEVEL) ** (1 / questions))
        return Interval(value, (1 - unseen) * value - unseen, (1 - unseen) * value + unseen)
    if questions >= _T_BELOW:
        return bootstrap(gaps[:, None], seed=seed)[0]
    margin = _t(questions - 1) * deviation / questions**0.5
    return Interval(value, max(-1.0, value - margin), min(1.0, value + margin))


def seeded_mean(runs: Sequence[Floats], *, seed: int = 0) -> Interval:
    """The mean share over questions and seeds, with its interval; see `paired_difference`.

    Args:
        runs: for each seed its values, [Q].
        seed: of the resamples.
    """
    mean = np.mean(runs, axis=0)
    several = _over_seeds(mean, [runs]) if len(mean) > 1 else None
    if several:
        return several.interval
    binary = bool(np.isin(mean, (0.0, 1.0)).all())
    return wilson(int(mean.sum()), len(mean)) if binary else bootstrap(mean[:, None], seed=seed)[0]


def _deviation(gaps: Floats) -> float:
    """The standard deviation, exactly 0 where all values are equal but for rounding."""
    deviation = float(gaps.std(ddof=1))
    return deviation if deviation > _ALIKE else 0.0


def _t(freedom: float) -> float:
    """The half-width of an interval in standard errors."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _over_seeds(gaps: Floats, methods: Sequence[Sequence[Floats]]) -> Difference | None:
    """A difference whose interval and test include the variance from seeds.

    Args:
        gaps: the questions' differences, mean over seeds, [Q].
        methods: for each method, for each seed, its values [Q].

    Returns:
        None where no method has several seeds, or neither questions nor seeds vary.
    """
    seeds = tuple(_seed_part(np.array(runs)) for runs in methods if len(runs) > 1)
    value, deviation, questions = float(gaps.mean()), _deviation(gaps), len(gaps)
    variance, freedom = _variance(deviation, questions, seeds)
    if not seeds or variance <= _ALIKE**2:
        return None
    margin = _t(freedom) * variance**0.5
    p_value = float(2 * stats.t.sf(abs(value) / variance**0.5, freedom))
    return Difference(Interval(value, value - margin, value + margin), p_value, deviation, questions, seeds)


def _seed_part(runs: Floats) -> SeedPart:
    """Splits the variance of the mean over S seeds into its two parts. runs: [S, Q].

    The passing part is estimated from the residual that neither the seed nor the question explains.
    """
    number, questions = runs.shape
    means = runs.mean(axis=1)
    residual = runs - means[:, None] - runs.mean(axis=0) + means.mean()
    passing = float((residual**2).sum()) / ((number - 1) * (questions - 1) * number)
    whole = float(means.var(ddof=1)) / number
    passing = min(passing, whole * questions)
    return SeedPart(whole - passing / questions, passing, number - 1)


def _variance(deviation: float, questions: int, seeds: Sequence[SeedPart]) -> tuple[float, float]:
    """The variance of a mean over `questions`, and its degrees of freedom (Satterthwaite), infinite without seeds.

    Args:
        deviation: standard deviation of the questions' values.
        questions: number of questions.
        seeds: for each method that has several seeds.
    """
    parts = [(deviation**2 / questions, questions - 1)]
    parts += [(one.lasting + one.passing / questions, one.freedom) for one in seeds]
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / degrees for part, degrees in parts)
    return variance, variance**2 / spread if seeds and spread else float("inf")


def sign_flip(gaps: Floats, *, seed: int = 0) -> float:
    """The two-sided p-value of a permutation test for a mean of zero, which flips the signs of the differences.

    It is exact where few questions differ, and by random flips elsewhere.

    Args:
        gaps: the questions' differences, [Q].
        seed: of the random flips.
    """
    nonzero = gaps[np.abs(gaps) > _ALIKE]  # flipping the sign of a zero changes nothing
    if len(nonzero) < 2:
        return 1.0  # a single difference is equally far from zero with either sign
    resamples = int(np.clip(_WORK // len(nonzero), _FEWEST, _MOST))
    result = stats.permutation_test(
        (nonzero,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // len(nonzero)),
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def mcnemar(first: Floats, second: Floats) -> tuple[int, int, float]:
    """McNemar's exact test of two methods on the same questions.

    Args:
        first: [Q], 1 where the first method is right, else 0.
        second: [Q], likewise of the second method.

    Returns:
        The number of questions that only the first gets right, the number that only the second gets right, and the
        two-sided p-value of a binomial test.
    """
    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    differing = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values, adjusted for testing all of them at once (Holm 1979). None stays None and does not count as a test."""
    given = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(given):
        largest = max(largest, min(1.0, p * (len(given) - rank)))
        adjusted[place] = largest
    return adjusted


def questions_needed(difference: float, deviation: float, seeds: Sequence[SeedPart] = ()) -> int | None:
    """The number of questions with which a two-sided paired test at 5 % finds a true difference with 80 % probability.

    Args:
        difference: the true difference.
        deviation: standard deviation of the questions' differences.
        seeds: for each method that has several seeds; their number is taken to stay the same.

    Returns:
        None where 10 million questions do not suffice: for a difference of 0, or where the variance from seeds is too large.
    """
    numbers = range(2, 10_000_001)
    place = bisect_left(numbers, True, key=lambda number: detectable(deviation, number, seeds) <= abs(difference))
    return numbers[place] if place < len(numbers) else None


def detectable(deviation: float, questions: int, seeds: Sequence[SeedPart] = ()) -> float:
    """The smallest true difference that a two-sided paired test at 5 % finds with 80 % probability.

    Args:
        deviation: standard deviation of the questions' differences.
        questions: number of questions.
        seeds: for each method that has several seeds.
    """
    variance, freedom = _variance(deviation, questions, seeds)
    return float((_t(freedom) + stats.t.ppf(POWER, freedom)) * variance**0.5)
