"""Reads and checks grid files: the YAML, the small variant of a recipe, and changes from the command line.

`sweeps.points` makes the points of what is read here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from scaling.config import RunConfig, load_config, parse_yaml
from scaling.records.errors import UsageError, nearest, one_line
from scaling.records.settings import settings_of
from scaling.tasks.catalogue import check_name
from scaling.training.config import TrainConfig

TRAIN = "train."  # prefix of a setting of the training where it stands among settings of the run


class GridFile(BaseModel):
    """The content of a grid file.

    Attributes:
        name: name of the sweep, and of its folder.
        title: what the report calls it.
        run: settings of every run: options of `scale-run`, with `_` for `-`.
        train: settings of every training: options of `scale-train`, with `_` for `-`.
        axes: values of each setting that are combined. An axis `train.X` belongs to the training. A value that is a mapping
            sets several settings at once.
        include: points besides the combinations of `axes`. A list stands for each of its values.
        exclude: rules that leave points out. A rule holds where each of its settings has the value, or one of the list.
        retries: how often a job that fails is tried again.
        shard: questions of a run that make one job; None for all of them.
        order: of the jobs. `models`: all trainings, then all runs, those of the same models together. `file`: as the points
            stand in the file, each training right before the first run that needs it.
        margin: points of accuracy by which methods may differ and be equal in the reports; None for the report's default.
        small: what `--scale small` changes. An axis there replaces the axis of the same name.
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
    order: Literal["models", "file"] = "models"
    margin: float | None = Field(None, gt=0, lt=100)
    small: dict[str, Any] | None = None


def recipes() -> dict[str, Path]:
    """The grid files that come with the project, by name."""
    folder = Path(str(files("sweeps") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_grid(name: str, *, scale: str | None = None, changes: Sequence[str] = ()) -> GridFile:
    """Reads a grid file or a recipe.

    Args:
        name: path of a grid file, or name of a recipe.
        scale: "small" for the small variant; None or "paper" for the whole grid.
        changes: each `key=value`, as after `--set`. A value that is a list makes an axis.

    Raises:
        UsageError: there is no such file, or its content or a change is not allowed.
    """
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
        raise UsageError(
            f"`--scale` is {scale!r}; choose small, or paper (default).{nearest(str(scale), ('small', 'paper'))}"
        )
    for change in changes:
        _change(written, change)
    return _parsed(written, path)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        written = parse_yaml(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the grid file {path} cannot be read: {error}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"the grid file {path} is not valid YAML: {one_line(error, limit=None)}") from None
    if not isinstance(written, dict):
        raise UsageError(f"the grid file {path} must be a mapping with `name` and `axes`.")
    _refuse_unfit(written, path)
    if isinstance(small := written.get("small"), dict):
        _refuse_unfit(small, path, within="small.")
    return written | {"name": _name_of(path)} if written.get("name") is None else written


def _name_of(path: Path) -> str:
    """The name of a grid whose file gives none."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-") or "grid"


def _refuse_unfit(written: dict[str, Any], path: Path, *, within: str = "") -> None:
    """Raises UsageError for an unknown key, and for a part that should be a mapping and is none."""
    for key in written:
        if key not in GridFile.model_fields:
            raise UsageError(f"unknown key `{within}{key}` in {path}.{nearest(str(key), GridFile.model_fields)}")
    for part in ("run", "train", "axes"):
        if not isinstance(written.get(part) or {}, dict):
            raise UsageError(f"`{within}{part}` in {path} must be a mapping, `setting: value` on each line.")


def _smaller(written: dict[str, Any], path: Path) -> dict[str, Any]:
    """The grid with the changes of its part `small`."""
    small = written.get("small")
    if not isinstance(small, dict):
        raise UsageError(f"{path} has no part `small`, which `--scale small` asks for: leave the option out.")
    small = {key: value for key, value in small.items() if value is not None or key == "shard"}
    merged = {**written, "name": f"{written['name']}-small", **small}
    for part in ("run", "train", "axes"):
        if isinstance(written.get(part), dict) and isinstance(small.get(part), dict):
            merged[part] = {**written[part], **small[part]}
    return merged


def _change(written: dict[str, Any], change: str) -> None:
    """Makes one change of `--set` in the grid `written`."""
    key, equals, text = change.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key:
        raise UsageError(f"`--set` {change} is no change: write `--set key=value`, as in `--set limit=50`.")
    value = _value_of(key, text.strip())
    axes = {name: _overruled(values, key, {}) for name, values in (written.get("axes") or {}).items() if name != key}
    written["axes"] = axes
    replacement = {key: value} if isinstance(value, list) else {}
    written["include"] = _overruled(written.get("include") or [], key, replacement)
    part, name = ("train", key.removeprefix(TRAIN)) if key.startswith(TRAIN) else ("run", key)
    if key in ("name", "title", "shard", "retries", "order", "margin"):
        written[key] = value
    elif isinstance(value, list):
        axes[key] = value
    else:
        written[part] = {**(written.get(part) or {}), name: value}


def _value_of(key: str, text: str) -> Any:
    """The value of a change, read as YAML where that is possible. A name or title stays a text."""
    try:
        value = yaml.safe_load(text) if text else None
    except (yaml.YAMLError, ValueError):
        value = text
    quoted = isinstance(value, str) and text[0] in "'\""
    return text if key in ("name", "title") and text and not quoted else value


def _overruled(values: Any, key: str, replacement: dict[str, Any]) -> Any:
    """Replaces the setting `key` wherever it stands inside a value.

    Args:
        values: the values of an axis, or the points of `include`. Only those that are mappings can hold settings.
        key: the setting that `--set` changes.
        replacement: what takes its place; empty to remove it.
    """
    if not isinstance(values, list):
        return values
    return [
        {name: setting for name, setting in value.items() if name != key} | replacement
        if isinstance(value, dict) and key in value
        else value
        for value in values
    ]


def _parsed(written: dict[str, Any], path: Path, *, within: str = "") -> GridFile:
    """The grid, checked. within: what stands before a key in messages. Raises UsageError."""
    _refuse_unnamed(written, path)
    try:
        file = GridFile(**{key: value for key, value in written.items() if value is not None or key == "train"})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(one) for one in first["loc"])
        raise UsageError(f"`{within}{place}` in {path}: {first['msg'][0].lower()}{first['msg'][1:]}.") from None
    for key, values in file.axes.items():
        if not values:
            raise UsageError(
                f"the axis `{within}{key}` in {path} has no values: give at least one, or leave the axis out."
            )
    if file.small:
        _check_small(file.small, path)
    return file


def _refuse_unnamed(part: Any, path: Path, *, levels: int = 5) -> None:
    """Raises UsageError for a key that is no text. levels: how deep to look, because a list in YAML can contain itself."""
    for key in part if isinstance(part, dict) else ():
        if not isinstance(key, str):
            raise UsageError(
                f"the key {key!r} in {path} is no text, as numbers and yes, no, on and off are in YAML: put it in quotes, "
                f"or name a setting."
            )
    values = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    for value in values if levels else ():
        _refuse_unnamed(value, path, levels=levels - 1)


def _check_small(small: dict[str, Any], path: Path) -> None:
    """Raises UsageError for a setting in `small` whose name or type `--scale small` would refuse."""
    file = _parsed({"name": "small", **small, "small": None}, path, within="small.")
    for key in (*file.run, *(f"{TRAIN}{name}" for name in file.train or {}), *named(file)):
        check_key(key)


def named(file: GridFile) -> list[str]:
    """The names of all settings under `axes` and `include`, each once."""
    named = [list(one) if isinstance(one, dict) else [key] for key, values in file.axes.items() for one in values]
    return list(dict.fromkeys(chain(*named, *file.include)))


def chosen(file: GridFile) -> list[tuple[str, Any]]:
    """All pairs of a setting and a value under `axes` and `include`. Lists and mappings are taken apart."""
    sides = chain(file.axes.items(), *(entry.items() for entry in file.include))
    each = [(key, one) for key, values in sides for one in (values if isinstance(values, list) else [values])]
    return [pair for key, one in each for pair in (one.items() if isinstance(one, dict) else [(key, one)])]


@cache
def check_key(key: str) -> None:
    """Raises UsageError for a setting that does not exist or that a grid may not set. One of trainings is `train.X`."""
    kind: type[BaseModel] = TrainConfig if key.startswith(TRAIN) else RunConfig
    name = key.removeprefix(TRAIN)
    if name not in kind.model_fields:
        prefix = TRAIN if key.startswith(TRAIN) else ""
        hint = nearest(name, kind.model_fields).replace("`", f"`{prefix}", 1)
        if not prefix and name in TrainConfig.model_fields:
            hint = f" Did you mean `{TRAIN}{name}`?"
        elif not prefix:
            hint += f" An argument of vLLM goes into `engine_args`, as in `engine_args: {name}=VALUE`."
        raise UsageError(f"unknown setting `{key}` in the grid.{hint}")
    if why := settings_of(kind)[name].not_in_sweeps:
        raise UsageError(f"`{key}` cannot be set in a grid: {why}; leave it out.")


def check_value(key: str, value: Any) -> Any:
    """The value as the settings hold it, as one of JSON's types. Raises UsageError where it is not allowed."""
    check_key(key)
    kind: type[BaseModel] = TrainConfig if key.startswith(TRAIN) else RunConfig
    name = key.removeprefix(TRAIN)
    try:
        settings = load_config(None, {name: value}, kind)
        if name == "task" and value is not None:
            check_name(str(value))
    except UsageError as error:
        raise UsageError(f"`{key}` in the grid: {error}") from None
    return settings.model_dump(mode="json", include={name})[name]
