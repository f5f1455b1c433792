"""Says whose answer chains give whose thoughts are made of an edited question: the true question's, or the edited one's.

Under `--control counterfactual` the assistant reads the question with one number changed. If thoughts carry this number, the
right answer to the edited question is more frequent than without the control, where it is one wrong answer among others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.estimators import whole_vote
from analysis.load import Run
from analysis.methods import Method
from analysis.statistics import Difference, Interval, paired_difference, seeded_mean

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Followed:
    """How often answers follow the edit, over the questions that were edited.

    Attributes:
        method: name of the control.
        num_questions: how many questions the runs have.
        edited: how many were edited; the others have nothing to change and do not count here.
        known: for how many of these the right answer to the edited question is known.
        true: share of chains with the true question's answer.
        true_vote: share of flat votes with it.
        followed: share of chains with the edited question's answer, over those that are known; None if there are none.
        followed_vote: share of flat votes with it.
        without: share of chains of the method itself that have this answer; None if the report does not hold its run.
        difference: `followed` minus `without`, paired by question.
    """

    method: str
    num_questions: int
    edited: int
    known: int
    true: Interval
    true_vote: Interval
    followed: Interval | None = None
    followed_vote: Interval | None = None
    without: Interval | None = None
    difference: Difference | None = None

    @property
    def decision(self) -> str:
        """Whether answers follow the edit, in two words at most."""
        if self.difference is None:
            return "not known"
        low = self.difference.interval.low
        return "followed" if low is not None and low > 0 else "not decided"

    @property
    def sentence(self) -> str:
        """What was found, in plain words."""
        if self.followed is None:
            return (
                f"{self.method}: with a number changed in what the assistant reads, {_percent(self.true)} of chains give "
                f"the true answer; that of the edited question is not known for this task."
            )
        gives = f"{self.method}: {_percent(self.followed)} of chains give the answer to the edited question"
        if self.difference is None or self.without is None:
            return f"{gives}; the same method without the control is missing to tell by how much that is more."
        gives += f", {_percent(self.without)} without the control"
        if self.decision == "followed":
            return f"{gives}. So thoughts carry the number of the question that they were made of."
        return f"{gives}: nothing here shows that answers follow the number that the assistant read."


def followed(methods: Sequence[Method], controls: Collection[tuple[str, str]], *, seed: int) -> list[Followed]:
    """The methods whose assistant read edited questions.

    Args:
        methods: of the report.
        controls: pairs of a method and its control.
        seed: of the resamples.
    """
    by_name = {method.name: method for method in methods}
    bases = {control: by_name[name] for name, control in controls}
    edited = [method for method in methods if any(one.counterfactual is not None for one in method.runs[0].questions)]
    return [_followed(method, bases.get(method.name), seed) for method in edited]


def _followed(method: Method, base: Method | None, seed: int) -> Followed:
    questions = method.runs[0].questions
    edited = np.array([one.counterfactual is not None for one in questions])
    answers = {one.id: one.counterfactual_answer for one in questions if one.counterfactual_answer is not None}
    known = np.array([one.id in answers for one in questions])

    def mean(values: Sequence[Floats], rows: NDArray[np.bool_]) -> Interval:
        return seeded_mean([value[rows] for value in values], seed=seed)

    true = mean([run.lenient.right.mean(axis=(1, 2)) for run in method.runs], edited)
    true_vote = mean([whole_vote(run.lenient).astype(float) for run in method.runs], edited)
    found = Followed(method.name, len(questions), int(edited.sum()), int(known.sum()), true, true_vote)
    if not known.any():
        return found
    gives = [run.gives(answers) for run in method.runs]
    chains = [one.mean(axis=(1, 2))[known] for one in gives]
    votes = [_voted(run, one) for run, one in zip(method.runs, gives, strict=True)]
    plain = [run.gives(answers).mean(axis=(1, 2))[known] for run in base.runs] if base else None
    return Followed(
        **vars(found)
        | {"followed": seeded_mean(chains, seed=seed), "followed_vote": mean(votes, known)}
        | ({"without": seeded_mean(plain, seed=seed)} if plain else {})
        | ({"difference": paired_difference(chains, plain, seed=seed)} if plain else {})
    )


def _voted(run: Run, gives: NDArray[np.bool_]) -> Floats:
    """[Q], 1 where the flat vote is an answer of the chains that `gives` [Q, N, M] marks, else 0."""
    counts = run.lenient.counts().sum(axis=1)
    wins = np.where(counts.any(axis=1), counts.argmax(axis=1), -2)  # of tied answers the lowest number wins
    voted: NDArray[np.bool_] = (gives & (run.lenient.codes == wins[:, None, None])).any(axis=(1, 2))
    return voted.astype(np.float64)


def _percent(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{100 * interval.value:.1f} %"
    return f"{100 * interval.value:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
