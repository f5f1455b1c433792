"""Diagnostics of latent paths: against brute force, against scipy's analysis of variance, and under their null."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from analysis.estimators import vote
from analysis.load import load
from analysis.path_diversity import agreements, answer_entropy, calibration, mean_squares, path_figures
from analysis.statistics import wilson


def by_path(seed: int, questions: int, paths: int, samples: int, *, spread: float) -> list[list[list[str]]]:
    """Answers whose chance to be right differs by path within a question, by `spread` up or down."""
    rng = np.random.default_rng(seed)
    chances = 0.5 + spread * rng.choice([-1, 1], size=(questions, paths))
    return [
        [[str(q + 1) if rng.random() < chances[q, p] else "900" for _ in range(samples)] for p in range(paths)]
        for q in range(questions)
    ]


def test_agreement_equals_counting_pairs(make_run, random_answers):
    answers = random_answers(0, 5, 3, 3)
    matrix = agreements(load(make_run(answers)).lenient)
    for i, k in product(range(3), repeat=2):
        pairs = [
            (own[i][a], own[k][b])
            for own in answers
            for a, b in (combinations(range(3), 2) if i == k else product(range(3), repeat=2))
        ]
        assert matrix[i, k] == pytest.approx(np.mean([one is not None and one == other for one, other in pairs]))


def test_one_sample_a_path_has_no_agreement_within(make_run, random_answers):
    matrix = agreements(load(make_run(random_answers(1, 5, 3, 1))).lenient)
    assert np.isnan(np.diag(matrix)).all()
    assert not np.isnan(matrix[0, 1])


def test_mean_squares_are_those_of_an_analysis_of_variance(make_run, random_answers):
    right = load(make_run(random_answers(2, 8, 4, 5))).lenient.right
    between, within = mean_squares(right)
    for question, own in enumerate(right):
        if within[question] > 0:
            expected = stats.f_oneway(*own.astype(float)).statistic
            assert between[question] / within[question] == pytest.approx(expected)


def test_paths_that_decide_everything_and_nothing(make_run):
    decided = path_figures([load(make_run([[["1", "1"], ["9", "9"]], [["9", "9"], ["2", "2"]]])).lenient])
    assert decided.intraclass.value == pytest.approx(1.0)
    assert (decided.within, decided.between) == (1.0, 0.0)
    alike = path_figures([load(make_run([[["1", "9"], ["9", "1"]]])).lenient])
    assert alike.intraclass.value < 0  # paths more alike than chance
    assert alike.intraclass.low is None  # one question


def test_the_intraclass_correlation_finds_the_share_between_paths(make_run):
    """Chances 0.5 +- s: variance s^2 between paths of 0.25 in all, so 0.3 gives 0.36."""
    found = path_figures([load(make_run(by_path(3, 600, 4, 4, spread=0.3))).lenient])
    assert found.intraclass.low < 0.36 < found.intraclass.high
    assert found.intraclass.value == pytest.approx(0.36, abs=0.06)
    assert found.intraclass_p < 0.005
    assert found.between_p < 0.005
    assert found.within > found.between


def test_labels_without_meaning_are_found_at_the_tests_rate(make_run):
    p_values = []
    for seed in range(60):
        found = path_figures([load(make_run(by_path(seed, 12, 3, 3, spread=0.0))).lenient], seed=seed)
        p_values += [(found.intraclass_p, found.between_p)]
    rejected = (np.array(p_values) < 0.1).sum(axis=0)
    # at most 4 standard errors above 0.1 of 60, which is 15
    assert (rejected <= 15).all()
    assert stats.kstest(np.array(p_values)[:, 0], "uniform").pvalue > 1e-4


def test_one_path_has_no_variance_between(make_run, random_answers):
    found = path_figures([load(make_run(random_answers(4, 6, 1, 4))).lenient])
    assert (found.intraclass, found.intraclass_p, found.between, found.within) == (None, None, None, None)
    assert found.accuracy.shape == (1,)


def test_entropy_by_hand(make_run):
    ballots = load(make_run([[["1", "7"], [None, "1"]], [["2", "2"], ["2", "2"]], [[None] * 2] * 2])).lenient
    two_of_three = -(2 / 3) * np.log2(2 / 3) - (1 / 3) * np.log2(1 / 3)
    assert answer_entropy(ballots) == pytest.approx([two_of_three, 0.0, 0.0])


def test_calibration_by_hand(make_run):
    """Two votes of share 1, one of them right; one right vote of share 3/4; one question without any answer."""
    answers = [[["1"] * 2] * 2, [["9"] * 2] * 2, [["3", "3"], ["3", "7"]], [[None] * 2] * 2]
    ballots = load(make_run(answers)).lenient
    bins, error = calibration([ballots], [vote(ballots).values[:, -1, -1]])
    assert [(one.mean_share, one.accuracy.value, one.num_questions) for one in bins] == [
        (0.0, 0.0, 1),
        (0.75, 1.0, 1),
        (1.0, 0.5, 2),
    ]
    assert bins[2].accuracy == wilson(1, 2)
    assert error == pytest.approx(0.25 * 0 + 0.25 * 0.25 + 0.5 * 0.5)


def test_seeds_are_averaged_in_any_order(make_run, random_answers):
    """Paths of one seed decide everything and those of two others nothing: no seed stands for all."""
    decided = by_path(5, 30, 3, 3, spread=0.5)
    runs = [load(make_run(own)).lenient for own in (decided, random_answers(6, 30, 3, 3), random_answers(7, 30, 3, 3))]
    singles = [path_figures([run]) for run in runs]
    together, turned = path_figures(runs), path_figures(runs[::-1])
    for name in ("accuracy", "entropy", "agreement", "within", "between"):
        assert getattr(together, name) == pytest.approx(np.mean([getattr(one, name) for one in singles], axis=0)), name
        assert getattr(together, name) == pytest.approx(getattr(turned, name)), name
    assert together.intraclass.value == pytest.approx(turned.intraclass.value)
    assert min(one.intraclass.value for one in singles) < together.intraclass.value < singles[0].intraclass.value


def test_the_same_seed_thrice_is_worth_one(make_run):
    """Three copies of one run tell of no more questions: intervals stay as wide."""
    run = load(make_run(by_path(8, 40, 3, 3, spread=0.2))).lenient
    right = vote(run).values[:, -1, -1]
    one, thrice = path_figures([run]), path_figures([run] * 3)
    assert (thrice.intraclass.low, thrice.intraclass.high) == pytest.approx((one.intraclass.low, one.intraclass.high))
    (bins, error), (of_three, its_error) = calibration([run], [right]), calibration([run] * 3, [right] * 3)
    assert [(b.num_questions, b.accuracy.low, b.accuracy.high) for b in of_three] == [
        (b.num_questions, b.accuracy.low, b.accuracy.high) for b in bins
    ]
    assert its_error == pytest.approx(error)


def test_votes_of_all_seeds_are_calibrated_together(make_run):
    """Shares 1 and 1 in one seed, the first of them right; 1/2 and 1 in the other, both wrong."""
    sure, torn = (load(make_run(own)).lenient for own in ([[["1"] * 2], [["9"] * 2]], [[["1", "9"]], [["9", "9"]]]))
    bins, error = calibration([sure, torn], [np.array([1.0, 0.0]), np.array([0.0, 0.0])])
    assert [(one.mean_share, one.accuracy.value, one.num_questions) for one in bins] == [(0.5, 0, 1), (1, 1 / 3, 2)]
    assert error == pytest.approx(1 / 4 * 0.5 + 3 / 4 * 2 / 3)
