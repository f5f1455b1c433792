"""What every smaller grid would have scored, from one N x M run: pass@(n, m) and majority votes for all n <= N, m <= M.

A sub-grid is n of the N paths, and of each of them m of its M samples, chosen independently and all equally likely. An
estimate is the mean over sub-grids, for each question on its own: unbiased for a run of that size. pass@(n, m) has a closed
form (`pass_at`). Votes are averaged over all sub-grids where there are few enough, else over random ones, and then carry
the standard error of that choice. Votes are those of `scaling.records.votes`: no answer no vote, ties to the answer that
more paths support, then to the smallest hash. Chains may have weights, of which `analysis.voters` knows. Knows nothing
of files, intervals or costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.load import Ballots
from scaling.records.votes import ALIKE

Floats = NDArray[np.float64]

_CHUNK = 4_000_000  # votes counted at once
_WORK = 10_000_000  # completions x random sub-grids of each size
_FEWEST, _MOST = 16, 1000  # sub-grids of each size for a question


@dataclass(frozen=True, eq=False)
class Rule:
    """How answers become a vote.

    weights: [Q, N, M] from 0, what each chain counts, None for 1; a chain of weight 0 does not vote. hierarchical: paths
    vote, then their winners. best: the answer of the heaviest chain wins, not that of the heaviest sum. logs: weights are
    logarithms of what chains count, for where these are too far apart for one scale.
    """

    weights: Floats | None = None
    hierarchical: bool = False
    best: bool = False
    logs: bool = False

    @property
    def add(self) -> np.ufunc:
        """How the weights of two chains with one answer come together."""
        return np.maximum if self.best else np.logaddexp if self.logs else np.add

    @property
    def nothing(self) -> float:
        """What an answer counts that no chain gives."""
        return -np.inf if self.logs else 0

    def of(self, rows: NDArray[np.int64]) -> Rule:
        """That of some questions."""
        return self if self.weights is None else replace(self, weights=self.weights[rows])


FLAT, HIERARCHICAL = Rule(), Rule(hierarchical=True)


@dataclass(frozen=True, eq=False)
class VoteEstimate:
    """Of all n x m, at [n - 1, m - 1]. values: [Q, N, M], the chance that a vote over such a sub-grid is right.

    error: [N, M], standard error of the mean over questions that is due to choosing sub-grids at random, 0 where all of
    them were counted (`exact`, [N, M] bool). It is no sampling error of the questions.
    """

    values: Floats
    error: Floats
    exact: NDArray[np.bool_]


def pass_at(ballots: Ballots) -> Floats:
    """[Q, N, M]: the chance that n paths with m samples each hold a right answer, at [n - 1, m - 1].

    A path with c right samples misses with q = C(M - c, m) / C(M, m) (arXiv 2107.03374, equation 1); n paths of N all miss
    with e_n(q_1 .. q_N) / C(N, n), the elementary symmetric polynomial being the sum over all choices of n paths.
    """
    right = ballots.right
    questions, num_paths, num_samples = right.shape
    counts = right.sum(axis=2)
    values = np.empty((questions, num_paths, num_samples))
    for m in range(1, num_samples + 1):
        miss = np.array([comb(num_samples - c, m) / comb(num_samples, m) for c in range(num_samples + 1)])[counts]
        sums = np.zeros((questions, num_paths + 1))
        sums[:, 0] = 1
        for path in range(num_paths):
            sums[:, 1:] += sums[:, :-1] * miss[:, path, None]
        choices = np.array([comb(num_paths, n) for n in range(1, num_paths + 1)], dtype=float)
        values[:, :, m - 1] = 1 - sums[:, 1:] / choices
    return values.clip(0, 1)


def whole_vote(ballots: Ballots) -> Floats:
    """[Q], 1 where the flat vote over the whole grid is right, else 0."""
    votes = _winners(ballots.counts()[:, None], FLAT)[:, 0, -1]
    return ballots.judged(votes).astype(float)


def vote(ballots: Ballots, rule: Rule = FLAT, *, seed: int = 0) -> VoteEstimate:
    """What a vote by `rule` over n paths x m samples scores; by default a majority over all n x m answers."""
    questions, num_paths, num_samples = ballots.codes.shape
    draws = int(np.clip(_WORK // ballots.codes.size, _FEWEST, _MOST))
    rng = np.random.default_rng(seed)
    values = np.zeros((questions, num_paths, num_samples))
    variance = np.zeros((num_paths, num_samples))
    exact = np.array([[sub_grids(ballots, n, m) <= draws for m in range(num_samples)] for n in range(num_paths)])
    if not ballots.verdicts.shape[1]:  # no answer at all
        return VoteEstimate(values, variance, np.ones_like(exact))
    for rows in _alike(ballots, draws):
        some, own = ballots.of(rows), rule.of(rows)
        mean, spread = _by_chance(some, draws, rng, own)
        for n, m in np.argwhere(exact):
            mean[:, n, m], spread[:, n, m] = _by_counting(some, n + 1, m + 1, own), 0
        values[rows] = mean
        variance += spread.sum(axis=0)
    return VoteEstimate(values, np.sqrt(variance / draws) / questions, exact)


def sub_grids(ballots: Ballots, n: int, m: int) -> int:
    """How many different sub-grids of n + 1 paths x m + 1 samples there are."""
    _, num_paths, num_samples = ballots.codes.shape
    return int(comb(num_paths, n + 1) * comb(num_samples, m + 1) ** (n + 1))


def _alike(ballots: Ballots, draws: int) -> Iterator[NDArray[np.int64]]:
    """Rows of questions, those with the most different answers first, as many at once as there is room for."""
    _, num_paths, num_samples = ballots.codes.shape
    order = np.argsort(-ballots.sizes, kind="stable")
    start = 0
    while start < len(order):
        each = num_paths * max(draws, num_samples) * max(num_samples, int(ballots.sizes[order[start]]))
        stop = start + max(1, _CHUNK // each)
        yield order[start:stop]
        start = stop


def _by_chance(ballots: Ballots, draws: int, rng: np.random.Generator, rule: Rule) -> tuple[Floats, Floats]:
    """Mean and variance over random sub-grids, [Q, N, M]: paths and samples in random order, cut after n and m."""
    questions, num_paths, num_samples = ballots.codes.shape
    paths = rng.random((questions, draws, num_paths), dtype=np.float32).argsort(axis=2)
    samples = rng.random((questions, draws, num_paths, num_samples), dtype=np.float32).argsort(axis=3)
    rows = np.arange(questions)[:, None, None]
    counts = _no_votes((questions, draws, num_paths), ballots, rule)
    mean, variance = (np.zeros((questions, num_paths, num_samples)) for _ in range(2))
    for m in range(num_samples):
        drawn = (rows, paths, samples[..., m])  # [Q, R, N]
        _count(counts, ballots.codes[drawn], rule, drawn)
        right = ballots.judged(_winners(counts, rule))
        mean[:, :, m] = right.mean(axis=1)
        variance[:, :, m] = right.var(axis=1, ddof=1)
    return mean, variance


def _no_votes(shape: tuple[int, ...], ballots: Ballots, rule: Rule) -> NDArray[Any]:
    """[*shape, K]; K is at least 1, as these may be questions without any answer."""
    answers = max(1, int(ballots.sizes.max()))
    return np.full((*shape, answers), rule.nothing, dtype=np.int32 if rule.weights is None else np.float64)


def _count(counts: NDArray[Any], codes: NDArray[np.int32], rule: Rule = FLAT, at: Any = ...) -> None:
    """Adds to counts [..., K] a vote for each code, -1 for none. at: where the codes stand in [Q, N, M]."""
    voters = np.nonzero(codes >= 0)
    places: Any = (*voters, codes[voters])
    if rule.weights is None:
        counts[places] += 1
    else:
        counts[places] = rule.add(counts[places], rule.weights[at][voters])


def _winners(counts: NDArray[Any], rule: Rule) -> NDArray[np.int64]:
    """The vote after each path, [Q, R, N], -1 for none; counts: [Q, R, N, K], each path's own."""
    num_paths = counts.shape[2]
    if rule.hierarchical:
        ballots = np.where(counts.any(axis=3), counts.argmax(axis=3), -1)
        each = np.zeros(counts.shape, dtype=np.int32)
        _count(each, ballots)
        scores = each.cumsum(axis=2, dtype=np.int32)
    elif rule.weights is None:
        scores = (counts * (num_paths + 1) + (counts > 0)).cumsum(axis=2, dtype=np.int32)
    else:
        sums = rule.add.accumulate(counts, axis=2)
        most = sums.max(axis=3, keepdims=True)
        tied = (sums > rule.nothing) & (sums >= (most - ALIKE if rule.logs else most * (1 - ALIKE)))
        scores = np.where(tied, (counts > rule.nothing).cumsum(axis=2), 0)
    return np.where(scores.any(axis=3), scores.argmax(axis=3), -1)


def _by_counting(ballots: Ballots, n: int, m: int, rule: Rule) -> Floats:
    """The share of all sub-grids of n paths x m samples whose vote is right, [Q]."""
    questions, num_paths, num_samples = ballots.codes.shape
    single = list(combinations(range(num_samples), m))
    # what each choice of m samples counts on each path, [choices, Q, N, K]
    counted = _no_votes((len(single), questions, num_paths), ballots, rule)
    for choice, picked in zip(counted, single, strict=True):
        for sample in picked:
            _count(choice, ballots.codes[:, :, sample], rule, np.s_[:, :, sample])
    right = np.zeros(questions)
    for paths in combinations(range(num_paths), n):
        for choices in product(range(len(single)), repeat=n):
            counts = counted[list(choices), :, list(paths)].transpose(1, 0, 2)  # [Q, n, K]
            right += ballots.judged(_winners(counts[:, None], rule)[:, 0, -1])
    return right / sub_grids(ballots, n - 1, m - 1)
