"""Loads tasks of users: from a Python file, a module, an entry point of the group `softcotpp.tasks`, or a YAML file.

    --task mytask.py            the task in that file
    --task mytask.py:Capitals   the task of this name
    --task package.module:name  from a module that can be imported
    --task capitals             an entry point
    --task capitals.yaml        data, columns and kind, without code

torch is not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from copy import copy
from hashlib import sha256
from pathlib import Path

from scaling.records.errors import UsageError
from scaling.records.plugins import load_object, read_file, users_code
from scaling.tasks.task import Task, check
from scaling.tasks.yaml_task import YamlTask

GROUP = "softcotpp.tasks"
IDENTITY = "task_sha256"  # key of run.json: an edited task makes another run, a task that was only moved does not

_NAME = re.compile(r"[\w.+-]+")


def find(name: str, *, known: Iterable[str] = ()) -> tuple[Task, dict[str, str]]:
    """Loads a user's task.

    Args:
        name: the value of `--task`.
        known: names of built-in tasks, for the hint after a misspelt one.

    Returns:
        A new object of the task, and what run.json records of it.

    Raises:
        UsageError: there is no such task, or it cannot be used.
    """
    place = f"`--task {name}`"
    if name.endswith((".yaml", ".yml")):
        path, content = read_file(name, place)
        task: Task = YamlTask(path, place=place)
        digest, called = sha256(content).hexdigest(), path.stem
    else:
        loaded = load_object(name, option="--task", group=GROUP, fits=_is_task, known=known)
        task, digest = _task_of(loaded.object, name, loaded.file), loaded.sha256
        before, _, last = name.rpartition(":")
        file = last if last.endswith(".py") else before
        called = Path(file).stem if file.endswith(".py") else loaded.name.rpartition(".")[2] if file else name
    task.name = task.name or called
    if not (isinstance(task.name, str) and _NAME.fullmatch(task.name)):
        raise UsageError(f"{place}: its `name` is {task.name!r:.60}: give a word, as folders are called by it.")
    check(task, place=place)
    return task, {IDENTITY: digest}


def label(name: str) -> str:
    """The part of a file name that stands for a value of `--task`."""
    file, _, task = name.partition(":")
    stem = Path(file).stem if file.endswith((".py", ".yaml", ".yml")) else file
    return "-".join(filter(None, (stem, task)))


def _is_task(value: object) -> bool:
    return isinstance(value, Task) or (isinstance(value, type) and issubclass(value, Task))


def _task_of(given: object, name: str, file: str | None) -> Task:
    """A new object of a task. The user may give its class, a function that returns it, or an object, which is copied."""
    with users_code(name, option="--task", file=file):
        task = copy(given) if isinstance(given, Task) else given() if callable(given) else given
    if not isinstance(task, Task):
        raise UsageError(f"`--task {name}` must be a subclass of `Task`, and is of type {type(task).__name__}.")
    return task
