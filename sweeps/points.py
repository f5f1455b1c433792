"""From a grid to its points: every combination, with what each method has no use for left out. Knows no jobs and no disk.

A point is a run's settings and, where its thinker or adapter is trained for it, the training's. Its id is a hash of both
without what is at its default, so the same point has the same id in every file, and an axis that grows keeps its points.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any

from scaling.config import RunConfig, idle_options
from scaling.errors import UsageError
from scaling.training.config import FREE as TRAIN_FREE
from scaling.training.config import OF_LORA, OF_THOUGHTS, TrainConfig
from sweeps.grid import TRAIN, GridFile, check_value

Settings = dict[str, Any]

# of a run: change no result, so no part of an id
FREE = ("device", "batch_size", "max_batch_tokens", "assistant_device", "base_url", "engine_args")
SIZE = ("limit", "latent_paths", "samples")  # how much of a run a point needs
INHERITED = ("task", "data", "difficulty", "backbone", "assistant", "soft_tokens", "dtype", "device")  # by trainings
_NO_PART = frozenset((*FREE, *SIZE))
_ALWAYS = ("method", "latent_paths", "samples")  # said even at their default
_CONTRASTIVE = ("contrastive", "contrastive_weight", "contrastive_temperature")
_TRAINED_PATHS = TrainConfig.model_fields["latent_paths"].default
_PATHS, _SAMPLES = 8, RunConfig.model_fields["samples"].default


@dataclass(frozen=True, slots=True)
class Point:
    """run: settings of `scale-run`. train: those of `scale-train`, None where nothing is trained for it. group: the same for
    points that differ in size alone, in questions, N or M. training: the same for points of one checkpoint, or None."""

    id: str
    run: Settings
    train: Settings | None
    group: str
    training: str | None


def points_of(file: GridFile) -> list[Point]:
    """All points in the order of the file, each once. Raises UsageError for a setting or value that is not allowed."""
    maker = _Maker(file)
    found: dict[str, Point] = {}
    for run, train in maker.combinations():
        point = maker.point(run, train)
        found.setdefault(point.id, point)
    if not found:
        raise UsageError(f"the grid {file.name} has no points: every combination is excluded.")
    return list(found.values())


_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def hashed(value: Any) -> str:
    """12 hex digits over a value of JSON's types."""
    return _digest(_canonical(value))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


class _Maker:
    """Makes the points of one file. Every value is checked once, however many points have it."""

    def __init__(self, file: GridFile) -> None:
        self._file = file
        self._checked: dict[tuple[str, str], Any] = {}
        self._trainings: dict[tuple[Any, ...], tuple[Settings, str]] = {}
        fixed = {**file.run, **{f"{TRAIN}{key}": value for key, value in (file.train or {}).items()}}
        self._fixed = self._check(fixed)
        self._trains = file.train is not None or any(key.startswith(TRAIN) for key in file.axes)
        self._rules = [
            {key: [self._one(key, value) for value in _listed(wanted)] for key, wanted in rule.items()}
            for rule in file.exclude
        ]
        self._defaults = {key: field.default for key, field in RunConfig.model_fields.items()}
        self._defaults |= {f"{TRAIN}{key}": field.default for key, field in TrainConfig.model_fields.items()}

    def combinations(self) -> Iterator[tuple[Settings, Settings]]:
        """Settings of the run and of the training of every point, before idle ones are left out."""
        grids: list[Mapping[str, Sequence[Any]]] = (
            [self._file.axes] if self._file.axes or not self._file.include else []
        )
        grids += [{key: _listed(value) for key, value in entry.items()} for entry in self._file.include]
        for run, train in chain.from_iterable(map(self._expand, grids)):
            if not self._rules or not any(self._matches(run, train, rule) for rule in self._rules):
                yield run, train

    def _expand(self, axes: Mapping[str, Sequence[Any]]) -> Iterator[tuple[Settings, Settings]]:
        sides = [
            [_apart(self._check(value if isinstance(value, dict) else {key: value})) for value in values]
            for key, values in axes.items()
        ]
        fixed = _apart(self._fixed)
        for chosen in product(*sides):
            run, train = dict(fixed[0]), fixed[1]
            for own, its in chosen:
                run.update(own)
                train = {**train, **its} if its else train
            yield run, train

    def _check(self, settings: Mapping[str, Any]) -> Settings:
        return {key: self._one(key, value) for key, value in settings.items()}

    def _one(self, key: str, value: Any) -> Any:
        known = (key, repr(value))
        if known not in self._checked:
            self._checked[known] = check_value(key, value)
        return self._checked[known]

    def _matches(self, run: Settings, train: Settings, rule: Mapping[str, Sequence[Any]]) -> bool:
        settings = run | {f"{TRAIN}{key}": value for key, value in train.items()}
        return all(settings.get(key, self._defaults[key]) in wanted for key, wanted in rule.items())

    def point(self, settings: Settings, train_settings: Settings) -> Point:
        method = settings.get("method") or "softcot++"
        idle = idle_options(method)
        run = _sized({key: value for key, value in settings.items() if key not in idle}, method)
        train, training = self._training(train_settings, run, method)
        if train is not None and method == "softcot++":
            _refuse_too_many(run, train)
        kept = {key: value for key, value in run.items() if key in _ALWAYS or value != self._defaults[key]}
        _place(kept)
        group = hashed([{key: value for key, value in kept.items() if key not in _NO_PART}, training])
        size = f"{kept.get('limit')}x{kept['latent_paths']}x{kept['samples']}"
        return Point(_digest(f"{group}/{size}"), kept, train, group, training)

    def _training(self, settings: Settings, run: Settings, method: str) -> tuple[Settings | None, str | None]:
        soft = method.startswith("softcot")
        if not self._trains or not (soft or method == "lora") or run.get("thinker" if soft else "adapter"):
            return None, None
        known = (method, *map(run.get, INHERITED), *settings.items())
        if known not in self._trainings:
            train = self._trained({key: run[key] for key in INHERITED if run.get(key) is not None} | settings, method)
            decides = {key: value for key, value in train.items() if key not in TRAIN_FREE}
            self._trainings[known] = (train, hashed(decides))
        return self._trainings[known]

    def _trained(self, given: Settings, method: str) -> Settings:
        """Settings of a training without those that its method has no use for, and those at their default."""
        idle = OF_THOUGHTS if method == "lora" else OF_LORA
        if method not in ("lora", "softcot++"):  # one path, around which others are drawn: nothing to contrast
            idle, given = (*idle, *_CONTRASTIVE), given | {"latent_paths": 1}
        elif given.get("contrastive") == "none":
            idle = (*idle, "contrastive_weight", "contrastive_temperature")
        found = {key: value for key, value in given.items() if key not in idle}
        found |= {"method": "lora"} if method == "lora" else {}
        found = {key: value for key, value in found.items() if value != self._defaults[f"{TRAIN}{key}"]}
        _place(found)
        return found


def _apart(settings: Settings) -> tuple[Settings, Settings]:
    """Those of the run, and those of the training without their prefix."""
    train = {key[len(TRAIN) :]: value for key, value in settings.items() if key.startswith(TRAIN)}
    return {key: value for key, value in settings.items() if not key.startswith(TRAIN)}, train


def _sized(run: Settings, method: str) -> Settings:
    """N and M in numbers: one path where the method has one, one sample where decoding is greedy, as all would be equal."""
    several = "latent_paths" not in idle_options(method)
    greedy = run.get("temperature") == 0
    run["method"] = method
    run["latent_paths"] = (run.get("latent_paths") or _PATHS) if several else 1
    run["samples"] = 1 if greedy else run.get("samples") or _SAMPLES
    return run


def _refuse_too_many(run: Settings, train: Settings) -> None:
    trained = train.get("latent_paths", _TRAINED_PATHS)
    if run["latent_paths"] > trained:
        raise UsageError(
            f"`latent_paths` {run['latent_paths']} needs a thinker with as many paths, and {trained} are trained: add "
            f"`latent_paths: {run['latent_paths']}` under `train`, or lower the axis."
        )


def _place(settings: Settings) -> None:
    """`{task}` in a data path is the task's name."""
    if settings.get("data"):
        data = str(settings["data"]).replace("{task}", str(settings.get("task") or "arithmetic"))
        settings["data"] = str(Path(data).expanduser())


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]


def varied(points: Sequence[Point]) -> list[str]:
    """The settings that are not the same in all points, those of the training with its prefix; in the order they come."""
    seen: dict[str, Any] = {}
    counts: dict[str, int] = {}
    differ: set[str] = set()
    for point in points:
        for key, value in flat(point).items():
            counts[key] = counts.get(key, 0) + 1
            if seen.setdefault(key, value) != value:
                differ.add(key)
    return [key for key in seen if key in differ or counts[key] < len(points)]


def axes_of(file: GridFile, points: Sequence[Point]) -> list[str]:
    """What the file combines: its axes and the settings of points beside the grid, where points differ in them."""
    named = [list(one) if isinstance(one, dict) else [key] for key, values in file.axes.items() for one in values]
    keys = list(dict.fromkeys(chain(*named, *file.include)))
    differ = set(varied(points))
    return [key for key in keys if key in differ]


def value_of(point: Point, key: str) -> Any:
    """The value of a setting, its default where none is given; None where the point has no use for it."""
    if key.startswith(TRAIN):
        name = key.removeprefix(TRAIN)
        return None if point.train is None else point.train.get(name, TrainConfig.model_fields[name].default)
    idle = key in idle_options(point.run["method"])
    return point.run.get(key, None if idle else RunConfig.model_fields[key].default)


def label(point: Point, keys: Sequence[str]) -> str:
    """What tells a point apart, where `keys` are varied."""
    told = []
    for key in keys:
        value = value_of(point, key)
        if key == "task":
            value = value or "arithmetic"
        if value is not None:
            short = value.rstrip("/").rsplit("/", 1)[-1] if isinstance(value, str) else value
            name = key.removeprefix(TRAIN)
            told.append(f"{short}" if key in ("method", "task") else f"{key if name in keys else name} {short}")
    return ", ".join(told)


def flat(point: Point) -> Settings:
    """A point's settings in one mapping, those of the training with its prefix."""
    return {**point.run, **{f"{TRAIN}{key}": value for key, value in (point.train or {}).items()}}
