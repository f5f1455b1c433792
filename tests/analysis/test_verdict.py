"""Equal compute is equal, the decision follows from the adjusted p-value, and the sentence says what was found."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis.clusters import Clusters
from analysis.differences import Difference
from analysis.statistics import Interval
from analysis.verdict import (
    Curve,
    amount,
    common_budget,
    compare_all,
    control_sentence,
    decide,
    paths_first,
    points,
    sentence,
)

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
    [same] = compare_all({"A": [good], "B": [good]}, "flops")  # 100 questions do not show equality: 0.98^100 = 0.13
    assert (same.decision, same.difference.interval.value, same.difference.p_value) == ("not decided", 0.0, 1.0)
    assert "is not decided" in sentence(same)


def test_what_is_not_decided_says_what_would_decide_it():
    values = np.zeros((50, 1))
    values[:3] = 1.0
    [one] = compare_all({"A": [curve(values, [2.0])], "B": [curve(values * 0, [2.0])]}, "flops")
    # with two more, one each way: mean 3 / 52, t over 49 degrees of freedom 2.0096 x sqrt((5 / 52 - (3 / 52)^2) / 51)
    # deviation of 3 ones in 50: sqrt(0.06 x 0.94 x 50 / 49) = 0.2399, standard error 0.0339, 80 % interval 6 -+ 1.299 x 3.39
    # points: a noncentral t finds 1.59 of them with 80 % on 1,783 questions; of 10.41, 75 questions have 6 with that chance
    # equality: 1.6460 x sqrt(0.2399^2 / Q + 2 / Q^2) + 1.2824 x 0.2399 / sqrt(Q) + 1 / 2Q = 0.02 for Q = 1,301.7
    assert one.needed == (75, 1783)
    assert one.needed_for_equality == 1302
    assert one.detectable == pytest.approx(0.15352, abs=1e-5)  # binomial: 6 or more of 50 have it in 80 %
    assert stats.binom.sf(5, 50, 0.15352) == pytest.approx(0.8, abs=1e-3)
    assert (one.only_first, one.only_second, one.mcnemar_p) == (3, 0, 0.25)
    assert one.difference.p_value == pytest.approx(0.25)
    assert sentence(one) == (
        "At 2 FLOPs a question, A against B is not decided (+6.0 points, 95 % interval -2.8 to +14.3, p = 0.25): these 50 "
        "questions would show a true difference of 15.4 points, and the one found, by its 80 % interval, would take 75 to "
        "1,800; if there is none, about 1,400 would show equality within 2."
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
    assert "3 questions are too few for any test at 5 %" in sentence(few)


def test_the_test_decides_where_interval_and_test_disagree():
    """Decisions follow the adjusted p-value, and the sentence says where the interval seems to say something else."""

    def said(low, high, p_value, p_holm):
        difference = Difference(Interval(0.1, low, high), p_value, 0.3, 100)
        return decide(difference, p_holm, None), points(difference, p_holm)

    near = "; interval and test disagree, and the test decides"
    assert said(-0.01, 0.2, 0.04, 0.04) == ("better", f"+10.0 points, 95 % interval -1.0 to +20.0, p = 0.040{near}")
    assert said(0.01, 0.2, 0.06, 0.06) == ("not decided", f"+10.0 points, 95 % interval +1.0 to +20.0, p = 0.060{near}")
    assert said(0.01, 0.2, 0.03, 0.02)[1].endswith("p = 0.020")
    assert said(-0.01, 0.2, 0.3, 0.6)[1].endswith("p = 0.60")
    corrected = "p = 0.090; the interval is not corrected for the number of comparisons"
    assert said(0.01, 0.2, 0.03, 0.09)[1].endswith(corrected)


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


def test_what_questions_would_show_is_said_at_the_level_that_holm_leaves():
    """Of three pairs with a clear winner two are decided, which leaves the third 5 %; with none decided it is a third."""
    apart = {"A": constant(0.9, [1.0], noise=0.05), "B": constant(0.5, [1.0], noise=0.05), "C": constant(0.5, [1.0])}
    *decided, open_pair = compare_all({name: [one] for name, one in apart.items()}, "flops")
    assert [one.decision for one in decided] == ["better", "better"]
    assert open_pair.level == pytest.approx(0.05)
    noisy = {name: [constant(0.5, [1.0], noise=0.2)] for name in "ABC"}
    three = compare_all(noisy, "flops")
    assert [one.level for one in three] == pytest.approx([0.05 / 3] * 3)
    [single] = compare_all({name: noisy[name] for name in "AB"}, "flops")
    # 99 degrees of freedom: 2.829 standard errors at 5 %, 3.277 at a third of it
    assert three[0].detectable / single.detectable == pytest.approx(3.277 / 2.829, abs=0.01)
    assert stats.nct.sf(stats.t.isf(0.05 / 6, 99), 99, 3.277) == pytest.approx(0.8, abs=2e-3)
    assert three[0].needed_for_equality > single.needed_for_equality


def test_corrections_may_leave_too_little_for_few_questions():
    """Seven questions: p is 2 / 2^7 at least, which is below 5 %, and not below 5 % over 6 pairs."""
    values = np.random.default_rng(3).random((4, 7, 1))
    curves = {name: [curve(own, [1.0])] for name, own in zip("ABCD", values, strict=True)}
    found = compare_all(curves, "flops")
    assert {one.detectable for one in found} == {None}
    assert "7 questions are too few for any test at 0.83 %" in sentence(found[0])


def trained(curves: list[Curve], name: str = "A") -> list[Curve]:
    """The curves as those of different trainings."""
    return [replace(one, training=f"{name}{number}") for number, one in enumerate(curves)]


def test_several_trainings_are_one_method():
    runs = [constant(0.5 + shift, [1.0, 2.0], noise=0.1) for shift in (-0.05, 0.0, 0.05)]
    plain = constant(0.5, [1.0, 2.0], noise=0.1)
    [one] = compare_all({"A": trained(runs), "B": [plain]}, "flops")
    assert one.mcnemar_p is None
    assert one.difference.interval.high - one.difference.interval.low > 0.1  # trainings alone spread by 0.05
    assert one.trainings == (3, 0)
    assert "training is not" not in sentence(one)
    seeds = [replace(run, training="A0") for run in runs]
    [sampled] = compare_all({"A": seeds, "B": [plain]}, "flops")
    assert sampled.difference.interval.value == pytest.approx(one.difference.interval.value)
    assert sampled.difference.interval.high - sampled.difference.interval.low < 0.06  # their spread is not of trainings
    assert sampled.trainings == (1, 0)
    assert "; one training of A: another training is not in this interval)" in sentence(sampled)


def test_sampling_seeds_are_averaged_within_their_training():
    """Two seeds of one training and one of another: each training weighs the same."""
    runs = [replace(constant(value, [1.0]), training=of) for value, of in ((0.2, "x"), (0.4, "x"), (0.7, "y"))]
    [one] = compare_all({"A": runs, "B": [constant(0.0, [1.0])]}, "flops")
    assert one.difference.interval.value == pytest.approx((0.3 + 0.7) / 2)
    assert one.difference.trainings[0].freedom == 1


def test_what_a_training_does_to_both_methods_is_no_part_of_their_difference():
    """A method and its control use the same three trainings, which differ by 10 points."""
    shifts = (-0.1, 0.0, 0.1)
    first = trained([constant(0.5 + shift, [1.0], noise=0.1) for shift in shifts])
    second = trained([constant(0.4 + shift, [1.0], noise=0.1) for shift in shifts])
    [shared] = compare_all({"A": first, "B": second}, "flops")
    [apart] = compare_all({"A": first, "B": [replace(one, training=f"b{one.training}") for one in second]}, "flops")
    assert (shared.shared, apart.shared) == (True, False)
    assert (shared.decision, apart.decision) == ("better", "not decided")
    [turned] = compare_all({"A": first, "B": second[::-1]}, "flops")
    assert turned.difference.interval == shared.difference.interval


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ("a", "b", "one training each: another training"),
        ("a", "a", "one training for both: another training"),
        ("", "b", "one training of B: another training"),
    ],
)
def test_one_training_is_said_to_be_one(first, second, said):
    good, bad = constant(0.7, [1.0], noise=0.1), constant(0.5, [1.0], noise=0.1)
    [one] = compare_all({"A": [replace(good, training=first)], "B": [replace(bad, training=second)]}, "flops")
    assert f"; {said} is not in this interval)." in sentence(one)
    [untrained] = compare_all({"A": [good], "B": [bad]}, "flops")
    assert "training" not in sentence(untrained)


def test_equal_within_the_margin():
    """300 questions of which 2 differ, one each way."""
    values = np.zeros((300, 1))
    first, second = values.copy(), values.copy()
    first[0] = second[1] = 1.0
    [one] = compare_all({"A": [curve(first, [1.0])], "B": [curve(second, [1.0])]}, "flops")
    assert one.decision == "equal within the margin"
    assert sentence(one).startswith(
        "At 1 FLOPs a question, A and B are equal within 2 points (+0.0 points, 95 % interval "
    )
    assert "p of equivalence = " in sentence(one)
    [strict] = compare_all({"A": [curve(first, [1.0])], "B": [curve(second, [1.0])]}, "flops", margin=0.005)
    assert strict.decision == "not decided"
    assert control_sentence(one, "shuffled").endswith(
        "So the control B does as well, and whose thoughts they are makes no difference beyond this margin."
    )
    assert "nothing here shows that thoughts carry anything" in control_sentence(strict, "shuffled")


def test_a_difference_that_is_shown_is_not_called_equal():
    """A difference of 1 point in every question, with hardly any spread: better, and by less than the margin."""
    first, second = (constant(value, [1.0], questions=1000, noise=1e-3) for value in (0.51, 0.50))
    [one] = compare_all({"A": [first], "B": [second]}, "flops")
    assert (one.decision, one.within_margin) == ("better", True)
    assert "A is better than B, by less than 2 points (+1.0 points" in sentence(one)


def test_equivalences_are_adjusted_together():
    same = np.zeros((200, 1))
    curves = {name: [curve(same, [1.0])] for name in "ABC"}
    found = compare_all(curves, "flops", margin=0.02)
    assert [one.p_equal_holm for one in found] == pytest.approx([3 * 0.98**200] * 3)
    assert [one.p_holm for one in found] == [1.0] * 3


def test_clusters_make_no_questions_of_one():
    """100 questions of which 30 differ, all of 2 of 20 templates: nothing is shown of other templates."""
    first = np.zeros((100, 1))
    first[:30] = 1.0
    by = Clusters(np.concatenate([np.repeat([0, 1], 15), np.repeat(np.arange(2, 20), 4)[:70]]))
    curves = {"A": [curve(first, [1.0])], "B": [curve(first * 0, [1.0])]}
    [alone], [together] = compare_all(curves, "flops"), compare_all(curves, "flops", clusters=by)
    assert (alone.decision, together.decision) == ("better", "not decided")
    assert (together.mcnemar_p, together.difference.num_clusters) == (None, by.number)


def test_trainings_that_hide_a_difference_are_said_to():
    """Trainings that spread by 5 points, each the same in all questions: no number of questions shows 1 point."""
    shifts = (-0.05, 0.0, 0.05)
    noise = RNG.normal(0, 0.1, (100, 1))
    first, second = (
        [curve(0.5 + more + shift + noise * own, [2.0]) for shift in shifts] for more, own in ((0.01, 1), (0, 2))
    )
    [one] = compare_all({"A": trained(first), "B": trained(second, "B")}, "flops")
    assert one.needed is None
    assert "takes more trainings, not more questions" in sentence(one)
    # two methods' parts of 0.05^2 / 3 with 2 degrees of freedom each: 4 together, and a noncentral t of 3.761 errors
    assert one.detectable == pytest.approx(3.761 * (2 * 0.05**2 / 3) ** 0.5, rel=0.05)
    [single] = compare_all({"A": first[1:2], "B": second[1:2]}, "flops")
    assert single.detectable < one.detectable


def test_amounts_are_short():
    said = [amount(value) for value in (0.123, 4.95, 32.0, 342.4, 1120.0, 3.424e11, 1.5e12)]
    assert said == ["0.123", "4.95", "32", "342", "1.12 k", "342 G", "1.5 T"]
    assert [amount(just_below) for just_below in (999.7, 999_700, 9.997e11)] == ["1 k", "1 M", "1 T"]


@given(st.floats(1e-3, 9e17))
def test_an_amount_is_its_value_to_three_digits_and_never_a_power(value):
    number, unit = (*amount(value).split(), "")[:2]
    assert "e" not in number
    assert float(number) * 1000 ** " kMGTP".index(unit or " ") == pytest.approx(value, rel=5.1e-3)  # half of 1 in 100
