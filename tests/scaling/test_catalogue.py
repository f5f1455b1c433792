"""The list of tasks: where the questions of a task come from, and which options it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scaling.records.errors import UsageError
from scaling.records.records import Question
from scaling.tasks import hub
from scaling.tasks.catalogue import TASKS, definition_of, load_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder `quiz` with three yes/no questions to train on and one to test."""
    quiz = tmp_path / "quiz"
    quiz.mkdir()
    for split, count in (("train", 3), ("test", 1)):
        rows = [{"id": f"{split}-{i}", "question": "Is it so?", "answer": "yes"} for i in range(count)]
        (quiz / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return quiz


def refusal(name: str | None, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load_task(name, **options)
    return str(caught.value)


def test_the_list_of_tasks() -> None:
    assert {name: definition_of(name).answers.name for name in TASKS if not name.startswith("bbh-")} == {
        "arithmetic": "number",
        "countdown": "calculation",
        "prosqa": "text",
        "prontoqa": "yes_no",
        "hidden-fact": "number",
        "last-letters": "letters",
        "coin-flip": "yes_no",
        "math-500": "expression",
        "aime-24": "number",
        "aime-25": "number",
        "gpqa-diamond": "choice",
        "mmlu-pro": "choice",
        "svamp": "number",
        "gsm-hard": "number",
        "commonsense-qa": "choice",
        "gsm8k": "number",
        "asdiv": "number",
        "aqua": "choice",
        "strategyqa": "yes_no",
        "date-understanding": "choice",
    }


def test_without_name_and_data_the_task_is_twenty_generated_questions() -> None:
    task = load_task(None)
    assert (task.name, task.kind, len(task.questions)) == ("arithmetic", "number", 20)
    assert task == load_task("arithmetic")
    assert load_task("arithmetic", limit=7).questions == task.questions[:7]


def test_split_and_difficulty_reach_the_generator() -> None:
    texts = [
        {question.text for question in load_task("arithmetic", limit=20, **options).questions}
        for options in ({}, {"split": "train"}, {"split": "validation"}, {"difficulty": 2})
    ]
    assert all(not one & other for i, one in enumerate(texts) for other in texts[:i])


def test_data_alone_makes_a_task_called_by_its_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(None, data=folder, split="train", limit=2)
    assert (task.name, task.kind) == ("quiz", "yes_no")
    assert [question.id for question in task.questions] == ["train-0", "train-1"]
    assert load_task(None, data=folder / "train.jsonl").name == "train"
    monkeypatch.chdir(folder)
    assert load_task(None, data=Path(".")).name == "quiz"


def test_a_name_with_data_decides_the_kind_and_needs_no_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "hub_rows", None)
    task = load_task("strategyqa", data=folder)
    assert (task.name, task.kind, len(task.questions)) == ("strategyqa", "yes_no", 1)
    assert "`answer` must be one number" in refusal("gsm8k", data=folder)


def test_a_benchmark_without_data_comes_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"question": f"{i}?", "correct": "A", "options": ["A)1", "B)2"], "rationale": "So."} for i in range(5)]
    monkeypatch.setattr(hub, "hub_rows", lambda place, **_: rows if str(place) == "hf:deepmind/aqua_rat:raw" else [])
    task = load_task("aqua", split="train", limit=2)
    questions = tuple(Question(f"aqua-train-{i:05d}", f"{i}?", "A", ("1", "2"), ("So.",)) for i in range(2))
    assert (task.name, task.kind, task.questions) == ("aqua", "choice", questions)
    assert "`--task gsm8k` must hold at least one question" in refusal("gsm8k")


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("gsm", {}, ["`--task` is 'gsm'", "date-understanding, ", "Did you mean `gsm8k`?"]),
        ("arithmetic", {"limit": 0}, ["`--limit`", "at least 1", "0"]),
        ("arithmetic", {"limit": -2}, ["`--limit`", "-2"]),
        ("arithmetic", {"split": "dev"}, ["`--split`", "`train`, `validation`, `test`", "`dev`"]),
        ("arithmetic", {"difficulty": 5}, ["`--difficulty`", "from 1 to 4", "5"]),
        ("arithmetic", {"difficulty": 0}, ["`--difficulty`", "from 1 to 4", "0"]),
        ("gsm8k", {"difficulty": 2}, ["`--difficulty`", "`gsm8k`", "2"]),
    ],
)
def test_an_option_that_cannot_be_is_explained(name: str, options: dict[str, Any], expected: list[str]) -> None:
    message = refusal(name, **options)
    assert all(part in message for part in expected), message


def test_difficulty_is_refused_where_the_questions_come_from_a_file(folder: Path) -> None:
    assert "`--difficulty`" in refusal("arithmetic", data=folder, difficulty=2)


def test_a_file_without_questions_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "empty.jsonl"
    file.write_text("\n\n")
    message = refusal(None, data=file)
    assert f"`--data {file}`" in message
    assert "at least one question" in message
