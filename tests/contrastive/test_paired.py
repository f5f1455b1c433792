"""Paired differences: against the textbook, by simulation, and where nothing can be said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from contrastive.paired import explained_variance, mean_difference

VALUES = st.lists(st.floats(-50, 50), min_size=3, max_size=30)


@given(VALUES, st.integers(1, 9))
def test_with_targets_of_one_length_it_is_the_paired_t_test(differences, tokens):
    lower = [0.5 * n for n in range(len(differences))]
    higher = [low + d for low, d in zip(lower, differences, strict=True)]
    estimate = mean_difference(higher, lower, [tokens] * len(lower))
    of_token = np.array(higher) - np.array(lower)
    assert estimate.value == pytest.approx(of_token.mean() / tokens, abs=1e-9)
    error = of_token.std(ddof=1) / math.sqrt(len(of_token)) / tokens
    assert estimate.error == pytest.approx(error, abs=1e-9)
    reach = stats.t.ppf(0.975, len(of_token) - 1) * error
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - reach, estimate.value + reach), abs=1e-9)


def test_it_is_the_difference_of_the_losses_over_all_tokens():
    estimate = mean_difference([3.0, 8.0], [1.0, 2.0], [1, 3])
    assert estimate.value == pytest.approx((3 + 8) / 4 - (1 + 2) / 4)
    # residuals 2 - 2 * 1 and 6 - 2 * 3 are zero: both questions differ by 2 nats a token
    assert estimate.error == pytest.approx(0)
    assert estimate.sign == 1


@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_holds_the_truth_as_often_as_it_says(skewed):
    """Targets of 2 to 20 tokens, 25 questions, a true difference of 0.1 nats a token."""
    rng, held, trials = np.random.default_rng(0), 0, 1000
    for _ in range(trials):
        tokens = rng.integers(2, 21, 25)
        noise = rng.exponential(size=25) - 1 if skewed else rng.normal(size=25)
        differences = tokens * 0.1 + noise * np.sqrt(tokens)
        shared = rng.normal(0, 50, 25)  # what is common to both conditions does not matter
        estimate = mean_difference((shared + differences).tolist(), shared.tolist(), tokens.tolist())
        held += estimate.low <= 0.1 <= estimate.high
    # three standard errors of the simulation about 95 %; skewed values cover a little less
    assert 0.93 - 0.02 * skewed < held / trials < 0.97


@pytest.mark.parametrize(
    ("higher", "sign"), [([2.0, 2.1, 1.9], 1), ([-2.0, -2.1, -1.9], -1), ([1.0, -1.0, 0.1], 0), ([0.0] * 3, 0)]
)
def test_the_sign_follows_the_interval(higher, sign):
    assert mean_difference(higher, [0.0] * 3, [1] * 3).sign == sign


def test_questions_without_both_losses_are_left_out():
    estimate = mean_difference([1.0, None, 3.0], [0.0, 0.0, None], [1, 1, 1])
    assert (estimate.value, estimate.error, estimate.sign, estimate.questions) == (1.0, None, 0, 1)
    assert mean_difference([None], [1.0], [1]) is None
    assert mean_difference(None, [1.0], [1]) is None


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_gives_no_verdict(value):
    estimate = mean_difference([1.0, value, -value], [0.0, 0.0, 0.0], [1, 1, 1])
    assert not math.isfinite(estimate.value)
    assert estimate.sign == 0


def test_explained_variance_by_hand():
    before = [1.0, 2.0, 3.0, 4.0]
    assert explained_variance(before, [0.5] * 4).value == pytest.approx(1)
    assert explained_variance(before, [x - 7 for x in before]).value == pytest.approx(0), "a shift explains nothing"
    assert explained_variance(before, [x / 2 for x in before]).value == pytest.approx(0.75)
    assert explained_variance(before, [2 * x for x in before]).value == pytest.approx(-3)
    assert explained_variance([1.0, 1.0], [1.0, 2.0]) is None


def test_the_error_of_explained_variance_is_that_of_many_samples():
    """before = a + b and after = b, both of variance 1: half is explained."""
    rng = np.random.default_rng(1)
    estimates = []
    for _ in range(400):
        after = rng.normal(size=200)
        estimates.append(explained_variance((after + rng.normal(size=200)).tolist(), after.tolist()))
    values = np.array([estimate.value for estimate in estimates])
    assert values.mean() == pytest.approx(0.5, abs=0.01)
    assert np.mean([estimate.error for estimate in estimates]) == pytest.approx(values.std(), rel=0.15)
