"""What every smaller grid would have scored, from one N x M run: pass@(n, m) and majority votes for all n <= N, m <= M.

A sub-grid is n of the N paths, and of each of them m of its M samples, chosen independently and all equally likely. An
estimate is the mean over sub-grids, for each question on its own: unbiased for a run of that size. pass@(n, m) has a closed
form (`pass_at`). Votes are averaged over all sub-grids where there are few enough, else over random ones, and then carry
the standard error of that choice. Votes are those of `scaling.voter`: no answer no vote, ties to the answer that more
paths support, then to the smallest hash. Knows nothing of files, intervals or costs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, product
from math import comb

import numpy as np
from numpy.typing import NDArray

from analysis.load import Ballots

Floats = NDArray[np.float64]

_CHUNK = 4_000_000  # votes counted at once
_WORK = 10_000_000  # completions x random sub-grids of each size
_FEWEST, _MOST = 16, 1000  # sub-grids of each size for a question


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


def flat_vote(ballots: Ballots, *, seed: int = 0) -> VoteEstimate:
    """Majority over all n x m answers."""
    return _vote(ballots, hierarchical=False, seed=seed)


def hierarchical_vote(ballots: Ballots, *, seed: int = 0) -> VoteEstimate:
    """Majority of each path over its m answers, then of the n paths."""
    return _vote(ballots, hierarchical=True, seed=seed)


def whole_vote(ballots: Ballots) -> Floats:
    """[Q], 1 where the flat vote over the whole grid is right, else 0."""
    votes = _winners(ballots.counts()[:, None], hierarchical=False)[:, 0, -1]
    return ballots.judged(votes).astype(float)


def _vote(ballots: Ballots, *, hierarchical: bool, seed: int) -> VoteEstimate:
    questions, num_paths, num_samples = ballots.codes.shape
    draws = int(np.clip(_WORK // ballots.codes.size, _FEWEST, _MOST))
    rng = np.random.default_rng(seed)
    values = np.zeros((questions, num_paths, num_samples))
    variance = np.zeros((num_paths, num_samples))
    exact = np.array([[sub_grids(ballots, n, m) <= draws for m in range(num_samples)] for n in range(num_paths)])
    if not ballots.verdicts.shape[1]:  # no answer at all
        return VoteEstimate(values, variance, np.ones_like(exact))
    for rows in _alike(ballots, draws):
        some = ballots.of(rows)
        mean, spread = _by_chance(some, draws, rng, hierarchical=hierarchical)
        for n, m in np.argwhere(exact):
            mean[:, n, m], spread[:, n, m] = _by_counting(some, n + 1, m + 1, hierarchical=hierarchical), 0
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


def _by_chance(ballots: Ballots, draws: int, rng: np.random.Generator, *, hierarchical: bool) -> tuple[Floats, Floats]:
    """Mean and variance over random sub-grids, [Q, N, M]: paths and samples in random order, cut after n and m."""
    questions, num_paths, num_samples = ballots.codes.shape
    wide = int(ballots.sizes.max())
    paths = rng.random((questions, draws, num_paths), dtype=np.float32).argsort(axis=2)
    samples = rng.random((questions, draws, num_paths, num_samples), dtype=np.float32).argsort(axis=3)
    rows = np.arange(questions)[:, None, None]
    counts = np.zeros((questions, draws, num_paths, wide), dtype=np.int32)
    mean, variance = (np.zeros((questions, num_paths, num_samples)) for _ in range(2))
    for m in range(num_samples):
        codes = ballots.codes[rows, paths, samples[..., m]]  # [Q, R, N]
        _count(counts, codes)
        votes = _winners(counts, hierarchical=hierarchical)
        right = ballots.judged(votes)
        mean[:, :, m] = right.mean(axis=1)
        variance[:, :, m] = right.var(axis=1, ddof=1)
    return mean, variance


def _count(counts: NDArray[np.int32], codes: NDArray[np.int32]) -> None:
    """Adds a vote for each code, -1 for none, to counts [..., K]."""
    voters = np.nonzero(codes >= 0)
    counts[(*voters, codes[voters])] += 1


def _winners(counts: NDArray[np.int32], *, hierarchical: bool) -> NDArray[np.int64]:
    """The vote after each path, [Q, R, N], -1 for none; counts: [Q, R, N, K], each path's own."""
    num_paths = counts.shape[2]
    if hierarchical:
        own = counts.argmax(axis=3)
        ballots = np.where(counts.any(axis=3), own, -1)
        each = np.zeros_like(counts)
        _count(each, ballots)
        scores = each.cumsum(axis=2, dtype=np.int32)
    else:
        scores = (counts * (num_paths + 1) + (counts > 0)).cumsum(axis=2, dtype=np.int32)
    return np.where(scores.any(axis=3), scores.argmax(axis=3), -1)


def _by_counting(ballots: Ballots, n: int, m: int, *, hierarchical: bool) -> Floats:
    """The share of all sub-grids of n paths x m samples whose vote is right, [Q]."""
    questions, num_paths, num_samples = ballots.codes.shape
    wide = int(ballots.sizes.max())
    single = list(combinations(range(num_samples), m))
    # what each choice of m samples counts on each path, [choices, Q, N, K]
    counted = np.zeros((len(single), questions, num_paths, wide), dtype=np.int32)
    for choice, picked in zip(counted, single, strict=True):
        for sample in picked:
            _count(choice, ballots.codes[:, :, sample])
    right = np.zeros(questions)
    for paths in combinations(range(num_paths), n):
        for choices in product(range(len(single)), repeat=n):
            counts = counted[list(choices), :, list(paths)].transpose(1, 0, 2)  # [Q, n, K]
            votes = _winners(counts[:, None], hierarchical=hierarchical)[:, 0, -1]
            right += ballots.judged(votes)
    return right / sub_grids(ballots, n - 1, m - 1)
