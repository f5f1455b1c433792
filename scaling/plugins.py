"""Loads an object that a user names on the command line: from a Python file, from a module, or by an entry point.

Standard library only. Whatever goes wrong in the user's code is told as one sentence with the file and the line.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from scaling.records.errors import UsageError, listed, nearest, one_line, out_of_memory

_DIGEST = "__source_sha256__"  # of a module that was made from a file: what was read, whatever the file holds later


def is_plugin(spec: str) -> bool:
    """Whether this names an object in a file or a module, rather than something by a name of its own."""
    return ":" in spec or spec.endswith(".py")


def load_object(
    spec: str, *, option: str, group: str, fits: Callable[[object], bool] | None = None, known: Iterable[str] = ()
) -> object:
    """The object that a user's option names.

    Args:
        spec: `FILE.py:NAME`, `MODULE:NAME`, the name of an entry point, or `FILE.py` where `fits` is given.
        option: as errors call it, such as `--method`.
        group: of entry points, such as `softcotpp.methods`.
        fits: tells which objects of a file may be meant where only the file is named. One must be, and no more.
        known: names that come with this package, for the hint that a misspelt one gets.

    Raises:
        UsageError: where there is no such object, or its code fails.
    """
    place, colon, name = spec.rpartition(":") if not spec.endswith(".py") else (spec, "", "")
    if not place:
        point = find_entry_point(spec, option=option, group=group, known=known)
        with users_code(spec, option=option):
            loaded: object = point.load()
        return loaded
    if not name and (colon or fits is None):
        raise UsageError(f"`{option}` {spec} names no object: give `{place}:NAME`.")
    if place.endswith(".py"):
        module = _from_file(Path(place).expanduser(), spec, option=option)
    else:
        module = _from_module(place, spec, option=option)
    if name:
        return _attribute(module, name, spec, option=option)
    return _only(module, fits or callable, spec, option=option)


def source_sha256(loaded: object) -> str:
    """Hex digits over the source of the module that an object was defined in, and over the object's name in it."""
    owner = loaded if hasattr(loaded, "__qualname__") else type(loaded)
    module = sys.modules[owner.__module__]
    source = getattr(module, _DIGEST, None)
    if source is None and getattr(module, "__file__", None):
        source = hashlib.sha256(Path(str(module.__file__)).read_bytes()).hexdigest()
    elif source is None:  # of a notebook
        source = hashlib.sha256("\0".join(_compiled(owner)).encode("utf-8", "surrogatepass")).hexdigest()
    return hashlib.sha256(f"{source}\0{getattr(owner, '__qualname__', '')}".encode()).hexdigest()


def _compiled(value: Any) -> Iterator[str]:
    """What a class or function without a source file does: its compiled code, and the plain values in it."""
    if isinstance(value, type):
        for name, part in sorted(vars(value).items()):
            yield from (name, *_compiled(getattr(part, "__func__", part)))
    elif isinstance(code := getattr(value, "__code__", value), CodeType):
        yield from (code.co_code.hex(), repr(code.co_names))
        for constant in code.co_consts:
            yield from _compiled(constant)
    elif isinstance(value, str | bytes | int | float | tuple | None):
        yield repr(value)


@contextmanager
def users_code(spec: str, *, option: str, file: str | None = None) -> Iterator[None]:
    """Turns what a user's code raises within into a UsageError that names the file and the line. Lets through errors that
    are told already, and a lack of memory, which a smaller batch may put right.

    Args:
        file: of the code, whose lines are of more use to the user than those of the libraries it calls.
    """
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
        raise UsageError(f"`{option}` {spec} failed at {_line_of(error, file)} ({said}): mend it there.") from error


def file_of(loaded: object) -> str | None:
    """Where the code of an object lies, None where that is not known."""
    owner = loaded if hasattr(loaded, "__qualname__") else type(loaded)
    return getattr(sys.modules.get(owner.__module__), "__file__", None)


def _line_of(error: BaseException, file: str | None) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if file and frame.filename == file] or frames
    return f"{theirs[-1].filename}, line {theirs[-1].lineno}"


def _from_file(path: Path, spec: str, *, option: str) -> ModuleType:
    """The module made from a file, once in a process for each content that the file has had."""
    try:
        path, source = path.resolve(), path.read_bytes()
    except OSError as error:
        raise UsageError(f"`{option}` {spec}: {path} cannot be read ({error.strerror}).") from None
    digest = hashlib.sha256(source).hexdigest()
    place = hashlib.sha256(f"{path}\0{digest}".encode()).hexdigest()[:12]
    name = f"softcotpp_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{place}"
    if name in sys.modules:
        return sys.modules[name]
    made = spec_from_loader(name, loader=None, origin=str(path))
    assert made is not None
    module = module_from_spec(made)
    module.__file__ = str(path)
    setattr(module, _DIGEST, digest)
    sys.modules[name] = module  # as dataclasses look their module up
    try:
        with users_code(spec, option=option, file=str(path)), _importable(path.parent):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_module(name: str, spec: str, *, option: str) -> ModuleType:
    """A module on Python's path, or in the current folder."""
    with users_code(spec, option=option), _importable(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(f"{error.name}.")):
                raise UsageError(
                    f"`{option}` {spec}: there is no module {name}, neither installed nor in the current folder: check the "
                    f"name, or give a file as `FILE.py:NAME`."
                ) from None
            raise


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules in this folder can be imported within, unless others of their name come first."""
    added = str(folder)
    sys.path.append(added)
    try:
        yield
    finally:
        sys.path.reverse()
        sys.path.remove(added)  # the last of its name
        sys.path.reverse()


def _attribute(module: ModuleType, name: str, spec: str, *, option: str) -> object:
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            public = [key for key, value in vars(module).items() if not key.startswith("_") and callable(value)]
            raise UsageError(f"`{option}` {spec}: {module.__file__} has no `{name}`.{nearest(name, public)}")
        found = getattr(found, part)
    return found


def _only(module: ModuleType, fits: Callable[[object], bool], spec: str, *, option: str) -> object:
    found = {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", module.__name__) == module.__name__ and fits(value)
    }
    if len(found) != 1:
        held = f"has {len(found)} of that kind ({listed(list(found))})" if found else "has nothing of that kind"
        raise UsageError(f"`{option}` {spec}: the file {held}: name the one that is meant, as in `{spec}:NAME`.")
    return next(iter(found.values()))


def find_entry_point(name: str, *, option: str, group: str, known: Iterable[str] = ()) -> EntryPoint:
    """The entry point of an installed package, which is not loaded. Raises UsageError where there is none of that name.

    Args:
        known: names that come with this package, for the hint that a misspelt one gets.
    """
    there = {one.name: one for one in entry_points(group=group)}
    if name not in there:
        names = [*known, *there]
        raise UsageError(
            f"`{option}` is {name!r}: give {', '.join(names)}, or one of your own as `FILE.py:NAME` or "
            f"`MODULE:NAME`.{nearest(name, names)}"
        )
    return there[name]


def refuse_unfit_arguments(factory: Any, given: dict[str, Any], spec: str, *, option: str, positional: int = 1) -> None:
    """Raises UsageError where a factory does not take these keyword arguments, or lacks one that it needs.

    Args:
        option: that gave them, such as `--method-args`.
        positional: arguments that come before them.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # of some types of C nothing is known
    try:
        signature.bind(*[None] * positional, **given)
    except TypeError as error:
        named = list(signature.parameters)[positional:]
        takes = f"takes {', '.join(named)}" if named else "takes none"
        unknown = next((key for key in given if key not in named), None)
        hint = nearest(unknown, named) if unknown else ""
        raise UsageError(f"`{option}` does not fit {spec} ({one_line(error)}): it {takes}.{hint}") from None
