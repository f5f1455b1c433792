"""What each chain of a run weighs in the votes that a report compares. All from one journal: no vote needs a new sample.

The voters themselves are those of `scaling.records.voters`. A weighted vote adds the weights of the chains with the same
answer; best-of-n takes the answer of the heaviest one. A vote over a smaller grid takes the weights that the chains have in
the whole one. Those of built-in voters belong to a chain alone, never to its neighbours, so there it is what a run of that
size would vote; a user's voter sees all chains of a question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from analysis.estimators import FLAT, HIERARCHICAL, Rule
from analysis.load import Ballots, Run, texts
from scaling.records.errors import UsageError
from scaling.records.voters import BUILT_IN, Voter, Weigh, voter_of

Floats = NDArray[np.float64]

_ARRAYS = {"log_prob": "log_probs", "self_certainty": "self_certainty"}  # of a run, by the field of a chain


@dataclass(frozen=True, eq=False)
class Outside:
    """What votes know beyond the journal. validation: runs that path reliability is learned from. scores: by label of a
    run, [Q, N, M] of a scorer, higher is better."""

    validation: Sequence[Run] = ()
    scores: dict[str, Floats] = field(default_factory=dict)


def chosen(given: str, *, validation: bool, scorer: bool) -> tuple[str, ...]:
    """The voters of a list by comma; `all` are the built-in ones for which there is what they need. Raises UsageError."""
    has = {"--validation": validation, "--scorer": scorer}
    if given == "all":
        return tuple(voter.name for voter in BUILT_IN.values() if voter.needs is None or has[voter.needs])
    names = tuple(dict.fromkeys(name.strip() for name in given.split(",")))
    for voter in [voter_of(name, option="--voters") for name in names]:
        if voter.needs and not has[voter.needs]:
            raise UsageError(f"`--voters {voter.name}` needs `{voter.needs}`: {voter.meaning}")
    for voter in BUILT_IN.values():
        if voter.needs and has[voter.needs] and voter.name not in names:
            raise UsageError(
                f"`{voter.needs}` is for the vote {voter.name}: add it to `--voters`, or leave the option out"
            )
    return names


def lacking(voters: Sequence[str], runs: Sequence[Run]) -> tuple[str, ...]:
    """Those of the voters whose signal one of the runs does not hold of every chain."""
    signals = {name: voter_of(name, option="--voters").signal for name in voters}
    return tuple(
        name
        for name, signal in signals.items()
        if signal and any(np.isnan(getattr(run, _ARRAYS[signal])).any() for run in runs)
    )


def rule(voter: str | Voter | Weigh, run: Run, outside: Outside) -> Rule:
    """How `voter` votes over the chains of `run`. Raises UsageError where the run lacks what it needs."""
    own = voter_of(voter, option="--voters")
    if own.needs == "--validation":
        weights = np.array(reliability(validation_of(run, outside.validation).lenient))
        return Rule(np.broadcast_to(weights[:, None], run.tokens.shape))
    if own.needs == "--scorer":
        return Rule(_ranks(outside.scores[run.label]), best=True)
    if own.weigh:
        return Rule(_asked_of(own, run))
    if own.signal is None:
        return HIERARCHICAL if own.by_paths else FLAT
    if lacking([own.name], [run]):
        raise UsageError(
            f"`--voters {own.name}`: {run.label} does not hold {_ARRAYS[own.signal]} of every chain, as runs of older "
            f"versions or other engines; leave that vote out, or sample anew into another folder"
        )
    chains = zip(getattr(run, _ARRAYS[own.signal]).ravel().tolist(), run.tokens.ravel().tolist(), strict=True)
    return Rule(np.array([own.weight(*chain) for chain in chains]).reshape(run.tokens.shape), logs=own.logs)


def _asked_of(voter: Voter, run: Run) -> Floats:
    """[Q, N, M]: what the voter makes of each question's chains, which it gets path by path, as for a run's summary."""
    held = {one.key: one for one in texts(run.folder, {asked.id for asked in run.questions})}
    cells = list(np.ndindex(run.tokens.shape[1:]))
    rows = [voter.weights(asked, [held[asked.id, path, sample] for path, sample in cells]) for asked in run.questions]
    return np.array(rows, dtype=float).reshape(run.tokens.shape)


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
