"""A user's own tasks: from a Python file, a module, an entry point of the group `softcotpp.tasks`, or a YAML file.

    --task mytask.py            the task in that file
    --task mytask.py:Capitals   the one of this name
    --task package.module:name  from a module that can be imported
    --task capitals             an entry point
    --task capitals.yaml        data, columns and kind, without code

Loads no torch.
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
IDENTITY = "task_sha256"  # in run.json: an edited task is another one, wherever it lies

_NAME = re.compile(r"[\w.+-]+")


def find(name: str, *, known: Iterable[str] = ()) -> tuple[Task, dict[str, str]]:
    """A new object of the task, and its identity. Raises UsageError, in one sentence, where there is none that can be used.

    known: names of built-in tasks, for the hint that a misspelt one gets.
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
    """What a value of `--task` is called in a file's name."""
    file, _, wanted = name.partition(":")
    stem = Path(file).stem if file.endswith((".py", ".yaml", ".yml")) else file
    return "-".join(filter(None, (stem, wanted)))


def _is_task(value: object) -> bool:
    return isinstance(value, Task) or (isinstance(value, type) and issubclass(value, Task))


def _task_of(found: object, name: str, file: str | None) -> Task:
    """A new object of a task that is a class, a function that makes it, or an object."""
    with users_code(name, option="--task", file=file):
        task = copy(found) if isinstance(found, Task) else found() if callable(found) else found
    if not isinstance(task, Task):
        raise UsageError(f"`--task {name}` must be a subclass of `Task`, and is of type {type(task).__name__}.")
    return task
