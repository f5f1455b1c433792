"""Decides which of two methods is better at equal compute, how sure that is, and how many questions would decide it.

A method's curve grows by paths first, then by samples: 1 x 1 .. N x 1, then N x 2 .. N x M. A budget may lie between the
costs of two neighbouring grids. Then the value is interpolated between both, so that the mean cost is the budget. This is
what a run would score that uses the larger grid for that share of its questions and the smaller grid for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from analysis.statistics import Difference, detectable, holm, mcnemar, paired_difference, questions_needed

Floats = NDArray[np.float64]

LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Curve:
    """The values and costs of one seed of a method over P growing grids.

    Attributes:
        grids: (n, m) of each grid.
        values: [Q, P], what each question scores.
        costs: for each axis [P], the mean cost of a question, rising.
    """

    grids: tuple[tuple[int, int], ...]
    values: Floats
    costs: dict[str, Floats]

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

    `needed` and `detectable` assume the same number of seeds. Both are None where nothing varies, because power is then
    unknown.

    Attributes:
        first: name of the first method.
        second: name of the second method.
        axis: the cost that is equal.
        budget: the cost of a question; None where there is none that both curves reach.
        difference: first - second; None without a budget.
        p_holm: p-value of the difference, adjusted for the other pairs on the same axis.
        needed: questions for 80 % power if the true difference is the one that was found; None where none suffice.
        detectable: the true difference that this number of questions finds with 80 % power.
        only_first: questions that only the first method gets right; None unless all values are 0 or 1.
        only_second: questions that only the second method gets right; None likewise.
        mcnemar_p: p-value of McNemar's exact test on these two numbers; None likewise.
    """

    first: str
    second: str
    axis: str
    budget: float | None
    difference: Difference | None
    p_holm: float | None
    needed: int | None
    detectable: float | None
    only_first: int | None
    only_second: int | None
    mcnemar_p: float | None

    @property
    def decision(self) -> str:
        """One of "better", "worse", "not decided", and "no common budget" where there is no budget that both reach."""
        if self.difference is None:
            return "no common budget"
        if self.p_holm is None or self.p_holm >= LEVEL:
            return "not decided"
        return "better" if self.difference.interval.value > 0 else "worse"


def compare_all(
    curves: dict[str, list[Curve]], axis: str, *, pairs: Sequence[tuple[str, str]] | None = None, seed: int = 0
) -> list[Comparison]:
    """Compares pairs of methods on one axis.

    Args:
        curves: for each method the curves of its seeds.
        axis: the cost that is equal.
        pairs: names of the methods to compare; None for every pair, in the order of `curves`.
        seed: of the resamples.
    """
    pairs = list(combinations(curves, 2)) if pairs is None else pairs
    differences = [_difference(curves[a], curves[b], axis, seed) for a, b in pairs]
    adjusted = holm([difference.p_value if difference else None for _, difference, _ in differences])
    return [
        _comparison(pair, axis, *figures, p_holm)
        for pair, figures, p_holm in zip(pairs, differences, adjusted, strict=True)
    ]


_Exact = tuple[int | None, int | None, float | None]  # what `mcnemar` returns


def _difference(
    first: Sequence[Curve], second: Sequence[Curve], axis: str, seed: int
) -> tuple[float | None, Difference | None, _Exact]:
    """The budget that both methods reach, their difference there, and McNemar's test where all values are 0 or 1."""
    budget = common_budget([*first, *second], axis)
    if budget is None:
        return None, None, (None, None, None)
    values = [[curve.at(axis, min(budget, curve.costs[axis][-1])) for curve in curves] for curves in (first, second)]
    binary = len(first) == len(second) == 1 and all(np.isin(seeds[0], (0.0, 1.0)).all() for seeds in values)
    exact: _Exact = mcnemar(values[0][0], values[1][0]) if binary else (None, None, None)
    return budget, paired_difference(*values, seed=seed), exact


def common_budget(curves: Sequence[Curve], axis: str) -> float | None:
    """The largest cost that all curves reach. None where one begins above another's end, or the axis is unknown."""
    if any(axis not in curve.costs for curve in curves):
        return None
    budget = min(float(curve.costs[axis][-1]) for curve in curves)
    return budget if budget >= max(float(curve.costs[axis][0]) for curve in curves) else None


def _comparison(
    pair: tuple[str, str],
    axis: str,
    budget: float | None,
    difference: Difference | None,
    exact: _Exact,
    p_holm: float | None,
) -> Comparison:
    needed = smallest = None
    if difference and (difference.deviation or difference.seeds):
        needed = questions_needed(difference.interval.value, difference.deviation, difference.seeds)
        smallest = detectable(difference.deviation, difference.num_questions, difference.seeds)
    first, second = pair
    only_first, only_second, mcnemar_p = exact
    return Comparison(
        first, second, axis, budget, difference, p_holm, needed, smallest, only_first, only_second, mcnemar_p
    )


def sentence(comparison: Comparison) -> str:
    """The verdict in plain words."""
    first, second, axis = comparison.first, comparison.second, _AXIS_NAMES[comparison.axis]
    difference = comparison.difference
    if difference is None or comparison.budget is None:
        return f"{first} and {second} have no budget in common on the axis of {axis}: extend the smaller run."
    value = amount(comparison.budget)
    at = f"At {value}{'' if value[-1].isalpha() and axis == 'FLOPs' else ' '}{axis} a question"
    points = f"{100 * difference.interval.value:+.1f} points"
    if difference.interval.low is not None and difference.interval.high is not None:
        points += f", 95 % interval {100 * difference.interval.low:+.1f} to {100 * difference.interval.high:+.1f}"
    if comparison.p_holm is not None:
        text = p_text(comparison.p_holm)
        points += f", p {text}" if text[0] == "<" else f", p = {text}"
    if comparison.decision != "not decided":
        return f"{at}, {first} is {comparison.decision} than {second} ({points})."
    return f"{at}, {first} against {second} is not decided ({points}): {_what_would_decide(comparison, difference)}."


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
    does = (
        f"does better than {first}"
        if comparison.decision == "worse"
        else f"does as well as {first}, as far as can be told"
    )
    return f"The control {second} {does}: nothing here shows that {asked}. {verdict}"


_OF_THOUGHTS = ("mean", "shuffled", "counterfactual")  # controls with thoughts that do not belong to the question
_NO_DIFFERENCE = "no question tells them apart"
_AXIS_NAMES = {"chains": "chains", "tokens": "generated tokens", "flops": "FLOPs", "seconds": "seconds"}


def _what_would_decide(comparison: Comparison, difference: Difference) -> str:
    """Why a comparison is not decided, and how many questions would decide it, in plain words."""
    if difference.num_questions < 2:
        return "one question tells nothing of others"
    if comparison.detectable is None:
        return (
            "all questions have the same difference, and they are too few"
            if difference.interval.value
            else _NO_DIFFERENCE
        )
    if comparison.needed is None:
        seeds = difference.interval.value and any(part.lasting for part in difference.seeds)
        more = ", and one of the size found takes more seeds, not more questions" if seeds else ""
        return f"these questions would show a true difference of {100 * comparison.detectable:.1f} points{more}"
    if comparison.needed <= difference.num_questions:
        return "too many comparisons, or too few questions, for a difference of this size"
    return (
        f"a true difference of this size would take about {_rounded(comparison.needed):,} questions, "
        f"and these {difference.num_questions} would show one of {100 * comparison.detectable:.1f} points"
    )


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
