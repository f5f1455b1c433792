"""Whether latent paths add diversity beyond temperature: accuracy, entropy, agreement and variance between and within paths.

If paths only mattered as labels, the N x M completions of a question could change places freely. That is the null
hypothesis of every p-value here: labels are shuffled within each question (a permutation test, exact for any number of
questions). Two completions agree if both have an answer and it is the same one. Of a method with several seeds every figure
is the mean over them, with questions as the unit of intervals: a question's seeds are averaged first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.load import Ballots
from analysis.statistics import Interval, interval_of_ratio, wilson

Floats = NDArray[np.float64]

_SHUFFLES = 999
_CELLS = 200_000_000  # completions shuffled in all, above which there are fewer shuffles


@dataclass(frozen=True, eq=False)
class PathFigures:
    """Of N paths. accuracy: [N] share of right completions of each path. entropy: mean over questions of the entropy of
    all its answers, in bits. agreement: [N, N], chance that a sample of one path and one of another agree; the diagonal
    is of two different samples of one path, NaN where there is only one sample.

    within, between: its mean on and off the diagonal. between_p: p-value of between < within. intraclass: the
    intraclass correlation of correctness, the share of a question's variance that lies between its paths. All four are
    None where N or M is 1.
    """

    accuracy: Floats
    entropy: float
    agreement: Floats
    within: float | None
    between: float | None
    between_p: float | None
    intraclass: Interval | None
    intraclass_p: float | None


def path_figures(runs: Sequence[Ballots], *, seed: int = 0) -> PathFigures:
    """Diagnostics of a whole N x M grid. runs: one for each seed, on the same questions."""
    _, num_paths, num_samples = runs[0].codes.shape
    agreement: Floats = np.mean([agreements(ballots) for ballots in runs], axis=0)
    accuracy: Floats = np.mean([ballots.right.mean(axis=(0, 2)) for ballots in runs], axis=0)
    entropy = float(np.mean([answer_entropy(ballots) for ballots in runs]))
    if num_paths == 1 or num_samples == 1:
        return PathFigures(accuracy, entropy, agreement, None, None, None, None, None)
    between, within = np.mean([mean_squares(ballots.right) for ballots in runs], axis=0)
    p_agreement, p_variance = _shuffled(runs, seed=seed)
    off = ~np.eye(num_paths, dtype=bool)
    return PathFigures(
        accuracy=accuracy,
        entropy=entropy,
        agreement=agreement,
        within=float(np.diag(agreement).mean()),
        between=float(agreement[off].mean()),
        between_p=p_agreement,
        intraclass=interval_of_ratio(between - within, between + (num_samples - 1) * within, seed=seed),
        intraclass_p=p_variance,
    )


def mean_squares(right: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Between and within paths, [Q] each, of a one-way analysis of variance for every question; right: [Q, N, M].

    The intraclass correlation is (between - within) / (between + (M - 1) within), each averaged over the questions first
    (Shrout and Fleiss 1979, ICC(1,1)). It can be negative: paths that are more alike than chance.
    """
    _, num_paths, num_samples = right.shape
    means = right.mean(axis=2)
    between = num_samples * means.var(axis=1, ddof=1)
    within = (means * (1 - means)).sum(axis=1) * num_samples / (num_paths * (num_samples - 1))
    return between, within


def answer_entropy(ballots: Ballots) -> Floats:
    """[Q], entropy in bits of the shares of each question's answers; those without an answer are left out."""
    shares = ballots.counts().sum(axis=1).astype(float)
    shares /= np.maximum(1, shares.sum(axis=1, keepdims=True))
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Floats = -(shares * logs).sum(axis=1)
    return entropy


def agreements(ballots: Ballots) -> Floats:
    """[N, N], mean over the questions; see `PathFigures`."""
    num_samples = ballots.codes.shape[2]
    counts = ballots.counts().astype(float)
    pairs = np.einsum("qik,qjk->ij", counts, counts) / len(counts)
    single = (ballots.codes >= 0).mean(axis=0).sum(axis=1)  # each completion with itself
    matrix: Floats = pairs / num_samples**2
    own = np.full(len(matrix), np.nan)
    if num_samples > 1:
        own = (np.diag(pairs) - single) / (num_samples * (num_samples - 1))
    np.fill_diagonal(matrix, own)
    return matrix


@dataclass(frozen=True)
class CalibrationBin:
    """Questions whose leading answer has a share of all N x M answers within (low, high], in any seed: how many of those
    votes are right."""

    low: float
    high: float
    mean_share: float
    accuracy: Interval
    num_questions: int


def calibration(
    runs: Sequence[Ballots], votes_right: Sequence[Floats], *, bins: int = 10
) -> tuple[list[CalibrationBin], float]:
    """How often a vote of a given share is right, and the expected calibration error (Guo et al. 2017, equation 3).

    runs, votes_right: one for each seed; [Q], 0 or 1. Votes of all seeds are put together, but in an interval each question
    counts once. Questions without any answer have share 0 and stand in the lowest bin.
    """
    right = np.array(votes_right)
    shares = np.array([_leading_share(ballots) for ballots in runs])
    place = np.clip(np.ceil(shares * bins).astype(int) - 1, 0, bins - 1)
    found, error = [], 0.0
    for number in np.unique(place):
        own = place == number
        mean, value, questions = float(shares[own].mean()), float(right[own].mean()), int(own.any(axis=0).sum())
        accuracy = replace(wilson(round(value * questions), questions), value=value)
        found.append(CalibrationBin(number / bins, (number + 1) / bins, mean, accuracy, questions))
        error += float(own.mean()) * abs(mean - value)
    return found, error


def _leading_share(ballots: Ballots) -> Floats:
    """[Q], the share of the most frequent answer among all N x M completions."""
    shares: Floats = ballots.counts().sum(axis=1).max(axis=1, initial=0) / np.prod(ballots.codes.shape[1:])
    return shares


def _shuffled(runs: Sequence[Ballots], *, seed: int) -> tuple[float, float]:
    """p-values: samples of one path agree more than those of two, and correctness varies more between paths than within.

    Both statistics rise with a sum over paths alone, as the totals of a question stay the same under shuffling: of the
    squared counts of each answer, and of the squared counts of right completions.
    """
    rng = np.random.default_rng(seed)
    draws = int(np.clip(_CELLS // sum(ballots.codes.size for ballots in runs), 99, _SHUFFLES))
    sums = np.sum([_sums_of_squares(ballots, draws, rng) for ballots in runs], axis=0)
    low, high = ((sums[1:] >= sums[0]).sum(axis=0) + 1) / (draws + 1)
    return float(low), float(high)


def _sums_of_squares(ballots: Ballots, draws: int, rng: np.random.Generator) -> Floats:
    """[1 + draws, 2]: both sums of `_shuffled`, as observed and with shuffled labels."""
    questions, num_paths, num_samples = ballots.codes.shape
    flat = ballots.codes.reshape(questions, -1)
    wide = ballots.verdicts.shape[1] + 1  # the first place is for no answer
    place = wide * np.repeat(np.arange(questions * num_paths), num_samples) + 1

    def sums(codes: NDArray[np.int32]) -> tuple[int, int]:
        counts = np.bincount(place + codes.ravel(), minlength=questions * num_paths * wide)
        given = counts.reshape(questions, num_paths, wide)[..., 1:]
        right = (given * ballots.verdicts[:, None]).sum(axis=2)
        return (given**2).sum(), (right**2).sum()

    return np.array([sums(flat), *(sums(rng.permuted(flat, axis=1)) for _ in range(draws))], dtype=float)
