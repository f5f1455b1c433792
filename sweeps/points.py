"""From a grid to its points: every combination, with what each method has no use for left out. Knows no jobs and no disk.

A point is a run's settings and, where its thinker or adapter is trained for it, the training's. Its id is a hash of both
without what is at its default, so the same point has the same id in every file, and an axis that grows keeps its points.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, product
from pathlib import Path
from typing import Any

from scaling.config import (
    DEFAULT_THINKER,
    OWN_LIMIT,
    UNTRAINED,
    RunConfig,
    default_thinker,
    filled_in,
    idle_options,
    is_generated,
)
from scaling.engines.engine_args import engine_changes
from scaling.methods.kinds import DEFAULT, Trait, kind_of
from scaling.records.errors import UsageError
from scaling.training.config import FREE as TRAIN_FREE
from scaling.training.config import OF_LORA, OF_THOUGHTS, TrainConfig
from sweeps.grid import TRAIN, GridFile, check_value, named

Settings = dict[str, Any]

# of a run: change no result, so no part of an id; of engine_args, those that `engine_changes` leaves out
FREE = ("device", "batch_size", "max_batch_tokens", "assistant_device", "base_url", "engine_args")
SIZE = ("limit", "latent_paths", "samples")  # how much of a run a point needs
INHERITED = ("task", "data", "difficulty", "backbone", "assistant", "soft_tokens", "dtype", "device")  # by trainings
_NO_PART = frozenset((*FREE, *SIZE))
_ALWAYS = ("method", "latent_paths", "samples")  # said even at their default
_CONTRASTIVE = ("contrastive", "contrastive_weight", "contrastive_temperature")
RUN_DEFAULTS = {key: field.default for key, field in RunConfig.model_fields.items()}
TRAIN_DEFAULTS = {key: field.default for key, field in TrainConfig.model_fields.items()}
_IDLE = object()
_CONFIG = "config.json"  # of a thinker
_PATHS = 8


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
    alike: dict[str, Settings] = {}
    for run, train in maker.combinations():
        point = maker.point(run, train)
        found.setdefault(point.id, point)
        _refuse_varied(FREE, alike.setdefault(point.group, point.run), point.run)
        if point.training:
            own = point.train or {}
            _refuse_varied(TRAIN_FREE, alike.setdefault(point.training, own), own, prefix=TRAIN)
    if not found:
        raise UsageError(f"the grid {file.name} has no points: every combination is excluded.")
    return list(found.values())


def _refuse_varied(keys: Sequence[str], one: Settings, other: Settings, *, prefix: str = "") -> None:
    """Raises UsageError where two points that have the same result are to be carried out in two ways."""
    for key in keys if one is not other else ():
        if one.get(key) != other.get(key):
            part = prefix.rstrip(".") or "run"
            raise UsageError(f"`{prefix}{key}` changes no result, so it is no axis: set it once under `{part}`.")


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
        self._groups: dict[tuple[str | None, str], str] = {}
        fixed = {**file.run, **{f"{TRAIN}{key}": value for key, value in (file.train or {}).items()}}
        self._fixed = self._check(fixed)
        self._trains = file.train is not None or any(key.startswith(TRAIN) for key in named(file))
        self._rules = [
            {key: [self._one(key, value) for value in _listed(wanted)] for key, wanted in rule.items()}
            for rule in file.exclude
        ]
        self._defaults = RUN_DEFAULTS | {f"{TRAIN}{key}": default for key, default in TRAIN_DEFAULTS.items()}
        paths = self._fixed.get(f"{TRAIN}latent_paths", _PATHS)
        self._told = {**self._defaults, "task": "arithmetic", "latent_paths": paths}  # as rules see what is not said

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
        return all(self._seen(run, train, key) in wanted for key, wanted in rule.items())

    def _seen(self, run: Settings, train: Settings, key: str) -> Any:
        """A setting as rules see it: its default where nothing is said, `_IDLE` where the point has no use for it."""
        method = run.get("method") or DEFAULT
        if key.startswith(TRAIN):
            name, value = key.removeprefix(TRAIN), train.get(key.removeprefix(TRAIN))
            trained = self._has_training(run, method)
            idle = not trained or name in idle_in_training(method, train.get("contrastive"))
        else:
            value = 1 if key == "samples" and run.get("temperature") == 0 else run.get(key)
            idle = key in idle_options(method) or (key == "task" and value is None and run.get("data") is not None)
        return _IDLE if idle else self._told[key] if value is None else value

    def point(self, settings: Settings, train_settings: Settings) -> Point:
        method = settings.get("method") or DEFAULT
        idle = idle_options(method)
        run = {key: value for key, value in settings.items() if key not in idle}
        trained = self._has_training(run, method)
        run = self._sized(run, method, train_settings.get("latent_paths", _PATHS) if trained else None)
        train, training = self._training(train_settings, run, method) if trained else (None, None)
        if kind_of(method).trains_paths:
            _refuse_too_many(run, train)
        kept = {key: value for key, value in run.items() if key in _ALWAYS or value != self._defaults[key]}
        _place(kept)
        group = self._group(kept, training)
        size = f"{kept.get('limit')}x{kept['latent_paths']}x{kept['samples']}"
        return Point(_digest(f"{group}/{size}"), kept, train, group, training)

    def _group(self, run: Settings, training: str | None) -> str:
        """A hash of what decides a result but for its size, the same whether a default is written down or not."""
        given = {key: value for key, value in run.items() if key not in SIZE}
        known = (training, repr(given))
        if known not in self._groups:
            settings = {**RUN_DEFAULTS, **given}
            settings |= filled_in(settings) | {"engine_args": engine_changes(settings["engine_args"])}
            decides = {key: value for key, value in settings.items() if key not in _NO_PART or key == "engine_args"}
            changed = {key: value for key, value in decides.items() if value != RUN_DEFAULTS[key]}
            self._groups[known] = hashed([changed, training])
        return self._groups[known]

    def _sized(self, run: Settings, method: str, trained: int | None) -> Settings:
        """N, M and questions in numbers: one path where the method has one, one sample where decoding is greedy, as all
        would be equal. trained: paths of the thinker that is trained for it, None where none is."""
        run["method"] = method
        if "latent_paths" in idle_options(method):
            run["latent_paths"] = 1
        elif not run.get("latent_paths"):
            drawn = kind_of(method).latent_paths or (_PATHS if kind_of(method).has(Trait.PERTURBED) else None)
            run["latent_paths"] = drawn or trained or _paths_of(run.get("thinker"))
        run["samples"] = 1 if run.get("temperature") == 0 else run.get("samples") or RUN_DEFAULTS["samples"]
        if run.get("limit") is None and is_generated(run.get("task"), run.get("data")):
            run["limit"] = OWN_LIMIT
        return run

    def _has_training(self, run: Settings, method: str) -> bool:
        """Whether the sweep trains what the run needs."""
        kind = kind_of(method)
        if not self._trains or not (kind.has(Trait.THINKER) or kind.has(Trait.ADAPTER)):
            return False
        return not run.get("thinker" if kind.has(Trait.THINKER) else "adapter")

    def _training(self, settings: Settings, run: Settings, method: str) -> tuple[Settings, str]:
        known = (method, run.get("overlap"), *map(run.get, INHERITED), *settings.items())
        if known not in self._trainings:
            train = self._trained({key: run[key] for key in INHERITED if run.get(key) is not None} | settings, method)
            _refuse_tested(dict(run), train)
            decides = TrainConfig(**train).resolved().model_dump(mode="json", exclude=set(TRAIN_FREE))
            changed = {key: value for key, value in decides.items() if value != TRAIN_DEFAULTS[key]}
            self._trainings[known] = (train, hashed(changed))
        return self._trainings[known]

    def _trained(self, given: Settings, method: str) -> Settings:
        """Settings of a training without those that its method has no use for, and those at their default."""
        if kind_of(method).has(Trait.THINKER) and not kind_of(method).trains_paths:  # others are drawn around it
            given = given | {"latent_paths": 1}
        idle = idle_in_training(method, given.get("contrastive"))
        found = {key: value for key, value in given.items() if key not in idle}
        found |= {"method": method} if kind_of(method).has(Trait.ADAPTER) else {}
        found = {key: value for key, value in found.items() if value != TRAIN_DEFAULTS[key]}
        _place(found)
        return found


def _apart(settings: Settings) -> tuple[Settings, Settings]:
    """Those of the run, and those of the training without their prefix."""
    train = {key[len(TRAIN) :]: value for key, value in settings.items() if key.startswith(TRAIN)}
    return {key: value for key, value in settings.items() if not key.startswith(TRAIN)}, train


def idle_in_training(method: str, contrastive: str | None) -> Sequence[str]:
    """Settings that the training for a method has no use for: with one path there is nothing to contrast."""
    if kind_of(method).has(Trait.ADAPTER):
        return OF_THOUGHTS
    if not kind_of(method).trains_paths:
        return (*OF_LORA, *_CONTRASTIVE)
    return (*OF_LORA, *_CONTRASTIVE[1:]) if contrastive == "none" else OF_LORA


def _paths_of(thinker: str | None) -> int:
    """Latent paths of a thinker that is given. Raises UsageError where it is not here."""
    if thinker in (None, DEFAULT_THINKER, UNTRAINED):
        return _PATHS
    try:
        return int(json.loads((Path(str(thinker)) / _CONFIG).read_bytes())["num_paths"])
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(
            f"how many latent paths the thinker {thinker} has cannot be read here: add `latent_paths` under `run`."
        ) from None


def _refuse_too_many(run: Settings, train: Settings | None) -> None:
    """Raises UsageError where a thinker has fewer paths than are asked for; one that is not here yet is not looked at."""
    if train is not None:
        has = train.get("latent_paths", TRAIN_DEFAULTS["latent_paths"])
        whose, todo = f"{has} are trained", f"add `latent_paths: {run['latent_paths']}` under `train`"
    else:
        models = (run.get(role, RUN_DEFAULTS[role]) for role in ("backbone", "assistant"))
        thinker = run.get("thinker") or default_thinker(*models)
        has = _paths_here(thinker)
        whose, todo = f"the thinker {thinker} has {has}", "train one with a part `train`"
    if has and run["latent_paths"] > has:
        raise UsageError(
            f"`latent_paths` {run['latent_paths']} needs a thinker with as many paths, and {whose}: {todo}, or lower the "
            f"axis."
        )


@cache
def _paths_here(thinker: str) -> int | None:
    """Latent paths of a thinker that is here; None for any other, and for an untrained one, which has what is asked."""
    there = thinker == DEFAULT_THINKER or (Path(thinker) / _CONFIG).is_file()
    return _paths_of(thinker) if there and thinker != UNTRAINED else None


def _refuse_tested(run: Settings, train: Settings) -> None:
    """Raises UsageError where a training would learn from the very file that the run is tested on, as a file has no splits,
    unless `overlap` says what is to become of what both have."""
    _place(run)
    data, tested = train.get("data"), run.get("data")
    if data and tested and run.get("overlap") in (None, "refuse") and _are_one_file(Path(data), Path(tested)):
        raise UsageError(
            f"`data` {data} is a file, which trainings would learn from and runs be tested on: give a folder with "
            f"train.jsonl and test.jsonl, or another file as `data` under `train`, or add `overlap: drop` under `run`, to "
            f"leave out of runs what was trained on."
        )


def _are_one_file(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and one.samefile(other)


def _place(settings: Settings) -> None:
    """`{task}` in a data path is the task's name."""
    if settings.get("data"):
        data = str(settings["data"]).replace("{task}", str(settings.get("task") or "arithmetic"))
        settings["data"] = str(Path(data).expanduser())


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
