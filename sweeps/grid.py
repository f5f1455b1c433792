"""A grid file as written: YAML, a recipe's small variant, changes from the command line. Makes no points, runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaling.config import RunConfig, load_config
from scaling.errors import UsageError, nearest, one_line
from scaling.training.config import TrainConfig

TRAIN = "train."  # begins a setting of the training among settings of the run
# how it is carried out: fixed for a whole sweep
_FREE = ("device", "batch_size", "max_batch_tokens", "assistant_device", "base_url", "engine_args")
_NOT_OURS = {
    "out": "every run and training gets a folder of the sweep",
    "adaptive": "curves need every sample",
    "resume": "a sweep always goes on",
    "log_with": "every training keeps its metrics.jsonl",
    "push_to_hub": "publish a checkpoint with `scale-train --resume`",
    "voter": "every vote is reported",
}


class GridFile(BaseModel):
    """A sweep as written.

    run, train: settings of every run and training, as options of `scale-run` and `scale-train` with `_` for `-`. axes: what
    is combined; an axis `train.X` is of the training, and a value that is a mapping sets several settings at once. include:
    points beside the grid, a list standing for each of its values. exclude: what is left out, where every key has the
    value or one of the list. retries: of a job that fails. shard: questions of a run that are one job, None for all.
    small: what `--scale small` changes; an axis there replaces the one of that name.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    title: str = ""
    run: dict[str, Any] = {}
    train: dict[str, Any] | None = None
    axes: dict[str, list[Any]] = {}
    include: list[dict[str, Any]] = []
    exclude: list[dict[str, Any]] = []
    retries: int = Field(1, ge=0)
    shard: int | None = Field(None, ge=1)
    small: dict[str, Any] | None = None


def recipes() -> dict[str, Path]:
    """The grid files that come with the project, by name."""
    folder = Path(str(files("sweeps") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_grid(name: str, *, scale: str | None = None, changes: Sequence[str] = ()) -> GridFile:
    """The grid file `name`, or the recipe of that name. changes: `key=value`, a list making an axis. Raises UsageError."""
    path = Path(name)
    if not path.is_file():
        known = recipes()
        if name not in known:
            raise UsageError(
                f"there is no grid file {name}, and no recipe of that name ({', '.join(known)}).{nearest(name, known)}"
            )
        path = known[name]
    written = _yaml(path)
    if scale == "small":
        written = _smaller(written, path)
    elif scale not in (None, "paper"):
        raise UsageError(f"`--scale` is {scale!r}; choose small, or paper (default)")
    for change in changes:
        _change(written, change)
    return _parsed(written, path)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        written = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the grid file {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"the grid file {path} is not valid YAML: {one_line(error, limit=None)}") from None
    if not isinstance(written, dict):
        raise UsageError(f"the grid file {path} must be a mapping with `name` and `axes`.")
    return {"name": path.stem, **written}


def _smaller(written: dict[str, Any], path: Path) -> dict[str, Any]:
    small = written.get("small")
    if not isinstance(small, dict):
        raise UsageError(f"{path} has no part `small`, which `--scale small` asks for: leave the option out.")
    merged = {**written, **small, "name": small.get("name", f"{written['name']}-small")}
    for part in ("run", "train", "axes"):
        if isinstance(written.get(part), dict) and isinstance(small.get(part), dict):
            merged[part] = {**written[part], **small[part]}
    return merged


def _change(written: dict[str, Any], change: str) -> None:
    key, equals, text = change.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key:
        raise UsageError(f"`--set` {change} is no change: write `--set key=value`, as in `--set limit=50`.")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        value = text
    axes = {name: _without(key, values) for name, values in (written.get("axes") or {}).items() if name != key}
    written["axes"] = axes
    written["include"] = _without(key, written.get("include") or [])
    part, name = ("train", key.removeprefix(TRAIN)) if key.startswith(TRAIN) else ("run", key)
    if key in ("name", "shard", "retries"):
        written[key] = value
    elif isinstance(value, list):
        axes[key] = value
    else:
        written[part] = {**(written.get(part) or {}), name: value}


def _without(key: str, values: Any) -> Any:
    """The values of an axis, or the points beside the grid, whose own say on `key` the command line overrules."""
    if not isinstance(values, list):
        return values
    return [{name: own for name, own in one.items() if name != key} if isinstance(one, dict) else one for one in values]


def _parsed(written: dict[str, Any], path: Path) -> GridFile:
    unknown = [str(key) for key in written if key not in GridFile.model_fields]
    if unknown:
        raise UsageError(f"unknown key `{unknown[0]}` in {path}.{nearest(unknown[0], GridFile.model_fields)}")
    try:
        file = GridFile(**{key: value for key, value in written.items() if value is not None or key == "train"})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(one) for one in first["loc"])
        raise UsageError(f"`{place}` in {path}: {first['msg'][0].lower()}{first['msg'][1:]}.") from None
    for key, values in file.axes.items():
        if not values:
            raise UsageError(f"the axis `{key}` in {path} has no values: give at least one, or leave the axis out.")
        if not all(isinstance(value, dict) for value in values):
            _refuse_as_axis(key)
    return file


def _refuse_as_axis(key: str) -> None:
    check_key(key)
    if key.removeprefix(TRAIN) in _FREE:
        raise UsageError(f"`{key}` changes no result, so it is no axis: set it once under `run`.")


@cache
def check_key(key: str) -> None:
    """Raises UsageError where `key` is no setting of a run, or `train.X` none of a training, or not a sweep's to set."""
    kind: type[BaseModel] = TrainConfig if key.startswith(TRAIN) else RunConfig
    name = key.removeprefix(TRAIN)
    if name not in kind.model_fields:
        prefix = TRAIN if key.startswith(TRAIN) else ""
        hint = nearest(name, kind.model_fields).replace("`", f"`{prefix}", 1)
        if not prefix and name in TrainConfig.model_fields:
            hint = f" Did you mean `{TRAIN}{name}`?"
        raise UsageError(f"unknown setting `{key}` in the grid.{hint}")
    if name in _NOT_OURS:
        raise UsageError(f"`{key}` cannot be set in a grid: {_NOT_OURS[name]}; leave it out.")


def check_value(key: str, value: Any) -> Any:
    """The value as the settings hold it, in JSON's types. Raises UsageError where it is not allowed."""
    check_key(key)
    kind: type[BaseModel] = TrainConfig if key.startswith(TRAIN) else RunConfig
    name = key.removeprefix(TRAIN)
    try:
        settings = load_config(None, {name: value}, kind)
    except UsageError as error:
        raise UsageError(f"`{key}` in the grid: {error}") from None
    return settings.model_dump(mode="json", include={name})[name]
