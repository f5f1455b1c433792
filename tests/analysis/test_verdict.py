"""Equal compute is equal, the decision follows from the adjusted p-value, and the sentence says what was found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.verdict import Curve, amount, common_budget, compare_all, paths_first, sentence

RNG = np.random.default_rng(0)


def curve(values: np.ndarray, costs: list[float]) -> Curve:
    return Curve(tuple((1, m + 1) for m in range(len(costs))), values, {"flops": np.array(costs)})


def constant(value: float, costs: list[float], *, questions: int = 100, noise: float = 0.0) -> Curve:
    spread = noise * RNG.standard_normal((questions, 1))
    return curve(np.full((questions, len(costs)), value) + spread, costs)


def test_a_curve_grows_by_paths_first():
    assert paths_first(3, 2) == ((1, 1), (2, 1), (3, 1), (3, 2))
    assert paths_first(1, 3) == ((1, 1), (1, 2), (1, 3))
    assert paths_first(1, 1) == ((1, 1),)


@given(budget=st.floats(1, 9))
def test_values_at_a_budget_cost_that_budget(budget):
    """A curve whose value is its own cost: what is taken at a budget must cost it."""
    costs = [1.0, 2.0, 5.0, 9.0]
    assert curve(np.array([costs]), costs).at("flops", budget) == pytest.approx([budget])


def test_at_a_grids_own_cost_its_own_values_are_taken():
    values = RNG.random((5, 3))
    one = curve(values, [1.0, 3.0, 4.0])
    for place, cost in enumerate([1.0, 3.0, 4.0]):
        assert one.at("flops", cost) == pytest.approx(values[:, place])
    single = curve(values[:, :1], [2.0])
    assert single.at("flops", 2.0) == pytest.approx(values[:, 0])


@pytest.mark.parametrize("budget", [0.9, 4.1])
def test_a_curve_says_nothing_outside_itself(budget):
    with pytest.raises(ValueError, match=r"outside the curve, 1\.0 to 4\.0 flops"):
        constant(0.5, [1.0, 4.0]).at("flops", budget)


def test_the_common_budget_is_the_largest_that_both_reach():
    short, long = constant(0.5, [1.0, 4.0]), constant(0.5, [2.0, 9.0])
    assert common_budget([short, long], "flops") == 4.0
    assert common_budget([short, constant(0.5, [5.0, 9.0])], "flops") is None
    assert common_budget([short, long], "seconds") is None


def test_better_worse_and_not_decided():
    good, bad = constant(0.7, [1.0, 2.0], noise=0.1), constant(0.5, [1.0, 2.0], noise=0.1)
    [one] = compare_all({"A": [good], "B": [bad]}, "flops")
    [other] = compare_all({"B": [bad], "A": [good]}, "flops")
    assert (one.decision, other.decision) == ("better", "worse")
    assert "A is better than B (+" in sentence(one)
    assert "B is worse than A (-" in sentence(other)
    [same] = compare_all({"A": [good], "B": [good]}, "flops")
    assert (same.decision, same.difference.interval.value, same.difference.p_value) == ("not decided", 0.0, 1.0)
    assert "is not decided" in sentence(same)


def test_what_is_not_decided_says_what_would_decide_it():
    values = np.zeros((50, 1))
    values[:3] = 1.0
    [one] = compare_all({"A": [curve(values, [2.0])], "B": [curve(values * 0, [2.0])]}, "flops")
    # t over 49 degrees of freedom is 2.0096: 6 points -+ 2.0096 x 23.99 / 50^0.5
    # deviation of 3 ones in 50: sqrt(0.06 x 0.94 x 50 / 49) = 0.2399; (2.8016 x 0.2399 / 0.06)^2 = 125.5
    assert one.needed == 126
    assert one.detectable == pytest.approx(2.8016 * 0.2399 / 50**0.5, abs=1e-4)
    assert (one.only_first, one.only_second, one.mcnemar_p) == (3, 0, 0.25)
    assert one.difference.p_value == pytest.approx(0.25)
    assert sentence(one) == (
        "At 2 FLOPs a question, A against B is not decided (+6.0 points, 95 % interval -0.8 to +12.8, p = 0.25): a true "
        "difference of this size would take about 130 questions, and these 50 would show one of 9.5 points."
    )


def test_questions_that_are_all_alike_tell_of_no_power():
    """50 without a difference leave room for 1 - 0.05^(1/50) = 5.8 % with one; 3 alike reach p = 2/8."""
    half = curve(np.full((50, 1), 0.5), [2.0])
    [same] = compare_all({"A": [half], "B": [half]}, "flops")
    assert (same.needed, same.detectable) == (None, None)
    assert sentence(same) == (
        "At 2 FLOPs a question, A against B is not decided (+0.0 points, 95 % interval -5.8 to +5.8, p = 1.00): no question "
        "tells them apart."
    )
    [few] = compare_all({"A": [curve(np.ones((3, 1)), [2.0])], "B": [curve(np.zeros((3, 1)), [2.0])]}, "flops")
    assert (few.needed, few.detectable) == (None, None)
    assert "all questions have the same difference, and they are too few" in sentence(few)


def test_one_question_decides_nothing():
    [one] = compare_all({"A": [curve(np.ones((1, 1)), [1.0])], "B": [curve(np.zeros((1, 1)), [1.0])]}, "flops")
    assert one.decision == "not decided"
    assert "one question tells nothing of others" in sentence(one)


def test_curves_that_do_not_meet_are_not_compared():
    [one] = compare_all({"A": [constant(0.5, [1.0, 2.0])], "B": [constant(0.5, [3.0])]}, "flops")
    assert one.decision == "no common budget"
    assert "have no budget in common" in sentence(one)


def test_every_pair_is_compared_and_p_values_are_adjusted_together():
    curves = {name: [constant(0.5, [1.0], noise=0.2)] for name in "ABC"}
    found = compare_all(curves, "flops")
    assert [(one.first, one.second) for one in found] == [("A", "B"), ("A", "C"), ("B", "C")]
    smallest = min(found, key=lambda one: one.difference.p_value)
    assert smallest.p_holm == pytest.approx(min(1.0, 3 * smallest.difference.p_value))


def test_several_seeds_are_one_method():
    seeds = [constant(0.5 + shift, [1.0, 2.0], noise=0.1) for shift in (-0.05, 0.0, 0.05)]
    [one] = compare_all({"A": seeds, "B": [constant(0.5, [1.0, 2.0], noise=0.1)]}, "flops")
    assert one.mcnemar_p is None
    assert one.difference.interval.high - one.difference.interval.low > 0.1  # seeds alone spread by 0.05


def test_seeds_that_hide_a_difference_are_said_to():
    """Seeds that spread by 5 points, each the same in all questions: no number of questions shows 1 point."""
    shifts = (-0.05, 0.0, 0.05)
    noise = RNG.normal(0, 0.1, (100, 1))
    first, second = (
        [curve(0.5 + more + shift + noise * own, [2.0]) for shift in shifts] for more, own in ((0.01, 1), (0, 2))
    )
    [one] = compare_all({"A": first, "B": second}, "flops")
    assert one.needed is None
    assert "takes more seeds, not more questions" in sentence(one)
    # two seeds' parts of 0.05^2 / 3 with 2 degrees of freedom each: 4 together, and 2.776 + 0.941 standard errors
    assert one.detectable == pytest.approx(3.717 * (2 * 0.05**2 / 3) ** 0.5, rel=0.05)
    [single] = compare_all({"A": first[1:2], "B": second[1:2]}, "flops")
    assert single.needed is not None


def test_amounts_are_short():
    said = [amount(value) for value in (0.123, 4.95, 32.0, 342.4, 1120.0, 3.424e11, 1.5e12)]
    assert said == ["0.123", "4.95", "32", "342", "1.12 k", "342 G", "1.5 T"]
    assert [amount(just_below) for just_below in (999.7, 999_700, 9.997e11)] == ["1 k", "1 M", "1 T"]


@given(st.floats(1e-3, 9e17))
def test_an_amount_is_its_value_to_three_digits_and_never_a_power(value):
    number, unit = (*amount(value).split(), "")[:2]
    assert "e" not in number
    assert float(number) * 1000 ** " kMGTP".index(unit or " ") == pytest.approx(value, rel=5.1e-3)  # half of 1 in 100
