"""Loads an object that a user names: from a Python file, from a module, or by an entry point of an installed package.

Methods, tasks, voters and scorers of users are loaded here. Whatever goes wrong in the user's code becomes one `UsageError`
with the file and the line. Only the standard library is used.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from scaling.records.errors import UsageError, listed, nearest, one_line, out_of_memory

_DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_DIGEST = (
    "__source_sha256__"  # attribute of a module or its spec: digest of the source as loaded, even if the file changes
)
_SHOWN = 20  # names in a message
_OTHERS = (Path(__file__).parents[1], *(Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")))


@dataclass(frozen=True)
class Loaded:
    """An object that a user named.

    Attributes:
        object: the object itself.
        name: its name in its module, such as `Own` of `mine.py:Own`.
        source_sha256: hex digest of the file that was named. If another file defines the object, that file is part of it.
        file: the file that defines the object; None if there is none, as in a notebook.
    """

    object: Any
    name: str
    source_sha256: str
    file: str | None

    @property
    def sha256(self) -> str:
        """Hex digest of source and name. It does not depend on where the file is."""
        return hashlib.sha256(f"{self.source_sha256}\0{self.name}".encode()).hexdigest()


def is_spec(text: str) -> bool:
    """Whether a text has the form `FILE.py:NAME`, `FILE.py` or `MODULE:NAME`. A plain name or a folder has not."""
    return bool(re.fullmatch(rf".*\.py(:{_DOTTED})?|{_DOTTED}:{_DOTTED}", text))


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, from all installed packages. None of them is loaded."""
    return {point.name: point for point in sorted(entry_points(group=group))}


def refuse_unknown(spec: str, *, option: str, group: str, known: Iterable[str] = ()) -> None:
    """Raises UsageError for a word that is no entry point and has not the form of `is_spec`. Loads nothing."""
    names = [*(points := installed(group)), *known]
    if not is_spec(spec) and spec not in points:
        choice = f"{listed(names, shown=_SHOWN)}, or " if names else ""
        raise UsageError(
            f"`{option}` is {spec!r}: give {choice}one of your own as `FILE.py:NAME` or `MODULE:NAME`.{nearest(spec, names)}"
        )


def load_object(
    spec: str, *, option: str, group: str, fits: Callable[[object], bool] = callable, known: Iterable[str] = ()
) -> Loaded:
    """Loads the object that a user's option names.

    Args:
        spec: `FILE.py:NAME`; `FILE.py`, for its only object that `fits`; `MODULE:NAME`; or the name of an entry point.
        option: the option, for messages, such as `--method`.
        group: the entry points that are searched, such as `softcotpp.methods`.
        fits: whether an object may be the one that is meant. Asked only if `spec` names a file without an object.
        known: names that come with this package, for the hint after a misspelt one.

    Raises:
        UsageError: there is no such object, or its code fails.
    """
    refuse_unknown(spec, option=option, group=group, known=known)
    where = spec if is_spec(spec) else installed(group)[spec].value.partition("[")[0].replace(" ", "")
    place, _, name = (where, "", "") if where.endswith(".py") else where.rpartition(":")
    given = f"`{option}` {spec}"
    with users_code(spec, option=option):
        module = _from_file(place, given) if place.endswith(".py") else _from_module(place, given)
        name = name or _only(module, fits, given)
        value: Any = module
        for part in name.split("."):
            if not hasattr(value, part):
                public = [member for member in dir(value) if not member.startswith("_")]
                lacks = getattr(module, "__file__", None) or place
                raise UsageError(f"{given}: {lacks} has no `{name}`.{nearest(part, public)}")
            value = getattr(value, part)
        defined = sys.modules.get(value.__module__, module) if hasattr(value, "__qualname__") else module
        digests = list(dict.fromkeys(filter(None, map(_digest_of, (module, defined)))))
    source = _sha256("\0".join(digests or _compiled(value)).encode("utf-8", "surrogatepass"))
    return Loaded(value, name, digests[0] if len(digests) == 1 else source, getattr(defined, "__file__", None))


@contextmanager
def users_code(spec: str, *, option: str, file: str | None = None) -> Iterator[None]:
    """A context in which an exception of a user's code becomes a UsageError with the file and the line.

    Two exceptions pass unchanged: a `UsageError`, and a lack of memory, because the caller may try a smaller batch.

    Args:
        spec: what the user gave to `option`.
        option: the option, for the message.
        file: the file of the code. A line of it tells the user more than a line of a library that it calls.
    """
    try:
        yield
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error):
            raise
        reason = f"{type(error).__name__}: {one_line(error)}".rstrip(": ")
        raise UsageError(f"`{option}` {spec} failed at {_line_of(error, file)} ({reason}): mend it there.") from error


def refuse_unfit_arguments(factory: Any, given: dict[str, Any], spec: str, *, option: str) -> None:
    """Raises UsageError if a factory does not accept these keyword arguments, or needs one that is missing.

    Args:
        factory: a class or function that gets one positional argument and these.
        given: the keyword arguments.
        spec: the name under which the user gave the factory, for the message.
        option: the option that gave the arguments, such as `--method-args`.
    """
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        return  # some types that are written in C have no signature
    try:
        signature.bind(None, **given)
    except TypeError as error:
        named = list(signature.parameters)[1:]
        takes = f"takes {', '.join(named)}" if named else "takes none"
        unknown = next((key for key in given if key not in named), None)
        hint = nearest(unknown, named) if unknown else ""
        raise UsageError(f"`{option}` does not fit {spec} ({one_line(error)}): it {takes}.{hint}") from None


def read_file(file: str, given: str) -> tuple[Path, bytes]:
    """A user's file and its content. Raises UsageError if it cannot be read; the message begins with `given`."""
    path = Path(file).expanduser().absolute()
    try:
        return path.resolve(), path.read_bytes()
    except OSError as error:
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() and not path.exists() else []
        raise UsageError(f"{given}: {path} cannot be read ({error.strerror}).{nearest(path.name, beside)}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _from_file(file: str, given: str) -> ModuleType:
    """The module of a file. Each content of a file is run once in a process, so an edited file makes another module."""
    path, source = read_file(file, given)
    digest = _sha256(source)
    place = _sha256(f"{path}\0{digest}".encode("utf-8", "surrogateescape"))[:12]
    name = f"softcotpp_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{place}"
    if name in sys.modules:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)  # before the code runs, because dataclasses look up their module
    module.__dict__.update({"__file__": str(path), _DIGEST: digest})
    try:
        with _importable(path.parent):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_module(name: str, given: str) -> ModuleType:
    """Imports a module that is on Python's path or in the current folder."""
    try:
        with _importable(Path.cwd()):
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise UsageError(
                f"{given}: there is no module {name}, neither installed nor in the current folder: check the name, or give "
                f"a file as `FILE.py:NAME`."
            ) from None
        raise


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """A context in which modules of this folder can be imported. Other modules of the same name come first."""
    added = str(folder)
    is_there = added in sys.path
    sys.path += [] if is_there else [added]
    try:
        yield
    finally:
        if not is_there and added in sys.path:
            sys.path.remove(added)


def _only(module: ModuleType, fits: Callable[[object], bool], given: str) -> str:
    """The name of the only public object that fits and is made in this file. Raises UsageError unless there is one."""

    def made_here(value: object) -> bool:
        # An instance does not record the module that made it, so it counts as made here. But not if anything callable
        # fits: then imported instances would count, many of which are callable.
        is_object = fits is not callable and not hasattr(value, "__qualname__")
        return is_object or getattr(value, "__module__", None) == module.__name__

    names = [
        name for name, value in vars(module).items() if not name.startswith("_") and made_here(value) and fits(value)
    ]
    if len(names) != 1:
        problem = f"has {len(names)} of that kind ({listed(names)})" if names else "has nothing of that kind"
        example = f"{module.__file__}:{names[0] if names else 'NAME'}"
        raise UsageError(f"{given}: the file {problem}: name the one that is meant, as in `{example}`.")
    return names[0]


def _digest_of(module: ModuleType) -> str | None:
    """The digest of a module's source; None if it has no file.

    The source is read at the first call after the module was loaded, or was loaded again, as in notebooks. Later changes of
    the file do not count.
    """
    holder = getattr(module, "__spec__", None) or module  # a module that is loaded again has a new spec
    if not hasattr(holder, _DIGEST) and getattr(module, "__file__", None):
        setattr(holder, _DIGEST, _sha256(Path(str(module.__file__)).read_bytes()))
    return getattr(holder, _DIGEST, None)


def _compiled(value: Any) -> Iterator[str]:
    """Texts that identify a class or function without a source file: its compiled code and the constants in it."""
    value = getattr(value, "fget", None) or inspect.unwrap(getattr(value, "__func__", value))
    if isinstance(value, type):
        for name, part in sorted(vars(value).items()):
            if name != "__firstlineno__":  # a notebook cell is the same at any line
                yield from (name, *_compiled(part))
    elif isinstance(code := getattr(value, "__code__", value), CodeType):
        yield from (code.co_code.hex(), repr(code.co_names))
        for constant in (*code.co_consts, *(getattr(value, "__defaults__", None) or ())):
            yield from _compiled(constant)
    elif isinstance(value, str | bytes | int | float | tuple | None):
        yield repr(value)


def _line_of(error: BaseException, file: str | None) -> str:
    """The place in the user's code where an error was raised: the file and the line.

    It is the last line of `file` in the traceback. If there is none, it is the last line that belongs neither to Python, nor
    to an installed package, nor to this project.
    """
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [
        frame
        for frame in frames
        if not set(_OTHERS) & set(Path(frame.filename).parents) and frame.filename[:7] != "<frozen"
    ]
    theirs = [frame for frame in frames if frame.filename == file] or foreign
    if file and not theirs:
        return file
    return "{0.filename}, line {0.lineno}".format((theirs or frames)[-1])
