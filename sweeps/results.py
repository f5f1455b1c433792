"""What the points of a sweep gave: figures of each one's own grid, read from the journal that serves it. Loads no torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scaling.journal import load, load_questions
from scaling.summary import summarise
from sweeps.files import write_whole
from sweeps.plan import Job, Plan
from sweeps.points import Point, value_of, varied

RESULTS, TABLE = "points.json", "points.csv"
FIGURES = (
    *("accuracy", "accuracy_low", "accuracy_high", "pass_at_1", "coverage", "no_answer", "mean_tokens"),
    *("num_questions", "num_completions"),
)


def results(plan: Plan, done: Iterable[str], root: Path) -> dict[str, dict[str, Any]]:
    """Figures by id of every point whose job is done. They are worked out once and kept in points.json."""
    path = root / RESULTS
    known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}
    finished = set(done)
    jobs = {job.id: job for job in plan.jobs}
    missing: dict[str, list[Point]] = {}
    for point in plan.points:
        if point.id not in known and plan.serves[point.id] in finished:
            missing.setdefault(plan.serves[point.id], []).append(point)
    for name, points in missing.items():
        known |= _figures(points, root / jobs[name].folder)
    if missing:
        write_whole(path, json.dumps(known, indent=1) + "\n")
    return {point.id: known[point.id] for point in plan.points if point.id in known}


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
        writer.writerow([point.id, *settings, *(own.get(key) for key in (*FIGURES, "run"))])
    write_whole(root / TABLE, lines.getvalue())
    return root / TABLE


def serving(plan: Plan) -> list[Job]:
    """The jobs whose folders hold what points are read from."""
    wanted = set(plan.serves.values())
    return [job for job in plan.jobs if job.id in wanted]
