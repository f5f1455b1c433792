"""A journal judged anew: by today's reader and gold answers, without models, in one step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from scaling.cli import app
from scaling.config import RunConfig
from scaling.models import loading
from scaling.records.errors import UsageError
from scaling.records.journal import Journal, load, load_questions, merge
from scaling.records.records import Completion, PromptedQuestion
from scaling.records.seeds import stream_seed
from scaling.rescore import rescore

RUNS = Path(__file__).parents[1] / "fixtures" / "runs-0.1"
TEXTS = ["It is 6. The answer is 5.", "So 6.", "The answer is 7.", "no idea"]
ANSWERS = [("5", "5"), ("6", None), ("7", "7"), (None, None)]


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    """Weights are not there."""

    def load_model(*_, **__):
        pytest.fail("a model was loaded")

    for name in ("load", "load_pair", "load_embeddings_only", "load_shapes_only"):
        monkeypatch.setattr(loading, name, load_model)


@pytest.fixture
def told() -> list[str]:
    return []


def data_of(path: Path, **gold: object) -> Path:
    rows = [{"id": name, "question": f"How many {name}?", "answer": answer} for name, answer in gold.items()]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def a_run(tmp_path, tiny_model_folder):
    """`a_run(folder, *questions, **config)`: four chains a question, all judged wrongly as an older version might have."""

    def make(
        folder: Path,
        *questions: str,
        gold: str = "5",
        texts: Sequence[str] = TEXTS,
        asks: Mapping[str, Any] | None = None,
        **changes: object,
    ) -> Path:
        same = {"method": "cot", "samples": 4, "data": tmp_path / "mine.jsonl", "backbone": str(tiny_model_folder)}
        config = RunConfig(**{**same, **changes}).resolved()
        stored = {**config.model_dump(mode="json"), "first_question": "0" * 12}
        asked = [
            PromptedQuestion(name, f"How many {name}?", gold, (), f"How many {name}?<|im_end|>", 9, 0, 0, 0)
            for name in questions
        ]
        asked = [replace(question, **(asks or {})) for question in asked]
        with Journal.open(folder, config=stored, environment={}, questions=asked) as journal:
            for name in questions:
                for sample, text in enumerate(texts):
                    seed = stream_seed(config.seed, name, 0, sample)
                    one = Completion(name, 0, sample, text, "1", False, "1", False, 9, "end", seed, -1.5)
                    journal.append(one, {"seconds": 1.0 + sample, "timeouts": 2})
        return folder

    return make


def test_a_run_gets_the_clusters_of_its_data(tmp_path, a_run, told):
    """As runs of older versions name none."""
    folder = a_run(tmp_path / "run", "a", "b")
    assert [asked.cluster for asked in load_questions(folder)] == [None, None]
    rows = [
        {"id": name, "question": f"How many {name}?", "answer": "5", "cluster": of} for name, of in (("a", 1), ("b", 2))
    ]
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    rescore(RunConfig(out=folder), told.append)
    assert [asked.cluster for asked in load_questions(folder)] == ["1", "2"]


def test_answers_are_read_and_judged_as_today_and_nothing_else_changes(tmp_path, a_run, told):
    data_of(tmp_path / "mine.jsonl", a=5, b=6)
    folder = a_run(tmp_path / "run", "a", "b")
    before = {one.key: one for one in load(folder)[1]}
    summary = rescore(RunConfig(out=folder), told.append)
    found = load(folder)[1]
    assert [one.key for one in found] == list(before)
    for one in found:
        old, gold = before[one.key], {"a": "5", "b": "6"}[one.question_id]
        assert (one.text, one.seed, one.num_tokens, one.log_prob) == (old.text, old.seed, old.num_tokens, old.log_prob)
        assert (one.answer, one.answer_strict) == ANSWERS[one.sample]
        assert (one.correct, one.correct_strict) == (one.answer == gold, one.answer_strict == gold)
    assert [(one.answer, one.kind) for one in load_questions(folder)] == [("5", "number"), ("6", "number")]
    assert told[-1] == "8 completions judged anew: 8 answers read otherwise, 2 verdicts changed"
    assert (summary["pass_at_1"], summary["coverage"], summary["num_questions"]) == (2 / 8, 1.0, 2)
    assert (summary["seconds"], summary["timeouts"]) == (4.0, 0)
    assert json.loads((folder / "summary.json").read_text()) == summary
    again = (folder / "samples.jsonl").read_bytes()
    rescore(RunConfig(out=folder), told.append)
    assert (folder / "samples.jsonl").read_bytes() == again
    assert told[-1].endswith("0 answers read otherwise, 0 verdicts changed")


def test_a_question_that_reads_otherwise_today_is_refused(tmp_path, a_run, told):
    folder = a_run(tmp_path / "run", "a")
    (tmp_path / "mine.jsonl").write_text('{"id": "a", "question": "How few?", "answer": 5}\n')
    before = (folder / "samples.jsonl").read_bytes()
    with pytest.raises(UsageError, match="text of a"):
        rescore(RunConfig(out=folder), told.append)
    assert (folder / "samples.jsonl").read_bytes() == before


LETTERS = {"id": "a", "question": "Which?", "options": ["x", "y", "z"], "answer": 1}


@pytest.fixture
def a_run_of_options(tmp_path, a_run):
    """A run of one question with options, whose gold answer was read as a number from 0."""

    (tmp_path / "mine.jsonl").write_text(json.dumps(LETTERS))
    asks = {"text": "Which?", "choices": tuple(LETTERS["options"]), "answer": "B", "kind": "choice"}
    texts = ["The answer is (A).", "The answer is (B).", "The answer is (C).", "no idea"]
    zero = "question=question answer=answer choices=options answer_is=0"
    return a_run(tmp_path / "run", "a", columns=zero, texts=texts, asks=asks)


def test_columns_that_give_the_same_questions_other_gold_answers_are_judged_by(tmp_path, a_run_of_options, told):
    folder = a_run_of_options
    rescore(RunConfig(out=folder), told.append)
    assert [one.correct for one in load(folder)[1]] == [False, True, False, False]
    one = "question=question answer=answer choices=options answer_is=1"
    for _ in range(2):
        rescore(RunConfig(out=folder, data=tmp_path / "mine.jsonl", columns=one), told.append)
        run, completions = load(folder)
        assert [one.correct for one in completions] == [True, False, False, False]
        assert run["config"]["columns"]["answer_is"] == "1"
    rescore(RunConfig(out=folder), told.append)
    assert [one.correct for one in load(folder)[1]] == [True, False, False, False]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("question=question answer=answer choices=options id=question answer_is=1", "of which a are not among them"),
        ("question=question+id answer=answer choices=options id=id answer_is=1", "text of a"),
        ("question=question answer=answer choices=options answer_is=text", "one of the texts of options"),
    ],
)
def test_columns_that_give_other_questions_or_none_are_refused(a_run_of_options, told, columns, said):
    folder = a_run_of_options
    before = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
    with pytest.raises(UsageError, match=said):
        rescore(RunConfig(out=folder, columns=columns), told.append)
    assert {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()} == before


def test_another_kind_of_answers_is_judged_by(tmp_path, a_run, told):
    data_of(tmp_path / "mine.jsonl", a="5, 6")
    texts = ["The answer is 6.", "The answer is 6 and 5."]
    asks = {"kind": "text", "answer": "5 6"}
    folder = a_run(tmp_path / "run", "a", answer_kind="text", texts=texts, asks=asks)
    rescore(RunConfig(out=folder), told.append)
    assert not any(one.correct for one in load(folder)[1])
    rescore(RunConfig(out=folder, answer_kind="set"), told.append)
    assert [one.correct for one in load(folder)[1]] == [False, True]
    assert load(folder)[0]["config"]["answer_kind"] == "set"
    (question,) = load_questions(folder)
    assert (question.answer, question.kind) == ("5, 6", "set")


def test_without_its_data_a_run_is_judged_by_the_gold_answers_that_it_was_asked_with(tmp_path, a_run, told):
    folder = a_run(tmp_path / "run", "a", backbone=str(tmp_path / "gone"))
    rescore(RunConfig(out=folder), told.append)
    assert "the questions cannot be read again" in told[0]
    assert [one.correct for one in load(folder)[1]] == [True, False, False, False]


def test_a_kill_leaves_the_journal_as_it_was_or_as_it_is_to_be(tmp_path, a_run, told, monkeypatch):
    data_of(tmp_path / "mine.jsonl", a=6)
    expected = a_run(tmp_path / "expected", "a")
    rescore(RunConfig(out=expected), told.append)
    replaced = os.replace

    class Killed(BaseException):
        pass

    def dying(step: int):
        def replace(source, target):
            nonlocal step
            if not step:
                raise Killed
            step -= 1
            replaced(source, target)

        return replace

    for step in range(5):  # run.json, questions.jsonl, samples.jsonl, questions.jsonl, summary.json
        folder = a_run(tmp_path / str(step), "a")
        before = (folder / "samples.jsonl").read_bytes()
        monkeypatch.setattr(os, "replace", dying(step))
        with pytest.raises(Killed):
            rescore(RunConfig(out=folder), told.append)
        monkeypatch.undo()
        after = (folder / "samples.jsonl").read_bytes()
        assert after == (before if step < 3 else (expected / "samples.jsonl").read_bytes())
        rescore(RunConfig(out=folder), told.append)
        assert (folder / "samples.jsonl").read_bytes() == (expected / "samples.jsonl").read_bytes()
        assert load_questions(folder) == load_questions(expected)


def test_shards_and_what_they_are_merged_into_are_judged_alike(tmp_path, a_run, told):
    data_of(tmp_path / "mine.jsonl", a=7, b=5)
    shards = [a_run(tmp_path / name, name) for name in ("a", "b")]
    merge(shards, tmp_path / "before")
    rescore(RunConfig(out=tmp_path / "before"), told.append)
    rescore(RunConfig(out=shards[0]), told.append)
    with pytest.raises(UsageError, match="merge only shards of one run"):
        merge(shards, tmp_path / "mixed")  # the first question is another one in the second
    rescore(RunConfig(out=shards[1]), told.append)
    merge(shards, tmp_path / "after")
    assert load(tmp_path / "before")[1] == load(tmp_path / "after")[1]
    assert load_questions(tmp_path / "before") == load_questions(tmp_path / "after")


def test_the_same_command_finds_the_run_and_others_are_told_apart(tmp_path, a_run, told, tiny_model_folder):
    data = data_of(tmp_path / "mine.jsonl", a=5)
    same = {"method": "cot", "samples": 4, "data": data, "backbone": str(tiny_model_folder)}
    for number in range(2):
        a_run(tmp_path / "runs" / f"mine-cot-{number}", "a", seed=number)
    (tmp_path / "runs" / "notes").mkdir()
    found = rescore(RunConfig(**same, seed=1, batch_size=4), told.append, parent=tmp_path / "runs")
    assert found["run"] == str(tmp_path / "runs" / "mine-cot-1")
    with pytest.raises(UsageError, match=r"fit no run in .*runs: add `--out`"):
        rescore(RunConfig(**same, seed=2), told.append, parent=tmp_path / "runs")
    shutil.copytree(tmp_path / "runs" / "mine-cot-1", tmp_path / "runs" / "copy")
    with pytest.raises(UsageError, match=r"fit several runs .*copy, .*mine-cot-1"):
        rescore(RunConfig(**same, seed=1), told.append, parent=tmp_path / "runs")
    out = tmp_path / "runs" / "copy"
    for given in ({"seed": 3}, {"samples": 5}, {"method": "softcot"}):
        ((key, value),) = given.items()
        with pytest.raises(UsageError, match=f"`--{key}` is .* in .*run.json and {value} now, and `--rescore`"):
            rescore(RunConfig(out=out, **given), told.append)


def test_the_command_prints_what_has_changed_and_the_table(tmp_path, a_run):
    data_of(tmp_path / "mine.jsonl", a=5)
    folder = a_run(tmp_path / "run", "a")
    done = CliRunner().invoke(app, ["--rescore", "--out", str(folder)])
    assert done.exit_code == 0
    assert "4 completions judged anew: 4 answers read otherwise, 1 verdict changed" in done.stderr
    assert "pass@1" in done.stdout
    assert "25.0%" in done.stdout
    both = CliRunner().invoke(app, ["--rescore", "--dry-run", "--out", str(folder)])
    assert both.exit_code == 2
    assert "leave one of them out" in both.stderr
    none = CliRunner().invoke(app, ["--rescore", "--out", str(tmp_path / "none")])
    assert (none.exit_code, "no run directory" in none.stderr) == (2, True)


@pytest.mark.parametrize("name", sorted(folder.name for folder in RUNS.iterdir() if folder.is_dir()))
def test_runs_of_version_0_1_are_judged_anew(tmp_path, told, name, monkeypatch):
    monkeypatch.chdir(RUNS.parents[2])
    folder = shutil.copytree(RUNS / name, tmp_path / name)
    before = json.loads((folder / "summary.json").read_text())
    completions = load(folder)[1]
    after = rescore(RunConfig(out=folder), told.append)
    assert [one.key for one in load(folder)[1]] == [one.key for one in completions]
    same = ("seconds", "tokens", "engine", "peak_memory_bytes", "num_questions")
    assert {key: after[key] for key in same} == {key: before[key] for key in same}


def test_a_run_that_does_not_say_its_paths_is_damaged(tmp_path, a_run, told):
    folder = a_run(tmp_path / "run", "a")
    run = json.loads((folder / "run.json").read_text())
    run["config"]["latent_paths"] = None
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(UsageError, match="is damaged"):
        rescore(RunConfig(out=folder), told.append)
