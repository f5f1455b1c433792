"""Decides whether one of two methods is better at equal compute, or both are equal, and what else would decide it.

A method's curve grows by paths first, then by samples: 1 x 1 .. N x 1, then N x 2 .. N x M. A budget may lie between the
costs of two neighbouring grids. Then the value is interpolated between both, so that the mean cost is the budget. This is
what a run would score that uses the larger grid for that share of its questions and the smaller grid for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from analysis.clusters import Clusters
from analysis.differences import (
    Difference,
    detectable,
    paired_difference,
    questions_for_equality,
    questions_in_range,
    questions_needed,
)
from analysis.statistics import holm, holm_level, mcnemar

Floats = NDArray[np.float64]

LEVEL = 0.05
MARGIN = 2.0  # points of accuracy: the default of `--margin`
EQUAL = "equal within the margin"


@dataclass(frozen=True, eq=False)
class Curve:
    """The values and costs of one run of a method over P growing grids.

    Attributes:
        grids: (n, m) of each grid.
        values: [Q, P], what each question scores.
        costs: for each axis [P], the mean cost of a question, rising.
        training: names the checkpoint; runs of one method with the same one are its sampling seeds. Empty if nothing was
            trained.
    """

    grids: tuple[tuple[int, int], ...]
    values: Floats
    costs: dict[str, Floats]
    training: str = ""

    def at(self, axis: str, budget: float) -> Floats:
        """The values at a mean cost, [Q], interpolated linearly between the two grids around it.

        Args:
            axis: name of the cost.
            budget: the mean cost of a question.

        Raises:
            ValueError: the budget lies outside the curve.
        """
        costs = self.costs[axis]
        if not costs[0] <= budget * (1 + 1e-9) or not budget <= costs[-1] * (1 + 1e-9):
            raise ValueError(f"{budget} lies outside the curve, {costs[0]} to {costs[-1]} {axis}")
        above = int(np.clip(np.searchsorted(costs, budget), 1, max(1, len(costs) - 1)))
        if len(costs) == 1:
            return self.values[:, 0]
        share = float(np.clip((budget - costs[above - 1]) / (costs[above] - costs[above - 1]), 0, 1))
        mixed: Floats = (1 - share) * self.values[:, above - 1] + share * self.values[:, above]
        return mixed


def paths_first(num_paths: int, num_samples: int) -> tuple[tuple[int, int], ...]:
    """The grids (n, m) of a curve, which grows by paths first and then by samples."""
    return (*((n, 1) for n in range(1, num_paths + 1)), *((num_paths, m) for m in range(2, num_samples + 1)))


@dataclass(frozen=True, eq=False)
class Comparison:
    """The comparison of two methods at equal compute.

    What is said of power assumes the same number of trainings. It is None where nothing varies: power is then unknown.

    Attributes:
        first: name of the first method.
        second: name of the second method.
        axis: the cost that is equal.
        budget: the cost of a question; None where there is none that both curves reach.
        margin: differences below it, in shares, count as equal.
        difference: first - second; None without a budget.
        p_holm: p-value of the difference, adjusted for the other pairs on the same axis.
        p_equal_holm: p-value of equivalence (`Difference.p_equal`), adjusted likewise and apart.
        trainings: how many trainings each method has; 0 for one that is not trained.
        shared: whether both use the same trainings.
        level: the p-value below which the difference would be shown: 0.05, divided by the number of pairs on the same axis
            that are not shown to differ, this one included, as Holm's correction does; None without a budget.
        needed: between which numbers of questions there is 80 % power at this level, if the true difference lies in its
            80 % interval; None where such a range tells nothing.
        needed_for_equality: questions for 80 % power to show equality within the margin, if there is no difference, at the
            level that is left for it likewise.
        detectable: the true difference that this number of questions finds with 80 % power at this level; None also where
            there are too few for it.
        only_first: questions that only the first method gets right; None unless all values are 0 or 1, and the questions
            are independent.
        only_second: questions that only the second method gets right; None likewise.
        mcnemar_p: p-value of McNemar's exact test on these two numbers; None likewise.
    """

    first: str
    second: str
    axis: str
    budget: float | None
    margin: float
    difference: Difference | None
    p_holm: float | None
    p_equal_holm: float | None
    trainings: tuple[int, int]
    shared: bool
    level: float | None
    needed: tuple[int, int] | None
    needed_for_equality: int | None
    detectable: float | None
    only_first: int | None
    only_second: int | None
    mcnemar_p: float | None

    @property
    def decision(self) -> str:
        """One of "better", "worse", "equal within the margin", "not decided", and "no common budget" where there is none.

        A difference that is shown is not called equal, even if it is also shown to be smaller than the margin.
        """
        if self.difference is None:
            return "no common budget"
        return decide(self.difference, self.p_holm, self.p_equal_holm)

    @property
    def within_margin(self) -> bool:
        """Whether the difference is shown to be smaller than the margin."""
        return self.p_equal_holm is not None and self.p_equal_holm < LEVEL


def decide(difference: Difference, p_holm: float | None, p_equal_holm: float | None) -> str:
    """The decision that adjusted p-values come to: "better", "worse", "equal within the margin" or "not decided"."""
    if p_holm is not None and p_holm < LEVEL:
        return "better" if difference.interval.value > 0 else "worse"
    return EQUAL if p_equal_holm is not None and p_equal_holm < LEVEL else "not decided"


def compare_all(
    curves: dict[str, list[Curve]],
    axis: str,
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    margin: float = MARGIN / 100,
    clusters: Clusters | None = None,
    seed: int = 0,
) -> list[Comparison]:
    """Compares pairs of methods on one axis.

    Holm's correction is made twice: over the differences of all pairs, and over their equivalences. So among the claims of
    one kind there is a false one with a chance of 5 % at most.

    Args:
        curves: for each method the curves of its runs.
        axis: the cost that is equal.
        pairs: names of the methods to compare; None for every pair, in the order of `curves`.
        margin: differences below it, in shares, count as equal.
        clusters: of the questions.
        seed: of the resamples.
    """
    pairs = list(combinations(curves, 2)) if pairs is None else pairs
    found = [_compared(pair, curves, axis, margin, clusters, seed) for pair in pairs]
    p_values = [one.difference.p_value if one.difference else None for one in found]
    p_equals = [one.difference.p_equal if one.difference else None for one in found]
    adjusted = zip(found, holm(p_values), holm(p_equals), strict=True)
    return [
        _with_power(
            replace(one, p_holm=p_holm, p_equal_holm=p_equal), holm_level(p_values, place), holm_level(p_equals, place)
        )
        for place, (one, p_holm, p_equal) in enumerate(adjusted)
    ]


def _with_power(found: Comparison, level: float, level_equal: float) -> Comparison:
    """The comparison with what its questions would show. level, level_equal: what Holm leaves for it of 5 %."""
    difference = found.difference
    if difference is None:
        return found
    if not difference.deviation and not difference.trainings:
        return replace(found, level=level)
    return replace(
        found,
        level=level,
        needed=questions_in_range(difference, level=level),
        needed_for_equality=questions_for_equality(difference, found.margin, level=level_equal),
        detectable=detectable(difference, level=level),
    )


def _compared(
    pair: tuple[str, str],
    curves: dict[str, list[Curve]],
    axis: str,
    margin: float,
    clusters: Clusters | None,
    seed: int,
) -> Comparison:
    """The comparison of two methods, with p-values that are not adjusted yet."""
    first, second = (curves[name] for name in pair)
    trainings = [_trainings(one) for one in (first, second)]
    found = Comparison(
        *pair,
        axis=axis,
        budget=common_budget([*first, *second], axis),
        margin=margin,
        difference=None,
        p_holm=None,
        p_equal_holm=None,
        trainings=(_number(trainings[0]), _number(trainings[1])),
        shared=trainings[0] == trainings[1] != [""],
        level=None,
        needed=None,
        needed_for_equality=None,
        detectable=None,
        only_first=None,
        only_second=None,
        mcnemar_p=None,
    )
    if found.budget is None:
        return found
    values = [_at_budget(one, axis, found.budget) for one in (first, second)]
    sides = [[of[training] for training in names] for of, names in zip(values, trainings, strict=True)]
    if found.shared:  # what a training does to both cancels out
        sides = [[one - other for one, other in zip(*sides, strict=True)], [np.zeros_like(sides[0][0])]]
    difference = paired_difference(*sides, margin=margin, clusters=clusters, seed=seed)
    found = replace(found, difference=difference)
    if len(first) == len(second) == 1 and clusters is None:
        runs = [next(iter(of.values())) for of in values]
        if all(np.isin(one, (0.0, 1.0)).all() for one in runs):
            only_first, only_second, p_value = mcnemar(*runs)
            found = replace(found, only_first=only_first, only_second=only_second, mcnemar_p=p_value)
    return found


def _trainings(curves: Sequence[Curve]) -> list[str]:
    """The different trainings of a method, in alphabetical order; one without a name where nothing was trained."""
    return sorted({curve.training for curve in curves})


def _number(trainings: list[str]) -> int:
    return 0 if trainings == [""] else len(trainings)


def _at_budget(curves: Sequence[Curve], axis: str, budget: float) -> dict[str, Floats]:
    """What each question scores at a budget, by training: [Q], the mean over its sampling seeds."""
    values: dict[str, list[Floats]] = {}
    for curve in curves:
        values.setdefault(curve.training, []).append(curve.at(axis, min(budget, curve.costs[axis][-1])))
    return {training: np.mean(runs, axis=0) for training, runs in values.items()}


def common_budget(curves: Sequence[Curve], axis: str) -> float | None:
    """The largest cost that all curves reach. None where one begins above another's end, or the axis is unknown."""
    if any(axis not in curve.costs for curve in curves):
        return None
    budget = min(float(curve.costs[axis][-1]) for curve in curves)
    return budget if budget >= max(float(curve.costs[axis][0]) for curve in curves) else None


def sentence(comparison: Comparison) -> str:
    """The verdict in plain words."""
    first, second, axis = comparison.first, comparison.second, _AXIS_NAMES[comparison.axis]
    difference = comparison.difference
    if difference is None or comparison.budget is None:
        return f"{first} and {second} have no budget in common on the axis of {axis}: extend the smaller run."
    value = amount(comparison.budget)
    at = f"At {value}{'' if value[-1].isalpha() and axis == 'FLOPs' else ' '}{axis} a question"
    found = points(difference, comparison.p_holm)
    if comparison.decision == EQUAL:
        found += p_of_equivalence(comparison.p_equal_holm)
    if lacking := _lacking(comparison):
        found += f"; {lacking}"
    margin = margin_text(comparison.margin)
    if comparison.decision == EQUAL:
        return f"{at}, {first} and {second} are equal within {margin} ({found})."
    if comparison.decision != "not decided":
        less = f", by less than {margin}" if comparison.within_margin else ""
        return f"{at}, {first} is {comparison.decision} than {second}{less} ({found})."
    return f"{at}, {first} against {second} is not decided ({found}): {_what_would_decide(comparison, difference)}."


def points(difference: Difference, p_holm: float | None) -> str:
    """The difference in points with its interval and adjusted p-value."""
    low, high = difference.interval.low, difference.interval.high
    text = f"{100 * difference.interval.value:+.1f} points"
    if low is not None and high is not None:
        text += f", 95 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    text += "" if p_holm is None else f", {_p('p', p_holm)}"
    return f"{text}{_at_odds(difference, p_holm)}"


def _at_odds(difference: Difference, p_holm: float | None) -> str:
    """What to think of an interval without 0 where no difference is shown, or with 0 where one is; empty where they agree.

    They come from different resamples, so at the border of 5 % they may disagree. Decisions rest on the test.
    """
    low, high, p_value = difference.interval.low, difference.interval.high, difference.p_value
    if low is None or high is None or p_value is None or p_holm is None:
        return ""
    without_zero = low > 0 or high < 0
    if without_zero != (p_value < LEVEL):
        return "; interval and test disagree, and the test decides"
    return "; the interval is not corrected for the number of comparisons" if without_zero and p_holm >= LEVEL else ""


def p_of_equivalence(p_equal_holm: float | None) -> str:
    """The adjusted p-value of equivalence, to follow on `points`."""
    return "" if p_equal_holm is None else f", {_p('p of equivalence', p_equal_holm)}"


def margin_text(margin: float) -> str:
    """The margin, in shares, as points."""
    return f"{100 * margin:.3g} point{'s' * (margin != 0.01)}"


def _p(name: str, value: float) -> str:
    text = p_text(value)
    return f"{name} {text}" if text[0] == "<" else f"{name} = {text}"


def _lacking(comparison: Comparison) -> str:
    """What an interval does not hold where a method has one training; empty where nothing is lacking."""
    single = [number == 1 for number in comparison.trainings]
    if not any(single):
        return ""
    name = comparison.first if single[0] else comparison.second
    of = "for both" if comparison.shared else "each" if all(single) else f"of {name}"
    return f"one training {of}: another training is not in this interval"


def control_sentence(comparison: Comparison, control: str) -> str:
    """The verdict on a method and its control in plain words, and what follows from it.

    Args:
        comparison: of the method with its control.
        control: the kind of control: zero, mean, shuffled, counterfactual, unk or none.
    """
    verdict = sentence(comparison)
    if comparison.decision == "no common budget":
        return verdict
    asked = "thoughts carry anything of their question" if control in _OF_THOUGHTS else "thoughts help at all"
    if comparison.decision == "better":
        shown = "thoughts carry something of their question" if control in _OF_THOUGHTS else "the slots matter"
        return f"{verdict} So {shown}."
    first, second = comparison.first, comparison.second
    if comparison.decision == EQUAL:
        what = "whose thoughts they are" if control in _OF_THOUGHTS else "what the thoughts are"
        return f"{verdict} So the control {second} does as well, and {what} makes no difference beyond this margin."
    does = "does better than" if comparison.decision == "worse" else "is neither told from"
    does += f" {first}" if comparison.decision == "worse" else f" {first} nor shown to do as well"
    return f"The control {second} {does}: nothing here shows that {asked}. {verdict}"


_OF_THOUGHTS = ("mean", "shuffled", "counterfactual")  # controls with thoughts that do not belong to the question
_NO_DIFFERENCE = "no question tells them apart"
_AXIS_NAMES = {"chains": "chains", "tokens": "generated tokens", "flops": "FLOPs", "seconds": "seconds"}


def _what_would_decide(comparison: Comparison, difference: Difference) -> str:
    """Why a comparison is not decided, and how many questions would decide it, in plain words."""
    if difference.num_questions < 2:
        return "one question tells nothing of others"
    units, what = (
        (difference.num_clusters, "clusters") if difference.num_clusters else (difference.num_questions, "questions")
    )
    level = LEVEL if comparison.level is None else comparison.level
    if not difference.trainings and 2.0 ** (1 - units) >= level:  # the p-value if all signs are alike
        return f"{units} {what} are too few for any test at {100 * level:.2g} %"
    if comparison.detectable is None:
        return (
            "all questions have the same difference, and they are too few"
            if difference.interval.value
            else _NO_DIFFERENCE
        )
    shows = 100 * comparison.detectable
    if shows >= 100:
        return f"these {difference.num_questions:,} questions are too few to show any difference"
    would = f"these {difference.num_questions:,} questions would show a true difference of {shows:.1f} points"
    size = abs(difference.interval.value)
    if not questions_needed(size, difference, level=level):
        lasting = size and any(part.lasting for part in difference.trainings)
        would += ", and one of the size found takes more trainings, not more questions" if lasting else ""
    elif comparison.needed is not None:
        fewest, most = comparison.needed
        would += f", and the one found, by its 80 % interval, would take {_rounded(fewest):,} to {_rounded(most):,}"
    if comparison.needed_for_equality is not None:
        equal = f"{_rounded(comparison.needed_for_equality):,}"
        would += f"; if there is none, about {equal} would show equality within {100 * comparison.margin:.3g}"
    return would


def _rounded(number: int) -> int:
    """Rounded up to two digits: the number is an estimate that rests on another estimate."""
    digits = max(0, len(str(number)) - 2)
    return int(-(-number // 10**digits) * 10**digits)


def amount(value: float) -> str:
    """The value with three digits and a metric prefix: 12, 1.14 k, 340 G."""
    power = 0
    while float(f"{value / 1000**power:.3g}") >= 1000 and power < 5:
        power += 1
    return f"{value / 1000**power:.3g} {' kMGTP'[power]}".strip()


def p_text(value: float) -> str:
    """The p-value as a text."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"
