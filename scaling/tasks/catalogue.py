"""Finds the task that `--task` and `--data` name: a built-in one, a user's, or the plain questions of a file.

`scaling.tasks.own` loads tasks of users. This module knows nothing of prompts, models and votes, and does not load torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.records.errors import UsageError
from scaling.records.names import DEFAULT_TASK, stem_of
from scaling.tasks import hub, own
from scaling.tasks.arithmetic import Arithmetic
from scaling.tasks.countdown import Countdown
from scaling.tasks.equations import EQUATIONS, equations_in
from scaling.tasks.formats import on_hub
from scaling.tasks.generated import GeneratedTask
from scaling.tasks.hidden_fact import HiddenFact
from scaling.tasks.letters_and_coins import CoinFlip, LastLetters
from scaling.tasks.prontoqa import ProntoQA
from scaling.tasks.prosqa import ProsQA
from scaling.tasks.task import LoadedTask, PlainTask, Task, load_questions, unknown_split

if TYPE_CHECKING:
    from scaling.config import RunConfig

_GENERATED: tuple[type[Task], ...] = (Arithmetic, Countdown, ProsQA, ProntoQA, HiddenFact, LastLetters, CoinFlip)
TASKS: dict[str, Callable[[], Task]] = {**{task.name: task for task in _GENERATED}, **hub.TASKS}  # the built-in tasks


def definition_of(
    name: str | None,
    data: Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    kind: str | None = None,
) -> Task:
    """The task of the options, without its questions.

    Args:
        name: the value of `--task`. None means `DEFAULT_TASK` or, with `data`, a task that is named after the file or folder
            and whose kind of answers follows from its rows.
        data: the file, folder or Hub data set of `--data`, which contains the questions.
        columns: the value of `--columns`.
        kind: the value of `--answer-kind`.

    Raises:
        UsageError: there is no such task, or it cannot be used.
    """
    return _defined(name, data, columns, kind)[0]


def identity_of(name: str | None) -> dict[str, str]:
    """What run.json records of a user's task, so that an edited one is noticed; empty for a built-in task."""
    return _defined(name)[1]


def load_task(
    name: str | None,
    *,
    data: Path | None = None,
    split: str = "test",
    limit: int | None = None,
    difficulty: int = 1,
    columns: Mapping[str, str] | None = None,
    kind: str | None = None,
    rationale: str | None = None,
) -> LoadedTask:
    """Loads a task with its questions, of which there is at least one.

    Args:
        name: the value of `--task`, see `definition_of`.
        data: the value of `--data`, see `definition_of`.
        split: the value of `--split`.
        limit: how many questions, from the first; None means all or, for a task without end, its default number.
        difficulty: the value of `--difficulty`, from 1 to the task's `levels`.
        columns: the value of `--columns`, see `definition_of`.
        kind: the value of `--answer-kind`, see `definition_of`.
        rationale: the value of `--rationale`. With "equations", a rationale without any is empty.

    Raises:
        UsageError: there is no such task, it has no question, or an option does not fit it.
    """
    task, identity = _defined(name, data, columns, kind)
    if limit is not None and limit < 1:
        raise UsageError(f"`--limit` must be at least 1, not {limit}: leave it out to take all questions.")
    if not 1 <= difficulty <= task.levels:
        required = f"a whole number from 1 to {task.levels}" if task.levels > 1 else "1, its only one,"
        raise UsageError(
            f"`--difficulty` must be {required} for the task `{task.name}`, not {difficulty}: give that, or leave it out."
        )
    task.difficulty, task.equations = difficulty, rationale == EQUATIONS
    limit = limit or (task.limit if task.generated else None)
    place = f"`--data {data}`" if data else f"`--task {name}`"
    if identity:
        questions = load_questions(task, place=f"`--task {name}`", split=split, limit=limit)
    else:
        questions = _of_built_in(task, split=split, limit=limit)
    if not questions:
        raise UsageError(
            f"{place} must hold at least one question, but has none: give another file, task or `--split`."
        )
    if task.equations:
        questions = tuple(replace(question, rationale=equations_in(question.rationale)) for question in questions)
    return LoadedTask(task.name, task, questions, identity)


def task_of(config: RunConfig, **changes: Any) -> LoadedTask:
    """Loads the task of a resolved config. changes: other values for its `data`, `split`, `limit` or `difficulty`."""
    asked = {
        **{"data": config.data, "split": config.split, "limit": config.limit, "difficulty": config.difficulty},
        **{"columns": config.columns, "kind": config.answer_kind, "rationale": config.rationale},
    }
    return load_task(config.task, **{**asked, **changes})


def check_name(name: str) -> None:
    """Raises UsageError if there is no such task."""
    definition_of(name)


def _defined(
    name: str | None,
    data: Path | None = None,
    columns: Mapping[str, str] | None = None,
    kind: str | None = None,
) -> tuple[Task, dict[str, str]]:
    """The task of the options, and its identity, which is empty for a built-in task."""
    _refuse_without_data(name, data, columns, kind)
    task, identity = _found(name, data, kind)
    if data is not None:
        task.data, task.local = data, not on_hub(data)
    task.columns = columns or task.columns
    return task, identity


def _refuse_without_data(
    name: str | None, data: Path | None, columns: Mapping[str, str] | None, kind: str | None
) -> None:
    """Raises UsageError for options about data where there are none, or where the task itself says it."""
    for option, value in (("--columns", columns), ("--answer-kind", kind)):
        if value and data is None:
            raise UsageError(
                f"`{option}` says what `--data` holds, which is not given: add it, or leave `{option}` out."
            )
    if kind and name is not None:
        raise UsageError(
            f"`--answer-kind {kind}` says what the answers of `--data` are, and `--task {name}` says it itself: leave one "
            f"of them out."
        )


def _found(name: str | None, data: Path | None, kind: str | None) -> tuple[Task, dict[str, str]]:
    """The task of the options before it gets its data, and its identity."""
    if name is None and data is not None:
        return PlainTask(kind, name=_name_of(data)), {}
    if name is None or name in TASKS:
        return _built_in(name or DEFAULT_TASK, data), {}
    task, identity = own.find(name, known=TASKS)
    if data is not None and not task.takes_data and type(task).questions is not Task.questions:
        raise UsageError(
            f"{_has_its_own(name, data)}, or let the task read `self.data` and set `takes_data = True` in it."
        )
    return task, identity


def _built_in(name: str, data: Path | None) -> Task:
    """A built-in task, which may read the questions of `data`."""
    task = TASKS[name]()
    if data is None:
        return task
    if task.takes_data:
        task.generated, task.limit = task.generates_beside(data), None  # files have an end
        return task
    if isinstance(task, GeneratedTask):
        raise UsageError(f"{_has_its_own(name, data)}.")
    return PlainTask(task.kind, name=task.name)


def _has_its_own(name: str, data: Path) -> str:
    return f"`--data {data}` is given, and the task `{name}` has questions of its own: leave `--data` out"


def _of_built_in(task: Task, *, split: str, limit: int | None) -> tuple[Any, ...]:
    if task.splits and split not in task.splits:
        raise unknown_split(task.name, split, task.splits)
    return tuple(task.questions(split, limit))[:limit]


def _name_of(data: Path) -> str:
    """The name of a task that has none: that of its data."""
    if on_hub(data):
        return data.name.replace(":", "-")
    return stem_of(data.resolve())  # "." has no name of its own
