"""Early stopping: when a vote counts as decided, that timing changes nothing, and what an adaptive run leaves out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from scaling.engines.base import Decoding, Generated, SoftPrompt
from scaling.models import loading
from scaling.records.adaptive import Stopping, lead_probability, leading, stop_after
from scaling.records.errors import Interrupted
from scaling.records.records import Completion, Question
from scaling.records.summary import summarise
from scaling.records.votes import flat_vote, majority
from scaling.run import execute
from scaling.sampler import Grid, sample

answers = st.sampled_from([None, "5", "6", "7"])
confidences = st.sampled_from([0.6, 0.75, 0.9, 0.95, 1.0])


def drawn(question_id: str, path: int, number: int, answer: str | None) -> Completion:
    right = answer == "5"
    return Completion(question_id, path, number, "", answer, right, answer, right, 10, "end", 0)


# The rule


def test_the_probability_is_the_beta_posteriors():
    for first, second in itertools.product(range(40), repeat=2):
        assert lead_probability(first, second) == pytest.approx(beta.sf(0.5, first + 1, second + 1), rel=1e-10)
    assert lead_probability(7, 7) == 0.5
    assert lead_probability(5000, 0) == 1.0


@pytest.mark.parametrize(
    ("ballots", "total", "confidence", "expected"),
    [
        ("AAAAA", 8, 1.0, 5),  # 5 against at most 3; after 4 there could be 4 against 4
        ("AAAA", 8, 1.0, None),
        ("ABAAAA", 8, 1.0, 6),  # 5 against 1 + 2; after 5 there could be 4 against 1 + 3
        ("A..A...", 8, 1.0, 7),  # two against none and one left
        ("ABABABA", 8, 1.0, None),  # 4 against 3 + 1
        ("AAAA", 8, 0.95, 4),  # 1 - 1/32 = 0.969; after 3 it is 1 - 1/16 = 0.938
        ("AAA", 8, 0.95, None),
        ("AA", 3, 0.95, 2),  # what cannot change any more is decided at every confidence
        ("A", 8, 0.75, 1),  # 1 - 1/4, and "at least" is enough
        ("A", 8, 0.76, None),
        (".......", 8, 0.51, None),  # nobody leads
        ("AB" * 4, 8, 0.76, None),
        ("AAAAAAAA", 8, 1.0, 5),
        ("A", 1, 0.6, None),  # nothing is left to stop
    ],
)
def test_decisions_worked_out_by_hand(ballots, total, confidence, expected):
    read = [None if ballot == "." else ballot for ballot in ballots]
    assert stop_after(read, total=total, confidence=confidence) == expected


@settings(deadline=None)  # thousands of votes an example
@given(st.lists(answers, min_size=1, max_size=6))
def test_at_confidence_1_the_vote_is_decided_when_nothing_left_can_change_it(ballots):
    """Expected: the first k after which every way to fill in the rest gives one and the same winner without a tie."""
    total = len(ballots)

    def fixed(number: int) -> bool:
        fills = itertools.product(["5", "6", "7", "new", None], repeat=total - number)
        votes = [majority("q", [(0, answer) for answer in [*ballots[:number], *fill]]) for fill in fills]
        winners = {vote.answer for vote in votes}
        return len(winners) == 1 and winners != {None} and not any(vote.tied for vote in votes)

    expected = next((number for number in range(1, total) if fixed(number)), None)
    assert stop_after(ballots, total=total, confidence=1.0) == expected


@given(st.lists(answers, max_size=30), st.integers(1, 40), confidences)
def test_a_decision_is_the_first_one_and_stays(ballots, total, confidence):
    ballots = ballots[:total]
    stop = stop_after(ballots, total=total, confidence=confidence)
    surer = stop_after(ballots, total=total, confidence=1.0)
    if stop is None:
        assert surer is None  # more confidence never stops earlier
        return
    assert stop < total
    assert surer is None or stop <= surer
    assert stop_after(ballots[: stop - 1], total=total, confidence=confidence) is None
    assert stop_after([*ballots[:stop], "5", "6"][:total], total=total, confidence=confidence) == stop
    assert not majority("q", [(0, answer) for answer in ballots[:stop]]).tied


# Timing


@st.composite
def grids(draw, max_questions=4):
    """(grid, all its completions by key)"""
    n, m = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    asked = [Question(f"q{number}", "", "5") for number in range(draw(st.integers(1, max_questions)))]
    cells = itertools.product((q.id for q in asked), range(n), range(m))
    liked = {q.id: draw(answers) for q in asked}  # so that votes are often one-sided
    every = {cell: drawn(*cell, draw(st.one_of(st.just(liked[cell[0]]), answers))) for cell in cells}
    return Grid(asked, n, m, 0, draw(confidences)), every


def size(grid: Grid) -> dict[str, int]:
    return {"num_paths": grid.num_paths, "num_samples": grid.num_samples}


def leaders(grid: Grid, found) -> dict[str, list[Completion] | None]:
    return {q.id: leading(q.id, found, **size(grid), confidence=grid.adaptive) for q in grid.questions}


@given(grids(max_questions=2), st.randoms())
def test_the_order_of_arrival_decides_nothing(case, random):
    grid, every = case
    expected = leaders(grid, every)
    stopping = grid.stopping([])
    assert isinstance(stopping, Stopping)
    arrived = {}
    decided = set()
    for completion in random.sample(list(every.values()), len(every)):
        arrived[completion.key] = completion
        just_now = stopping.add(completion)
        first = leading(completion.question_id, arrived, **size(grid), confidence=grid.adaptive)
        assert first in (None, expected[completion.question_id])
        early = first is not None and len(first) < grid.num_paths * grid.num_samples
        assert stopping.decided(completion.question_id) == early
        assert just_now == (early and completion.question_id not in decided)
        decided |= {completion.question_id} if early else set()


class FakeEngine:
    """Decodes `rows` requests at once and finishes them in whatever order `random` likes. Never looks ahead."""

    def __init__(self, rows, random):
        self._rows, self._random = rows, random
        self.asked, self.cancelled = [], set()

    def generate(self, requests, _, **__):
        source, inside = iter(requests), []
        while True:
            taken = list(itertools.islice(source, self._rows - len(inside)))
            self.asked += taken
            inside += taken
            inside = [request for request in inside if request.prompt.question_id not in self.cancelled]
            if not inside and not taken:
                return
            if inside:
                yield Generated(inside.pop(self._random.randrange(len(inside))), [1], "end")

    def cancel(self, question_id):
        self.cancelled.add(question_id)


class FakeMethod:
    def __init__(self):
        self.made = []

    def prompts(self, question, paths):
        self.made.append(question.id)
        return [SoftPrompt(question.id, path, (1,), torch.empty(0, 4), ()) for path in paths]


def draw_all(grid, every, engine, *, done=(), window=1, method=None):
    """(question, path, sample) of each completion in the order of arrival, continuing from the completions `done`."""
    arrived = sample(
        grid,
        {completion.key for completion in done},
        method=method or FakeMethod(),
        engine=engine,
        decoding=Decoding(1.0, 1.0, 0, 1),
        read=lambda question, generated: every[question.id, generated.request.prompt.path, generated.request.sample],
        stopping=grid.stopping(done),
        window=window,
    )
    return list(arrived)


@settings(deadline=None)
@given(grids(), st.integers(1, 9), st.integers(1, 4), st.randoms(), st.data())
def test_neither_rows_nor_lengths_nor_interruptions_change_what_counts(case, rows, window, random, data):
    grid, every = case
    method, engine = FakeMethod(), FakeEngine(rows, random)
    arrived = draw_all(grid, every, engine, window=window, method=method)
    found = {completion.key: completion for completion in arrived}
    assert len(found) == len(arrived)
    assert leaders(grid, found) == leaders(grid, every)
    whole = grid.num_paths * grid.num_samples
    assert engine.cancelled == {question for question, first in leaders(grid, every).items() if len(first) < whole}
    assert len(method.made) == len(set(method.made)), "thoughts of a question were computed twice"
    for question, path in itertools.product(grid.questions, range(grid.num_paths)):
        asked = [r.prompt for r in engine.asked if (r.prompt.question_id, r.prompt.path) == (question.id, path)]
        assert len(set(map(id, asked))) <= 1

    kept = arrived[: data.draw(st.integers(0, len(arrived)))]
    decided = {c.question_id for c in kept if grid.stopping(kept).decided(c.question_id)}
    resumed = FakeEngine(rows, random)
    more = draw_all(grid, every, resumed, done=kept, window=window)
    assert leaders(grid, {c.key: c for c in [*kept, *more]}) == leaders(grid, every)
    assert decided.isdisjoint(request.prompt.question_id for request in resumed.asked)
    assert {c.key for c in kept}.isdisjoint((r.prompt.question_id, r.prompt.path, r.sample) for r in resumed.asked)


@given(grids(), st.randoms())
def test_one_row_draws_exactly_what_counts(case, random):
    grid, every = case
    arrived = draw_all(grid, every, FakeEngine(1, random))
    assert [c.key for c in arrived] == [c.key for first in leaders(grid, every).values() for c in first]


def test_samples_are_asked_for_in_waves_within_a_window():
    grid = Grid([Question(name, "", "5") for name in "abc"], num_paths=2, num_samples=2, seed=0, adaptive=1.0)
    every = {
        (name, p, s): drawn(name, p, s, str(2 * s + p)) for name, p, s in itertools.product("abc", range(2), range(2))
    }
    engine = FakeEngine(1, Random(0))
    draw_all(grid, every, engine, window=2)
    assert [f"{r.prompt.question_id}{r.prompt.path}{r.sample}" for r in engine.asked] == [
        *["a00", "a10", "b00", "b10", "a01", "a11", "b01", "b11"],
        *["c00", "c10", "c01", "c11"],
    ]


# Figures


def test_figures_count_only_what_decided():
    """2 paths x 4 samples at confidence 0.95: four of one answer decide, as do all eight."""
    grid = Grid([Question(name, "", "5") for name in "abcd"], 2, 4, 0)
    every = {(n, p, s): drawn(n, p, s, "5") for n, p, s in itertools.product("ab", range(2), range(4))}
    every |= {("c", p, s): drawn("c", p, s, "56"[p]) for p, s in itertools.product(range(2), range(4))}
    late = ("a", 0, 2), ("a", 1, 3)  # came although it was decided; b was decided in time, c never, d is not there
    found = {
        key: completion if key[2] < 2 or key[0] == "c" else drawn(*key, "6")
        for key, completion in every.items()
        if key[2] < 2 or key[0] == "c" or key in late
    }
    summary = summarise(grid.questions, found, **size(grid), voter="flat", adaptive=0.95)
    assert (summary["num_questions"], summary["complete"]) == (3, False)
    assert summary["num_completions"] == 4 + 4 + 8
    assert summary["pass_at_1"] == (4 + 4 + 4) / 16
    assert summary["adaptive"] == {
        "confidence": 0.95,
        "questions_stopped": 2,
        "samples_saved": 2 + 4,
        "samples_saved_share": 6 / 24,
    }


def test_savings_over_nothing_have_no_share():
    summary = summarise([Question("q", "", "5")], {}, num_paths=1, num_samples=3, voter="flat", adaptive=0.9)
    assert summary["adaptive"]["samples_saved"] == 0
    assert summary["adaptive"]["samples_saved_share"] is None


@given(grids())
def test_at_confidence_1_the_votes_are_those_of_the_whole_grid(case):
    grid, every = case
    grid = dataclasses.replace(grid, adaptive=1.0)
    for question_id, first in leaders(grid, every).items():
        own = [completion for completion in every.values() if completion.question_id == question_id]
        assert flat_vote(question_id, first).answer == flat_vote(question_id, own).answer
    options = {**size(grid), "voter": "flat"}
    whole, summary = (summarise(grid.questions, every, **options, adaptive=c) for c in (None, 1.0))
    assert "adaptive" not in whole
    assert all(summary[name] == whole[name] for name in ("accuracy", "accuracy_low", "accuracy_high", "complete"))


@given(grids(), st.randoms(), st.integers(1, 9))
def test_figures_do_not_depend_on_what_came_late(case, random, rows):
    grid, every = case
    options = {**size(grid), "voter": "flat", "adaptive": grid.adaptive}
    found = {c.key: c for c in draw_all(grid, every, FakeEngine(rows, random), window=2)}
    summary, whole = summarise(grid.questions, found, **options), summarise(grid.questions, every, **options)
    assert summary["adaptive"].pop("samples_saved") == len(every) - len(found)
    assert summary["adaptive"].pop("samples_saved_share") == (len(every) - len(found)) / len(every)
    assert whole["adaptive"].pop("samples_saved") == whole["adaptive"].pop("samples_saved_share") == 0
    assert summary == whole


# Whole runs

MORE = {"samples": 5, "max_new_tokens": 3, "limit": None}


@pytest.fixture
def several(tmp_path):
    """Five questions whose answers are 0, 1, 2, 0 and 1."""
    rows = [{"id": f"q{n}", "question": f"What is {n} modulo 3?", "answer": n % 3} for n in range(5)]
    (tmp_path / "several.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {**MORE, "data": tmp_path / "several.jsonl"}


@pytest.fixture
def answering(monkeypatch, tiny_model_folder):
    """`answering(number)`: completions answer one of 0 .. number - 1, as their own tokens will have it."""
    tokenizer = loading.load_tokenizer(str(tiny_model_folder), name="tiny")

    def answer(number):
        said = lambda _, tokens, **__: f"The answer is {sum(tokens) % number}."  # noqa: E731
        monkeypatch.setattr(type(tokenizer), "decode", said)

    return answer


@pytest.mark.parametrize("confidence", [0.8, 1.0])
def test_the_batch_size_changes_no_figure_of_an_adaptive_run(
    tmp_path, config_of, silent, several, answering, run, lines_of, confidence
):
    answering(2)
    whole = run(tmp_path / "whole", **several)
    grid = Grid([Question(f"q{n}", "", "") for n in range(5)], 2, 5, 0, confidence)
    expected = leaders(grid, {key: Completion(**line) for key, line in whole.items()})
    summaries = []
    for size in (1, 3, "auto"):
        config = config_of(**several, adaptive=confidence, batch_size=size, out=tmp_path / str(size))
        summary = execute(config, silent)
        lines = lines_of(tmp_path / str(size))
        assert lines.items() <= whole.items()
        assert leaders(grid, {key: Completion(**line) for key, line in lines.items()}) == expected
        saved = len(whole) - len(lines)
        assert summary["adaptive"]["samples_saved"] == saved
        assert summary["adaptive"]["questions_stopped"] == sum(len(first) < 10 for first in expected.values())
        assert saved > 0 or size == "auto"
        timed = {"tokens", "engine", "seconds", "peak_memory_bytes", "run", "adaptive"}
        summaries.append({key: value for key, value in summary.items() if key not in timed})
    assert summaries[0] == summaries[1] == summaries[2]
    assert summaries[0]["num_completions"] == sum(map(len, expected.values()))
    full = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert "adaptive" not in full
    if confidence == 1.0:
        assert summaries[0]["accuracy"] == full["accuracy"]


def test_where_all_agree_the_least_is_drawn(tmp_path, config_of, silent, several, answering):
    answering(1)
    for confidence, drawn_each in [(0.95, 4), (1.0, 6)]:
        config = config_of(**several, adaptive=confidence, batch_size=1, out=tmp_path / str(confidence))
        adaptive = execute(config, silent)["adaptive"]
        saved = 5 * (10 - drawn_each)
        assert (adaptive["questions_stopped"], adaptive["samples_saved"]) == (5, saved)
        assert math.isclose(adaptive["samples_saved_share"], saved / 50)


def test_continued_without_the_option_an_adaptive_run_becomes_the_whole_one(
    tmp_path, run, several, answering, silent, config_of, lines_of
):
    answering(2)
    file = tmp_path / "run" / "samples.jsonl"
    started = run(tmp_path / "run", **several, adaptive=0.8, batch_size=3)
    before = file.read_bytes()
    execute(config_of(**several, adaptive=0.8, batch_size=1, out=tmp_path / "run"), silent)
    assert silent.completions == []  # what is decided is complete
    summary = execute(config_of(**several, out=tmp_path / "run"), silent)
    assert file.read_bytes().startswith(before)
    assert len(silent.completions) == 50 - len(started) > 0
    assert (summary["complete"], summary["num_completions"]) == (True, 50)
    assert lines_of(tmp_path / "run") == run(tmp_path / "whole", **several)
    described = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "whole")]
    assert described[0]["config_hash"] == described[1]["config_hash"]


class Impatient:
    """A watcher who presses Ctrl-C after some completions."""

    def __init__(self, patience: int):
        self._patience = patience

    def status(self, text):
        pass

    def start(self, grid, *_):
        self.grid = grid

    def completion(self, _):
        self._patience -= 1
        if not self._patience:
            raise KeyboardInterrupt


def test_an_interrupted_adaptive_run_samples_no_decided_question_further(
    tmp_path, run, several, answering, config_of, lines_of
):
    answering(2)
    uninterrupted = run(tmp_path / "uninterrupted", **several, adaptive=0.8, batch_size=2)
    config = config_of(**several, adaptive=0.8, batch_size=2, out=tmp_path / "run")
    impatient = Impatient(8)
    with pytest.raises(Interrupted) as stopped:
        execute(config, impatient)
    held = {key: Completion(**line) for key, line in lines_of(tmp_path / "run").items()}
    grid = impatient.grid
    rule = grid.stopping(held.values())
    decided = {question.id for question in grid.questions if rule.decided(question.id)}
    assert 0 < len(decided) < 5
    most = sum(sum(key[0] == q.id for key in held) if q.id in decided else 10 for q in grid.questions)
    assert f"stopped: 8 of at most {most} samples are in {tmp_path / 'run'}; the same command" in str(stopped.value)

    execute(config, Impatient(0))
    lines = lines_of(tmp_path / "run")
    assert decided.isdisjoint(key[0] for key in lines.keys() - held.keys())
    found = [{key: Completion(**line) for key, line in journal.items()} for journal in (lines, uninterrupted)]
    assert leaders(grid, found[0]) == leaders(grid, found[1])
