"""Points in words: which settings tell them apart, what these are worth to a reader, and how they are shortened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scaling.config import idle_options
from sweeps.grid import TRAIN, GridFile, check_value, chosen, named
from sweeps.points import RUN_DEFAULTS, TRAIN_DEFAULTS, Point, Settings, idle_in_training


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
    differ = set(varied(points))
    return [key for key in named(file) if key in differ]


def value_of(point: Point, key: str) -> Any:
    """The value of a setting, its default where none is given; None where the point has no use for it."""
    method = point.run["method"]
    if key.startswith(TRAIN):
        name, train = key.removeprefix(TRAIN), point.train
        if train is None or name in idle_in_training(method, train.get("contrastive")):
            return None
        return train.get(name, TRAIN_DEFAULTS[name])
    value = point.run[key] if key in point.run else None if key in idle_options(method) else RUN_DEFAULTS[key]
    return "arithmetic" if key == "task" and value is None and not point.run.get("data") else value


class Words:
    """Settings of these points in words, as short as they can be without two values looking alike."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points
        self._short: dict[str, dict[str, str]] = {}
        self._values: dict[str, list[str]] = {}

    def of(self, key: str, value: Any) -> str:
        """A value of a setting; `-` where there is none."""
        if isinstance(value, dict):
            return " ".join(f"{name} {own}" for name, own in value.items())
        if not isinstance(value, str) or "/" not in value:
            return "-" if value is None else str(value)
        if key not in self._short:
            values = (value_of(point, key) for point in self._points)
            self._short[key] = _shortened({own for own in values if isinstance(own, str)})
        return self._short[key].get(value, value)

    def values(self, key: str) -> list[str]:
        """The values of a setting that points have, each once, in their order."""
        if key not in self._values:
            found: dict[Any, str] = {}
            for point in self._points:
                value = value_of(point, key)
                known = repr(value) if isinstance(value, dict | list) else value
                if value is not None and known not in found:
                    found[known] = self.of(key, value)
            self._values[key] = list(dict.fromkeys(found.values()))
        return self._values[key]

    def label(self, point: Point, keys: Sequence[str]) -> str:
        """What tells a point apart, where `keys` are varied."""
        told = []
        for key in keys:
            if (value := value_of(point, key)) is not None:
                name, said = key.removeprefix(TRAIN), self.of(key, value)
                told.append(said if key in ("method", "task") else f"{key if name in keys else name} {said}")
        return ", ".join(told)


def unmet(file: GridFile, words: Words) -> list[tuple[str, str]]:
    """Values that the file names and no point has, in words, of settings that some point has a use for. Paths of data and
    values that are left to the toolkit are passed over, as points have others in their place."""
    wanted: dict[str, dict[str, None]] = {}
    for key, value in chosen(file):
        if value is not None and key != "data":
            wanted.setdefault(key, {})[words.of(key, check_value(key, value))] = None
    left = []
    for key, values in wanted.items():
        had = words.values(key)
        left += [(key, value) for value in values if had and value not in had]
    return left


def _shortened(values: set[str]) -> dict[str, str]:
    """The last parts of paths, as many as tell them apart."""
    parts = {value: value.rstrip("/").split("/") for value in values}
    for number in range(1, max(map(len, parts.values()), default=1)):
        short = {value: "/".join(own[-number:]) for value, own in parts.items()}
        if len(set(short.values())) == len(values):
            return short
    return {value: value for value in values}


def flat(point: Point) -> Settings:
    """A point's settings in one mapping, those of the training with its prefix."""
    return {**point.run, **{f"{TRAIN}{key}": value for key, value in (point.train or {}).items()}}
