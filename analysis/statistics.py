"""Intervals, tests and power. The unit is the question: completions of one question are never counted as independent.

All values are shares or differences of shares, as fractions of 1. One question gives no interval. Intervals have 95 %
confidence. Knows nothing of runs, votes or costs.
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

LEVEL = 0.95
POWER = 0.8
_WORK = 200_000_000  # values drawn for one interval or test
_FEWEST, _MOST = 999, 9999  # resamples
_AT_ONCE = 20_000_000  # values held at once
_BCA_UP_TO = 1000  # questions; above, the correction is far below the width of a line, and its jackknife too slow
_T_BELOW = 100  # questions; with fewer, resamples of differences that are mostly zero spread too little
_ALIKE = 1e-12  # deviation up to which values are one value: they were added in another order


@dataclass(frozen=True)
class Interval:
    """A value with a 95 % interval; low and high are None where one question, or no variation, tells of no spread."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class SeedPart:
    """What the seeds of one method add to the variance of a mean over Q questions: lasting + passing / Q, the one because
    seeds differ, the other because they answer each question differently. freedom: number of seeds - 1."""

    lasting: float
    passing: float
    freedom: int


@dataclass(frozen=True)
class Difference:
    """A paired difference of means, its interval and two-sided p-value; deviation: standard deviation of a question's
    difference, 0 where all are alike. num_questions: pairs. seeds: one for each method that has several."""

    interval: Interval
    p_value: float | None
    deviation: float
    num_questions: int
    seeds: tuple[SeedPart, ...] = ()


def wilson(successes: int, total: int) -> Interval:
    """Share of questions with the Wilson score interval."""
    return Interval(successes / total, *wilson_interval(successes, total))


def bootstrap(values: ArrayLike, *, method: Method | None = None, seed: int = 0) -> list[Interval]:
    """Mean over questions of each column of values [Q, C], with a bootstrap interval over questions (Efron 1987).

    method: None is BCa up to 1,000 questions and percentile above. The same questions are drawn for all columns. A
    column without variation, whose resamples are all alike, gets no interval.
    """
    data = np.asarray(values, dtype=float)
    questions = len(data)
    means = data.mean(axis=0)
    varied = data.std(axis=0) > _ALIKE
    low, high = np.full((2, data.shape[1]), np.nan)
    if questions > 1 and varied.any():
        found = _resampled(data[:, varied], method or ("BCa" if questions <= _BCA_UP_TO else "percentile"), seed)
        low[varied], high[varied] = found
    return [
        Interval(float(mean), float(low[c]), float(high[c]))
        if varied[c] and questions > 1
        else Interval(float(mean), None, None)
        for c, mean in enumerate(means)
    ]


def bootstrap_shares(values: ArrayLike, *, seed: int = 0) -> list[Interval]:
    """As `bootstrap`, of shares; a column of zeros or ones alone gets the Wilson interval."""
    questions = len(np.asarray(values))
    return [
        wilson(int(one.value) * questions, questions) if one.low is None and one.value in (0.0, 1.0) else one
        for one in bootstrap(values, seed=seed)
    ]


def _resampled(data: Floats, method: Method, seed: int) -> tuple[Floats, Floats]:
    resamples = int(np.clip(_WORK // data.size, _FEWEST, _MOST))
    found = stats.bootstrap(
        (data,),
        np.mean,
        axis=0,
        confidence_level=LEVEL,
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // data.size),
        method=method,
        rng=np.random.default_rng(seed),
    )
    return found.confidence_interval.low, found.confidence_interval.high


def interval_of_ratio(above: Floats, below: Floats, *, seed: int = 0) -> Interval | None:
    """mean(above) / mean(below) over questions with a percentile bootstrap interval; None where the denominator is 0."""
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
    """Mean of first - second over the same questions. Each is a list of [Q] arrays, one for every seed of its method.

    One seed each: a t interval below 100 questions and a bootstrap interval from there, and a sign-flip permutation test of
    the questions' differences. Several: seeds are drawn as well as questions, both crossed, so the variance of the mean is
    that of the questions' differences plus that of the seeds' means of each method, and interval and test are t with
    Satterthwaite's degrees of freedom. (It counts the residual twice, so it errs on the wide side.) A method with one seed
    adds no variance of its own: its seed is taken as given.
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
    """Mean of [Q] differences of shares, of one seed each, two questions or more. Neither end is beyond 1.

    Where all are the same, of questions with another difference there may still be a share u = 1 - 0.05^(1 / Q): with more,
    Q questions without one are rarer than 5 %. Those would lie between -1 and 1, so the mean within u of (1 - u) value.
    """
    value, deviation, questions = float(gaps.mean()), _deviation(gaps), len(gaps)
    if not deviation:
        others = float(1 - (1 - LEVEL) ** (1 / questions))
        return Interval(value, (1 - others) * value - others, (1 - others) * value + others)
    if questions >= _T_BELOW:
        return bootstrap(gaps[:, None], seed=seed)[0]
    margin = _t(questions - 1) * deviation / questions**0.5
    return Interval(value, max(-1.0, value - margin), min(1.0, value + margin))


def seeded_mean(runs: Sequence[Floats], *, seed: int = 0) -> Interval:
    """Mean share over questions, and over seeds where a method has several; see `paired_difference`."""
    mean = np.mean(runs, axis=0)
    several = _over_seeds(mean, [runs]) if len(mean) > 1 else None
    if several:
        return several.interval
    binary = bool(np.isin(mean, (0.0, 1.0)).all())
    return wilson(int(mean.sum()), len(mean)) if binary else bootstrap(mean[:, None], seed=seed)[0]


def _deviation(gaps: Floats) -> float:
    found = float(gaps.std(ddof=1))
    return found if found > _ALIKE else 0.0


def _t(freedom: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def _over_seeds(gaps: Floats, methods: Sequence[Sequence[Floats]]) -> Difference | None:
    """gaps: [Q], the mean over seeds. None where no method has several, or neither questions nor seeds vary."""
    seeds = tuple(_seed_part(np.array(runs)) for runs in methods if len(runs) > 1)
    value, deviation, questions = float(gaps.mean()), _deviation(gaps), len(gaps)
    variance, freedom = _variance(deviation, questions, seeds)
    if not seeds or variance <= _ALIKE**2:
        return None
    margin = _t(freedom) * variance**0.5
    p_value = float(2 * stats.t.sf(abs(value) / variance**0.5, freedom))
    return Difference(Interval(value, value - margin, value + margin), p_value, deviation, questions, seeds)


def _seed_part(runs: Floats) -> SeedPart:
    """runs: [S, Q]. The variance of the seeds' means over S, of which the residual of seeds and questions is the passing."""
    number, questions = runs.shape
    means = runs.mean(axis=1)
    residual = runs - means[:, None] - runs.mean(axis=0) + means.mean()
    passing = float((residual**2).sum()) / ((number - 1) * (questions - 1) * number)
    whole = float(means.var(ddof=1)) / number
    passing = min(passing, whole * questions)
    return SeedPart(whole - passing / questions, passing, number - 1)


def _variance(deviation: float, questions: int, seeds: Sequence[SeedPart]) -> tuple[float, float]:
    """Of a mean over so many questions, with its degrees of freedom (Satterthwaite); without seeds those of a normal."""
    parts = [(deviation**2 / questions, questions - 1)]
    parts += [(one.lasting + one.passing / questions, one.freedom) for one in seeds]
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / degrees for part, degrees in parts)
    return variance, variance**2 / spread if seeds and spread else float("inf")


def sign_flip(gaps: Floats, *, seed: int = 0) -> float:
    """Two-sided p-value of a zero mean, by flipping the signs of the questions' differences [Q]; exact where few differ."""
    told = gaps[np.abs(gaps) > 1e-12]  # a zero stays zero whatever its sign
    if len(told) < 2:
        return 1.0  # one difference is as large with either sign
    resamples = int(np.clip(_WORK // len(told), _FEWEST, _MOST))
    found = stats.permutation_test(
        (told,),
        np.mean,
        permutation_type="samples",
        n_resamples=resamples,
        batch=max(1, _AT_ONCE // len(told)),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def mcnemar(first: Floats, second: Floats) -> tuple[int, int, float]:
    """Questions that only the first gets right, only the second, and the exact two-sided p-value (a binomial test).

    first, second: [Q], 0 or 1.
    """
    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    differing = only_first + only_second
    return only_first, only_second, float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted for that many comparisons at once (Holm 1979); those without a p-value are none."""
    given = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(given):
        largest = max(largest, min(1.0, p * (len(given) - rank)))
        adjusted[place] = largest
    return adjusted


def questions_needed(difference: float, deviation: float, seeds: Sequence[SeedPart] = ()) -> int | None:
    """Questions for a two-sided paired test at 5 % to find `difference` with 80 % probability, with as many seeds. None for
    0, and where 10 million do not suffice, as where the seeds alone forbid it."""
    numbers = range(2, 10_000_001)
    place = bisect_left(numbers, True, key=lambda number: detectable(deviation, number, seeds) <= abs(difference))
    return numbers[place] if place < len(numbers) else None


def detectable(deviation: float, questions: int, seeds: Sequence[SeedPart] = ()) -> float:
    """The smallest true difference that so many questions and these seeds find with 80 % probability, tested at 5 %."""
    variance, freedom = _variance(deviation, questions, seeds)
    return float((_t(freedom) + stats.t.ppf(POWER, freedom)) * variance**0.5)
