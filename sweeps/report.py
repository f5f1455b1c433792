"""Hands the runs of a sweep to `scale-report`, a report for every task and for every value of an axis that is asked for."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.records.errors import UsageError, nearest
from scaling.records.files import MODULE
from scaling.records.journal import QUESTIONS, RUN, SAMPLES, SUMMARY, THOUGHTS
from scaling.records.names import called
from sweeps.labels import Words, axes_of, value_of, varied
from sweeps.plan import Extent, Job, Plan
from sweeps.points import SIZE, Point
from sweeps.results import TABLE, serving

VIEWS = "views"
_OF_QUESTIONS = ("task", "data", "split", "difficulty")  # runs of other questions have reports of their own
_SEEDS = ("seed", "train.seed")
_NO_NAMES = ("method", "latent_paths", "samples", "limit", *_SEEDS, "control", "shots", *_OF_QUESTIONS)


def reports(plan: Plan, held: Mapping[str, Sequence[Extent]], root: Path, *, by: Sequence[str]) -> dict[str, list[str]]:
    """The arguments of `scale-report` for each report, by its name. held: what can be read, by id of the job. by: settings
    of which every value has its own report.

    Raises UsageError for a setting that is not varied, and where no run is done.
    """
    keys = varied(plan.points)
    for key in by:
        if key not in keys or key in SIZE:
            raise UsageError(f"`--by` {key} is no axis of runs here ({', '.join(keys)}).{nearest(key, keys)}")
    apart = [key for key in dict.fromkeys([*_OF_QUESTIONS, *by]) if key in keys]
    words = Words(plan.points)
    telling = [key for key in axes_of(plan.file, plan.points) if key not in (*_NO_NAMES, *by)]
    first: dict[str, Point] = {}
    for point in plan.points:
        first.setdefault(plan.serves[point.id], point)
    shown: dict[str, list[_Shown]] = {}
    for job in serving(plan):
        if job.id in held:
            point = first[job.id]
            name = words.label(point, apart) or plan.file.name
            told = words.label(point, telling)
            shown.setdefault(name, []).extend(_Shown(job, box, _title(job, box, root), told) for box in held[job.id])
    groups = {name: [f"{title}={one.folder(root)}" for title, one in _titled(own)] for name, own in shown.items()}
    if not groups:
        raise UsageError("no run of this sweep is done yet: `scale-sweep run` goes on with it")
    return groups


@dataclass(frozen=True)
class _Shown:
    """A box of a run as a report shows it. title: the method's, as the papers call it. told: what tells the run from others
    of its method."""

    job: Job
    box: Extent
    title: str
    told: str

    @property
    def name(self) -> tuple[str, str]:
        """What seeds of one method share."""
        return self.title, self.told

    def folder(self, root: Path) -> Path:
        """The run's, or that of a view where the run holds more."""
        own = root / self.job.folder
        return own if _is_all(own, self.box) else _view(self.job, self.box, root)


def _title(job: Job, box: Extent, root: Path) -> str:
    _, paths, samples = box
    config, environment = _described(root / job.folder) or (job.settings, {})
    return called({**config, "latent_paths": paths, "samples": samples}, environment).replace("=", "-")


def _titled(shown: Sequence[_Shown]) -> list[tuple[str, _Shown]]:
    """Each box with its name in the report. Its size stands in the name where a run has several boxes, and where boxes of
    one name differ in it, as those of seeds do while a sweep grows: of different sizes they are no seeds of one method."""
    several = Counter(one.job.id for one in shown)
    sizes: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for one in shown:
        sizes.setdefault(one.name, set()).add(one.box[1:])
    titled = []
    for one in shown:
        base, told = one.name
        sized = several[one.job.id] > 1 or len(sizes[one.name]) > 1
        extra = [*([f"{one.box[1]} x {one.box[2]}"] if sized else []), *([told] if told else [])]
        titled.append((f"{base} ({', '.join(extra)})" if extra else base, one))
    return titled


def _described(folder: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Config and environment of a run, None where they cannot be read, which is left for the report to say."""
    try:
        run = json.loads((folder / RUN).read_bytes())
        return dict(run["config"]), dict(run["environment"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _is_all(folder: Path, box: Extent) -> bool:
    """Whether a run directory shows this box, and no more. One that cannot be read is left for the report to refuse."""
    config = (_described(folder) or ({}, {}))[0]
    try:
        return (config["limit"], config["latent_paths"] or 1, config["samples"]) == box
    except KeyError:
        return True


def _view(job: Job, box: Extent, root: Path) -> Path:
    """A run directory that shows one box of another one."""
    source = root / job.folder
    limit, paths, samples = box
    view = root / VIEWS / f"{source.name}-{paths}x{samples}"
    run = json.loads((source / RUN).read_bytes())  # `_is_all` could read it
    run["config"] |= {"latent_paths": paths, "samples": samples, "limit": limit}
    view.mkdir(parents=True, exist_ok=True)
    (view / RUN).write_text(json.dumps(run, indent=2) + "\n")
    asked = (source / QUESTIONS).read_bytes().splitlines(keepends=True) if (source / QUESTIONS).is_file() else []
    (view / QUESTIONS).write_bytes(b"".join(asked[:limit]))
    for name in (SAMPLES, THOUGHTS, SUMMARY):
        link = view / name
        link.unlink(missing_ok=True)
        if (source / name).exists():
            link.symlink_to(os.path.relpath(source / name, view))
    return view


def write_reports(groups: dict[str, list[str]], root: Path, options: Sequence[str]) -> dict[str, Path]:
    """Runs `scale-report` for each group; returns the pages. Raises UsageError where one refuses."""
    pages = {}
    for name, runs in groups.items():
        folder = root / "report" / name.replace("/", "-").replace(", ", "-").replace(" ", "-")
        command = [*MODULE, "analysis", *runs, "--out", str(folder), *options]
        if subprocess.run(command).returncode:
            raise UsageError(f"`scale-report` made no report of {name}; the reason stands above")
        pages[name] = folder / "report.html"
    return pages


def draw_axes(plan: Plan, root: Path) -> list[Path]:
    """Draws accuracy against every setting of numbers that is varied; returns the figures."""
    axes = [key for key in axes_of(plan.file, plan.points) if key not in _SEEDS]
    across = [key for key in axes if _is_numbers([value_of(point, key) for point in plan.points])]
    if not across:
        return []
    folder = root / "report" / "axes"
    given = [text for key in axes for text in ("--across" if key in across else "--apart", key)]
    command = [*MODULE, "analysis.points", str(root / TABLE), *given, "--out", str(folder)]
    if subprocess.run(command).returncode:
        raise UsageError("the figures of the axes could not be drawn; the reason stands above")
    return [path for key in across if (path := folder / f"accuracy-{key}.svg").is_file()]


def _is_numbers(values: Iterable[Any]) -> bool:
    """Whether there are several values, and all are numbers."""
    given = [value for value in values if value is not None]
    return all(isinstance(value, int | float) for value in given) and len(set(given)) > 1
