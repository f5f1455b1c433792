"""What the points of a sweep gave: figures of each one's own grid, read from the journal that serves it. Loads no torch."""

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

_MAY_LACK = ("accuracy_low", "accuracy_high")  # of one question there is no interval
RESULTS, TABLE = "points.json", "points.csv"
FIGURES = (
    *("accuracy", "accuracy_low", "accuracy_high", "pass_at_1", "coverage", "no_answer", "mean_tokens"),
    *("num_questions", "num_completions"),
)


def results(plan: Plan, held: Mapping[str, Sequence[Extent]], root: Path) -> dict[str, dict[str, Any]]:
    """Figures by id of every point that is drawn. held: what can be read, by id of the job. They are kept in points.json,
    and worked out anew where the journal is another one than before. What cannot be read is told, and left out."""
    known = _read(root / RESULTS)
    found: dict[str, dict[str, Any]] = {}
    missing: dict[str, list[Point]] = {}
    states = {job.id: _state(root / job.folder) for job in serving(plan) if job.id in held}
    for point in plan.points:
        name = plan.serves[point.id]
        if name not in held or not covers(held[name], [extent_of(point)]):
            continue
        if known.get(point.id, {}).get("journal") == states[name]:
            found[point.id] = known[point.id]
        else:
            missing.setdefault(name, []).append(point)
    folders = {job.id: root / job.folder for job in plan.jobs}
    for name, points in missing.items():
        try:
            found |= {key: own | {"journal": states[name]} for key, own in _figures(points, folders[name]).items()}
        except (UsageError, OSError) as error:
            todo = f"delete {folders[name]}, and `scale-sweep run` makes it again"
            print(f"scale-sweep: {error}; {todo}", file=sys.stderr)
    if missing:
        with suppress(OSError):  # it can be worked out again
            write_whole(root / RESULTS, json.dumps(known | found, indent=1) + "\n")
    return {point: {key: value for key, value in own.items() if key != "journal"} for point, own in found.items()}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """What was kept, but for what is damaged, as all of it can be worked out again."""
    try:
        known = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: own for key, own in known.items() if _is_whole(own)} if isinstance(known, dict) else {}


def _is_whole(own: Any) -> bool:
    """Whether a point has all figures, shares from 0 to 1 and counts, and says of which run they are."""
    if not isinstance(own, dict) or own.keys() != {*FIGURES, "run", "journal"}:
        return False
    figures = [own[key] for key in FIGURES if key not in _MAY_LACK or own[key] is not None]
    told = isinstance(own["run"], str) and isinstance(own["journal"], str)
    return told and all(type(one) in (int, float) and 0 <= one < math.inf for one in figures)


def _state(folder: Path) -> str:
    """Changes whenever the journal does: one that is judged anew may be as long as before."""
    journal = folder / SAMPLES
    if not journal.is_file():
        return ""
    found = journal.stat()
    return f"{found.st_size} bytes of {found.st_mtime_ns}"


def num_asked(folder: Path) -> int:
    """Questions of a run directory, those of earlier sessions left out."""
    path = folder / QUESTIONS
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return sum(b'"current": false' not in line for line in lines)


def _figures(points: Sequence[Point], folder: Path) -> dict[str, dict[str, Any]]:
    _, completions = load(folder)
    keyed = {completion.key: completion for completion in completions}
    asked = load_questions(folder)
    found = {}
    for point in points:
        size = {"num_paths": point.run["latent_paths"], "num_samples": point.run["samples"]}
        questions: Any = asked[: point.run.get("limit")]
        summary = summarise(questions, keyed, **size, voter="flat")
        found[point.id] = {key: summary[key] for key in FIGURES} | {"run": folder.name}
    return found


def write_table(plan: Plan, found: Mapping[str, Mapping[str, Any]], root: Path) -> Path:
    """points.csv: a line a point, its varied settings and its figures, empty where it has none yet."""
    keys, lines = varied(plan.points), io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(["point", *keys, *FIGURES, "run"])
    for point in plan.points:
        own, settings = found.get(point.id, {}), [value_of(point, key) for key in keys]
        cells = [point.id, *settings, *(own.get(key) for key in (*FIGURES, "run"))]
        writer.writerow([quoted(cell) for cell in cells])
    write_whole(root / TABLE, lines.getvalue())
    return root / TABLE


def serving(plan: Plan) -> list[Job]:
    """The jobs whose folders hold what points are read from."""
    wanted = set(plan.serves.values())
    return [job for job in plan.jobs if job.id in wanted]
