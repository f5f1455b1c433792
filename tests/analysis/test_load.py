"""What the journals say, as arrays: nothing guessed, nothing dropped in silence."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.arguments import Size
from analysis.load import Run, load, load_shards, run_of, texts
from scaling.records.errors import UsageError
from scaling.records.journal import ID, Journal, load_questions, load_run, load_thoughts, merge
from scaling.records.journal import load as load_completions
from scaling.records.json_lines import parsed, sealed, start_of
from scaling.records.votes import tie_hash


def start(folder: Path) -> int:
    """Of the checksums of a run's lines."""
    return start_of(load_run(folder).get(ID))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [parsed(line, start(folder)) for line in (folder / "samples.jsonl").read_bytes().splitlines(keepends=True)]


def rewrite(folder: Path, lines: Sequence[dict[str, Any]]) -> None:
    (folder / "samples.jsonl").write_text("".join(f"{sealed(line, start(folder))}\n" for line in lines))


def test_arrays_hold_what_the_journal_holds(make_run, random_answers):
    folder = make_run(random_answers(0, 6, 3, 4))
    run = load(folder)
    assert (run.num_paths, run.num_samples, len(run.questions)) == (3, 4, 6)
    rows = {asked.id: row for row, asked in enumerate(run.questions)}
    _, completions = load_completions(folder)
    codes: dict[tuple[int, int], set[str]] = {}
    for one in completions:
        at = rows[one.question_id], one.path, one.sample
        assert run.tokens[at] == one.num_tokens
        assert run.truncated[at] == (one.stop_reason == "length")
        assert run.lenient.right[at] == one.correct
        assert (run.lenient.codes[at] < 0) == (one.answer is None)
        if one.answer is not None:
            codes.setdefault((at[0], int(run.lenient.codes[at])), set()).add(one.answer)
    assert all(len(answers) == 1 for answers in codes.values())
    for row, size in enumerate(run.lenient.sizes):
        answers = [next(iter(codes[row, code])) for code in range(size)]
        assert answers == sorted(answers, key=lambda answer: tie_hash(run.questions[row].id, answer))


def test_the_two_readings_are_kept_apart(make_run):
    folder = make_run([[["1", "7"]]])
    lines = lines_of(folder)
    lines[0] |= {"answer_strict": None, "correct_strict": False}
    rewrite(folder, lines)
    run = load(folder)
    assert run.lenient.right.ravel().tolist() == [True, False]
    assert run.strict.right.ravel().tolist() == [False, False]
    assert (run.strict.codes.ravel() < 0).tolist() == [True, False]


def test_a_question_with_a_missing_completion_is_left_out_and_named(make_run, random_answers):
    answers = random_answers(1, 4, 2, 2)
    run = load(make_run(answers, skip=[("q2", 1, 0)]))
    assert run.incomplete == ("q2",)
    assert [asked.id for asked in run.questions] == ["q0", "q1", "q3"]
    whole = load(make_run(answers))
    assert (run.lenient.right == whole.lenient.right[[0, 1, 3]]).all()
    assert (run.tokens == whole.tokens[[0, 1, 3]]).all()


def assert_same(one: Run, other: Run) -> None:
    """Whatever they were loaded from, and whatever is beside the grid."""
    assert [asked.id for asked in one.questions] == [asked.id for asked in other.questions]
    assert one.incomplete == other.incomplete
    for name in ("tokens", "truncated", "log_probs", "self_certainty"):
        assert np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True), name
    for mine, its in ((one.lenient, other.lenient), (one.strict, other.strict)):
        assert np.array_equal(mine.codes, its.codes)
        assert np.array_equal(mine.verdicts, its.verdicts)
        assert np.array_equal(mine.sizes, its.sizes)
    assert (one.cosines is None) == (other.cosines is None)
    assert one.cosines is None or one.cosines == pytest.approx(other.cosines)
    sizes = ("latent_paths", "samples", "limit")
    assert [one.config[key] for key in sizes] == [other.config[key] for key in sizes]


COSINES = [[1.0, 0.5, 0.25], [0.5, 1.0, 0.125], [0.25, 0.125, 1.0]]


@pytest.mark.parametrize("size", [Size(2, 1, 2), Size(1, 3), Size(limit=1), Size(3, 3, 3), Size()])
def test_a_run_that_is_cut_is_the_run_of_that_size(make_run, random_answers, size):
    """Half, 1/2 and 0.5 are one answer, and which spellings are there depends on what is left."""
    spellings = {"900": "1/2", "901": "0.5", "902": None}
    answers = [[[spellings.get(a, a) for a in path] for path in paths] for paths in random_answers(2, 3, 3, 3)]
    paths, samples, limit = size.paths or 3, size.samples or 3, size.limit or 3
    small = [[path[:samples] for path in paths_[:paths]] for paths_ in answers[:limit]]
    cosines = [row[:paths] for row in COSINES[:paths]]
    whole = load(make_run(answers, cosines=COSINES))
    expected = load(make_run(small, cosines=cosines))
    assert_same(load(whole.folder, size), expected)
    assert_same(whole.cut(**size._asdict()), expected)
    assert_same(
        whole.cut(paths=1).cut(**size._asdict() | {"paths": paths, "samples": samples, "limit": limit}), expected
    )
    kept = [one.key for one in expected.completions({"q0"})]
    assert [one.key for one in load(whole.folder, size).completions({"q0"})] == kept
    assert len(kept) == paths * samples


def test_what_was_drawn_beyond_the_settings_can_be_shown(make_run, random_answers):
    """A run of 1 x 3 that was one of 3 x 1 before: neither holds the other."""
    beyond = [(f"q{q}", path, sample) for q in range(2) for path in (1, 2) for sample in (1, 2)]
    answers = random_answers(3, 2, 3, 3)
    folder = make_run(answers, skip=beyond)
    with pytest.raises(UsageError, match="no question with all its samples yet"):
        load(folder)
    for size in (Size(3, 1), Size(1, 3)):
        small = [[path[: size.samples] for path in paths[: size.paths]] for paths in answers]
        assert_same(load(folder, size), load(make_run(small)))


def test_a_run_in_memory_is_the_run_on_disk(make_run, random_answers):
    signals = lambda _, path, sample: (-1.0 - path, None if sample else 2.0)  # noqa: E731
    folder = make_run(random_answers(4, 4, 3, 2), cosines=COSINES, signals=signals, skip=[("q1", 0, 1)])
    described, completions = load_completions(folder)
    questions, thoughts = load_questions(folder), load_thoughts(folder).values()
    run = run_of(completions, questions, described["config"], thoughts=thoughts)
    assert_same(run, load(folder))
    assert run.folder is None
    assert run.completions({"q2"}) == load(folder).completions({"q2"})
    assert_same(run.cut(paths=2), load(folder, Size(2)))
    with pytest.raises(UsageError, match="the run in memory has no question"):
        run_of(completions[:1], questions, described["config"])


def test_shards_are_the_run_that_they_would_be_merged_into(make_run, random_answers, tmp_path):
    answers = random_answers(5, 4, 3, 2)
    asked = load_questions(make_run(answers))
    shards = [
        make_run(answers[own], questions=asked[own], cosines=COSINES, limit=4) for own in (slice(0, 2), slice(2, 4))
    ]
    merge(shards, tmp_path / "merged")
    assert_same(load_shards(shards), load(tmp_path / "merged"))
    assert_same(load_shards(shards, Size(2, 2, 3)), load(tmp_path / "merged", Size(2, 2, 3)))
    other = make_run(answers[:1], questions=asked[:1], temperature=0.9)
    with pytest.raises(UsageError, match="merge only shards of one run"):
        load_shards([shards[0], other])


def test_a_torn_last_line_is_passed_over(make_run, random_answers):
    folder = make_run(random_answers(3, 3, 2, 2))
    whole = (folder / "samples.jsonl").read_bytes()
    (folder / "samples.jsonl").write_bytes(whole[:-20])
    run = load(folder)
    assert run.incomplete == ("q2",)
    assert (folder / "samples.jsonl").read_bytes() == whole[:-20]


def test_half_a_surrogate_pair_is_read(make_run):
    folder = make_run([[["1", "\ud83d"]]], text="so \ud83d")
    run = load(folder)
    assert run.lenient.right.ravel().tolist() == [True, False]
    assert texts(folder, {"q0"})[0].text == "so \ud83d"


@pytest.mark.parametrize("number", [0, 2])
def test_damage_is_reported_by_its_line(make_run, random_answers, number):
    folder = make_run(random_answers(4, 2, 2, 2))
    lines = (folder / "samples.jsonl").read_text().splitlines(True)
    lines[number] = "{broken\n"
    (folder / "samples.jsonl").write_text("".join(lines))
    with pytest.raises(UsageError, match=f"line {number + 1} is no completion"):
        load(folder)


def test_a_line_without_a_field_is_damage(make_run):
    folder = make_run([[["1", "2"]]])
    lines = lines_of(folder)
    del lines[0]["num_tokens"]
    rewrite(folder, lines)
    with pytest.raises(UsageError, match="line 1 is no completion"):
        load(folder)


def test_a_completion_held_twice_is_refused(make_run):
    folder = make_run([[["1", "2"]]])
    whole = (folder / "samples.jsonl").read_text()
    (folder / "samples.jsonl").write_text(whole + whole.splitlines(True)[0])
    with pytest.raises(UsageError, match="line 3 repeats completion"):
        load(folder)


def damaged(lines: list[str], chance: random.Random, begin: int) -> str:
    """The lines of a journal with one of the things done to them that editors, disks and merges do."""
    number = chance.randrange(len(lines))
    line = lines[number]
    told = parsed(line.encode(), begin)
    at = chance.randrange(len(line) + 1)
    value = chance.choice([-33, [5], "false", None, 1.5, True, "", {"a": 1}, 2**70, "\u00e9"])
    field = chance.choice([*told, "extra", "cost", "unread", "crc"])
    lines[number] = chance.choice(
        [
            line[:at] + chr(ord(line[at]) ^ 1 << chance.randrange(7)) + line[at + 1 :] if at < len(line) else line,
            line[:at],
            line[:at] + chance.choice(["\n", "\r", "\0", " ", "\u00e9", '"', "{"]) + line[at:],
            line.rstrip("\n"),
            line.rstrip("\n") + "\r\n",
            json.dumps({key: own for key, own in told.items() if key != field}) + "\n",
            json.dumps({**told, field: value}) + "\n",
            json.dumps({**told, field: value}, ensure_ascii=False) + "\n",
            sealed({**told, field: value}, begin) + "\n",
            sealed(told) + "\n",
            json.dumps(told) + "\n",
            line + line,
            "",
        ]
    )
    return "".join(lines)


@pytest.mark.parametrize("has_id", [True, False])
@pytest.mark.parametrize("number", range(8))
def test_a_report_reads_a_journal_by_the_same_rules_as_its_run(make_run, random_answers, number, has_id):
    """It refuses what the run refuses, with the same words, and counts the completions that the run counts."""
    folder = make_run(random_answers(8, 3, 2, 2), text='"She" has 5\n{}')
    file, run = folder / "samples.jsonl", json.loads((folder / "run.json").read_text())
    if not has_id:  # as runs that began before there were ids
        lines = lines_of(folder)
        (folder / "run.json").write_text(json.dumps({key: value for key, value in run.items() if key != ID}))
        rewrite(folder, lines)
    whole = file.read_text()
    chance = random.Random(number)
    refused = 0
    for _ in range(60):
        content = damaged(whole.splitlines(keepends=True), chance, start(folder))
        file.write_bytes(content.encode("latin-1", "replace"))
        try:
            _, held = load_completions(folder)
        except UsageError as error:
            refused += 1
            with pytest.raises(UsageError, match=f"^{re.escape(str(error))}$"):
                load(folder)
            continue
        keys = {one.key for one in held}
        expected = [f"q{q}" for q in range(3) if {(f"q{q}", p, m) for p in range(2) for m in range(2)} <= keys]
        found = load(folder)
        assert [asked.id for asked in found.questions] == expected, content
        assert found.lenient.right.sum() == sum(one.correct for one in held if one.question_id in expected), content
    assert 10 < refused < 60, "some damage is harmless, as a torn last line"
    assert run["config"]["seed"] == 0


def test_a_journal_of_another_run_is_no_part_of_this_one(make_run, random_answers):
    answers = random_answers(9, 2, 2, 2)
    one = make_run(answers)
    for changes in (
        {"seed": 1},
        {"backbone": "other"},
    ):  # streams tell runs of two seeds apart, and not those of two models
        (one / "samples.jsonl").write_bytes((make_run(answers, **changes) / "samples.jsonl").read_bytes())
        with pytest.raises(UsageError, match=r"line 1 is of another run"):
            load(one)


@pytest.mark.parametrize("changes", [{"samples": 10**9}, {"latent_paths": 10**9}, {"latent_paths": 10**30}])
@pytest.mark.parametrize("skip", [[], [("q0", 0, 0), ("q0", 0, 1)]])
def test_a_grid_that_the_journal_cannot_hold_has_no_complete_question(make_run, changes, skip):
    folder = make_run([[["1", "2"]]], skip=skip)
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "config": {**run["config"], **changes}}))
    with pytest.raises(UsageError, match="no question with all its samples yet"):
        load(folder)


def test_completions_of_questions_that_are_not_asked_are_counted(make_run):
    folder = make_run([[["1", "2"]], [["2", "2"]]])
    assert load(folder).data.strays == 0
    lines = (folder / "questions.jsonl").read_text().splitlines(keepends=True)
    (folder / "questions.jsonl").write_text(lines[0])
    assert (load(folder).data.strays, len(load(folder).questions)) == (2, 1)


def test_a_run_that_was_killed_before_its_summary_knows_its_seconds_and_tokens(make_run, tmp_path):
    with Journal.open(tmp_path / "run", config={"latent_paths": 1, "samples": 2}, environment={}) as journal:
        for number, one in enumerate(load_completions(make_run([[["1", "2"]]]))[1], start=1):
            journal.append(one, {"seconds": 2.0 * number, "peak_memory_bytes": 70 - number})
    (tmp_path / "run" / "questions.jsonl").write_bytes((make_run([[["1", "2"]]]) / "questions.jsonl").read_bytes())
    run = load(tmp_path / "run")
    assert (run.summary["seconds"], run.summary["peak_memory_bytes"]) == (4.0, 69)
    assert run.summary["tokens"]["generated"] == run.tokens.sum()


def test_completions_that_could_not_be_read_are_counted(make_run):
    folder = make_run([[["1", "2"]]])
    lines = lines_of(folder)
    lines[1] |= {"answer": None, "answer_strict": None, "unread": "ZeroDivisionError: division by zero"}
    rewrite(folder, lines)
    run = load(folder)
    assert run.unread == 1
    assert run.lenient.codes.ravel().tolist() == [0, -1]
    assert texts(folder, {"q0"})[1].unread == lines[1]["unread"]


def test_an_answer_judged_right_once_is_right(make_run):
    """The comparison of the second ran out of time; the run's own summary counts it as right too."""
    folder = make_run([[["1", "1"]]])
    lines = lines_of(folder)
    lines[1]["correct"] = False
    rewrite(folder, lines)
    assert load(folder).lenient.right.all()


def test_a_run_stopped_early_has_no_curves(make_run, random_answers):
    skip = [("q1", 1, 1)]
    with pytest.raises(UsageError, match="without `--adaptive` draws those left out"):
        load(make_run(random_answers(5, 2, 2, 2), skip=skip, adaptive=0.95))
    assert load(make_run(random_answers(5, 2, 2, 2), adaptive=0.95)).incomplete == ()  # nothing was left out


def test_folders_that_hold_no_report(make_run, tmp_path):
    with pytest.raises(UsageError, match=r"no run directory: it has no run\.json"):
        load(tmp_path)
    with pytest.raises(UsageError, match="no question with all its samples yet"):
        load(make_run([[["1", "2"]]], skip=[("q0", 0, 0)]))
    folder = make_run([[["1", "2"]]], skip=[("q0", 0, 0), ("q0", 0, 1)])
    with pytest.raises(UsageError, match="no question with all its samples yet"):
        load(folder)
    (folder / "questions.jsonl").unlink()
    with pytest.raises(UsageError, match=r"has no questions\.jsonl"):
        load(folder)
    (folder / "run.json").write_text("{}")
    with pytest.raises(UsageError, match="is damaged or not written by a run"):
        load(folder)


def test_texts_are_those_of_the_wanted_questions(make_run, random_answers):
    folder = make_run(random_answers(6, 4, 2, 2), text="a\nb")
    found = texts(folder, {"q1", "q3"})
    assert {one.key for one in found} == {(q, p, s) for q in ("q1", "q3") for p in range(2) for s in range(2)}
    assert {one.text for one in found} == {"a\nb"}


def test_cosines_are_the_mean_over_questions(make_run, random_answers):
    matrix = [[1.0, 0.25], [0.25, 1.0]]
    assert load(make_run(random_answers(7, 3, 2, 2), cosines=matrix)).cosines == pytest.approx(np.array(matrix))
    assert load(make_run(random_answers(7, 3, 2, 2))).cosines is None
