"""Computes the weight of each chain of a run in the votes that a report compares.

All weights come from the journal of a run, so no vote needs new samples. The voters are those of `scaling.records.voters`. A
weighted vote adds up the weights of all chains with the same answer. Best-of-n takes the answer of the chain with the
largest weight.

A vote over a smaller grid uses the weights that the chains have in the whole grid. A built-in voter weighs each chain by
itself, so this equals the vote of a run of that smaller size. A user's voter sees all chains of a question at once, so there
it may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log

import numpy as np
from numpy.typing import NDArray

from analysis.estimators import FLAT, HIERARCHICAL, Rule
from analysis.load import Ballots, Run
from scaling.records.errors import UsageError
from scaling.records.settings import Tag, run_settings
from scaling.records.voters import BUILT_IN, Voter, Weigh, voter_of

Floats = NDArray[np.float64]

_ARRAYS = {"log_prob": "log_probs", "self_certainty": "self_certainty"}  # field of a completion: attribute of `Run`


@dataclass(frozen=True, eq=False)
class Outside:
    """What votes need besides the run itself.

    Attributes:
        validation: runs on other questions, from which the reliability of each path is estimated.
        scores: for the label of each run, the scores of its chains, [Q, N, M]; higher is better.
    """

    validation: Sequence[Run] = ()
    scores: dict[str, Floats] = field(default_factory=dict)


def chosen(given: str, *, validation: bool, scorer: bool) -> tuple[str, ...]:
    """The names of the voters that `--voters` asks for.

    Args:
        given: names by comma, or "all" for every built-in voter that can be used.
        validation: whether `--validation` is given.
        scorer: whether `--scorer` is given.

    Raises:
        UsageError: an unknown voter, a voter without the option that it needs, or such an option without its voter.
    """
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
    """The voters that cannot be used because some chain of some run lacks the figure that they weigh chains by."""
    signals = {name: voter_of(name, option="--voters").signal for name in voters}
    return tuple(
        name
        for name, signal in signals.items()
        if signal and any(np.isnan(getattr(run, _ARRAYS[signal])).any() for run in runs)
    )


def rule(voter: str | Voter | Weigh, run: Run, outside: Outside) -> Rule:
    """The rule by which `voter` votes over the chains of `run`.

    Args:
        voter: name of a voter, a voter, or a function that returns a weight for each chain of a question.
        run: the run whose chains vote.
        outside: validation runs and scores, for voters that need them.

    Raises:
        UsageError: the run lacks what the voter needs.
    """
    voter = voter_of(voter, option="--voters")
    if voter.needs == "--validation":
        weights = np.array(reliability(validation_of(run, outside.validation).lenient))
        return Rule(np.broadcast_to(weights[:, None], run.tokens.shape))
    if voter.needs == "--scorer":
        return Rule(_ranks(outside.scores[run.label]), best=True)
    if voter.weigh:
        return Rule(_user_weights(voter, run))
    if voter.signal is None:
        return HIERARCHICAL if voter.by_paths else FLAT
    if lacking([voter.name], [run]):
        raise UsageError(
            f"`--voters {voter.name}`: {run.label} does not hold {_ARRAYS[voter.signal]} of every chain, as runs of older "
            f"versions or other engines; leave that vote out, or sample anew into another folder"
        )
    chains = zip(getattr(run, _ARRAYS[voter.signal]).ravel().tolist(), run.tokens.ravel().tolist(), strict=True)
    return Rule(np.array([voter.weight(*chain) for chain in chains]).reshape(run.tokens.shape), logs=voter.logs)


def _user_weights(voter: Voter, run: Run) -> Floats:
    """The weights that a user's voter gives to the chains of each question, [Q, N, M].

    The voter gets the chains path by path, in the same order as for a run's summary.
    """
    completions = {one.key: one for one in run.completions([asked.id for asked in run.questions])}
    cells = list(np.ndindex(run.tokens.shape[1:]))
    rows = [
        voter.weights(asked, [completions[asked.id, path, sample] for path, sample in cells]) for asked in run.questions
    ]
    return np.array(rows, dtype=float).reshape(run.tokens.shape)


def _ranks(scores: Floats) -> Floats:
    """The rank of each score within its question, [Q, N, M]. The lowest is 1, and equal scores have equal ranks."""
    in_order = np.sort(scores.reshape(len(scores), -1), axis=1)
    ranks = [np.searchsorted(row, grid.ravel()) for row, grid in zip(in_order, scores, strict=True)]
    return np.array(ranks, dtype=float).reshape(scores.shape) + 1


def validation_of(run: Run, validation: Sequence[Run]) -> Run:
    """The validation run that has the method, the thinker and the number of paths of `run`.

    Raises:
        UsageError: there is none or more than one such run, or it shares questions with `run`.
    """
    keys = [setting.content or name for name, setting in run_settings().items() if setting.has(Tag.VALIDATION)]
    values = [run.config.get(key) for key in keys]
    matching = [other for other in validation if [other.config.get(key) for key in keys] == values]
    if len(matching) != 1:
        many = "several of its kind" if matching else "none of its kind"
        raise UsageError(
            f"`--voters path-reliability`: of {run.label}, `--validation` gives {many}; give one run of the same method, "
            f"thinker and number of paths on other questions"
        )
    _refuse_shared(run, matching[0])
    return matching[0]


def _refuse_shared(run: Run, validation: Run) -> None:
    """Raises UsageError where the validation run asks a question of the run."""
    if run.data.summarised or validation.data.summarised:
        raise UsageError(
            f"`--validation` compares the texts of questions, and {(run if run.data.summarised else validation).label} is "
            f"known by a summary, which holds none: give the run directory itself."
        )
    known = {asked.text for asked in run.questions}
    shared = next((asked.id for asked in validation.questions if asked.text in known), None)
    if shared is not None:
        raise UsageError(
            f"`--validation` {validation.label} asks questions of {run.label}, {shared} for one; reliability must be "
            f"learned on others: sample a run with `--split train` or `validation`"
        )


def reliability(ballots: Ballots) -> list[float]:
    """The weight of a vote of each of the N paths: log odds in nats, above 0.

    Let p be the accuracy of a path's answers, with one right and one wrong answer added. Let c be the chance that two wrong
    answers to a question agree. Then an answer that the path gives has log odds log(p / ((1 - p) c)) over an answer that it
    does not give. These are the weights of an optimal vote of independent voters (Nitzan and Paroush 1982), for 1 / c
    possible wrong answers instead of one.
    """
    right, given = ballots.right, ballots.codes >= 0
    collide = wrong_agreement(ballots)
    hits, total = right.sum(axis=(0, 2)) + 1, given.sum(axis=(0, 2)) + 2
    return [max(log(h / (t - h) / collide), 1e-6) for h, t in zip(hits.tolist(), total.tolist(), strict=True)]


def wrong_agreement(ballots: Ballots) -> float:
    """The chance that two wrong answers to the same question agree.

    One pair that agrees and one pair that does not are added to the counts, so that the chance is never 0 or 1.
    """
    counts = ballots.counts().sum(axis=1)
    if ballots.verdicts.shape[1]:
        counts = np.where(ballots.verdicts, 0, counts)
    alike = float((counts * (counts - 1)).sum()) / 2
    wrong = counts.sum(axis=1)
    pairs = float((wrong * (wrong - 1)).sum()) / 2
    return (alike + 1) / (pairs + 2)
