"""Makes the reports of a sweep by handing its runs to `scale-report`.

Every task has a report of its own, and so has every value of the settings that the user names by `--by`. A run may have
drawn more samples than a report should show. `scale-report` then cuts it, as in `FOLDER@8x4@100`.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.records.errors import UsageError, nearest
from scaling.records.files import MODULE
from scaling.records.journal import load_run
from scaling.records.names import SUMMARY_ENDING, called
from scaling.records.settings import Tag, run_names
from sweeps.grid import GridFile
from sweeps.labels import Words, axes_of, value_of, varied
from sweeps.plan import Extent, Job, Plan, covers, extent_of
from sweeps.points import SIZE, Point
from sweeps.results import TABLE, serving

_OF_QUESTIONS = run_names(Tag.QUESTIONS)  # settings that decide which questions are asked
_SEEDS = ("seed", "train.seed")
_AT_ONCE = 200  # summaries that one process writes, so that its command line is not too long
_NO_NAMES = (
    *run_names(Tag.NAMED, Tag.QUESTIONS),
    *SIZE,
    *_SEEDS,
)  # settings that are left out of a run's name in a report


def reports(plan: Plan, held: Mapping[str, Sequence[Extent]], root: Path, *, by: Sequence[str]) -> dict[str, list[str]]:
    """Groups the runs of a sweep into reports.

    Args:
        plan: says which runs serve points.
        held: the extents of each run whose samples can be read, by id of the job.
        root: the sweep's folder.
        by: settings of which every value has its own report.

    Returns:
        The run arguments of `scale-report`, NAME=FOLDER@NxM, by the report's name.

    Raises:
        UsageError: a setting of `by` is not varied, or no run is done.
    """
    keys = varied(plan.points)
    for key in by:
        if key not in keys or key in SIZE:
            raise UsageError(f"`--by` {key} is no axis of runs here ({', '.join(keys)}).{nearest(key, keys)}")
    apart = [key for key in dict.fromkeys([*_OF_QUESTIONS, *by]) if key in keys]
    words = Words(plan.points)
    naming = _naming(plan, words, apart)
    first: dict[str, Point] = {}
    for point in plan.points:
        first.setdefault(plan.serves[point.id], point)
    groups: dict[str, list[_ReportedRun]] = {}
    for job in serving(plan):
        for extent in held.get(job.id, ()):
            name = words.label(first[job.id], apart) or plan.file.name
            settings = words.label(first[job.id], naming)
            groups.setdefault(name, []).append(_ReportedRun(job, extent, _title(job, extent, root), settings))
    if not groups:
        raise UsageError("no run of this sweep is done yet: `scale-sweep run` goes on with it")
    return {
        report: [f"{name}={run.argument(root)}" for name, run in zip(_names(runs), runs, strict=True)]
        for report, runs in groups.items()
    }


def _naming(plan: Plan, words: Words, apart: Sequence[str]) -> list[str]:
    """The settings that a method's name must show, as points of one name, number of paths and report differ in them.

    Args:
        plan: of the sweep.
        words: write the values.
        apart: settings of which every value has its own report.
    """
    known = [(words.label(point, apart), called(point.run), point.run["latent_paths"]) for point in plan.points]
    names: list[tuple[Any, ...]] = list(known)
    naming = []
    for key in axes_of(plan.file, plan.points):
        if key in (*_NO_NAMES, *apart):
            continue
        longer = [(*name, words.cell(point, key)) for name, point in zip(names, plan.points, strict=True)]
        if len(set(longer)) > len(set(names)):
            names = longer
            naming.append(key)
    return naming


@dataclass(frozen=True)
class _ReportedRun:
    """One extent of a run, as a report shows it.

    Attributes:
        job: the run.
        extent: the limit of questions, N and M that are shown.
        title: of the method, as the papers call it.
        settings: the varied settings, which distinguish the run from others of its method.
    """

    job: Job
    extent: Extent
    title: str
    settings: str

    @property
    def name(self) -> tuple[str, str]:
        """The name that all seeds of one method share."""
        return self.title, self.settings

    def argument(self, root: Path) -> str:
        """The argument by which `scale-report` reads the run, cut to this extent."""
        limit, paths, samples = self.extent
        return f"{root / self.job.folder}@{paths}x{samples}" + ("" if limit is None else f"@{limit}")


def _title(job: Job, extent: Extent, root: Path) -> str:
    """What the papers call the run's method at this extent. The equals sign is replaced, as it ends names in arguments."""
    _, paths, samples = extent
    try:
        run = load_run(root / job.folder)
    except UsageError:  # not drawn yet, or damaged: `scale-report` will say so
        run = {"config": job.settings, "environment": {}}
    return called({**run["config"], "latent_paths": paths, "samples": samples}, run["environment"]).replace("=", "-")


def _names(runs: Sequence[_ReportedRun]) -> list[str]:
    """The name of each run in its report.

    The size N x M is part of the name in two cases: where a run is shown at several sizes, and where runs of one name differ
    in size, as seeds do while a sweep grows. `scale-report` takes runs of one name for seeds of one method, and those must
    be of one size.
    """
    extents = Counter(run.job.id for run in runs)
    sizes: dict[tuple[str, str], set[tuple[int, int]]] = {}
    for run in runs:
        sizes.setdefault(run.name, set()).add(run.extent[1:])
    names = []
    for run in runs:
        shows_size = extents[run.job.id] > 1 or len(sizes[run.name]) > 1
        size = f"{run.extent[1]} x {run.extent[2]}" if shows_size else ""
        details = ", ".join(filter(None, (size, run.settings)))
        names.append(f"{run.title} ({details})" if details else run.title)
    return names


def finished_points(plan: Plan, held: Mapping[str, Sequence[Extent]], root: Path) -> dict[str, str]:
    """Every point whose samples were drawn, as an argument of `scale-report`, NAME=FOLDER@NxM@QUESTIONS.

    The name is the one that the point's method has in a report of this sweep.

    Args:
        plan, held, root: as of `reports`.

    Returns:
        The arguments by the point's id.
    """
    words, jobs = Words(plan.points), {job.id: job for job in serving(plan)}
    apart = [key for key in _OF_QUESTIONS if key in varied(plan.points)]
    naming = _naming(plan, words, apart)
    groups: dict[str, dict[str, _ReportedRun]] = {}
    for point in plan.points:
        job, extent = jobs[plan.serves[point.id]], extent_of(point)
        if covers(held.get(job.id, ()), [extent]):
            run = _ReportedRun(job, extent, _title(job, extent, root), words.label(point, naming))
            groups.setdefault(words.label(point, apart), {})[point.id] = run
    return {
        point: f"{name}={run.argument(root)}"
        for group in groups.values()
        for name, (point, run) in zip(_names(list(group.values())), group.items(), strict=True)
    }


def write_summaries(points: Mapping[str, str], folder: Path) -> None:
    """Has `analysis.summaries` write the summaries of points that have none in the folder yet.

    Args:
        points: arguments of `scale-report` by the id of their point, from `finished_points`.
        folder: of summaries.

    Raises:
        UsageError: one could not be written.
    """
    known = summarised(folder)
    new = [f"{point}={argument}" for point, argument in points.items() if point not in known]
    for start in range(0, len(new), _AT_ONCE):
        command = [*MODULE, "analysis.summaries", *new[start : start + _AT_ONCE], "--out", str(folder)]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
            raise UsageError(f"summaries in {folder} could not be written; the reason stands above")


def summarised(folder: Path) -> set[str]:
    """Ids of the points that have a summary in the folder."""
    found = folder.rglob(f"*{SUMMARY_ENDING}")
    return {path.name.removesuffix(SUMMARY_ENDING).rpartition("-")[2] for path in found}


def report_options(file: GridFile) -> list[str]:
    """The options of `scale-report` that a grid file asks for."""
    return [] if file.margin is None else ["--margin", f"{file.margin:g}"]


def write_reports(groups: dict[str, list[str]], root: Path, options: Sequence[str]) -> dict[str, Path]:
    """Runs `scale-report` for each report.

    Args:
        groups: the run arguments by the report's name, from `reports`.
        root: the sweep's folder.
        options: further options of `scale-report`.

    Returns:
        The pages, report.html, by the report's name.

    Raises:
        UsageError: `scale-report` has ended with an error.
    """
    pages = {}
    for name, runs in groups.items():
        folder = root / "report" / name.replace("/", "-").replace(", ", "-").replace(" ", "-")
        command = [*MODULE, "analysis", *runs, "--out", str(folder), *options]
        if subprocess.run(command).returncode:
            raise UsageError(f"`scale-report` made no report of {name}; the reason stands above")
        pages[name] = folder / "report.html"
    return pages


def draw_axes(plan: Plan, root: Path) -> list[Path]:
    """Draws accuracy against every varied setting whose values are numbers. Returns the paths of the figures.

    Raises UsageError where they cannot be drawn.
    """
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
    """Whether there are several values, and all of them are numbers. None does not count."""
    set_values = [value for value in values if value is not None]
    return all(isinstance(value, int | float) for value in set_values) and len(set(set_values)) > 1
