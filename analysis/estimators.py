"""Estimates from one N x M run what every smaller grid n x m would have scored: pass@(n, m) and votes.

A sub-grid consists of n of the N paths, and of m of the M samples of each of these paths. The samples of each path are
chosen independently, and all choices are equally likely. An estimate is the mean over sub-grids, for each question by
itself. It is unbiased for a run of that size. pass@(n, m) has a closed form (see `pass_at`). Votes are averaged over all
sub-grids where these are few enough. Elsewhere they are averaged over random sub-grids, and come with the standard error of
this choice.

Votes follow the rules of `scaling.records.votes`: a completion without an answer does not vote. Ties go to the answer that
more paths support, then to the one with the smallest hash. Chains may have weights, which `analysis.voters` computes. This
module knows nothing of files, intervals or costs.

Shapes: Q questions, N paths, M samples, R random sub-grids, K different answers to a question.
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

_CHUNK = 4_000_000  # most votes counted at once
_WORK = 10_000_000  # most completions x random sub-grids of each size
_FEWEST, _MOST = 16, 1000  # sub-grids of each size for a question


@dataclass(frozen=True, eq=False)
class Rule:
    """How the answers of chains become a vote.

    Attributes:
        weights: [Q, N, M], the weight of each chain, at least 0; None for a weight of 1 each. A chain of weight 0 does not
            vote.
        hierarchical: whether each path votes by itself first, and then the winners of the paths vote.
        best: whether the answer of the chain with the largest weight wins, instead of the answer with the largest sum.
        logs: whether `weights` are logarithms, for weights that differ by too many orders of magnitude for a float.
    """

    weights: Floats | None = None
    hierarchical: bool = False
    best: bool = False
    logs: bool = False

    @property
    def add(self) -> np.ufunc:
        """The operation that combines the weights of two chains with the same answer."""
        return np.maximum if self.best else np.logaddexp if self.logs else np.add

    @property
    def nothing(self) -> float:
        """The weight of an answer that no chain gives."""
        return -np.inf if self.logs else 0

    def of(self, rows: NDArray[np.int64]) -> Rule:
        """The same rule for some of the questions. rows: their places among the Q."""
        return self if self.weights is None else replace(self, weights=self.weights[rows])


FLAT, HIERARCHICAL = Rule(), Rule(hierarchical=True)


@dataclass(frozen=True, eq=False)
class VoteEstimate:
    """What a vote scores over sub-grids of each size n x m, at [n - 1, m - 1].

    Attributes:
        values: [Q, N, M], the chance that a vote over a sub-grid of that size is right.
        error: [N, M], the standard error of the mean over questions that comes from choosing sub-grids at random. It does
            not include the sampling error of the questions.
        exact: [N, M] bool, whether all sub-grids of that size were counted, so that `error` is 0.
    """

    values: Floats
    error: Floats
    exact: NDArray[np.bool_]


def pass_at(ballots: Ballots) -> Floats:
    """pass@(n, m): the chance that n paths with m samples each contain a right answer, [Q, N, M] at [n - 1, m - 1].

    If c of the M samples of a path are right, m of them are all wrong with probability q = C(M - c, m) / C(M, m)
    (arXiv 2107.03374, equation 1). Then n of the N paths are all wrong with probability e_n(q_1 .. q_N) / C(N, n). Here e_n
    is the elementary symmetric polynomial: the sum, over all choices of n paths, of the product of their q.
    """
    return (1 - _none(ballots.right)).clip(0, 1)


def pass_all(ballots: Ballots) -> Floats:
    """pass^(n, m): the chance that all chains of n paths with m samples each are right, [Q, N, M] at [n - 1, m - 1].

    It is unbiased as pass@(n, m) is (pass^k of arXiv 2406.12045, where there are no paths): no chain is wrong.
    """
    return _none(~ballots.right).clip(0, 1)


def _none(hits: NDArray[np.bool_]) -> Floats:
    """The chance that n paths with m samples each contain no hit, [Q, N, M]; see `pass_at`. hits: [Q, N, M]."""
    questions, num_paths, num_samples = hits.shape
    counts = hits.sum(axis=2)
    values = np.empty((questions, num_paths, num_samples))
    for m in range(1, num_samples + 1):
        miss = np.array([comb(num_samples - c, m) / comb(num_samples, m) for c in range(num_samples + 1)])[counts]
        sums = np.zeros((questions, num_paths + 1))
        sums[:, 0] = 1
        for path in range(num_paths):
            sums[:, 1:] += sums[:, :-1] * miss[:, path, None]
        choices = np.array([comb(num_paths, n) for n in range(1, num_paths + 1)], dtype=float)
        values[:, :, m - 1] = sums[:, 1:] / choices
    return values


def whole_vote(ballots: Ballots) -> Floats:
    """Whether the flat vote over the whole grid is right, for each question 1 or 0, [Q]."""
    votes = _winners(ballots.counts()[:, None], FLAT)[:, 0, -1]
    return ballots.judged(votes).astype(float)


def vote(ballots: Ballots, rule: Rule = FLAT, *, seed: int = 0) -> VoteEstimate:
    """What a vote over n paths x m samples scores, for all n and m.

    Args:
        ballots: the answers of the whole grid.
        rule: how they become a vote; by default the majority of all n x m answers.
        seed: of the random sub-grids.
    """
    questions, num_paths, num_samples = ballots.codes.shape
    draws = int(np.clip(_WORK // ballots.codes.size, _FEWEST, _MOST))
    rng = np.random.default_rng(seed)
    values = np.zeros((questions, num_paths, num_samples))
    variance = np.zeros((num_paths, num_samples))
    exact = np.array([[sub_grids(ballots, n, m) <= draws for m in range(num_samples)] for n in range(num_paths)])
    if not ballots.verdicts.shape[1]:  # no answer at all
        return VoteEstimate(values, variance, np.ones_like(exact))
    for rows in _batches(ballots, draws):
        batch, batch_rule = ballots.of(rows), rule.of(rows)
        mean, spread = _over_random_sub_grids(batch, draws, rng, batch_rule)
        for n, m in np.argwhere(exact):
            mean[:, n, m], spread[:, n, m] = _over_all_sub_grids(batch, n + 1, m + 1, batch_rule), 0
        values[rows] = mean
        variance += spread.sum(axis=0)
    return VoteEstimate(values, np.sqrt(variance / draws) / questions, exact)


def sub_grids(ballots: Ballots, n: int, m: int) -> int:
    """The number of different sub-grids of n + 1 paths x m + 1 samples."""
    _, num_paths, num_samples = ballots.codes.shape
    return int(comb(num_paths, n + 1) * comb(num_samples, m + 1) ** (n + 1))


def _batches(ballots: Ballots, draws: int) -> Iterator[NDArray[np.int64]]:
    """The places of the questions in batches that fit into memory, those with the most different answers first.

    Questions with similar numbers of answers so come together, and arrays with K answers waste little room.
    """
    _, num_paths, num_samples = ballots.codes.shape
    order = np.argsort(-ballots.sizes, kind="stable")
    start = 0
    while start < len(order):
        each = num_paths * max(draws, num_samples) * max(num_samples, int(ballots.sizes[order[start]]))
        stop = start + max(1, _CHUNK // each)
        yield order[start:stop]
        start = stop


def _over_random_sub_grids(ballots: Ballots, draws: int, rng: np.random.Generator, rule: Rule) -> tuple[Floats, Floats]:
    """The mean and the variance of right votes over random sub-grids, [Q, N, M] each.

    Puts paths and samples into a random order. The first n paths with the first m samples of each are a random sub-grid.

    Args:
        ballots: the answers of the whole grid.
        draws: R, the number of random orders.
        rng: the generator that draws them.
        rule: how answers become a vote.
    """
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
    """An array of counts without any vote yet, [*shape, K]. K is at least 1, also where no question has an answer."""
    answers = max(1, int(ballots.sizes.max()))
    return np.full((*shape, answers), rule.nothing, dtype=np.int32 if rule.weights is None else np.float64)


def _count(counts: NDArray[Any], codes: NDArray[np.int32], rule: Rule = FLAT, at: Any = ...) -> None:
    """Adds the vote of each chain to `counts`, in place.

    Args:
        counts: [..., K].
        codes: [...], the number of each chain's answer, -1 for none.
        rule: whose weights the votes have.
        at: the index that took `codes` out of an array [Q, N, M]; it takes their weights from `rule.weights`.
    """
    voters = np.nonzero(codes >= 0)
    places: Any = (*voters, codes[voters])
    if rule.weights is None:
        counts[places] += 1
    else:
        counts[places] = rule.add(counts[places], rule.weights[at][voters])


def _winners(counts: NDArray[Any], rule: Rule) -> NDArray[np.int64]:
    """The winner among the first 1, 2 .. N paths, [Q, R, N]: the number of an answer, -1 for none.

    Args:
        counts: [Q, R, N, K], the votes of each path.
        rule: how they become a vote.
    """
    num_paths = counts.shape[2]
    if rule.hierarchical:
        path_winners = np.where(counts.any(axis=3), counts.argmax(axis=3), -1)
        path_votes = np.zeros(counts.shape, dtype=np.int32)
        _count(path_votes, path_winners)
        scores = path_votes.cumsum(axis=2, dtype=np.int32)
    elif rule.weights is None:
        # votes decide; among equal ones the number of supporting paths, which is at most N
        scores = (counts * (num_paths + 1) + (counts > 0)).cumsum(axis=2, dtype=np.int32)
    else:
        sums = rule.add.accumulate(counts, axis=2)
        most = sums.max(axis=3, keepdims=True)
        tied = (sums > rule.nothing) & (sums >= (most - ALIKE if rule.logs else most * (1 - ALIKE)))
        scores = np.where(tied, (counts > rule.nothing).cumsum(axis=2), 0)
    return np.where(scores.any(axis=3), scores.argmax(axis=3), -1)


def _over_all_sub_grids(ballots: Ballots, n: int, m: int, rule: Rule) -> Floats:
    """The share of all sub-grids of n paths x m samples whose vote is right, [Q]."""
    questions, num_paths, num_samples = ballots.codes.shape
    sample_choices = list(combinations(range(num_samples), m))
    # the votes of each path for each choice of m of its samples, [choices, Q, N, K]
    counted = _no_votes((len(sample_choices), questions, num_paths), ballots, rule)
    for counts, samples in zip(counted, sample_choices, strict=True):
        for sample in samples:
            _count(counts, ballots.codes[:, :, sample], rule, np.s_[:, :, sample])
    right = np.zeros(questions)
    for paths in combinations(range(num_paths), n):
        for choices in product(range(len(sample_choices)), repeat=n):
            counts = counted[list(choices), :, list(paths)].transpose(1, 0, 2)  # [Q, n, K]
            right += ballots.judged(_winners(counts[:, None], rule)[:, 0, -1])
    return right / sub_grids(ballots, n - 1, m - 1)
