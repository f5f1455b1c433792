"""Weighted votes against sums made one by one, and what each vote needs."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from itertools import combinations, product
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.estimators import FLAT, Rule, vote
from analysis.load import load
from analysis.methods import group
from analysis.plots import plots
from analysis.results import Settings, results
from analysis.scores import scores
from analysis.tables import markdown, tables
from analysis.voters import Outside, chosen, reliability, rule, wrong_agreement
from scaling.records.errors import UsageError
from scaling.records.journal import load as read_journal
from scaling.records.journal import load_questions
from scaling.records.summary import summarise
from scaling.records.voters import OF_RUNS, voter_of
from scaling.records.votes import tie_hash

ANSWERS = st.sampled_from(["1", "8", "9", None])
NOBODY = Outside()


@pytest.fixture(scope="module")
def signals():
    """Fixed noise for every key: log-probability below 0 and self-certainty above."""

    def draw(question, path, sample):
        rng = np.random.default_rng([int(question[1:]), path, sample])
        return -float(rng.random()) * 20, float(rng.random()) * 10 + 1

    return draw


def brute_force(question, answers, weights, *, best):
    """[N, M]: the share of sub-grids whose vote is right, gold being the question's number plus 1."""
    shape = len(answers), len(answers[0])
    values = np.zeros(shape)
    for n, m in np.ndindex(shape):
        right = []
        for paths in combinations(range(shape[0]), n + 1):
            for choices in product(combinations(range(shape[1]), m + 1), repeat=n + 1):
                cells = [(p, s) for p, picked in zip(paths, choices, strict=True) for s in picked]
                right.append(winner(f"q{question}", answers, weights, cells, best=best) == str(question + 1))
        values[n, m] = np.mean(right)
    return values


def winner(question, answers, weights, cells, *, best):
    sums, backers = defaultdict(float), defaultdict(set)
    for p, s in cells:
        answer = answers[p][s]
        if answer is not None and weights[p][s]:
            sums[answer] = max(sums[answer], weights[p][s]) if best else sums[answer] + weights[p][s]
            backers[answer].add(p)
    if not sums:
        return None
    return min(sums, key=lambda a: (-round(sums[a], 9), -len(backers[a]), tie_hash(question, a)))


@given(
    answers=st.lists(
        st.lists(st.lists(ANSWERS, min_size=2, max_size=2), min_size=3, max_size=3), min_size=2, max_size=2
    ),
    weights=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=12, max_size=12),
    best=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_weighted_votes_equal_counting_all_sub_grids(answers, weights, best, make_run):
    given_weights = np.array(weights).reshape(2, 3, 2)
    values = vote(load(make_run(answers)).lenient, Rule(given_weights, best=best)).values
    for question, own in enumerate(answers):
        assert values[question] == pytest.approx(brute_force(question, own, given_weights[question], best=best))


def test_equal_weights_are_a_flat_vote(make_run, random_answers):
    ballots = load(make_run(random_answers(1, 20, 3, 3))).lenient
    for weight in (1.0, 0.1, 1e-300):
        assert vote(ballots, Rule(np.full((20, 3, 3), weight))).values == pytest.approx(vote(ballots, FLAT).values)


def test_weights_are_what_the_journal_says(make_run, random_answers, signals):
    run = load(make_run(random_answers(2, 3, 2, 2), signals=signals))
    for (q, n, m), tokens in np.ndenumerate(run.tokens):
        log_prob, certainty = signals(f"q{q}", n, m)
        for voter, expected in (("log-prob-sum", exp(log_prob)), ("log-prob-mean", exp(log_prob / tokens))):
            found = rule(voter, run, NOBODY)
            weights = np.exp(found.weights) if found.logs else found.weights
            first = run.log_probs[q, 0, 0] / (run.tokens[q, 0, 0] if voter.endswith("mean") else 1)
            assert weights[q, n, m] / weights[q, 0, 0] == pytest.approx(expected / exp(first))
        assert rule("self-certainty", run, NOBODY).weights[q, n, m] == pytest.approx(certainty)


@given(
    answers=st.lists(
        st.lists(st.lists(ANSWERS, min_size=2, max_size=2), min_size=3, max_size=3), min_size=2, max_size=2
    ),
    weights=st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0]), min_size=6, max_size=6),
)
@settings(max_examples=25, deadline=None)
def test_a_voter_of_ones_own_scores_what_a_run_would_say_and_every_sub_grid_with_its_weights(
    answers, weights, make_run
):
    folder = make_run(answers)
    voter = voter_of(lambda _, chains: [weights[2 * chain.path + chain.sample] for chain in chains])
    run = load(folder)
    values = vote(run.lenient, rule(voter, run, NOBODY)).values
    keyed = {one.key: one for one in read_journal(folder)[1]}
    summary = summarise(load_questions(folder), keyed, num_paths=3, num_samples=2, voter=voter)
    assert values[:, -1, -1].mean() == summary["accuracy_voted"]
    for question, own in enumerate(answers):
        grid = np.array(weights).reshape(3, 2)
        assert values[question] == pytest.approx(brute_force(question, own, grid, best=False))


def test_built_in_votes_are_those_of_a_run(make_run, random_answers, signals):
    folder = make_run(random_answers(7, 40, 3, 3), signals=signals)
    run, keyed = load(folder), {one.key: one for one in read_journal(folder)[1]}
    for name in OF_RUNS:
        summary = summarise(load_questions(folder), keyed, num_paths=3, num_samples=3, voter=name)
        assert vote(run.lenient, rule(name, run, NOBODY)).values[:, -1, -1].mean() == summary["accuracy_voted"], name


def test_a_hopeless_chain_still_votes_where_it_is_alone(make_run):
    run = load(make_run([[["1"], ["1"]]], signals=lambda _, path, __: (-5000.0 * path, 1.0)))
    values = vote(run.lenient, rule("log-prob-sum", run, NOBODY)).values
    assert values == pytest.approx(np.ones((1, 2, 1)))


@given(
    answers=st.lists(
        st.lists(st.lists(ANSWERS, min_size=2, max_size=2), min_size=3, max_size=3), min_size=2, max_size=2
    ),
    weights=st.lists(st.sampled_from([0.25, 0.5, 1.0, 3.0]), min_size=12, max_size=12),
    shift=st.sampled_from([0.0, -700.0, -50_000.0]),
    best=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_logarithms_of_weights_vote_as_the_weights(answers, weights, shift, best, make_run):
    """A common factor changes no vote, however far below anything that a number can hold."""
    ballots = load(make_run(answers)).lenient
    plain = np.array(weights).reshape(2, 3, 2)
    values = vote(ballots, Rule(np.log(plain) + shift, best=best, logs=True)).values
    assert values == pytest.approx(vote(ballots, Rule(plain, best=best)).values)


@pytest.mark.parametrize("wrong", ["8", "9", "12", "15"])  # one of which the tie hash would favour
def test_the_most_probable_chain_wins_in_every_sub_grid(wrong, make_run):
    """A short chain beside two long ones: of every two the heavier is right, though e^-750 and e^-1450 are both nothing."""
    run = load(make_run([[["1"], ["1"], [wrong]]], signals=lambda _, path, __: ([-50.0, -800.0, -1500.0][path], 1.0)))
    values = vote(run.lenient, rule("log-prob-sum", run, NOBODY)).values
    assert values[0, 1:, 0] == pytest.approx([1, 1])


def test_a_vote_without_its_signal_is_refused(make_run, random_answers):
    run = load(make_run(random_answers(2, 3, 2, 2)))
    for voter in ("log-prob-mean", "log-prob-sum", "self-certainty"):
        with pytest.raises(UsageError, match=f"`--voters {voter}`: .* leave that vote out"):
            rule(voter, run, NOBODY)


def test_best_of_n_takes_the_chain_that_scores_best_and_answers(make_run):
    run = load(make_run([[["1", "8"], [None, "9"]]]))
    scores = {"1": [[-1.0, -2.0], [5.0, -3.0]], "8": [[-9.0, 0.5], [5.0, 0.1]], "9": [[1.0, 2.0], [9.0, 3.0]]}
    for answer, own in scores.items():
        found = rule("best-of-n", run, Outside(scores={str(run.folder): np.array([own])}))
        assert vote(run.lenient, found).values[0, 1, 1] == (answer == "1")


def test_chains_that_score_alike_are_told_apart_by_paths(make_run):
    """A scorer of 0 and 1, the wrong answer on one path of six with the same score as the right one on five."""
    for wrong in ("8", "9", "12", "15"):  # one of which the tie hash would favour
        run = load(make_run([[["1"]] * 5 + [[wrong]]]))
        assert vote(run.lenient, Rule(np.ones((1, 6, 1)), best=True)).values[0, 5, 0] == 1


def test_reliability_is_the_log_odds_of_a_path(make_run):
    # path 0 right 3 of 4, path 1 right once of 3 that answer; wrong answers: q1 8 and 8 agree, q2 and q3 have one each
    answers = [[["1"], ["1"]], [["8"], ["8"]], [["3"], ["9"]], [["4"], [None]]]
    ballots = load(make_run(answers)).lenient
    collide = (1 + 1) / (1 + 2)
    assert wrong_agreement(ballots) == pytest.approx(collide)
    # (3 + 1) / (4 + 2) and (1 + 1) / (3 + 2)
    assert reliability(ballots) == pytest.approx(
        [log((4 / 6) / (2 / 6 * collide)), max(log((2 / 5) / (3 / 5 * collide)), 1e-6)]
    )


def test_a_path_that_is_always_right_outvotes_two_that_guess(make_run):
    def of(questions, **config):
        own = [[["1"]] * 3 if not q else [[str(q + 1)], ["900"], ["901" if q % 2 else "900"]] for q in range(questions)]
        return load(make_run(own, thinker_sha256="aa", **config))

    run, learned = of(9), of(30, seed=1)
    learned = replace(learned, questions=tuple(replace(q, text=f"Other {q.text}") for q in learned.questions))
    values = vote(run.lenient, rule("path-reliability", run, Outside([learned]))).values
    assert values[:, 2, 0] == pytest.approx(1)
    assert vote(run.lenient).values[1:, 2, 0].mean() < 1


def test_validation_must_be_the_same_method_on_other_questions(make_run, random_answers):
    run = load(make_run(random_answers(1, 4, 2, 2), thinker_sha256="aa"))
    other = load(make_run(random_answers(2, 4, 2, 2), thinker_sha256="bb"))
    with pytest.raises(UsageError, match="gives none of its kind"):
        rule("path-reliability", run, Outside([other]))
    with pytest.raises(UsageError, match=r"asks questions of .*, q0 for one"):
        rule("path-reliability", run, Outside([run]))


def test_all_votes_in_one_report(make_run, random_answers, signals):
    run = load(make_run(random_answers(3, 30, 3, 3), signals=signals))
    outside = Outside(scores={str(run.folder): np.where(run.lenient.right, 1.0, 0.0)})
    voters = chosen("all", validation=False, scorer=True)
    assert "path-reliability" not in voters
    found = results(group([(None, run)], common=False), Settings(voters=voters), lambda _: None, outside)
    [one] = found.methods
    by_name = {voted.voter: voted for voted in one.votes}
    assert by_name["flat"].difference is None
    assert by_name["best-of-n"].accuracy.value == one.table["coverage"].value  # a perfect scorer
    assert by_name["best-of-n"].p_holm >= by_name["best-of-n"].difference.p_value
    table = next(table for table in tables(found) if table.title == "Votes")
    assert table.columns == ("method", *voters)
    assert "## Votes" in markdown(found)
    assert "votes-1" in [plot.name for plot in plots(found)]


def test_lists_of_voters():
    assert chosen("flat", validation=False, scorer=False) == ("flat",)
    assert chosen("self-certainty, flat,flat", validation=False, scorer=False) == ("self-certainty", "flat")


def test_votes_that_are_one_by_construction_are_not_tested(make_run, random_answers):
    plain = load(make_run(random_answers(4, 12, 1, 4), method="cot"))
    paths, both = load(make_run(random_answers(5, 12, 4, 1))), load(make_run(random_answers(5, 12, 4, 2)))
    for run, same in ((plain, True), (paths, True), (both, False)):
        [one] = results(group([(None, run)], common=False), Settings(), lambda _: None).methods
        assert (one.votes[1].difference is None) == same
        if same:
            assert one.votes[1].accuracy == one.votes[0].accuracy


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A scorer that talks: judge:number scores 1 for an answer of 1, judge:few forgets chains, judge:broken fails."""
    (tmp_path / "judge.py").write_text(
        "def number(question, chains):\n    print('hm')\n    return [float('is 1.' in chain) for chain in chains]\n"
        "def few(question, chains):\n    print('hm')\n    return []\n"
        "def broken(question, chains):\n    print('hm')\n    raise RuntimeError('out of order')\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[2]}")
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("judge")
def test_a_scorer_runs_in_its_own_process_and_may_talk(make_run):
    run = load(make_run([[["1", "8"], [None, "9"]], [["1", "2"], ["1", "1"]]]))
    assert scores(run, "judge:number").tolist() == [[[1, 0], [0, 0]], [[1, 0], [1, 1]]]
    with pytest.raises(UsageError, match=r"^`--scorer` judge:few must return \d finite numbers"):
        scores(run, "judge:few")
    with pytest.raises(UsageError, match=r"^`--scorer` judge:broken failed; its own message stands above$"):
        scores(run, "judge:broken")
