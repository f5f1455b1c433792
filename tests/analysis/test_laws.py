"""Scaling laws: moments and limits that are known, simulated grids of a known law, and what a grid cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from math import comb

import numpy as np
import pytest

from analysis.clusters import Clusters
from analysis.differences import mean_share
from analysis.estimators import pass_all
from analysis.laws import Law, Laws, fit, laws
from analysis.load import Ballots, load
from analysis.methods import group
from analysis.plots import plots
from analysis.results import Settings, results
from analysis.tables import as_json, tables


def ballots(right: np.ndarray, wrong: np.ndarray | None = None) -> Ballots:
    """Right chains give answer 5; wrong ones answer `wrong`, by default 0, and none where that is -1."""
    codes = np.where(right, 5, 0 if wrong is None else wrong).astype(np.int32)
    verdicts = np.tile(np.arange(6) == 5, (len(codes), 1))
    return Ballots(codes, verdicts, np.full(len(codes), 6))


def grid(seed: int, questions: int, paths: int, samples: int, law: Law) -> Ballots:
    """Draws a grid of a law, whose wrong answers are two for each question, equally likely."""
    rng = np.random.default_rng(seed)
    spread, within = 1 / law.between - 1, 1 / law.path - 1 if law.path else 0
    chance = rng.beta(law.mean * spread, (1 - law.mean) * spread, questions)[:, None].repeat(paths, axis=1)
    if within:
        chance = rng.beta((chance * within).clip(1e-9), ((1 - chance) * within).clip(1e-9))
    shape = (questions, paths, samples)
    return ballots(rng.random(shape) < chance[:, :, None], rng.integers(0, 2, shape))


def found(*runs: Ballots) -> Laws:
    return laws(runs, mean=mean_share)


LAW = Law(mean=0.4, between=0.3, path=0.15, concentration=1.0, silent=0.0)
LABELS = Law(mean=0.4, between=0.3, path=0.0, concentration=1.0, silent=0.0)


def test_questions_in_clusters_of_themselves_change_nothing():
    """Every question four times, in one cluster, tells no more of larger grids than every question once."""
    drawn = grid(41, 60, 4, 4, LAW)
    by = Clusters(np.repeat(np.arange(60), 4))
    times = Ballots(*(np.repeat(part, 4, axis=0) for part in (drawn.codes, drawn.verdicts, drawn.sizes)))
    once, fourfold = found(drawn), laws([times], mean=mean_share, clusters=by)
    as_independent = found(times)
    for name in ("same_path", "two_paths", "effective"):
        own, four = getattr(once, name), getattr(fourfold, name)
        assert (four.value, four.low, four.high) == pytest.approx((own.value, own.low, own.high), abs=1e-6), name
    for place in range(3):
        for name in ("coverage", "vote", "every"):
            own, four, none = (getattr(one.sizes[place], name) for one in (once, fourfold, as_independent))
            assert four.value == pytest.approx(own.value, abs=0.02)
            assert four.high - four.low == pytest.approx(own.high - own.low, rel=0.15)
            assert none.high - none.low < 0.65 * (own.high - own.low)


@pytest.mark.parametrize("paths", [5, 7])
def test_half_of_an_odd_number_says_the_whole(paths):
    """2 of 5 paths, or 3 of 7, say what 5 or 7 show, and not what 4 or 6 would."""
    drawn = grid(42, 80, paths, 3, LAW)
    held = found(drawn).held_out
    assert (held.n, held.m) == (paths // 2, 3)
    assert held.coverage_found == drawn.right.any(axis=(1, 2)).mean()
    half = Ballots(drawn.codes[:, : held.n], drawn.verdicts, drawn.sizes)
    law = fit(half)
    missed = 1 - half.right.any(axis=(1, 2)).mean()
    assert held.coverage.value == pytest.approx(1 - missed * law.none(paths, 3) / law.none(held.n, 3))


# ---- what is exact


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 1), (1, 3), (2, 2), (3, 2)])
def test_pass_all_is_the_mean_over_all_sub_grids(n, m):
    right = np.random.default_rng(3).random((4, 3, 3)) < 0.7
    expected = np.zeros(4)
    for paths in combinations(range(3), n):
        for samples in product(combinations(range(3), m), repeat=n):
            cells = [right[:, path, sample] for path, chosen in zip(paths, samples, strict=True) for sample in chosen]
            expected += np.all(cells, axis=0)
    expected /= comb(3, n) * comb(3, m) ** n
    assert pass_all(ballots(right))[:, n - 1, m - 1] == pytest.approx(expected)


def test_the_gap_is_what_was_found_and_not_chosen():
    """Five questions of 1 x 3: two are voted rightly, one of them always; of the others two have a right chain."""
    right = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], dtype=bool)[:, None]
    one = found(ballots(right))
    assert (one.gap.value, one.every.value) == (0.4, 0.2)
    assert one.gap.low < 0.4 < one.gap.high


# ---- the law


def test_single_chains_do_not_know_of_paths():
    for law in (LAW, LABELS):
        assert law.every(1, 1) == pytest.approx(0.4)
        assert law.none(1, 1) == pytest.approx(0.6)
    assert LAW.none(7, 1) == pytest.approx(LABELS.none(7, 1))
    assert LAW.none(2, 3) < LAW.none(1, 6), "chains of several paths are less alike"
    assert LABELS.none(2, 3) == pytest.approx(LABELS.none(1, 6))


def test_two_chains_are_as_alike_as_the_correlations_say():
    """Of two paths: mean^2 + between mean (1 - mean). Of one path, E p^2 + path E p (1 - p) over questions' chances p."""
    variance = 0.4 * 0.6
    assert LAW.every(2, 1) == pytest.approx(0.16 + 0.3 * variance)
    assert LAW.every(1, 2) == pytest.approx(0.16 + 0.3 * variance + 0.15 * (1 - 0.3) * variance)


def test_a_law_of_paths_is_the_mean_over_questions_and_paths():
    rng = np.random.default_rng(0)
    chance = rng.beta(0.4 / 0.3 * 0.7, 0.6 / 0.3 * 0.7, 200_000)[:, None]
    paths = rng.beta(chance / 0.15 * 0.85, (1 - chance) / 0.15 * 0.85, (200_000, 3))
    assert LAW.none(3, 4) == pytest.approx(((1 - paths) ** 4).prod(axis=1).mean(), abs=0.005)
    assert LAW.every(3, 4) == pytest.approx((paths**4).prod(axis=1).mean(), abs=0.003)


@pytest.mark.parametrize(("paths", "samples", "law"), [(4, 4, LAW), (4, 4, LABELS), (1, 12, LABELS), (12, 1, LABELS)])
def test_a_fit_finds_the_law_that_a_grid_was_drawn_of(paths, samples, law):
    fitted = fit(grid(1, 2000, paths, samples, law))
    assert fitted.mean == pytest.approx(0.4, abs=0.03)
    assert fitted.between == pytest.approx(0.3, abs=0.03)
    assert fitted.path == pytest.approx(law.path, abs=0.02)
    assert fitted.silent == 0.0


def test_wrong_answers_are_as_many_as_they_are_found():
    rng = np.random.default_rng(2)
    right = rng.random((300, 1, 5)) < 0.3
    alone, never_again = (fit(ballots(right, wrong)) for wrong in (np.zeros((300, 1, 5)), np.arange(5)[None, None]))
    assert alone.concentration < 0.01
    assert never_again.concentration > 100
    assert fit(ballots(right, np.where(rng.random(right.shape) < 0.25, -1, 0))).silent == pytest.approx(0.25, abs=0.03)


# ---- what chains tell


def test_chains_that_are_all_alike_are_worth_one():
    right = np.random.default_rng(0).random((40, 1, 1)) < 0.5
    one = found(ballots(np.broadcast_to(right, (40, 4, 3))))
    for interval in (one.same_path, one.two_paths, one.effective, one.most_effective):
        assert interval.value == pytest.approx(1.0)


def test_chains_of_questions_that_are_equally_hard_are_worth_their_number():
    right = np.random.default_rng(0).random((3000, 4, 3)) < 0.5
    one = found(ballots(right))
    assert one.two_paths.low < 0 < one.two_paths.high
    assert one.effective.low <= 12 <= one.effective.high


def test_correlations_are_those_of_the_law():
    one = found(grid(5, 2000, 4, 4, LAW))
    assert one.two_paths.value == pytest.approx(0.3, abs=0.02)
    assert one.same_path.value == pytest.approx(0.3 + 0.15 * 0.7, abs=0.02)
    worth = 16 / (1 + 3 * one.same_path.value + 12 * one.two_paths.value)
    assert one.effective.value == pytest.approx(worth)
    assert one.most_effective.value == pytest.approx(1 / one.two_paths.value)


# ---- beyond the grid


def test_what_lies_beyond_a_grid_is_found_and_the_half_says_the_whole():
    drawn = grid(7, 800, 8, 4, LAW)
    half = Ballots(drawn.codes[:, :4], drawn.verdicts, drawn.sizes)
    one = found(half)
    assert one.along == "paths"
    assert [(size.n, size.m) for size in one.sizes] == [(8, 4), (16, 4), (32, 4)]
    coverage, vote = (1 - LAW.none(8, 4)), one.sizes[0].vote
    assert one.sizes[0].coverage.value == pytest.approx(coverage, abs=0.02)
    assert one.sizes[0].every.value == pytest.approx(LAW.every(8, 4), abs=0.01)
    whole = found(drawn)
    assert (whole.held_out.n, whole.held_out.m) == (4, 4)
    assert whole.held_out.coverage == one.sizes[0].coverage
    assert whole.held_out.vote.value == pytest.approx(vote.value, abs=0.015), "but for the chains that are drawn"
    assert whole.held_out.coverage_found == drawn.right.any(axis=(1, 2)).mean()
    assert vote.value == pytest.approx(whole.held_out.vote_found, abs=0.02)


def test_coverage_grows_and_all_right_falls():
    one = found(grid(8, 60, 1, 6, LABELS))
    assert one.along == "samples"
    rising = [size.coverage.value for size in one.sizes]
    falling = [one.every.value, *(size.every.value for size in one.sizes)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    for size in one.sizes:
        assert size.coverage.low <= size.coverage.value <= size.coverage.high <= 1
        assert size.vote.value <= size.coverage.value


def test_a_share_of_none_or_all_keeps_an_interval():
    """Every question has a right chain, and none has right ones alone: no larger grid is surer of that than this one."""
    right = np.zeros((20, 1, 4), dtype=bool)
    right[:, :, :2] = True
    one = found(ballots(right))
    for size in one.sizes:
        assert (size.coverage.value, size.every.value) == (1.0, 0.0)
        assert 0.8 < size.coverage.low < 1.0
        assert 0.0 < size.every.high < 0.2


def test_intervals_hold_the_truth():
    """Of 12 grids of 80 questions; benchmarks/laws.py has more of them, and other laws."""
    true = 1 - LABELS.none(1, 16)
    held = 0
    for seed in range(12):
        interval = found(grid(seed, 80, 1, 8, LABELS)).sizes[0].coverage
        held += interval.low <= true <= interval.high
    assert held >= 10


def test_seeds_are_averaged():
    first, second = grid(1, 40, 1, 4, LABELS), grid(2, 40, 1, 4, LABELS)
    both, alone = found(first, second), [found(first), found(second)]
    assert both.gap.value == pytest.approx(np.mean([one.gap.value for one in alone]))
    for name in ("coverage", "vote", "every"):
        values = [getattr(one.sizes[1], name).value for one in alone]
        assert getattr(both.sizes[1], name).value == pytest.approx(np.mean(values))


# ---- what a grid cannot tell


@pytest.mark.parametrize(
    ("shape", "share", "why"),
    [
        ((1, 2, 2), 0.5, "one question"),
        ((9, 1, 1), 0.5, "one chain"),
        ((9, 2, 2), 0.0, "no chain"),
        ((9, 2, 2), 1.0, "every"),
    ],
)
def test_what_cannot_be_told_is_absent_with_a_reason(shape, share, why):
    right = np.arange(np.prod(shape)).reshape(shape) % 10 < 10 * share
    one = found(ballots(right))
    for name in ("same_path", "two_paths", "effective", "most_effective", "plateau", "held_out", "law"):
        assert getattr(one, name) is None
        assert name == "law" or one.missing[name].startswith(why)
    assert one.sizes == ()


def test_a_side_of_one_hides_what_lies_along_it():
    one_path, one_sample = found(grid(1, 30, 1, 6, LABELS)), found(grid(1, 30, 6, 1, LABELS))
    assert (one_path.two_paths, one_sample.same_path) == (None, None)
    assert set(one_path.missing) == {"two_paths"}
    assert set(one_sample.missing) == {"same_path"}
    assert {size.n for size in one_path.sizes} == {1}
    assert {size.m for size in one_sample.sizes} == {1}
    few = found(grid(1, 30, 1, 2, LABELS))
    assert few.held_out is None
    assert "too few" in few.missing["held_out"]


# ---- in a report


@pytest.fixture(scope="module")
def report(make_run: Callable, random_answers: Callable):
    folders = [make_run(random_answers(1, 12, 2, 4)), make_run(random_answers(2, 12, 1, 1), method="cot")]
    return results(group([(None, load(folder)) for folder in folders], common=False), Settings(), lambda _: None)


def test_a_report_says_it_in_table_data_and_figure(report):
    table = next(table for table in tables(report) if table.title.startswith("Scaling"))
    assert [row[0] for row in table.rows] == [one.method.name for one in report.methods]
    assert table.rows[0][7] == "16 x 4"
    assert table.rows[1][3:] == ("-",) * 9
    assert "CoT: one chain a question does not tell hard questions from chance." in table.remark
    told = [one["laws"] for one in as_json(report)["methods"]]
    assert told[0]["sizes"][2]["n"] == 16
    assert (told[1]["sizes"], told[1]["effective"]) == ([], None)
    figure = next(figure for figure in plots(report) if figure.name == "scaling")
    beyond = figure.data[~figure.data["within"]]
    assert sorted(set(beyond["chains"])) == [16, 32, 64]
    assert (beyond["low"] <= beyond["value"]).all()
    assert figure.data[figure.data["within"]]["low"].isna().all()
