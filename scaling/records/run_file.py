"""Checks the content of run.json, for everything that reads a run: continuing it, judging it anew, or reporting it.

The value of a setting must be one that `RunConfig` allows. A missing setting is no damage, because runs of older versions
lack some. Names of methods, tasks and voters are not looked up, because the files that they name may be gone. Of the
environment only the parts that are used later are checked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from scaling.records.costs import RunCosts
from scaling.records.errors import UsageError


def refuse_damaged(run: Mapping[str, Any], path: Path) -> None:
    """Raises UsageError for a value in run.json that no run writes.

    Args:
        run: the content of run.json, with at least the key `config`.
        path: the file, for the message.
    """
    for name, value in _damaged(run):
        shown = json.dumps(value)
        shown = shown if len(shown) <= 40 else f"{shown[:40]}..."
        raise UsageError(f"{path} is damaged: {name} is {shown}; restore it or choose another folder")


def _damaged(run: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The name and value of each damaged entry."""
    if not isinstance(run.get("id", ""), str) or not run.get("id", "").isascii():
        yield "id", run["id"]
    for key, value in run["config"].items():
        if not _fits(key, value):
            yield key, value
    environment = run.get("environment", {})
    if not isinstance(environment, dict):
        yield "environment", environment
    yield from _damaged_environment(environment)
    shards = environment.get("shards")
    if not isinstance(shards or [], list):
        yield "environment.shards", shards
    for number, shard in enumerate(shards or []):
        if not isinstance(shard, dict):
            yield f"environment.shards[{number}]", shard
        yield from _damaged_environment(shard, f"environment.shards[{number}]")


def _damaged_environment(environment: Mapping[str, Any], name: str = "environment") -> Iterator[tuple[str, Any]]:
    """As `_damaged`, for an environment. name: where it stands in run.json."""
    if coefficients := environment.get("costs"):
        try:
            RunCosts.from_json(coefficients)
        except (ValueError, KeyError, TypeError, AttributeError):
            yield f"{name}.costs", coefficients
    overlap = environment.get("overlap")
    if overlap is not None and not isinstance(overlap, dict):
        yield f"{name}.overlap", overlap
    if isinstance(overlap, dict):
        fits = {"trained": _are_ids, "validated": _are_ids, "left_out": _is_flag}
        yield from (
            (f"{name}.overlap.{key}", overlap.get(key)) for key, fit in fits.items() if not fit(overlap.get(key))
        )


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _are_ids(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _fits(key: str, value: Any) -> bool:
    """Whether a setting may have this value. A key that is no option of `scale-run` may have any."""
    checks = _checks()
    try:
        if key in checks:
            checks[key].validate_json(json.dumps(value), strict=True)
    except ValueError:
        return False
    return True


@cache
def _checks() -> dict[str, Any]:
    """For each setting, by name, a pydantic adapter that validates its JSON."""
    from pydantic import TypeAdapter  # imported here, because reading records needs only the standard library

    from scaling.config import RunConfig

    return {
        key: TypeAdapter(_bare(Annotated[(field.annotation, *field.metadata)]))
        for key, field in RunConfig.model_fields.items()
    }


def _bare(kind: Any) -> Any:
    """An annotation with its type and range only, without the functions that look names up or convert values."""
    if get_origin(kind) is Annotated:
        inner, *marks = get_args(kind)
        ranges = [mark for mark in marks if not hasattr(mark, "func")]
        return Annotated[(_bare(inner), *ranges)] if ranges else _bare(inner)
    parts = get_args(kind)
    return reduce(or_, map(_bare, parts)) if type(None) in parts else kind
