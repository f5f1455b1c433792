"""A user's own tasks: from a Python file, a module, an entry point of the group `softcotpp.tasks`, or a YAML file.

    --task mytask.py            the task in that file
    --task mytask.py:Capitals   the one of this name
    --task package.module:name  from a module that can be imported
    --task capitals             an entry point
    --task capitals.yaml        data, columns and kind, without code

A Python file is loaded from its path and under a name of its own, so that neither the folder it lies in nor what else lies
there changes what other modules import. Loads no torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from copy import copy
from functools import cache
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from typing import Any

from scaling.records.errors import UsageError, listed, nearest, one_line
from scaling.tasks.task import Task, check, failed
from scaling.tasks.yaml_task import YamlTask

GROUP = "softcotpp.tasks"
IDENTITY = "task_sha256"  # in run.json: an edited task is another one, wherever it lies

_NAME = re.compile(r"[\w.+-]+")


def find(name: str) -> tuple[Task, dict[str, str]] | None:
    """A new object of the task, and its identity; None where the name is of no such form and no entry point is called so.

    Raises UsageError, in one sentence with file and line, where it cannot be used.
    """
    place = f"`--task {name}`"
    file, _, wanted = name.partition(":")
    if file.endswith((".yaml", ".yml")):
        path = _file(file, place)
        task: Task = YamlTask(path, place=place)
        digest, called = _digest(path), path.stem
    elif file.endswith(".py"):
        path = _file(file, place)
        module = _from_file(path, _digest(path), place)
        task, wanted = _task_in(module, wanted, place)
        digest, called = _digest(path), path.stem
    else:
        points = entry_points()
        if not wanted and name not in points:
            return None
        module_name, wanted = (file, wanted) if wanted else points[name]
        module = _imported(module_name, place)
        task, wanted = _task_in(module, wanted, place)
        digest, called = _digest_of_module(module), name if name in points else wanted.rpartition(".")[2]
    task.name = task.name or called
    if not (isinstance(task.name, str) and _NAME.fullmatch(task.name)):
        raise UsageError(f"{place}: its `name` is {task.name!r:.60}: give a word, as folders are called by it.")
    check(task, place=place)
    return task, {IDENTITY: sha256(f"{digest}:{wanted}".encode()).hexdigest()}


def entry_points() -> dict[str, tuple[str, str]]:
    """Module and name of each task that an installed package brings."""
    return {one.name: (one.module, one.attr) for one in metadata.entry_points(group=GROUP)}


def label(name: str) -> str:
    """What a value of `--task` is called in a file's name."""
    file, _, wanted = name.partition(":")
    stem = Path(file).stem if file.endswith((".py", ".yaml", ".yml")) else file
    return "-".join(filter(None, (stem, wanted)))


def _file(file: str, place: str) -> Path:
    path = Path(file).expanduser()
    if not path.is_file():
        there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"{place} must be a file, but `{path}` is none: give its path.{nearest(path.name, there)}")
    return path.resolve()


def _digest(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"`--task` must be readable, but `{path}` is not ({error.strerror}): change that.") from None


def _digest_of_module(module: Any) -> str:
    file = getattr(module, "__file__", None)
    return _digest(Path(file)) if file else sha256(module.__name__.encode()).hexdigest()


@cache
def _from_file(path: Path, digest: str, place: str) -> Any:
    """The module of a Python file. digest: of its content, as an edited file is loaded again."""
    name = f"softcotpp_task_{sha256(f'{path}:{digest}'.encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        raise _unusable(error, place) from None
    return module


def _imported(name: str, place: str) -> Any:
    try:
        return importlib.import_module(name)
    except BaseException as error:
        raise _unusable(error, place) from None


def _unusable(error: BaseException, place: str) -> BaseException:
    """The sentence for what a file raises when it is loaded; Ctrl-C stays what it is."""
    if isinstance(error, KeyboardInterrupt | UsageError):
        return error
    if isinstance(error, SyntaxError):
        return UsageError(f"{place}: {error.filename} line {error.lineno} is no Python ({error.msg}): correct it.")
    return UsageError(f"{place} cannot be loaded, as it {failed(error)}: correct it.")


def _task_in(module: Any, wanted: str, place: str) -> tuple[Task, str]:
    """A new object of the task of that name, or of the only one that the module defines, and its name."""
    if not wanted:
        own = [name for name, value in vars(module).items() if _is_task(value) and _is_defined_in(module, value)]
        if len(own) != 1:
            how = f"has {len(own)} ({listed(own)}): name one, as in `{module.__file__}:{own[0]}`" if own else "has none"
            raise UsageError(f"{place} must define a task, a class that is a subclass of `Task`, and {how}.")
        (wanted,) = own
    found: Any = module
    for part in wanted.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{place}: {_place_of(module)} has no `{wanted}`.{nearest(part, vars(found))}")
        found = getattr(found, part)
    try:
        task = copy(found) if isinstance(found, Task) else found() if callable(found) else found
    except Exception as error:
        raise UsageError(f"{place}: `{wanted}` {failed(error)}: correct it.") from None
    if not isinstance(task, Task):
        raise UsageError(
            f"{place}: `{wanted}` must be a subclass of `Task`, and is {one_line(Exception(found), limit=60)}."
        )
    return task, wanted


def _is_task(value: Any) -> bool:
    return isinstance(value, Task) or (inspect.isclass(value) and issubclass(value, Task))


def _is_defined_in(module: Any, value: Any) -> bool:
    return isinstance(value, Task) or bool(value.__module__ == module.__name__)


def _place_of(module: Any) -> str:
    return str(getattr(module, "__file__", None) or module.__name__)
