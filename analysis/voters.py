"""The votes that a report can compare, and what each chain weighs in them. All from one journal: no vote needs a new sample.

A weighted vote adds the weights of the chains with the same answer; best-of-n takes the answer of the heaviest one. Weights
belong to a chain alone, never to its neighbours, so a vote over a smaller grid is what a run of that size would vote.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from analysis.estimators import FLAT, HIERARCHICAL, Rule
from analysis.load import Ballots, Run
from scaling.records.errors import UsageError, nearest

Floats = NDArray[np.float64]

VOTERS = {
    "flat": "every chain counts once",
    "hierarchical": "each path votes over its chains, then the paths",
    "log-prob-mean": "a chain weighs exp of the mean log-probability of its tokens (arXiv 2203.11171, table 1)",
    "log-prob-sum": "a chain weighs its probability, exp of the sum (arXiv 2203.11171, table 1)",
    "self-certainty": "a chain weighs its self-certainty (arXiv 2502.18581)",
    "path-reliability": "a chain weighs the log odds of its path on the questions of `--validation`",
    "best-of-n": "the chain that `--scorer` likes best answers alone",
}
NEEDED = {"path-reliability": "--validation", "best-of-n": "--scorer"}

_LEAST = 1e-300  # a chain that answers weighs something, so that a grid with an answer has a vote
_SAMPLED_BY = {"log-prob-mean": "log_probs", "log-prob-sum": "log_probs", "self-certainty": "self_certainty"}


@dataclass(frozen=True, eq=False)
class Outside:
    """What votes know beyond the journal. validation: runs that path reliability is learned from. scores: by label of a
    run, [Q, N, M] of a scorer, higher is better."""

    validation: Sequence[Run] = ()
    scores: dict[str, Floats] = field(default_factory=dict)


def chosen(given: str, *, validation: bool, scorer: bool) -> tuple[str, ...]:
    """The voters of a list by comma; `all` are those for which there is what they need. Raises UsageError."""
    has = {"--validation": validation, "--scorer": scorer}
    if given == "all":
        return tuple(name for name in VOTERS if has.get(NEEDED.get(name, ""), True))
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",")))
    for name in names:
        if name not in VOTERS:
            raise UsageError(f"`--voters` has {name!r}; choose of {', '.join(VOTERS)}.{nearest(name, VOTERS)}")
        if name in NEEDED and not has[NEEDED[name]]:
            raise UsageError(f"`--voters {name}` needs `{NEEDED[name]}`: {VOTERS[name]}")
    for name, option in NEEDED.items():
        if has[option] and name not in names:
            raise UsageError(f"`{option}` is for the vote {name}: add it to `--voters`, or leave the option out")
    return names


def lacking(voters: Sequence[str], runs: Sequence[Run]) -> tuple[str, ...]:
    """Those of the voters whose signal one of the runs does not hold of every chain."""
    signals = {name: [getattr(run, _SAMPLED_BY[name]) for run in runs] for name in voters if name in _SAMPLED_BY}
    return tuple(name for name, own in signals.items() if any(np.isnan(signal).any() for signal in own))


def rule(voter: str, run: Run, outside: Outside) -> Rule:
    """How `voter` votes over the chains of `run`. Raises UsageError where the run lacks what it needs."""
    if voter in ("flat", "hierarchical"):
        return FLAT if voter == "flat" else HIERARCHICAL
    if voter == "path-reliability":
        weights = np.array(reliability(validation_of(run, outside.validation).lenient))
        return Rule(np.broadcast_to(weights[:, None], run.tokens.shape))
    if voter == "best-of-n":
        return Rule(_ranks(outside.scores[run.label]), best=True)
    if lacking([voter], [run]):
        raise UsageError(
            f"`--voters {voter}`: {run.label} does not hold {_SAMPLED_BY[voter]} of every chain, as runs of older "
            f"versions or other engines; leave that vote out, or sample anew into another folder"
        )
    signal = getattr(run, _SAMPLED_BY[voter])
    if voter == "self-certainty":
        return Rule(np.maximum(signal, _LEAST))
    if voter == "log-prob-sum":
        return Rule(signal, logs=True)  # the probabilities of two chains may differ by more than a number can hold
    return Rule(np.exp(signal / run.tokens).clip(_LEAST))


def _ranks(scores: Floats) -> Floats:
    """[Q, N, M] from 1, the lowest, within each question; equal scores have one rank."""
    order = np.sort(scores.reshape(len(scores), -1), axis=1)
    ranks = [np.searchsorted(row, own.ravel()) for row, own in zip(order, scores, strict=True)]
    return np.array(ranks, dtype=float).reshape(scores.shape) + 1


def validation_of(run: Run, validation: Sequence[Run]) -> Run:
    """The validation run of the same method with the same thinker and as many paths. Raises UsageError."""
    keys = ("method", "thinker_sha256", "adapter_sha256", "backbone_fingerprint", "latent_paths", "control", "noise")
    mine = [run.config.get(key) for key in keys]
    found = [other for other in validation if [other.config.get(key) for key in keys] == mine]
    if len(found) != 1:
        many = "several of its kind" if found else "none of its kind"
        raise UsageError(
            f"`--voters path-reliability`: of {run.label}, `--validation` gives {many}; give one run of the same method, "
            f"thinker and number of paths on other questions"
        )
    _refuse_shared(run, found[0])
    return found[0]


def _refuse_shared(run: Run, validation: Run) -> None:
    known = {asked.text for asked in run.questions}
    shared = next((asked.id for asked in validation.questions if asked.text in known), None)
    if shared is not None:
        raise UsageError(
            f"`--validation` {validation.label} asks questions of {run.label}, {shared} for one; reliability must be "
            f"learned on others: sample a run with `--split train` or `validation`"
        )


def reliability(ballots: Ballots) -> list[float]:
    """What a vote of each path is worth, N of them, in nats of log odds, at least 0.

    With p the accuracy of a path's answers (one right and one wrong added) and c the chance that two wrong answers to a
    question agree, an answer that the path gives has log odds log(p / ((1 - p) c)) over one that it does not: the weights of
    an optimal vote of independent voters (Nitzan and Paroush 1982) with 1 / c wrong answers instead of one.
    """
    right, given = ballots.right, ballots.codes >= 0
    collide = wrong_agreement(ballots)
    hits, total = right.sum(axis=(0, 2)) + 1, given.sum(axis=(0, 2)) + 2
    return [max(log(h / (t - h) / collide), 1e-6) for h, t in zip(hits.tolist(), total.tolist(), strict=True)]


def wrong_agreement(ballots: Ballots) -> float:
    """Chance that two wrong answers to one question are the same one (one pair that agrees and one that does not added)."""
    counts = ballots.counts().sum(axis=1)
    if ballots.verdicts.shape[1]:
        counts = np.where(ballots.verdicts, 0, counts)
    alike = float((counts * (counts - 1)).sum()) / 2
    wrong = counts.sum(axis=1)
    pairs = float((wrong * (wrong - 1)).sum()) / 2
    return (alike + 1) / (pairs + 2)
