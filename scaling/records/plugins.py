"""Objects from outside the package: out of a Python file, an importable module or an installed package's entry point.

Standard library only. What goes wrong in foreign code becomes one sentence that names its file and line.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from scaling.records.errors import UsageError, nearest, one_line


@dataclass(frozen=True)
class Loaded:
    """An object from outside. name: as it was asked for. sha256, file: of the source file it stands in, None for no file."""

    object: Any
    name: str
    sha256: str | None
    file: Path | None


def is_spec(text: str) -> bool:
    """Whether a text has the form `file.py:name`, `file.py` or `module:name`, rather than that of a plain name."""
    module, colon, name = text.rpartition(":")
    return text.endswith(".py") or bool(colon and _is_dotted(name) and (module.endswith(".py") or _is_dotted(module)))


def installed(group: str) -> list[str]:
    """The names of a group's entry points, of all installed packages."""
    return sorted({point.name for point in entry_points(group=group)})


def load_object(spec: str, *, option: str, group: str) -> Loaded:
    """Loads what a user named. Raises UsageError where it is not there, or its code fails.

    Args:
        spec: `file.py:name`; `file.py`, for the only class or function without `_` that the file defines;
            `module:name`, the module being looked for in the current folder first; or the name of an entry point.
        option: the command line's option that was given, for messages.
        group: the group of the entry points.
    """
    given = f"`{option}` {spec}"
    where = spec if is_spec(spec) else _entry_point(spec, given, group)
    source, colon, name = (where, "", "") if where.endswith(".py") else where.rpartition(":")
    module = _from_file(Path(source), given) if source.endswith(".py") else _imported(source, given)
    found = _attribute(module, name, given) if colon else _only_object(module, given)
    file = Path(module.__file__) if getattr(module, "__file__", None) else None
    return Loaded(found, spec, hashlib.sha256(file.read_bytes()).hexdigest() if file else None, file)


def place_of_error(error: BaseException, file: Path | None) -> str:
    """What went wrong in foreign code, with the last line of its own file that led there: the end of a sentence."""
    said = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename} line {error.lineno}: {type(error).__name__}: {error.msg}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if file and Path(frame.filename) == file]
    return f"{file} line {own[-1].lineno}: {said}" if own else said


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _entry_point(name: str, given: str, group: str) -> str:
    points = {point.name: point.value for point in entry_points(group=group)}
    if name not in points:
        raise UsageError(
            f"{given} is not known; write `file.py:name` or `module:name`, or install a package with an entry point of that "
            f"name in the group `{group}`.{nearest(name, points)}"
        )
    return points[name].partition("[")[0].replace(" ", "")


def _from_file(path: Path, given: str) -> ModuleType:
    """The file as a module under a name of its own, so that it hides no other module. The same content is run once."""
    path = path.expanduser().resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"{given}: {path} cannot be read ({error.strerror}); give a Python file that is there"
        ) from None
    digest = hashlib.sha256(source).hexdigest()
    name = f"softcotpp_plugin_{hashlib.sha256(f'{path}{chr(0)}{digest}'.encode()).hexdigest()[:16]}"
    if name not in sys.modules:
        spec = spec_from_loader(name, loader=None, origin=str(path))
        assert spec is not None
        module = module_from_spec(spec)
        module.__file__ = str(path)
        _last_on_path(path.parent)
        sys.modules[name] = module  # before it runs: dataclasses and pickles look their module up
        try:
            exec(compile(source, str(path), "exec"), module.__dict__)
        except BaseException as error:
            del sys.modules[name]
            _raise_as_usage(error, path, given)
    return sys.modules[name]


def _imported(name: str, given: str) -> ModuleType:
    """The module, out of the current folder where it is there; what it imports itself is not looked for there first."""
    _last_on_path(Path.cwd())
    top = name.partition(".")[0]
    spec = None if top in sys.modules else PathFinder.find_spec(top, [os.getcwd()])
    file = Path(spec.origin) if spec and spec.origin else None
    try:
        if spec and spec.loader and file:
            sys.modules[top] = module_from_spec(spec)
            try:
                spec.loader.exec_module(sys.modules[top])
            except BaseException:
                del sys.modules[top]
                raise
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(_not_imported(given, place_of_error(error, file) if file else one_line(error))) from None
    except BaseException as error:
        _raise_as_usage(error, file, given)


def _last_on_path(folder: Path) -> None:
    """Lets foreign code import its neighbours; last, as a folder may hold modules that are named like installed ones."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _raise_as_usage(error: BaseException, file: Path | None, given: str) -> NoReturn:
    if not isinstance(error, Exception | SystemExit):
        raise error
    raise UsageError(f"{given} cannot be loaded; put the file right: {place_of_error(error, file)}") from None


def _not_imported(given: str, why: str) -> str:
    return (
        f"{given} cannot be imported ({why}); write `module:function` with a module of this folder or of an installed "
        f"package, or `file.py:function`."
    )


def _attribute(module: ModuleType, name: str, given: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise UsageError(_not_imported(given, f"{module.__file__} has no {name}") + nearest(part, vars(found)))
        found = getattr(found, part)
    return found


def _only_object(module: ModuleType, given: str) -> Any:
    own = [one for name, one in vars(module).items() if not name.startswith("_") and _defined_in(one, module)]
    if len(own) != 1:
        raise UsageError(
            f"{given} names a file that defines {len(own)} functions and classes without `_`; name the one that is "
            f"meant, as in `{module.__file__}:name`"
        )
    return own[0]


def _defined_in(value: Any, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__
