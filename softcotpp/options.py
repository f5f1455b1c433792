"""Keywords of Python calls as settings of a command: the same names, meanings, defaults and refusals."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import BaseModel

from scaling.cli import refuse_small_limit
from scaling.config import RunConfig, load_config
from scaling.records.errors import Interrupted, UsageError, nearest
from scaling.training.config import TrainConfig

Settings = TypeVar("Settings", RunConfig, TrainConfig)
Call = TypeVar("Call", bound=Callable[..., Any])

_FILE = "config"  # the YAML file with options, itself one of the keywords


def settings_from(options: Mapping[str, Any], kind: type[Settings], *, call: str) -> Settings:
    """Settings as the command would have them. Raises UsageError, as the command.

    Args:
        options: by name, `_` for `-`; None is as if it were not given. Paths may be `Path`, numbers may be numpy's, and
            tasks, methods and voters may be classes and functions.
        call: what was called, for the message about an unknown keyword.
    """
    given = {key: _plain(key, value) for key, value in options.items() if value is not None}
    refuse_unknown(given, (*cast(type[BaseModel], kind).model_fields, _FILE, "quiet"), call=call)
    settings = load_config(given.pop(_FILE, None), given, kind)
    settings.resolved()  # clashes between options are told before torch is imported
    refuse_small_limit()
    return settings


def refuse_unknown(given: Iterable[str], known: Iterable[str], *, call: str) -> None:
    """Raises UsageError for the first keyword that a call does not have."""
    known = tuple(known)
    for key in given:
        if key not in known:
            raise UsageError(f"`{call}` has no option `{key}`.{nearest(key, known)}")


def with_options_of(kind: type[BaseModel]) -> Callable[[Call], Call]:
    """Gives a function that takes `**options` the signature that editors and `help` show."""
    types = get_type_hints(kind)
    own = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[name])
        for name, field in kind.model_fields.items()
    ]
    first = [
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool),
        inspect.Parameter(_FILE, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | None),
    ]

    def with_signature(call: Call) -> Call:
        returned = inspect.signature(call).return_annotation
        call.__signature__ = inspect.Signature([*own, *first], return_annotation=returned)  # type: ignore[attr-defined]
        return call

    return with_signature


@contextmanager
def interruptible(*, kept: bool = True) -> Iterator[None]:
    """Ctrl-C, or a notebook's stop button, is a KeyboardInterrupt that says how to go on, and not an ordinary error.

    Args:
        kept: whether what was done stays on disk.
    """
    try:
        yield
    except Interrupted as error:
        raise KeyboardInterrupt(str(error) if kept else "stopped; without `out` nothing is kept.") from None


def _plain(key: str, value: Any) -> Any:
    """As the command would get it: paths as texts, numpy's numbers as Python's, a class or function as `module:name`."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == ():
        return value.item()
    if isinstance(value, str | int | float | Mapping):
        return value
    name = getattr(value, "__qualname__", None)
    if name is None or "<" in name:
        what = f"{name} inside another function" if name else f"an object of type {type(value).__name__}"
        raise UsageError(f"`{key}` is {what}: give a class or function that stands by itself, or a text.")
    return f"{value.__module__}:{name}"
