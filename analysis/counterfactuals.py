"""Says whose answer chains give whose thoughts are made of an edited question: the true question's, or the edited one's.

Under `--control counterfactual` the assistant reads the question with one number changed. If thoughts carry this number, the
right answer to the edited question is more frequent than without the control, where it is one wrong answer among others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from analysis.clusters import Clusters
from analysis.differences import Difference, mean_share, paired_difference
from analysis.estimators import whole_vote
from analysis.load import Run
from analysis.methods import Method
from analysis.statistics import Interval, holm
from analysis.verdict import EQUAL, MARGIN, decide, margin_text, p_of_equivalence, points

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
        margin: differences below it, in shares, count as equal.
        p_holm: p-value of the difference, adjusted for the other methods whose assistant read edited questions.
        p_equal_holm: p-value of equivalence, adjusted likewise and apart.
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
    margin: float = MARGIN / 100
    p_holm: float | None = None
    p_equal_holm: float | None = None

    @property
    def decision(self) -> str:
        """Whether answers follow the edit, by the rule of all verdicts: "followed", "avoided" where they give the edited
        question's answer less often than without the control, "equal within the margin", "not decided" or "not known"."""
        if self.difference is None:
            return "not known"
        found = decide(self.difference, self.p_holm, self.p_equal_holm)
        return {"better": "followed", "worse": "avoided"}.get(found, found)

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
        gives += f", {_percent(self.without)} without the control ({points(self.difference, self.p_holm)}"
        if self.decision == EQUAL:
            return (
                f"{gives}{p_of_equivalence(self.p_equal_holm)}): equal within {margin_text(self.margin)}. So answers do not "
                f"follow the number that the assistant read, beyond this margin."
            )
        gives += ")"
        if self.decision == "followed":
            return f"{gives}. So thoughts carry the number of the question that they were made of."
        if self.decision == "avoided":
            return f"{gives}. So thoughts matter, but answers do not follow them."
        return f"{gives}: nothing here shows that answers follow the number that the assistant read."


def followed(
    methods: Sequence[Method],
    controls: Collection[tuple[str, str]],
    *,
    margin: float = MARGIN / 100,
    clusters: Clusters | None = None,
    seed: int,
) -> list[Followed]:
    """The methods whose assistant read edited questions.

    Args:
        methods: of the report.
        controls: pairs of a method and its control.
        margin: differences below it, in shares, count as equal.
        clusters: of the questions.
        seed: of the resamples.
    """
    by_name = {method.name: method for method in methods}
    bases = {control: by_name[name] for name, control in controls}
    edited = [method for method in methods if any(one.counterfactual is not None for one in method.runs[0].questions)]
    found = [_followed(method, bases.get(method.name), margin, clusters, seed) for method in edited]
    differing = holm([one.difference.p_value if one.difference else None for one in found])
    equal = holm([one.difference.p_equal if one.difference else None for one in found])
    return [
        replace(one, p_holm=p_holm, p_equal_holm=p_equal)
        for one, p_holm, p_equal in zip(found, differing, equal, strict=True)
    ]


def _followed(method: Method, base: Method | None, margin: float, clusters: Clusters | None, seed: int) -> Followed:
    questions = method.runs[0].questions
    edited = np.array([one.counterfactual is not None for one in questions])
    answers = {one.id: one.counterfactual_answer for one in questions if one.counterfactual_answer is not None}
    known = np.array([one.id in answers for one in questions])

    def mean(of: Method, values: Sequence[Floats], rows: NDArray[np.bool_]) -> Interval:
        chosen = [value[rows] for value in of.by_training(values)]
        return mean_share(chosen, clusters=clusters and clusters.only(rows), seed=seed)

    true = mean(method, [run.lenient.right.mean(axis=(1, 2)) for run in method.runs], edited)
    true_vote = mean(method, [whole_vote(run.lenient).astype(float) for run in method.runs], edited)
    found = Followed(method.name, len(questions), int(edited.sum()), int(known.sum()), true, true_vote, margin=margin)
    if not known.any():
        return found
    gives = [run.gives(answers) for run in method.runs]
    chains = [one.mean(axis=(1, 2)) for one in gives]
    votes = [_voted(run, one) for run, one in zip(method.runs, gives, strict=True)]
    found = replace(found, followed=mean(method, chains, known), followed_vote=mean(method, votes, known))
    if base is None:
        return found
    plain = [run.gives(answers).mean(axis=(1, 2)) for run in base.runs]
    sides = [[value[known] for value in of.by_training(own)] for of, own in ((method, chains), (base, plain))]
    if set(method.trainings) == set(base.trainings):  # what a training does to both cancels out
        order = [base.trainings.index(training) for training in method.trainings]
        sides = [[one - sides[1][place] for one, place in zip(sides[0], order, strict=True)], [0 * sides[0][0]]]
    difference = paired_difference(*sides, margin=margin, clusters=clusters and clusters.only(known), seed=seed)
    return replace(found, without=mean(base, plain, known), difference=difference)


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
