"""Turns the keywords of Python calls into the settings of a command: with the same names, defaults and error messages."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import BaseModel

from scaling.cli import refuse_small_limit
from scaling.config import RunConfig, load_config
from scaling.probe.config import ProbeConfig
from scaling.records.errors import Interrupted, UsageError, nearest
from scaling.training.config import TrainConfig

Settings = TypeVar("Settings", RunConfig, TrainConfig, ProbeConfig)
Call = TypeVar("Call", bound=Callable[..., Any])

_FILE = "config"  # the keyword for a YAML file with options


def settings_from(options: Mapping[str, Any], kind: type[Settings], *, call: str) -> Settings:
    """The settings that the command would have with the same options.

    Args:
        options: values by name, with `_` for `-`. An option that is None counts as not given. Paths may be `Path`, numbers
            may be numpy's, and tasks, methods and voters may be classes and functions.
        kind: the class of the settings.
        call: name of the function that was called, for the message about an unknown keyword.

    Raises:
        UsageError: where the command would refuse the options.
    """
    given = {key: plain(key, value) for key, value in options.items() if value is not None}
    refuse_unknown(given, (*cast(type[BaseModel], kind).model_fields, _FILE, "quiet"), call=call)
    settings = load_config(given.pop(_FILE, None), given, kind)
    settings.resolved()  # reports options that contradict each other before the slow import of torch
    refuse_small_limit()
    return settings


def refuse_unknown(given: Iterable[str], known: Iterable[str], *, call: str) -> None:
    """Raises UsageError for the first keyword that a function does not accept.

    Args:
        given: the keywords.
        known: the keywords that it accepts.
        call: name of the function, for the message.
    """
    known = tuple(known)
    for key in given:
        if key not in known:
            raise UsageError(f"`{call}` has no option `{key}`.{nearest(key, known)}")


def with_options_of(kind: type[BaseModel]) -> Callable[[Call], Call]:
    """A decorator for functions with `**options`: their signature shows the options of `kind`, for editors and `help`.

    A value without a name raises UsageError.
    """
    types = get_type_hints(kind)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[name])
        for name, field in kind.model_fields.items()
    ]
    extra = [
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool),
        inspect.Parameter(_FILE, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=str | None),
    ]

    def with_signature(call: Call) -> Call:
        @functools.wraps(call)
        def by_name(*unnamed: Any, **options: Any) -> Any:
            if unnamed:
                name = f"sc.{call.__name__}"
                raise UsageError(
                    f"`{name}` takes options by name, and {unnamed[0]!r:.60} has none: see `help({name})`."
                )
            return call(**options)

        returned = inspect.signature(call).return_annotation
        by_name.__signature__ = inspect.Signature([*options, *extra], return_annotation=returned)  # type: ignore[attr-defined]
        return cast(Call, by_name)

    return with_signature


@contextmanager
def interruptible(*, kept: bool = True) -> Iterator[None]:
    """Turns an interruption by Ctrl-C, or by a notebook's stop button, into a KeyboardInterrupt.

    Args:
        kept: whether the finished part stays on disk. The message then says how to continue.
    """
    try:
        yield
    except Interrupted as error:
        raise KeyboardInterrupt(str(error) if kept else "stopped; without `out` nothing is kept.") from None


def folder_of(value: Any, *, what: str) -> Path:
    """The path that a user gave. Raises UsageError for a value that is none. what: begins the message."""
    if not isinstance(value, str | os.PathLike):
        raise UsageError(f"{what} is {value!r:.60}: give a folder.")
    return Path(value)


def plain(key: str, value: Any) -> Any:
    """The value as the command would get it.

    Paths become texts, numpy's numbers become Python's, and a class or function becomes `module:name`.
    """
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
