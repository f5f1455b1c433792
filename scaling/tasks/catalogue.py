"""From the value of `--task` to a task: built in, the user's own, or the plain questions of `--data`.

Knows no prompts, models and votes. What lies in a user's files is found by `scaling.tasks.own`. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling.records.errors import UsageError
from scaling.tasks import hub, own
from scaling.tasks.arithmetic import Arithmetic
from scaling.tasks.task import LoadedTask, PlainTask, Task, load_questions, unknown_split

if TYPE_CHECKING:
    from scaling.config import RunConfig

TASKS: dict[str, Callable[[], Task]] = {"arithmetic": Arithmetic, **hub.TASKS}  # those that are built in


def definition_of(name: str | None, data: Path | None = None) -> Task:
    """What a task is, without its questions. Raises UsageError for an unknown one, and one that cannot be used.

    Args:
        name: the value of `--task`; None means `arithmetic`, or with data a task called like the file or folder, of the
            kind its rows look like.
        data: the file or folder of `--data`, which then brings the questions.
    """
    return _defined(name, data)[0]


def identity_of(name: str | None) -> dict[str, str]:
    """What run.json says of a task that is not built in; empty for those that are."""
    return _defined(name, None)[1]


def load_task(
    name: str | None,
    *,
    data: Path | None = None,
    split: str = "test",
    limit: int | None = None,
    difficulty: int = 1,
) -> LoadedTask:
    """A task with at least one question.

    Args:
        name, data: as for `definition_of`.
        limit: the first so many questions; None means all, or as many as a task without end gives by itself.
        difficulty: of `arithmetic` only.
    """
    task, identity = _defined(name, data)
    if limit is not None and limit < 1:
        raise UsageError(f"`--limit` must be at least 1, not {limit}: leave it out to take all questions.")
    if difficulty != 1 and not isinstance(task, Arithmetic):
        raise UsageError(
            f"`--difficulty` is only for the generated task `arithmetic`, and {difficulty} was given: leave it out."
        )
    task.difficulty = difficulty
    limit = limit or (task.limit if task.generated else None)
    place = f"`--data {data}`" if data else f"`--task {name}`"
    if identity:
        questions = load_questions(task, place=f"`--task {name}`", split=split, limit=limit)
    else:
        questions = _built_in(task, split=split, limit=limit)
    if not questions:
        raise UsageError(
            f"{place} must hold at least one question, but has none: give another file, task or `--split`."
        )
    return LoadedTask(task.name, task, questions, identity)


def task_of(config: RunConfig, **changes: Any) -> LoadedTask:
    """The questions of a resolved config; changes: other values of its fields, as `split` or `limit`."""
    asked = {"data": config.data, "split": config.split, "limit": config.limit, "difficulty": config.difficulty}
    return load_task(config.task, **{**asked, **changes})


def check_name(name: str) -> None:
    """Raises UsageError where there is no such task."""
    definition_of(name)


def _defined(name: str | None, data: Path | None) -> tuple[Task, dict[str, str]]:
    """The task and its identity, which is empty for those that are built in."""
    if name is None and data is not None:
        return PlainTask(None, name=_name_of(data), data=data), {}
    if name is None or name in TASKS:
        task = TASKS[name or "arithmetic"]()
        return (PlainTask(task.kind, name=task.name, data=data) if data is not None else task), {}
    task, identity = own.find(name, known=TASKS)
    if data is not None:
        if not task.takes_data and type(task).questions is not Task.questions:
            raise UsageError(
                f"`--data {data}` is given, and the task `{name}` has questions of its own: leave `--data` out, or let the "
                f"task read `self.data` and set `takes_data = True` in it."
            )
        task.data = data
    return task, identity


def _built_in(task: Task, *, split: str, limit: int | None) -> tuple[Any, ...]:
    if task.splits and split not in task.splits:
        raise unknown_split(task.name, split, task.splits)
    return tuple(task.questions(split, limit))[:limit]


def _name_of(data: Path) -> str:
    place = data.resolve()  # "." has no name of its own
    return place.name if place.is_dir() else place.stem
