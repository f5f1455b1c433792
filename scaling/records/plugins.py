"""Loads an object that a user names: in a Python file, in a module, or by an entry point of an installed package.

Standard library only. Whatever goes wrong in the user's code is told as one sentence with the file and the line.
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
_DIGEST = "__source_sha256__"  # of a module or its spec: what was read, whatever its file holds later
_OTHERS = (Path(__file__).parents[1], *(Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")))


@dataclass(frozen=True)
class Loaded:
    """An object that a user named.

    Attributes:
        name: in its module, such as `Own` of `mine.py:Own`.
        source_sha256: hex digits over the file that was named, and over the one that defines the object if that is another.
        file: the one that defines the object, None where there is none, as in a notebook.
    """

    object: Any
    name: str
    source_sha256: str
    file: str | None

    @property
    def sha256(self) -> str:
        """Hex digits over source and name, which are the same wherever the file lies."""
        return hashlib.sha256(f"{self.source_sha256}\0{self.name}".encode()).hexdigest()


def is_spec(text: str) -> bool:
    """Whether a text has the form `FILE.py:NAME`, `FILE.py` or `MODULE:NAME`, rather than that of a name or a path."""
    return bool(re.fullmatch(rf".*\.py(:{_DOTTED})?|{_DOTTED}:{_DOTTED}", text))


def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group by name, of all installed packages. Loads none."""
    return {point.name: point for point in sorted(entry_points(group=group))}


def refuse_unknown(spec: str, *, option: str, group: str, known: Iterable[str] = ()) -> None:
    """Raises UsageError for a word that is neither an entry point nor of the form of `is_spec`. Loads nothing."""
    names = [*known, *(points := installed(group))]
    if not is_spec(spec) and spec not in points:
        choice = f"{', '.join(names)}, or " if names else ""
        raise UsageError(
            f"`{option}` is {spec!r}: give {choice}one of your own as `FILE.py:NAME` or `MODULE:NAME`.{nearest(spec, names)}"
        )


def load_object(
    spec: str, *, option: str, group: str, fits: Callable[[object], bool] = callable, known: Iterable[str] = ()
) -> Loaded:
    """The object that a user's option names.

    Args:
        spec: `FILE.py:NAME`; `FILE.py`, for its only object that `fits`; `MODULE:NAME`; or the name of an entry point.
        option: as errors call it, such as `--method`.
        group: of entry points, such as `softcotpp.methods`.
        fits: tells which objects of a file may be meant where only the file is named.
        known: names that come with this package, for the hint that a misspelt one gets.

    Raises:
        UsageError: where there is no such object, or its code fails.
    """
    refuse_unknown(spec, option=option, group=group, known=known)
    where = spec if is_spec(spec) else installed(group)[spec].value.partition("[")[0].replace(" ", "")
    place, _, name = (where, "", "") if where.endswith(".py") else where.rpartition(":")
    given = f"`{option}` {spec}"
    with users_code(spec, option=option):
        module = _from_file(place, given) if place.endswith(".py") else _from_module(place, given)
        name = name or _only(module, fits, given)
        found: Any = module
        for part in name.split("."):
            if not hasattr(found, part):
                public = [one for one in dir(found) if not one.startswith("_")]
                lacks = getattr(module, "__file__", None) or place
                raise UsageError(f"{given}: {lacks} has no `{name}`.{nearest(part, public)}")
            found = getattr(found, part)
        defined = sys.modules.get(found.__module__, module) if hasattr(found, "__qualname__") else module
        digests = list(dict.fromkeys(filter(None, map(_digest_of, (module, defined)))))
    source = _sha256("\0".join(digests or _compiled(found)).encode("utf-8", "surrogatepass"))
    return Loaded(found, name, digests[0] if len(digests) == 1 else source, getattr(defined, "__file__", None))


@contextmanager
def users_code(spec: str, *, option: str, file: str | None = None) -> Iterator[None]:
    """Turns what a user's code raises within into a UsageError that names the file and the line. Lets through errors that
    are told already, and a lack of memory, which a smaller batch may put right.

    Args:
        spec: what the user gave to `option`.
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


def read_file(file: str, given: str) -> tuple[Path, bytes]:
    """A user's file and what it holds. Raises UsageError, which `given` opens, where it cannot be read."""
    path = Path(file).expanduser().absolute()
    try:
        return path.resolve(), path.read_bytes()
    except OSError as error:
        beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() and not path.exists() else []
        raise UsageError(f"{given}: {path} cannot be read ({error.strerror}).{nearest(path.name, beside)}") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _from_file(file: str, given: str) -> ModuleType:
    """The module made from a file, once in a process for each content that the file has had."""
    path, source = read_file(file, given)
    digest = _sha256(source)
    place = _sha256(f"{path}\0{digest}".encode("utf-8", "surrogateescape"))[:12]
    name = f"softcotpp_{re.sub(r'[^0-9A-Za-z_]', '_', path.stem)}_{place}"
    if name in sys.modules:
        return sys.modules[name]
    module = sys.modules[name] = ModuleType(name)  # there while it runs, as dataclasses look their module up
    module.__dict__.update({"__file__": str(path), _DIGEST: digest})
    try:
        with _importable(path.parent):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_module(name: str, given: str) -> ModuleType:
    """A module on Python's path, or in the current folder."""
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
    """Modules in this folder can be imported within, unless others of their name come first."""
    added = str(folder)
    is_there = added in sys.path
    sys.path += [] if is_there else [added]
    try:
        yield
    finally:
        if not is_there and added in sys.path:
            sys.path.remove(added)


def _only(module: ModuleType, fits: Callable[[object], bool], given: str) -> str:
    """The name of the only object that fits and that the file makes."""

    def made_here(value: object) -> bool:
        # an object says nothing of where it was made, and many imported ones can be called
        is_object = fits is not callable and not hasattr(value, "__qualname__")
        return is_object or getattr(value, "__module__", None) == module.__name__

    found = [key for key, one in vars(module).items() if not key.startswith("_") and made_here(one) and fits(one)]
    if len(found) != 1:
        held = f"has {len(found)} of that kind ({listed(found)})" if found else "has nothing of that kind"
        example = f"{module.__file__}:{found[0] if found else 'NAME'}"
        raise UsageError(f"{given}: the file {held}: name the one that is meant, as in `{example}`.")
    return found[0]


def _digest_of(module: ModuleType) -> str | None:
    """Of the source as it was when this was asked first after the module was loaded or, as in notebooks, loaded again."""
    holder = getattr(module, "__spec__", None) or module  # a module that is loaded again has a new one
    if not hasattr(holder, _DIGEST) and getattr(module, "__file__", None):
        setattr(holder, _DIGEST, _sha256(Path(str(module.__file__)).read_bytes()))
    return getattr(holder, _DIGEST, None)


def _compiled(value: Any) -> Iterator[str]:
    """What a class or function without a source file does: its compiled code, and the plain values in it."""
    value = getattr(value, "fget", None) or inspect.unwrap(getattr(value, "__func__", value))
    if isinstance(value, type):
        for name, part in sorted(vars(value).items()):
            if name != "__firstlineno__":  # a cell is the same wherever it stands
                yield from (name, *_compiled(part))
    elif isinstance(code := getattr(value, "__code__", value), CodeType):
        yield from (code.co_code.hex(), repr(code.co_names))
        for constant in (*code.co_consts, *(getattr(value, "__defaults__", None) or ())):
            yield from _compiled(constant)
    elif isinstance(value, str | bytes | int | float | tuple | None):
        yield repr(value)


def _line_of(error: BaseException, file: str | None) -> str:
    """The last line of the file, or else of what is neither Python's, nor an installed package's, nor ours."""
    if isinstance(error, SyntaxError) and error.filename and Path(error.filename).is_file():
        return f"{error.filename}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    foreign = [
        one for one in frames if not set(_OTHERS) & set(Path(one.filename).parents) and one.filename[:7] != "<frozen"
    ]
    theirs = [one for one in frames if one.filename == file] or foreign
    if file and not theirs:
        return file
    return "{0.filename}, line {0.lineno}".format((theirs or frames)[-1])
