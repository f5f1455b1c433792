"""Estimators against counting every sub-grid one by one with the voter itself."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis import estimators
from analysis.estimators import FLAT, HIERARCHICAL, Rule, pass_at, vote
from analysis.load import load
from scaling.records import votes
from scaling.records.records import Completion

ANSWERS = st.sampled_from(["1", "8", "9", "12", None])


@st.composite
def grids(draw: st.DrawFn) -> list[list[list[str | None]]]:
    questions, paths, samples = (draw(st.integers(1, n)) for n in (3, 3, 3))
    return [[[draw(ANSWERS) for _ in range(samples)] for _ in range(paths)] for _ in range(questions)]


def sub_grids(answers: list[list[str | None]], n: int, m: int):
    """Every choice of n paths and, of each, m samples: (path, answer) pairs."""
    for paths in combinations(range(len(answers)), n):
        for choices in product(combinations(range(len(answers[0])), m), repeat=n):
            yield [(p, answers[p][s]) for p, chosen in zip(paths, choices, strict=True) for s in chosen]


def as_completions(question: str, ballots: list[tuple[int, str | None]], gold: str) -> list[Completion]:
    return [
        Completion(question, path, number, "", answer, answer == gold, None, False, 1, "end", 0)
        for number, (path, answer) in enumerate(ballots)
    ]


def brute_force(question: str, answers: list[list[str | None]], gold: str, measure: str) -> np.ndarray:
    shape = len(answers), len(answers[0])
    values = np.zeros(shape)
    for n, m in np.ndindex(shape):
        right = []
        for ballots in sub_grids(answers, n + 1, m + 1):
            completions = as_completions(question, ballots, gold)
            if measure == "pass":
                right.append(any(c.correct for c in completions))
            else:
                vote = votes.flat_vote if measure == "flat" else votes.hierarchical_vote
                right.append(vote(question, completions).answer == gold)
        values[n, m] = np.mean(right)
    return values


def measures(ballots):
    return {
        "pass": pass_at(ballots),
        "flat": vote(ballots).values,
        "hierarchical": vote(ballots, HIERARCHICAL).values,
    }


@given(answers=grids())
@settings(max_examples=40, deadline=None)
def test_every_measure_equals_counting_all_sub_grids(answers, make_run):
    for name, values in measures(load(make_run(answers)).lenient).items():
        for question, own in enumerate(answers):
            assert values[question] == pytest.approx(brute_force(f"q{question}", own, str(question + 1), name)), name


@pytest.mark.parametrize("rule", [FLAT, HIERARCHICAL, "weighted", "best", "logs"])
def test_random_sub_grids_agree_with_counting_within_their_error(rule, make_run, random_answers, monkeypatch):
    ballots = load(make_run(random_answers(3, 60, 3, 3))).lenient
    if isinstance(rule, str):
        rule = Rule(np.random.default_rng(0).random((60, 3, 3)), best=rule == "best", logs=rule == "logs")
    counted = vote(ballots, rule)
    assert counted.exact.all()
    assert (counted.error == 0).all()
    monkeypatch.setattr(estimators, "sub_grids", lambda *_: 10**9)
    drawn = vote(ballots, rule)
    assert not drawn.exact.any()
    assert (drawn.error[1, 1] > 0).all()
    error = np.maximum(drawn.error, 1e-12)
    # of 9 sizes the largest deviation stays below 4 standard errors; the whole grid is one sub-grid and has none
    assert (abs(drawn.values.mean(0) - counted.values.mean(0)) / error).max() < 4
    assert drawn.values[:, 2, 2] == pytest.approx(counted.values[:, 2, 2])
    # no question by itself is off: 1000 draws of a share have a standard error of at most 0.016
    assert abs(drawn.values - counted.values).max() < 0.08


def test_the_same_seed_draws_the_same_sub_grids(make_run, random_answers):
    ballots = load(make_run(random_answers(1, 5, 6, 5))).lenient
    first, again, other = (vote(ballots, seed=seed).values for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_room_for_fewer_questions_at_once_changes_only_the_draws(make_run, random_answers, monkeypatch):
    ballots = load(make_run(random_answers(5, 40, 3, 3))).lenient
    at_once = vote(ballots).values
    monkeypatch.setattr(estimators, "_CHUNK", 1)
    assert vote(ballots).values == pytest.approx(at_once)


@pytest.mark.parametrize("counted", [True, False])
def test_questions_without_any_answer_may_be_looked_at_by_themselves(counted, make_run, random_answers, monkeypatch):
    """They come last, so a batch may hold nothing else; they score 0 and the others what they score alone."""
    monkeypatch.setattr(estimators, "_CHUNK", 1)
    if not counted:
        monkeypatch.setattr(estimators, "sub_grids", lambda *_: 10**9)
    answers = random_answers(5, 4, 2, 2)
    silent = [[[None] * 2] * 2] * 2
    alone, both = (load(make_run(own)).lenient for own in (answers, answers + silent))
    weights = np.ones((6, 2, 2))
    for rule in (FLAT, HIERARCHICAL, Rule(weights), Rule(weights, best=True), Rule(weights, logs=True)):
        values = vote(both, rule).values
        assert (values[4:] == 0).all()
        assert values[:4, -1, -1] == pytest.approx(vote(alone, rule.of(np.arange(4))).values[:, -1, -1])


def test_more_questions_get_fewer_draws_and_say_so(make_run, random_answers):
    few, many = (vote(load(make_run(random_answers(2, number, 4, 4))).lenient) for number in (4, 900))
    assert few.exact.sum() > many.exact.sum() > 0  # 1000 draws against 694


def test_a_grid_without_any_answer_scores_nothing(make_run):
    ballots = load(make_run([[[None, None], [None, None]]])).lenient
    for values in measures(ballots).values():
        assert (values == 0).all()


def test_pass_of_one_is_the_share_of_right_completions(make_run, random_answers):
    ballots = load(make_run(random_answers(4, 30, 4, 5))).lenient
    for values in measures(ballots).values():  # a vote of one completion is that completion
        assert values[:, 0, 0] == pytest.approx(ballots.right.mean(axis=(1, 2)))


def test_coverage_never_falls_with_more_samples_or_paths(make_run, random_answers):
    values = pass_at(load(make_run(random_answers(6, 20, 5, 4))).lenient)
    assert (np.diff(values, axis=1) >= -1e-12).all()
    assert (np.diff(values, axis=2) >= -1e-12).all()


def test_the_labels_of_the_paths_change_nothing(make_run, random_answers):
    answers = random_answers(8, 12, 3, 3)
    turned = [list(reversed(paths)) for paths in answers]
    one, other = (measures(load(make_run(grid)).lenient) for grid in (answers, turned))
    for name, values in one.items():
        assert values == pytest.approx(other[name]), name


def test_estimates_of_small_grids_are_unbiased(make_run, random_answers):
    """A 2 x 2 sub-grid of 4 x 3 grids is worth what 2 x 2 grids are worth: 300 fresh questions of each kind."""
    large = load(make_run(random_answers(10, 300, 4, 3))).lenient
    small = load(make_run(random_answers(11, 300, 2, 2))).lenient
    for name, values in measures(large).items():
        direct = measures(small)[name][:, 1, 1]
        difference = values[:, 1, 1].mean() - direct.mean()
        assert abs(difference) < 4 * np.sqrt(direct.var() / 300 + values[:, 1, 1].var() / 300), name
