"""Measures whether latent paths add diversity beyond temperature, by comparing completions within and between paths.

The null hypothesis of every p-value here is that paths make no difference: the N x M completions of a question could then
trade places between paths. The test is a permutation test that shuffles the path labels within each question. It is valid
for any number of questions. Two completions agree if both have an answer and it is the same one. For a method with several
seeds, every figure is the mean over seeds. The unit of intervals is the question, whose seeds are averaged first.
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
_CELLS = 200_000_000  # completions shuffled in all; larger grids get fewer shuffles


@dataclass(frozen=True, eq=False)
class PathFigures:
    """Figures on the diversity of N paths.

    `within`, `between`, `intraclass` and both p-values are None where N or M is 1.

    Attributes:
        accuracy: [N], the share of right completions of each path.
        entropy: the entropy of all answers to a question in bits, mean over questions.
        agreement: [N, N], the chance that a sample of one path and a sample of another path agree. The diagonal holds the
            chance for two different samples of the same path, NaN where M is 1.
        within: mean of `agreement` on the diagonal.
        between: mean of `agreement` off the diagonal.
        between_p: p-value of the test that samples of one path agree more often than samples of two paths.
        intraclass: the intraclass correlation of correctness, which is the share of a question's variance that lies between
            its paths.
        intraclass_p: p-value of the test that it is above 0.
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
    """The figures of a whole N x M grid.

    Args:
        runs: one for each seed of a method, on the same questions.
        seed: of the shuffles and the bootstrap.
    """
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
    """Mean squares of a one-way analysis of variance of each question's correctness, with its paths as the groups.

    The intraclass correlation is (between - within) / (between + (M - 1) within), each averaged over the questions first
    (Shrout and Fleiss 1979, ICC(1,1)). It is negative where paths are more alike than by chance.

    Args:
        right: [Q, N, M] bool, whether each completion is right.

    Returns:
        The mean squares between paths and within paths, [Q] each.
    """
    _, num_paths, num_samples = right.shape
    means = right.mean(axis=2)
    between = num_samples * means.var(axis=1, ddof=1)
    within = (means * (1 - means)).sum(axis=1) * num_samples / (num_paths * (num_samples - 1))
    return between, within


def answer_entropy(ballots: Ballots) -> Floats:
    """The entropy in bits of the answers to each question, [Q]. Completions without an answer are left out."""
    shares = ballots.counts().sum(axis=1).astype(float)
    shares /= np.maximum(1, shares.sum(axis=1, keepdims=True))
    logs = np.log2(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy: Floats = -(shares * logs).sum(axis=1)
    return entropy


def agreements(ballots: Ballots) -> Floats:
    """The chance that samples of two paths agree, [N, N], mean over questions; see `PathFigures.agreement`."""
    num_samples = ballots.codes.shape[2]
    counts = ballots.counts().astype(float)
    pairs = np.einsum("qik,qjk->ij", counts, counts) / len(counts)
    single = (ballots.codes >= 0).mean(axis=0).sum(axis=1)  # pairs of a completion with itself, which do not count
    matrix: Floats = pairs / num_samples**2
    same_path = np.full(len(matrix), np.nan)
    if num_samples > 1:
        same_path = (np.diag(pairs) - single) / (num_samples * (num_samples - 1))
    np.fill_diagonal(matrix, same_path)
    return matrix


@dataclass(frozen=True)
class CalibrationBin:
    """How often votes are right whose winner has a share within (low, high] of a question's N x M completions.

    Attributes:
        low: lower end of the shares, not included.
        high: upper end of the shares, included.
        mean_share: mean share of the votes in this bin.
        accuracy: share of these votes that are right.
        num_questions: questions with such a vote in any seed.
    """

    low: float
    high: float
    mean_share: float
    accuracy: Interval
    num_questions: int


def calibration(
    runs: Sequence[Ballots], votes_right: Sequence[Floats], *, bins: int = 10
) -> tuple[list[CalibrationBin], float]:
    """How often a vote with a given share of the completions is right.

    The votes of all seeds are pooled, but each question counts once in an interval. Questions without any answer have share
    0 and fall into the lowest bin.

    Args:
        runs: one for each seed.
        votes_right: for each seed [Q], 1 where the vote is right, else 0.
        bins: number of bins of equal width between 0 and 1.

    Returns:
        The bins that are not empty, and the expected calibration error (Guo et al. 2017, equation 3).
    """
    right = np.array(votes_right)
    shares = np.array([_leading_share(ballots) for ballots in runs])
    place = np.clip(np.ceil(shares * bins).astype(int) - 1, 0, bins - 1)
    filled, error = [], 0.0
    for number in np.unique(place):
        in_bin = place == number
        mean, value = float(shares[in_bin].mean()), float(right[in_bin].mean())
        questions = int(in_bin.any(axis=0).sum())
        accuracy = replace(wilson(round(value * questions), questions), value=value)
        filled.append(CalibrationBin(number / bins, (number + 1) / bins, mean, accuracy, questions))
        error += float(in_bin.mean()) * abs(mean - value)
    return filled, error


def _leading_share(ballots: Ballots) -> Floats:
    """The share of the most frequent answer among all N x M completions of each question, [Q]."""
    shares: Floats = ballots.counts().sum(axis=1).max(axis=1, initial=0) / np.prod(ballots.codes.shape[1:])
    return shares


def _shuffled(runs: Sequence[Ballots], *, seed: int) -> tuple[float, float]:
    """The p-values of `PathFigures.between_p` and `PathFigures.intraclass_p`, from shuffled path labels.

    Shuffling leaves the totals of a question as they are. Therefore both statistics depend only on a sum over paths: of the
    squared count of each answer, or of the squared count of right completions.
    """
    rng = np.random.default_rng(seed)
    draws = int(np.clip(_CELLS // sum(ballots.codes.size for ballots in runs), 99, _SHUFFLES))
    sums = np.sum([_sums_of_squares(ballots, draws, rng) for ballots in runs], axis=0)
    low, high = ((sums[1:] >= sums[0]).sum(axis=0) + 1) / (draws + 1)
    return float(low), float(high)


def _sums_of_squares(ballots: Ballots, draws: int, rng: np.random.Generator) -> Floats:
    """Both sums of `_shuffled`, [1 + draws, 2]: the first row as observed, the others with shuffled labels."""
    questions, num_paths, num_samples = ballots.codes.shape
    flat = ballots.codes.reshape(questions, -1)
    width = ballots.verdicts.shape[1] + 1  # the first column counts completions without an answer
    place = width * np.repeat(np.arange(questions * num_paths), num_samples) + 1

    def sums(codes: NDArray[np.int32]) -> tuple[int, int]:
        counts = np.bincount(place + codes.ravel(), minlength=questions * num_paths * width)
        given = counts.reshape(questions, num_paths, width)[..., 1:]
        right = (given * ballots.verdicts[:, None]).sum(axis=2)
        return (given**2).sum(), (right**2).sum()

    return np.array([sums(flat), *(sums(rng.permuted(flat, axis=1)) for _ in range(draws))], dtype=float)
