"""Names points for people: finds the settings in which points differ, and writes their values as short texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scaling.config import idle_options
from scaling.engines.kinds import KINDS as ENGINES
from scaling.records.names import DEFAULT_TASK
from sweeps.grid import TRAIN, GridFile, check_value, chosen, named
from sweeps.points import RUN_DEFAULTS, TRAIN_DEFAULTS, Point, Settings, idle_in_training

_DEFAULT, _NO_USE = "default", "-"  # the texts of a value that is not given, and of one that a point has no use for


def varied(points: Sequence[Point]) -> list[str]:
    """The settings that differ between points, in the order in which they appear; those of trainings have a prefix."""
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
    """The settings that the file names under `axes` or `include` and in which its points differ."""
    differ = set(varied(points))
    return [key for key in named(file) if key in differ]


def value_of(point: Point, key: str) -> Any:
    """The value of a setting, or its default where none is given. None where the point has no use for the setting."""
    method = point.run["method"]
    if key.startswith(TRAIN):
        name, train = key.removeprefix(TRAIN), point.train
        if train is None or name in idle_in_training(method, train.get("contrastive")):
            return None
        return train.get(name, TRAIN_DEFAULTS[name])
    value = point.run[key] if key in point.run else None if key in idle_options(method) else RUN_DEFAULTS[key]
    return DEFAULT_TASK if key == "task" and value is None and not point.run.get("data") else value


def _has_use(point: Point, key: str) -> bool:
    """Whether the point has a use for a setting that has no value, so that something else decides its default."""
    method = point.run["method"]
    if key.startswith(TRAIN):
        train = point.train
        return train is not None and key.removeprefix(TRAIN) not in idle_in_training(method, train.get("contrastive"))
    engine = ENGINES[point.run.get("engine", RUN_DEFAULTS["engine"])]
    unused = key in idle_options(method) or engine.does_not_take(key) or (key == "task" and point.run.get("data"))
    return not unused


class Words:
    """Writes the settings of these points as texts. Paths are as short as they can be while all of them differ."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._points = points
        self._short: dict[str, dict[str, str]] = {}
        self._values: dict[str, list[str]] = {}

    def of(self, key: str, value: Any) -> str:
        """The value of a setting as a text; `default` for None."""
        if isinstance(value, dict):
            return " ".join(f"{name} {entry}" for name, entry in value.items())
        if not isinstance(value, str) or "/" not in value:
            return _DEFAULT if value is None else str(value)
        if key not in self._short:
            values = (value_of(point, key) for point in self._points)
            self._short[key] = _shortened({value for value in values if isinstance(value, str)})
        return self._short[key].get(value, value)

    def cell(self, point: Point, key: str) -> str:
        """The value that a point has of a setting, as a text; `-` where it has no use for it."""
        value = value_of(point, key)
        return self.of(key, value) if value is not None or _has_use(point, key) else _NO_USE

    def values(self, key: str) -> list[str]:
        """The texts of all values that a setting has in the points, each once, in the order of the points."""
        if key not in self._values:
            texts: dict[Any, str] = {}
            for point in self._points:
                value = value_of(point, key)
                hashable = repr(value) if isinstance(value, dict | list) else value
                if hashable not in texts and (value is not None or _has_use(point, key)):
                    texts[hashable] = self.of(key, value)
            self._values[key] = list(dict.fromkeys(texts.values()))
        return self._values[key]

    def label(self, point: Point, keys: Sequence[str]) -> str:
        """The values that a point has of the settings `keys`, by comma, each with the name of its setting."""
        parts = []
        for key in keys:
            value = value_of(point, key)
            if value is not None or _has_use(point, key):
                name, text = key.removeprefix(TRAIN), self.of(key, value)
                parts.append(text if key in ("method", "task") else f"{key if name in keys else name} {text}")
        return ", ".join(parts)


def telling(points: Sequence[Point], keys: Sequence[str]) -> list[str]:
    """Those of the settings `keys` that say something new of these points.

    Where every task has a temperature of its own, say, the temperature follows from the task and is left out.
    """
    words = Words(points)
    cells = {key: [words.cell(point, key) for point in points] for key in keys}

    def follows(key: str, earlier: str) -> bool:
        # a point that has no use for a setting does not show it anyhow
        pairs = {pair for pair in zip(cells[earlier], cells[key], strict=True) if pair[1] != _NO_USE}
        return len(pairs) == len({one for one, _ in pairs})

    kept: list[str] = []
    for key in keys:
        if not any(follows(key, earlier) for earlier in kept):
            kept.append(key)
    return kept


def unmet(file: GridFile, words: Words) -> list[tuple[str, str]]:
    """The values that the file asks for and no point has, as pairs of a setting and the value's text.

    Settings that no point uses are left out. So are paths of data and values of null, because points hold other values in
    their place.
    """
    wanted: dict[str, dict[str, None]] = {}
    for key, value in chosen(file):
        if value is not None and key != "data":
            wanted.setdefault(key, {})[words.of(key, check_value(key, value))] = None
    missing = []
    for key, values in wanted.items():
        present = words.values(key)
        missing += [(key, value) for value in values if present and value not in present]
    return missing


def _shortened(values: set[str]) -> dict[str, str]:
    """For each path its last parts, as few as are needed for all paths to differ."""
    parts = {value: value.rstrip("/").split("/") for value in values}
    for number in range(1, max(map(len, parts.values()), default=1)):
        short = {value: "/".join(names[-number:]) for value, names in parts.items()}
        if len(set(short.values())) == len(values):
            return short
    return {value: value for value in values}


def flat(point: Point) -> Settings:
    """All settings of a point in one mapping; those of the training have their prefix."""
    return {**point.run, **{f"{TRAIN}{key}": value for key, value in (point.train or {}).items()}}
