"""The list of tasks and the one way to load one: generated, from the user's files, or from the Hugging Face Hub.

Refuses to know prompts, models and votes, and how rows are read: that is `files`, `hub` and `arithmetic`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from scaling.config import OWN_LIMIT, RunConfig
from scaling.records.errors import UsageError, nearest
from scaling.records.records import Question
from scaling.tasks import arithmetic, hub
from scaling.tasks.files import read_questions

TASKS: dict[str, str] = {"arithmetic": "number"} | {name: source.kind for name, source in hub.SOURCES.items()}


@dataclass(frozen=True)
class Task:
    """Questions with answers of one kind: "number", "choice" or "yes_no"."""

    name: str
    kind: str
    questions: tuple[Question, ...]


def load_task(
    name: str | None,
    *,
    data: Path | None = None,
    split: str = "test",
    limit: int | None = None,
    difficulty: int = 1,
) -> Task:
    """A task with at least one question.

    name: a key of `TASKS`; None means `arithmetic`, or with data a task called like the file or folder, of the kind
    its rows look like. data: a file, or a folder with one file for each split; the questions then come from there.
    limit: the first so many questions; None means all, or 20 of `arithmetic`. difficulty: of `arithmetic` only.
    """
    name = "arithmetic" if name is None and data is None else name
    _check(name, data=data, limit=limit, difficulty=difficulty)
    if data is not None:
        kind, found = read_questions(data, kind=TASKS[name] if name else None, split=split, limit=limit)
        task = Task(name or _name_of(data), kind, tuple(found))
    elif name is None or name == "arithmetic":
        task = _generated(split, limit=limit, difficulty=difficulty)
    else:
        task = Task(name, TASKS[name], tuple(hub.load(name, split=split)[:limit]))
    if not task.questions:
        place = f"`--data {data}`" if data else f"`--task {name}`"
        raise UsageError(
            f"{place} must hold at least one question, but has none: give another file, task or `--split`."
        )
    return task


def task_of(config: RunConfig, **changes: Any) -> Task:
    """The questions of a resolved config; changes: other values of its fields, as `split` or `limit`."""
    asked = {"data": config.data, "split": config.split, "limit": config.limit, "difficulty": config.difficulty}
    return load_task(config.task, **{**asked, **changes})


def check_name(name: str) -> None:
    """Raises UsageError where there is no such task."""
    if name not in TASKS:
        known = ", ".join(f"`{task}`" for task in TASKS)
        raise UsageError(f"`--task` must be one of {known}, not `{name}`: give one of these.{nearest(name, TASKS)}")


def _check(name: str | None, *, data: Path | None, limit: int | None, difficulty: int) -> None:
    if name is not None:
        check_name(name)
    if limit is not None and limit < 1:
        raise UsageError(f"`--limit` must be at least 1, not {limit}: leave it out to take all questions.")
    if difficulty != 1 and (name != "arithmetic" or data is not None):
        raise UsageError(
            f"`--difficulty` is only for the generated task `arithmetic`, and {difficulty} was given: leave it out."
        )


def _generated(split: str, *, limit: int | None, difficulty: int) -> Task:
    if split not in arithmetic.SPLITS:
        known = ", ".join(f"`{known}`" for known in arithmetic.SPLITS)
        raise UsageError(
            f"`--split` must be one of {known} for the task `arithmetic`, not `{split}`: give one of these."
            f"{nearest(split, arithmetic.SPLITS)}"
        )
    if difficulty not in arithmetic.DIFFICULTIES:
        lowest, highest = arithmetic.DIFFICULTIES[0], arithmetic.DIFFICULTIES[-1]
        raise UsageError(
            f"`--difficulty` must be a whole number from {lowest} to {highest}, not {difficulty}: give one of these."
        )
    questions = islice(arithmetic.generate(split, difficulty=difficulty), limit or OWN_LIMIT)
    return Task("arithmetic", TASKS["arithmetic"], tuple(questions))


def _name_of(data: Path) -> str:
    place = data.resolve()  # "." has no name of its own
    return place.name if place.is_dir() else place.stem
