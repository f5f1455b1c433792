"""Intervals cover as often as they say, tests reject as seldom as they say, and small cases are worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from analysis import statistics
from analysis.statistics import (
    SeedPart,
    bootstrap,
    bootstrap_shares,
    detectable,
    holm,
    interval_of_difference,
    interval_of_ratio,
    mcnemar,
    paired_difference,
    questions_needed,
    seeded_mean,
    sign_flip,
    wilson,
)


def within(count: int, trials: int, rate: float, *, slack: float = 0.0) -> bool:
    """Whether so many hits are plausible at this rate, to 4 standard errors, widened by `slack` for small samples."""
    return abs(count / trials - rate) < 4 * np.sqrt(rate * (1 - rate) / trials) + slack


@pytest.mark.parametrize("method", ["BCa", "percentile"])
def test_bootstrap_intervals_cover_at_their_rate(method):
    """600 data sets of 80 questions, with the skewed values of votes that are mostly sure."""
    draws = np.random.default_rng(1).beta(0.5, 0.2, size=(80, 600))
    found = bootstrap(draws, method=method)
    covered = sum(one.low <= 0.5 / 0.7 <= one.high for one in found)
    assert within(covered, 600, 0.95, slack=0.01)


def test_the_correction_moves_both_ends_towards_the_long_tail():
    skewed = np.array([0.0] * 3 + [0.9] * 5 + [1.0] * 22)[:, None]
    plain, corrected = (bootstrap(skewed, method=method)[0] for method in ("percentile", "BCa"))
    assert corrected.low < plain.low
    assert corrected.high < plain.high


def test_wilson_intervals_cover_at_their_rate():
    """Exactly, by summing over all outcomes: close to 0.95 on average over shares (Brown, Cai and DasGupta 2001)."""
    total = 60
    ends = [wilson(k, total) for k in range(total + 1)]
    shares = np.linspace(0.05, 0.95, 91)
    coverage = [
        sum(stats.binom.pmf(k, total, p) for k, one in enumerate(ends) if one.low <= p <= one.high) for p in shares
    ]
    assert np.mean(coverage) == pytest.approx(0.95, abs=0.005)


def test_one_question_gives_no_interval():
    one = np.array([0.5])
    assert (wilson(1, 1).low, bootstrap(one[:, None])[0].low, seeded_mean([one]).low) == (None, None, None)
    difference = paired_difference([one], [one * 0])
    assert (difference.interval.value, difference.interval.low, difference.p_value) == (0.5, None, None)
    assert seeded_mean([one, one]).low is None
    assert interval_of_ratio(one, one).low is None


def test_a_column_without_variation():
    """Ones may be shares or, say, tokens, for which an interval that ends at 1 makes no sense."""
    columns = np.stack([np.zeros(20), np.full(20, 0.5), np.ones(20), np.arange(20) / 20], axis=1)
    assert [one.low for one in bootstrap(columns)[:3]] == [None] * 3
    zeros, halves, ones, varied = bootstrap_shares(columns)
    assert (zeros, ones) == (wilson(0, 20), wilson(20, 20))
    assert (halves.value, halves.low) == (0.5, None)
    assert varied == bootstrap(columns)[3]


@given(value=st.sampled_from([-1.0, -0.25, 0.0, 0.5, 1.0]), questions=st.integers(2, 500))
def test_a_difference_without_variation_may_be_another_elsewhere(value, questions):
    """The ends are what it would be if a share of others went all the way, a share that hides with a chance of 5 %."""
    found = interval_of_difference(np.full(questions, value))
    others = (found.high - found.low) / 2
    assert (1 - others) ** questions == pytest.approx(0.05)
    assert found.low == pytest.approx((1 - others) * value - others)
    assert found.high == pytest.approx((1 - others) * value + others)


def test_methods_that_are_alike_in_every_question_have_a_symmetric_interval():
    same = np.array([1.0, 0, 1, 0.5] * 10)
    found = paired_difference([same], [same])
    assert found.interval.high == -found.interval.low > 0
    assert (found.p_value, found.deviation) == (1.0, 0.0)


def test_seeds_that_do_not_vary_are_as_one():
    right, wrong = np.ones(20), np.zeros(20)
    assert paired_difference([right] * 3, [wrong] * 3) == paired_difference([right], [wrong])
    assert paired_difference([right] * 3, [wrong] * 3).p_value < 0.001
    assert seeded_mean([right] * 3) == wilson(20, 20)


@pytest.mark.parametrize("questions", [5, 10, 20, 50, 99])
@pytest.mark.parametrize("shares", [[0.05, 0.9, 0.05], [0.12, 0.8, 0.08], [0.25, 0.5, 0.25]])
def test_intervals_of_few_differences_cover(questions, shares):
    """1,000 data sets in which most questions do not differ, as with two good methods: at least at their rate."""
    rng = np.random.default_rng(11)
    truth = shares[2] - shares[0]
    found = [interval_of_difference(rng.choice([-1.0, 0.0, 1.0], p=shares, size=questions)) for _ in range(1000)]
    covered = sum(one.low - 1e-9 <= truth <= one.high + 1e-9 for one in found)
    assert covered / 1000 > 0.92


def test_no_difference_of_shares_is_beyond_one():
    found = paired_difference([np.array([1.0, 1, 0])], [np.array([0.0, 0, 1])]).interval
    assert (found.low, found.high) == (-1, 1)


def test_many_values_get_fewer_resamples_and_the_same_answer(monkeypatch):
    data = np.random.default_rng(2).random((300, 1))
    full = bootstrap(data)[0]
    monkeypatch.setattr(statistics, "_WORK", 1)
    few = bootstrap(data)[0]
    assert few.low == pytest.approx(full.low, abs=0.006)  # 999 resamples of a mean with standard error 0.017
    assert few.low != full.low


def test_sign_flips_reject_at_their_rate_under_the_null():
    rng = np.random.default_rng(3)
    rejected = sum(sign_flip(rng.choice([-1.0, -0.3, 0.0, 0.3, 1.0], size=30)) < 0.05 for _ in range(400))
    assert within(rejected, 400, 0.05)


def test_sign_flips_of_few_differences_are_counted():
    """All five alike: 2 of the 32 patterns of signs are as extreme."""
    assert sign_flip(np.array([1.0] * 5 + [0.0] * 20)) == pytest.approx(2 / 32)
    assert sign_flip(np.zeros(9)) == 1.0
    assert sign_flip(np.array([0.0, 0.5, 0.0])) == 1.0
    assert sign_flip(np.array([0.5, 0.5])) == pytest.approx(2 / 4)


def test_mcnemar_by_hand_and_its_size():
    first, second = np.array([1.0] * 5 + [0, 1, 0]), np.array([0.0] * 5 + [0, 1, 0])
    assert mcnemar(first, second) == (5, 0, pytest.approx(2 / 32))
    assert mcnemar(first, first) == (0, 0, 1.0)
    rng = np.random.default_rng(4)
    pairs = rng.random((2000, 2, 100)) < 0.6
    rejected = sum(mcnemar(a.astype(float), b.astype(float))[2] < 0.05 for a, b in pairs)
    assert rejected / 2000 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2000)


def test_a_paired_difference_changes_sign_with_its_arguments():
    first, second = np.random.default_rng(5).random((2, 50))
    one, other = paired_difference([first], [second]), paired_difference([second], [first])
    assert one.interval.value == pytest.approx(-other.interval.value)
    assert one.p_value == pytest.approx(other.p_value, abs=0.02)
    assert one.deviation == pytest.approx((first - second).std(ddof=1))


def test_pairing_sees_what_separate_intervals_hide():
    hard = np.random.default_rng(6).random(100)
    first, second = np.clip(hard + 0.05, 0, 1), hard
    assert paired_difference([first], [second]).p_value < 0.001
    assert seeded_mean([first]).low < seeded_mean([second]).high


def test_seeds_are_a_second_level():
    """Seeds that differ by 4 points: three a method. Questions alone would find differences that are not there."""
    rng = np.random.default_rng(7)
    crossed = single = 0
    for _ in range(400):
        question = rng.random(60)
        runs = [[question + rng.normal(0, 0.04) + rng.normal(0, 0.1, 60) for _ in range(3)] for _ in range(2)]
        crossed += paired_difference(*runs).p_value < 0.05
        gaps = np.mean(runs[0], axis=0) - np.mean(runs[1], axis=0)
        single += stats.ttest_1samp(gaps, 0).pvalue < 0.05
    assert crossed / 400 < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 400)
    assert single / 400 > 0.3


def test_seeded_means_cover():
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(300):
        question = rng.normal(0.5, 0.3, 40)
        found = seeded_mean([question + rng.normal(0, 0.05) + rng.normal(0, 0.1, 40) for _ in range(4)])
        covered += found.low <= 0.5 <= found.high
    assert covered / 300 > 0.95 - 4 * np.sqrt(0.05 * 0.95 / 300)


def test_a_binary_mean_gets_the_interval_of_a_share():
    assert seeded_mean([np.array([1.0, 1, 0, 1])]) == wilson(3, 4)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, None, 0.6]) == [1.0, None, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_lies_between_nothing_and_bonferroni(values):
    adjusted = holm(values)
    assert all(p <= a <= min(1, p * len(values)) + 1e-12 for p, a in zip(values, adjusted, strict=True))


def test_power_by_formula_and_by_simulation():
    """(1.959964 + 0.841621)^2 x 0.5^2 / 0.1^2 = 196.2 questions."""
    assert questions_needed(0.1, 0.5) == questions_needed(-0.1, 0.5) == 197
    assert questions_needed(0.0, 0.5) is None
    assert detectable(0.5, 197) == pytest.approx(0.1, abs=2e-4)
    gaps = np.random.default_rng(9).normal(0.1, 0.5, size=(1500, 197))
    found = int((stats.ttest_1samp(gaps, 0, axis=1).pvalue < 0.05).sum())
    assert within(found, 1500, 0.8, slack=0.01)


def seeds_of(rng, shift, *, difference=0.0, questions=200, noise=0.3):
    """Two methods of three seeds, which differ by `shift` and answer every question with `noise` of their own."""
    question = rng.beta(0.5, 0.5, questions)

    def method(more):
        return [question + more + rng.normal(0, shift) + rng.normal(0, noise, questions) for _ in range(3)]

    return method(difference), method(0.0)


def test_what_seeds_add_is_what_lasts_and_what_more_questions_lessen():
    question, shifts = np.random.default_rng(12).random(50), np.array([-0.1, 0.0, 0.1])
    [alike] = paired_difference([question + shift for shift in shifts], [question]).seeds
    # the variance of the shifts is (0.01 + 0 + 0.01) / 2, that of their mean a third of it
    assert (alike.lasting, alike.passing, alike.freedom) == (pytest.approx(0.01 / 3), pytest.approx(0), 2)
    noise = np.random.default_rng(13).normal(0, 0.3, (4, 5000))
    [mixed] = paired_difference(list(noise), [np.zeros(5000)]).seeds
    assert mixed.lasting + mixed.passing / 5000 == pytest.approx(noise.mean(axis=1).var(ddof=1) / 4)
    assert mixed.passing == pytest.approx(0.3**2 / 4, rel=0.05)
    assert mixed.lasting < 0.3**2 / 5000


def test_no_number_of_questions_shows_what_seeds_hide():
    """With one part of 2 degrees of freedom that lasts, at least (4.3027 + 1.0607) x its root is needed to be shown."""
    seeds = [SeedPart(lasting=1e-4, passing=0.04, freedom=2)]
    least = (4.3027 + 1.0607) * 1e-2
    assert questions_needed(0.99 * least, 0.5, seeds) is None
    number = questions_needed(1.1 * least, 0.5, seeds)
    assert detectable(0.5, number, seeds) <= 1.1 * least < detectable(0.5, number - 1, seeds)
    assert number > questions_needed(1.1 * least, 0.5)


@pytest.mark.parametrize("shift", [0.0, 0.02])
def test_power_with_seeds_by_simulation(shift):
    """What three seeds are said to show they do show in about 80 of 100 cases; the promise is itself an estimate."""
    rng = np.random.default_rng(14)
    found = [paired_difference(*seeds_of(rng, shift)) for _ in range(200)]
    promised = float(np.mean([detectable(one.deviation, 200, one.seeds) for one in found]))
    shown = [paired_difference(*seeds_of(rng, shift, difference=promised)).p_value < 0.05 for _ in range(300)]
    assert within(sum(shown), 300, 0.8, slack=0.03)
    alone = float(np.mean([detectable(one.deviation, 200) for one in found]))
    if shift:
        too_little = [paired_difference(*seeds_of(rng, shift, difference=alone)).p_value < 0.05 for _ in range(300)]
        assert sum(too_little) / 300 < 0.6  # what questions alone would promise


def test_questions_that_are_said_to_be_needed_are_needed():
    """Where seeds do not differ, questions lessen all there is."""
    rng = np.random.default_rng(15)
    found = [paired_difference(*seeds_of(rng, 0.0)) for _ in range(200)]
    said = [questions_needed(0.06, one.deviation, one.seeds) for one in found]
    number = int(np.median([one or 10**8 for one in said]))
    shown = [
        paired_difference(*seeds_of(rng, 0.0, difference=0.06, questions=number)).p_value < 0.05 for _ in range(300)
    ]
    assert within(sum(shown), 300, 0.8, slack=0.05)


def test_ratios_over_questions():
    above, below = np.array([1.0, 2, 3, 4]), np.array([2.0, 4, 6, 8])
    found = interval_of_ratio(above, below)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert interval_of_ratio(above, above * 0) is None
    rng = np.random.default_rng(10)
    covered = 0
    for _ in range(200):
        bottom = rng.random(80) + 0.5
        one = interval_of_ratio(bottom * 0.3 + rng.normal(0, 0.2, 80), bottom)
        covered += one.low <= 0.3 <= one.high
    assert within(covered, 200, 0.95)
