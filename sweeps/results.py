"""Computes the results of a sweep: accuracy and other figures of each point, from the samples of the run that serves it.

Figures are kept in points.json, because reading all journals again takes long, and are written to points.csv for users.
Loads no torch.
"""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from scaling.records.csv_cells import quoted
from scaling.records.errors import UsageError
from scaling.records.files import write_whole
from scaling.records.journal import QUESTIONS, SAMPLES, load, load_questions
from scaling.records.summary import summarise
from sweeps.labels import value_of, varied
from sweeps.plan import Extent, Job, Plan, covers, extent_of
from sweeps.points import Point

_MAY_LACK = ("accuracy_low", "accuracy_high")  # None for a single question, which gives no interval
RESULTS, TABLE = "points.json", "points.csv"
FIGURES = (
    *("accuracy", "accuracy_low", "accuracy_high", "pass_at_1", "coverage", "no_answer", "mean_tokens"),
    *("num_questions", "num_completions"),
)


def results(plan: Plan, held: Mapping[str, Sequence[Extent]], root: Path) -> dict[str, dict[str, Any]]:
    """Computes the figures of every point whose samples were drawn.

    They are taken from points.json where the journal has not changed since they were computed. A run that cannot be read is
    reported on stderr and left out.

    Args:
        plan: says which run serves a point.
        held: the extents of each run whose samples can be read, by id of the job.
        root: the sweep's folder.

    Returns:
        The figures by the point's id: those of FIGURES, and `run`, the name of the run's folder.
    """
    known = _read(root / RESULTS)
    figures: dict[str, dict[str, Any]] = {}
    missing: dict[str, list[Point]] = {}
    states = {job.id: _state(root / job.folder) for job in serving(plan) if job.id in held}
    for point in plan.points:
        name = plan.serves[point.id]
        if name not in held or not covers(held[name], [extent_of(point)]):
            continue
        if known.get(point.id, {}).get("journal") == states[name]:
            figures[point.id] = known[point.id]
        else:
            missing.setdefault(name, []).append(point)
    folders = {job.id: root / job.folder for job in plan.jobs}
    for name, points in missing.items():
        try:
            new = _figures(points, folders[name])
            figures |= {key: values | {"journal": states[name]} for key, values in new.items()}
        except (UsageError, OSError) as error:
            todo = f"delete {folders[name]}, and `scale-sweep run` makes it again"
            print(f"scale-sweep: {error}; {todo}", file=sys.stderr)
    if missing:
        with suppress(OSError):  # a folder that cannot be written costs only the time of computing them again
            write_whole(root / RESULTS, json.dumps(known | figures, indent=1) + "\n")
    return {
        point: {key: value for key, value in values.items() if key != "journal"} for point, values in figures.items()
    }


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """Reads points.json. Damaged entries are left out, as they can be computed again."""
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: entry for key, entry in known.items() if _is_whole(entry)} if isinstance(known, dict) else {}


def _is_whole(entry: Any) -> bool:
    """Whether an entry of points.json has all figures, each a number of at least 0, and names its run."""
    if not isinstance(entry, dict) or entry.keys() != {*FIGURES, "run", "journal"}:
        return False
    figures = [entry[key] for key in FIGURES if key not in _MAY_LACK or entry[key] is not None]
    names_its_run = isinstance(entry["run"], str) and isinstance(entry["journal"], str)
    return names_its_run and all(type(figure) in (int, float) and 0 <= figure < math.inf for figure in figures)


def _state(folder: Path) -> str:
    """A text that changes whenever the run's journal does; empty where there is none.

    It holds the time of the last change besides the length, as a journal that was judged again may keep its length.
    """
    journal = folder / SAMPLES
    if not journal.is_file():
        return ""
    status = journal.stat()
    return f"{status.st_size} bytes of {status.st_mtime_ns}"


def num_asked(folder: Path) -> int:
    """How many questions a run asks now. Those that only earlier sessions asked are not counted."""
    path = folder / QUESTIONS
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return sum(b'"current": false' not in line for line in lines)


def _figures(points: Sequence[Point], folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of points that one run serves, by id: each point has its own N, M and number of questions."""
    _, completions = load(folder)
    keyed = {completion.key: completion for completion in completions}
    asked = load_questions(folder)
    figures = {}
    for point in points:
        size = {"num_paths": point.run["latent_paths"], "num_samples": point.run["samples"]}
        questions: Any = asked[: point.run.get("limit")]
        summary = summarise(questions, keyed, **size, voter="flat")
        figures[point.id] = {key: summary[key] for key in FIGURES} | {"run": folder.name}
    return figures


def write_table(plan: Plan, figures: Mapping[str, Mapping[str, Any]], root: Path) -> Path:
    """Writes points.csv and returns its path.

    A point has one line, with the settings that vary and its figures. The figures are empty where it has none yet.
    """
    keys, lines = varied(plan.points), io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["point", *keys, *FIGURES, "run"])
    for point in plan.points:
        values, settings = figures.get(point.id, {}), [value_of(point, key) for key in keys]
        settings = [json.dumps(value) if isinstance(value, dict | list) else value for value in settings]
        cells = [point.id, *settings, *(values.get(key) for key in (*FIGURES, "run"))]
        writer.writerow([quoted(cell) for cell in cells])
    write_whole(root / TABLE, lines.getvalue())
    return root / TABLE


def serving(plan: Plan) -> list[Job]:
    """The runs from whose samples the points' figures are computed."""
    ids = set(plan.serves.values())
    return [job for job in plan.jobs if job.id in ids]
