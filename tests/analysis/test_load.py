"""What the journals say, as arrays: nothing guessed, nothing dropped in silence."""

from __future__ import annotations

import json

import numpy as np
import pytest

from analysis.load import load, texts
from scaling.errors import UsageError
from scaling.journal import load as load_completions
from scaling.voter import tie_hash


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
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    lines[0] |= {"answer_strict": None, "correct_strict": False}
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
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


def test_completions_outside_the_asked_grid_do_not_count(make_run, random_answers):
    folder = make_run(random_answers(2, 3, 3, 3))
    described = json.loads((folder / "run.json").read_text())
    described["config"] |= {"latent_paths": 2, "samples": 1}
    (folder / "run.json").write_text(json.dumps(described))
    (folder / "questions.jsonl").write_text("".join((folder / "questions.jsonl").read_text().splitlines(True)[:2]))
    small, large = load(folder), load(make_run(random_answers(2, 3, 3, 3)))
    assert small.tokens.shape == (2, 2, 1)
    assert (small.lenient.right == large.lenient.right[:2, :2, :1]).all()


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
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    del lines[0]["num_tokens"]
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with pytest.raises(UsageError, match="line 1 is no completion"):
        load(folder)


def test_a_completion_held_twice_is_refused(make_run):
    folder = make_run([[["1", "2"]]])
    whole = (folder / "samples.jsonl").read_text()
    (folder / "samples.jsonl").write_text(whole + whole.splitlines(True)[0])
    with pytest.raises(UsageError, match="line 3 repeats completion"):
        load(folder)


def test_an_answer_judged_right_once_is_right(make_run):
    """The comparison of the second ran out of time; the run's own summary counts it as right too."""
    folder = make_run([[["1", "1"]]])
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    lines[1]["correct"] = False
    (folder / "samples.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
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
