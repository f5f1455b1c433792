"""Keeps a sweep on disk: its grid as it was run, its ledger and its results. This is the story of `scale-sweep`.

SWEEP/grid.json      the grid, read and changed as asked          SWEEP/runs/          run directories
      ledger.sqlite  jobs: pending, running, done, failed, why          checkpoints/   what was trained
      points.csv     a line a point                                     logs/          what workers printed
"""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scaling.records.errors import UsageError
from scaling.records.files import write_whole
from scaling.records.journal import RUN, SAMPLES
from scaling.records.names import DEFAULT_TASK
from scaling.tasks.own import label as task_label
from sweeps.cost_estimate import PROBES, RATES, TRAINING_RATES, Expected, expected, rates_of
from sweeps.grid import GridFile, read_grid
from sweeps.ledger import DONE, LEDGER, Entry, Ledger
from sweeps.plan import Extent, Job, Plan, covers, plan_of
from sweeps.points import points_of
from sweeps.report import finished_points, summarised, write_summaries
from sweeps.results import TABLE, num_asked, results, serving, write_table

GRID = "grid.json"
_HOME = "begun_in"  # key in grid.json of the folder from which the grid was run
_SUMMARIES = "summaries"  # key in grid.json of the folder of its summaries


def _begun(path: Path) -> tuple[GridFile, Path, Path | None]:
    """Reads grid.json: the grid as it was last run, the folder from which it was run, and that of its summaries, if any.

    Raises OSError where the file cannot be read, and ValueError, TypeError or RecursionError where it is damaged.
    """
    fields = dict(json.loads(path.read_text()))
    home = Path(fields.pop(_HOME, "."))
    summaries = fields.pop(_SUMMARIES, None)
    return GridFile(**fields), home, summaries and Path(summaries)


@dataclass(frozen=True, eq=False)
class Sweep:
    """A plan and the folder where it is carried out.

    Attributes:
        plan: the points of the grid, and the jobs that they need.
        root: the folder.
        summaries: a folder of summaries; points that have one there, and no samples here, are left out of the plan.
        left_out: how many points these are.
    """

    plan: Plan
    root: Path
    summaries: Path | None = None
    left_out: int = 0

    @classmethod
    def of(
        cls,
        name: str,
        *,
        scale: str | None,
        changes: Sequence[str],
        out: Path | None,
        summaries: Path | None = None,
    ) -> Sweep:
        """The sweep of a grid file or a recipe, as the file is now.

        Args:
            name: the grid file, or the name of a recipe.
            scale: `small` for the grid's variant for a laptop, None for the whole grid.
            changes: settings to change, KEY=VALUE.
            out: folder of the sweep, None for runs/sweep-NAME.
            summaries: see the attribute.

        Raises:
            UsageError: the grid cannot be read, or asks for what is not possible.
        """
        file = read_grid(name, scale=scale, changes=changes)
        root = out or Path("runs") / f"sweep-{file.name}"
        return cls(plan_of(file, points_of(file)), root)._without_summarised(summaries)

    @classmethod
    def begun(cls, name: str, *, scale: str | None, changes: Sequence[str], out: Path | None) -> Sweep:
        """A sweep that was begun already, as it was last run.

        Args:
            name: the folder of the sweep, its grid file, or the name of a recipe.
            scale, changes, out: as for `of`; they must be left out with a folder.

        Raises:
            UsageError: there is no such sweep, or it is damaged.
        """
        root = Path(name) if (Path(name) / GRID).is_file() else None
        if root and (scale or changes or out):
            raise UsageError(f"{root} is a sweep as it was run: leave out `--scale`, `--set` and `--out`.")
        root = root or cls.of(name, scale=scale, changes=changes, out=out).root
        try:
            file, home, summaries = _begun(root / GRID)
        except OSError:
            raise UsageError(f"{root} holds no sweep yet: begin it with `scale-sweep run {name}`") from None
        except (ValueError, TypeError, RecursionError):
            raise UsageError(f"{root / GRID} is damaged: `scale-sweep run` with the grid file writes it anew") from None
        with chdir(home if home.is_dir() else "."):  # paths of the grid are read as they were when it was run
            plan = plan_of(file, points_of(file))
        return cls(plan, root)._without_summarised(summaries)

    def _without_summarised(self, folder: Path | None) -> Sweep:
        """The sweep without the points that have a summary in the folder, unless they were drawn in this very sweep."""
        if folder is None:
            return self
        known, done = summarised(folder), self.done(self.entries())
        kept = [point for point in self.plan.points if point.id not in known or self.plan.serves[point.id] in done]
        left_out = len(self.plan.points) - len(kept)
        plan = plan_of(self.plan.file, kept) if left_out else self.plan
        return replace(self, plan=plan, summaries=folder, left_out=left_out)

    def write_summaries(self) -> None:
        """Writes a summary of every point that was drawn and has none yet. Raises UsageError where that fails."""
        if self.summaries is not None:
            write_summaries(finished_points(self.plan, self.held(self.entries()), self.root), self.summaries)

    def begin(self) -> None:
        """Makes the folder and enters the plan's jobs in its ledger.

        Raises UsageError where the folder holds something else, or cannot be written.
        """
        self.refuse_foreign()
        try:
            self._take()
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"`--out` {self.root} cannot be written ({error}): give a folder that can.") from None

    def _take(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(self.root)  # made first, as its file shows that the folder is a sweep's
        try:
            ledger.take(self.plan.jobs, in_turn=self.plan.file.order == "file")
            ledger.redo(self._gone(ledger.entries()))
        finally:
            ledger.close()
        fields = {_HOME: str(Path.cwd()), **self.plan.file.model_dump(mode="json")}
        if self.summaries is not None:
            fields[_SUMMARIES] = str(self.summaries.resolve())
        write_whole(self.root / GRID, json.dumps(fields, indent=1) + "\n")

    def refuse_foreign(self) -> None:
        """Raises UsageError where the folder is a file, or holds files that are not of a sweep."""
        if self.root.exists() and not self.root.is_dir():
            raise UsageError(f"`--out` {self.root} is a file, and a sweep needs a folder: give another name.")
        # the files are listed before the ledger is looked for: another process may be beginning the same sweep now
        names = sorted(entry.name for entry in self.root.iterdir()) if self.root.is_dir() else []
        ours = any((self.root / name).is_file() for name in (LEDGER, GRID))
        if foreign := [name for name in names if not ours and name not in (RATES, TRAINING_RATES, PROBES)]:
            raise UsageError(f"`--out` {self.root} is not empty ({foreign[0]}) and holds no sweep; choose another")

    def _gone(self, entries: Sequence[Entry]) -> list[Job]:
        """Jobs that were done and are still needed, but whose folders are gone.

        Args:
            entries: all jobs of the ledger; each stands after those that it needs.
        """
        needed, gone = set(self.plan.serves.values()), []
        for entry in reversed(entries):
            job, folder = entry.job, self.root / entry.job.folder
            exists = (
                folder.is_dir() if job.kind == "train" else all((folder / name).is_file() for name in (RUN, SAMPLES))
            )
            lost = entry.state == DONE and job.id in needed and not exists
            if lost:
                gone.append(job)
            if lost or entry.state != DONE:
                needed.update(job.needs)
        return gone

    def entries(self) -> list[Entry]:
        """All jobs of the ledger with their states; an empty list where the sweep was not begun."""
        if not (self.root / LEDGER).is_file():
            return []
        ledger = Ledger(self.root)
        try:
            return ledger.entries()
        finally:
            ledger.close()

    def expected(self) -> Expected:
        """The expected cost of all jobs that are not done."""
        entries = self.entries()
        return expected(self.plan, self.done(entries), entries, *rates_of(entries, self.root))

    def expected_by_task(self) -> dict[str, Expected]:
        """The expected cost of the jobs of each task that are not done, a training's with the task that it learns from."""
        entries = self.entries()
        done, rates = self.done(entries), rates_of(entries, self.root)
        tasks: dict[str, list[Job]] = {}
        for job in self.plan.jobs:
            tasks.setdefault(task_label(job.settings.get("task") or DEFAULT_TASK), []).append(job)
        return {name: expected(replace(self.plan, jobs=jobs), done, entries, *rates) for name, jobs in tasks.items()}

    def done(self, entries: Sequence[Entry]) -> set[str]:
        """Ids of the plan's jobs that are done, and have drawn all that the plan wants of them now."""
        finished = {entry.job.id: entry.job for entry in entries if entry.state == DONE}
        return {
            job.id for job in self.plan.jobs if job.id in finished and covers(finished[job.id].extents, job.extents)
        }

    def held(self, entries: Sequence[Entry]) -> dict[str, Sequence[Extent]]:
        """The extents of each run whose samples can be read now, by id of the job.

        Of a run that is done these are all that the plan wants. Another run may have been done before the grid grew. Of such
        a run these are the extents that it had drawn by then.
        """
        done = self.done(entries)
        covered = {entry.job.id: entry.covered for entry in entries}
        readable: dict[str, Sequence[Extent]] = {}
        for job in serving(self.plan):
            if extents := job.extents if job.id in done else self._still_there(job, covered.get(job.id, ())):
                readable[job.id] = extents
        return readable

    def _still_there(self, job: Job, drawn: Sequence[Extent]) -> Sequence[Extent]:
        """Those extents for which the run's folder has all questions: it lists only the questions that are asked now."""
        asked = num_asked(self.root / job.folder) if drawn else 0
        limited = any(limit is not None for limit, _, _ in job.extents)
        return [extent for extent in drawn if (asked and not limited if extent[0] is None else extent[0] <= asked)]

    def results(self, entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
        """The figures of every point that has a result, by the point's id. Writes them to points.csv, too.

        Where the folder cannot be written, a line on stderr says so.
        """
        figures = results(self.plan, self.held(entries), self.root)
        try:
            write_table(self.plan, figures, self.root)
        except OSError as error:
            print(f"scale-sweep: {TABLE} is not written: {error}", file=sys.stderr)
        return figures
