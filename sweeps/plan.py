"""From points to jobs: what is trained once, which points one run serves, what is split. Reads questions, loads no models.

Points that differ in questions, N or M alone share a run directory: a sample has the same place and the same stream in a
large grid as in a small one. A job draws the boxes that no other box of its points holds, and so nothing twice.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scaling.config import RunConfig
from scaling.methods.kinds import Trait, kind_of
from scaling.records.errors import UsageError
from scaling.tasks.catalogue import load_task
from sweeps.grid import TRAIN, GridFile
from sweeps.labels import Words, axes_of
from sweeps.points import INHERITED, SIZE, Point, Settings, hashed

Extent = tuple[int | None, int, int]  # questions, None for all; latent paths; samples
_LOADED = ("backbone", "assistant", "dtype")
_CLASHES_WITH_NOTHING = ("seed", "backbone", "top_p", "top_k", "max_new_tokens", "dtype", "device", "split", "noise")
_TRAINED = "trained-for-it"  # stands for a checkpoint that is not there yet


@dataclass(frozen=True)
class Job:
    """A piece of work of one process. kind: train, run or merge. folder: below the sweep's own. needs: ids of jobs that
    come first. boxes: of a run, most questions last. part: questions from, below; None for all. models: what it loads.
    label: what tells it apart from others of its kind."""

    id: str
    kind: str
    settings: Settings
    folder: str
    needs: tuple[str, ...] = ()
    boxes: tuple[Extent, ...] = ()
    part: tuple[int, int] | None = None
    models: str = ""
    label: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Job:
        boxes = tuple((box[0], box[1], box[2]) for box in fields["boxes"])
        part = (fields["part"][0], fields["part"][1]) if fields["part"] else None
        return cls(**{**fields, "needs": tuple(fields["needs"]), "boxes": boxes, "part": part})


@dataclass(frozen=True, eq=False)
class Plan:
    """points, and the jobs that serve them, those that others need first. serves: id of the job at the id of its point."""

    file: GridFile
    points: list[Point]
    jobs: list[Job]
    serves: dict[str, str]


def plan_of(file: GridFile, points: Sequence[Point]) -> Plan:
    """Raises UsageError where settings of a point clash, or where its questions are wanted and cannot be read."""
    trainings: dict[str, Job] = {}
    groups: dict[str, list[Point]] = {}
    keys = [key for key in axes_of(file, points) if key not in SIZE]
    words = Words(points)
    for point in points:
        groups.setdefault(point.group, []).append(point)
        if point.training and point.training not in trainings:
            decides = [key for key in keys if key.startswith(TRAIN) or key in INHERITED]
            trainings[point.training] = _training(point, words.label(point, decides))
    checked: set[str] = set()
    counts = Counts()
    runs: list[Job] = []
    serves: dict[str, str] = {}
    for own in groups.values():
        whole = _run(own, checked, words.label(own[0], keys))
        runs += [whole] if file.shard is None else _sharded(whole, file.shard, counts)
        serves |= dict.fromkeys((point.id for point in own), whole.id)
    in_order = sorted(trainings.values(), key=_by_models) + sorted(runs, key=_by_models)
    return Plan(file, list(points), in_order, serves)


class Counts:
    """How many questions runs ask. Each file is read once."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def of(self, settings: Settings, limit: int | None) -> int:
        """Questions of the first `limit`, None for all. Raises UsageError where they cannot be read."""
        task, data, split, difficulty = (settings.get(key) for key in ("task", "data", "split", "difficulty"))
        key = json.dumps([task, data, split, difficulty, limit])
        if key not in self._known:
            named = {"split": split} if split else {}
            place = Path(data) if data else None
            found = load_task(task, data=place, limit=limit, difficulty=difficulty or 1, **named)
            self._known[key] = len(found.questions)
        return self._known[key]


def _by_models(job: Job) -> str:
    return job.models


def _training(point: Point, told: str) -> Job:
    settings = point.train or {}
    method = settings.get("method", "softcot++")
    name, folder = f"train-{point.training}", f"checkpoints/{method}-{point.training}"
    return Job(name, "train", settings, folder, models=_models(settings), label=told)


def _models(settings: Settings) -> str:
    return "|".join(str(settings.get(key) or RunConfig.model_fields[key].default) for key in _LOADED)


def _run(points: Sequence[Point], checked: set[str], told: str) -> Job:
    """The run that serves these points. checked: what clashes nowhere. told: what tells the run apart."""
    first = points[0]
    settings = {name: value for name, value in first.run.items() if name not in SIZE}
    key, data = first.group, settings.get("data")
    task = settings.get("task") or (Path(data).stem if data else "arithmetic")
    folder = f"runs/{kind_of(settings['method']).name}-{task}-{key}"
    needs = (f"train-{first.training}",) if first.training else ()
    boxes = largest(map(extent_of, points))
    whole = Job(f"run-{key}", "run", settings, folder, needs, boxes, models=_models(settings), label=told)
    for box in boxes:
        known = hashed([{key: value for key, value in settings.items() if key not in _CLASHES_WITH_NOTHING}, box])
        if known not in checked:
            config_of(whole, box, trained=_TRAINED if needs else None).resolved()
            checked.add(known)
    return whole


def _sharded(whole: Job, shard: int, counts: Counts) -> list[Job]:
    """The parts of a run, and last the job that merges them. A part's questions are in its name, so that parts of another
    size are other parts."""
    if whole.settings.get("overlap") == "drop":
        raise UsageError(
            "`overlap: drop` leaves out questions that are only known once a thinker is there, and `shard` counts them "
            "before: leave one of the two out of the grid."
        )
    key = whole.id.removeprefix("run-")
    starts = range(0, counts.of(whole.settings, max_limit(whole.boxes)), shard)
    shards = [
        replace(whole, id=f"{whole.id}.{span}", folder=f"shards/{key}/{span}", part=(start, start + shard))
        for start in starts
        for span in (f"{start}-{start + shard}",)
    ]
    return [*shards, replace(whole, kind="merge", needs=tuple(one.id for one in shards))]


def config_of(job: Job, box: Extent, *, trained: str | None) -> RunConfig:
    """The settings of one box of a run. trained: the checkpoint that was made for it, None where it needs none."""
    limit, paths, samples = box
    role = "adapter" if kind_of(job.settings["method"]).has(Trait.ADAPTER) else "thinker"
    own = {role: trained} if trained else {}
    return RunConfig(**{**job.settings, **own, "limit": limit, "latent_paths": paths, "samples": samples})


def extent_of(point: Point) -> Extent:
    """How much of its run a point needs."""
    return (point.run.get("limit"), point.run["latent_paths"], point.run["samples"])


def largest(boxes: Iterable[Extent]) -> tuple[Extent, ...]:
    """Those that no other holds, by rising number of questions: a run directory keeps the questions of the last."""
    front: list[Extent] = []
    for box in sorted(set(boxes), key=_size, reverse=True):
        if not any(holds(other, box) for other in front):
            front.append(box)
    return tuple(sorted(front, key=_size))


def holds(outer: Extent, inner: Extent) -> bool:
    """Whether every sample of `inner` is one of `outer`."""
    return all(a >= b for a, b in zip(_size(outer), _size(inner), strict=True))


def covers(drawn: Iterable[Extent], wanted: Iterable[Extent]) -> bool:
    """Whether every wanted box lies in one of those drawn."""
    drawn = list(drawn)
    return all(any(holds(old, new) for old in drawn) for new in wanted)


def _size(box: Extent) -> tuple[float, int, int]:
    return (math.inf if box[0] is None else box[0], box[1], box[2])


def max_limit(boxes: Iterable[Extent]) -> int | None:
    """Questions of the box with most of them, None for all."""
    most = max(_size(box)[0] for box in boxes)
    return None if most == math.inf else int(most)


def samples_of(boxes: Sequence[Extent], questions: int) -> int:
    """Completions of the union of the boxes, of a task with so many questions."""
    cells: dict[tuple[int, int], int] = {}
    for limit, paths, samples in boxes:
        asked = questions if limit is None else min(limit, questions)
        for path in range(paths):
            cells[path, samples] = max(cells.get((path, samples), 0), asked)
    return sum(_column(cells, path) for path in {path for path, _ in cells})


def _column(cells: dict[tuple[int, int], int], path: int) -> int:
    """Samples of one path: for each number of samples the questions that have at least so many."""
    own = sorted(((samples, asked) for (at, samples), asked in cells.items() if at == path), reverse=True)
    total, most, above = 0, 0, own[0][0]
    for samples, asked in own:
        total += most * (above - samples)
        most, above = max(most, asked), samples
    return total + most * above
