"""Keeps the ledger of a sweep, an SQLite file that says which jobs are pending, running, done or failed, and why.

A worker that claims a job owns it by a lease, which the worker renews while it lives. When a lease ends without having been
renewed, the worker counts as lost, and the job is pending again. A job that loses too many workers fails, but only those
count that added nothing to the job's folder. Any number of processes may use one ledger, as every change is one transaction.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.records.errors import UsageError
from sweeps.plan import Extent, Job, covers

LEDGER = "ledger.sqlite"
LEASE = 60.0  # seconds for which a worker counts as alive after it has renewed its lease
PENDING, RUNNING, DONE, FAILED = "pending", "running", "done", "failed"
_LOSSES = 20  # workers that a job may lose in a row without getting any further
_LOST = "its worker was lost"
_ANEW = "delete it, and `scale-sweep run` with the grid file makes it anew and keeps what the runs hold"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, place INTEGER, wanted INTEGER, part INTEGER, models TEXT, job TEXT, state TEXT,
    attempts INTEGER DEFAULT 0, losses INTEGER DEFAULT 0, owner TEXT, lease REAL, not_before REAL DEFAULT 0,
    reason TEXT, progress TEXT, mark INTEGER, started REAL, ended REAL, seconds REAL DEFAULT 0, result TEXT, covered TEXT);
CREATE TABLE IF NOT EXISTS needs (job TEXT, need TEXT, PRIMARY KEY (job, need));
CREATE INDEX IF NOT EXISTS by_turn ON jobs (state, wanted, losses, place);
CREATE INDEX IF NOT EXISTS by_models ON jobs (state, wanted, models, losses, place);
"""
# The parts of a run that is done, as it was merged or drawn whole, need not be drawn again.
_PARTS_OF_DONE = (
    "UPDATE jobs SET state = 'done' WHERE wanted = 1 AND state = 'pending' AND part = 1 AND id IN (SELECT need FROM needs"
    " JOIN jobs AS whole ON whole.id = needs.job WHERE whole.wanted = 1 AND whole.state = 'done')"
)
# Whether a job may begin now. The order by `losses, place` in which jobs are claimed is that of the indexes above.
_MAY_BEGIN = (
    "state = 'pending' AND wanted = 1 AND not_before <= ? AND NOT EXISTS (SELECT 1 FROM needs JOIN jobs AS other"
    " ON other.id = needs.need WHERE needs.job = jobs.id AND other.state != 'done')"
)


@dataclass(frozen=True)
class Entry:
    """A job and its state.

    Attributes:
        job: what is to be done.
        state: PENDING, RUNNING, DONE or FAILED.
        attempts: how often it has failed.
        owner: the worker that has it now, None where it is not running.
        reason: why it failed last.
        progress: how far it is, as its worker has told.
        started: time at which the current or the last attempt began, in seconds since 1970.
        seconds: duration of all attempts together.
        result: figures that its worker has told at its end, such as costs.
        covered: the extents whose samples it has drawn.
        blocked: id of a failed job that must be done before this one can begin.
    """

    job: Job
    state: str
    attempts: int
    owner: str | None
    reason: str | None
    progress: dict[str, Any]
    started: float | None
    seconds: float
    result: dict[str, Any]
    covered: tuple[Extent, ...] = ()
    blocked: str | None = None


class Ledger:
    """An open ledger. Each thread needs an object of its own."""

    def __init__(self, folder: Path, *, retries: int = 1) -> None:
        """Opens the ledger in a folder, or makes it. Raises UsageError where the file is damaged or is no ledger.

        Args:
            folder: of the sweep.
            retries: how often a job that fails is tried again.
        """
        self._folder, self._retries = folder, retries
        path = folder / LEDGER
        try:
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
            self._db.row_factory = sqlite3.Row
            self._db.executescript(_SCHEMA)
            health = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.Error as error:
            raise UsageError(f"{path} cannot be used as a ledger ({error}); {_ANEW}, or give another `--out`") from None
        if health != "ok":
            raise self._damaged(health)

    def close(self) -> None:
        self._db.close()

    def _damaged(self, why: object) -> UsageError:
        """The error for a damaged ledger, which says how to make it anew."""
        return UsageError(f"{self._folder / LEDGER} is damaged ({' '.join(str(why).split())[:200]}): {_ANEW}")

    def _job(self, row: sqlite3.Row) -> Job:
        """Reads the job of a row. Raises UsageError where the row holds none."""
        try:
            return Job.from_json(json.loads(row["job"]))
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise self._damaged(f"job {row['id']}: {error}") from None

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Makes all changes inside this context at once, or none of them where an error is raised."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def take(self, jobs: Sequence[Job], *, in_turn: bool = False) -> None:
        """Makes these the jobs of the sweep, in this order.

        Jobs that are done stay done, unless they must now draw more. Parts of a run that is done count as done, too. Jobs
        that are no longer part of the sweep stay in the file, but are not worked on.

        Args:
            jobs: each stands after those that it needs.
            in_turn: whether workers take them in this order whatever models they have loaded.

        Raises:
            UsageError: a job that is no longer part of the sweep is running.
        """
        with self._transaction() as db:
            self._expire(db, time.time())
            self._refuse_to_drop(db, {job.id for job in jobs})
            db.execute("UPDATE jobs SET wanted = 0")
            known = {row["id"]: row for row in db.execute("SELECT id, job, state, covered FROM jobs")}
            for place, job in enumerate(jobs):
                self._take(db, place, job, known.get(job.id), "" if in_turn else job.models)
            db.execute(_PARTS_OF_DONE)

    def _refuse_to_drop(self, db: sqlite3.Connection, kept: set[str]) -> None:
        """Raises UsageError where a job is running that is not among the ids in `kept`."""
        rows = db.execute("SELECT id FROM jobs WHERE state = ? AND wanted = 1", (RUNNING,)).fetchall()
        if dropped := next((row["id"] for row in rows if row["id"] not in kept), None):
            raise UsageError(
                f"another command is at work on {dropped} in {self._folder}, which is no part of this grid: wait for it, or "
                f"give this grid another `--out`."
            )

    def _take(self, db: sqlite3.Connection, place: int, job: Job, before: sqlite3.Row | None, models: str) -> None:
        """Enters one job, or updates it.

        Args:
            db: is in a transaction.
            place: of the job in the order of the sweep.
            job: as the plan has it now.
            before: its row, None for a new one.
            models: by which workers prefer it; empty for none.
        """
        text = json.dumps(job.to_dict())
        db.execute(
            "INSERT INTO jobs (id, place, wanted, models, job, state, part) VALUES (?, ?, 1, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET place = excluded.place, wanted = 1, models = excluded.models",
            (job.id, place, models, text, PENDING, job.part is not None),
        )
        if before is None or before["job"] != text:
            db.execute("DELETE FROM needs WHERE job = ?", (job.id,))
            db.executemany("INSERT OR IGNORE INTO needs VALUES (?, ?)", [(job.id, need) for need in job.needs])
        if before is None or before["job"] == text:
            return
        db.execute("UPDATE jobs SET job = ? WHERE id = ?", (text, job.id))
        mended = before["state"] == FAILED and _unnamed(before["job"]) != _unnamed(text)
        if mended or (before["state"] == DONE and not _covers(before["covered"], job)):
            db.execute("UPDATE jobs SET state = ?, attempts = 0, losses = 0 WHERE id = ?", (PENDING, job.id))

    def redo(self, jobs: Sequence[Job]) -> None:
        """Makes jobs that were done pending again, because their folders are gone."""
        with self._transaction() as db:
            db.executemany(
                "UPDATE jobs SET state = ?, covered = NULL, mark = NULL WHERE id = ? AND state = ?",
                [(PENDING, job.id, DONE) for job in jobs],
            )

    def retry_failed(self) -> int:
        """Makes failed jobs pending again; returns how many there were."""
        with self._transaction() as db:
            cursor = db.execute(
                "UPDATE jobs SET state = ?, attempts = 0, losses = 0 WHERE state = ? AND wanted = 1", (PENDING, FAILED)
            )
            return cursor.rowcount

    def claim(self, owner: str, *, loaded: str = "") -> Job | None:
        """Gives a worker the next job, or None where no job can begin now. Jobs that have lost workers come last.

        Args:
            owner: name of the worker.
            loaded: the models that it has loaded; jobs that need the same ones come first.
        """
        now = time.time()
        with self._transaction() as db:
            self._expire(db, now)
            row = (
                db.execute(
                    f"SELECT job FROM jobs WHERE models = ? AND {_MAY_BEGIN} ORDER BY losses, place LIMIT 1",
                    (loaded, now),
                ).fetchone()
                or db.execute(
                    f"SELECT job FROM jobs WHERE {_MAY_BEGIN} ORDER BY losses, place LIMIT 1", (now,)
                ).fetchone()
            )
            if row is None:
                return None
            job = self._job(row)
            db.execute(
                "UPDATE jobs SET state = ?, owner = ?, lease = ?, started = ?, progress = NULL,"
                " mark = MAX(COALESCE(mark, 0), ?) WHERE id = ?",
                (RUNNING, owner, now + LEASE, now, self._mark(job), job.id),
            )
            return job

    def renew(self, job: Job, owner: str, progress: dict[str, Any]) -> bool:
        """Renews the lease and notes the progress. Returns False where the job is no longer the owner's."""
        now = time.time()
        with self._transaction() as db:
            done = db.execute(
                "UPDATE jobs SET lease = ?, progress = ? WHERE id = ? AND owner = ? AND state = ?",
                (now + LEASE, json.dumps(progress), job.id, owner, RUNNING),
            )
            return done.rowcount == 1

    def done(self, job: Job, owner: str, result: dict[str, Any]) -> bool:
        """Notes that the job is done.

        Args:
            job: as it was claimed.
            owner: name of the worker that claimed it.
            result: figures to keep, such as costs.

        Returns:
            False where the job is not done after all, as it must now draw more, or where it is no longer the owner's.
        """
        with self._transaction() as db:
            row = self._row_of_owner(db, job, owner)
            if row is None:
                return False
            grown = not _covers(json.dumps(job.to_dict()["boxes"]), self._job(row))
            self._end(db, row, PENDING if grown else DONE, None)
            db.execute(
                "UPDATE jobs SET result = ?, covered = ?, attempts = 0, losses = 0 WHERE id = ?",
                (json.dumps(result), json.dumps(job.to_dict()["boxes"]), job.id),
            )
            return not grown

    def failed(self, job: Job, owner: str, reason: str, *, again: bool, wait: float = 0.0) -> None:
        """Notes that the job failed. It is tried again if retries are left.

        Args:
            job: as it was claimed.
            owner: name of the worker that claimed it.
            reason: the error, as users see it.
            again: whether another attempt could end differently.
            wait: seconds until the next attempt may begin.
        """
        with self._transaction() as db:
            row = self._row_of_owner(db, job, owner)
            if row is not None:
                retry = again and row["attempts"] < self._retries
                self._end(db, row, PENDING if retry else FAILED, reason)
                db.execute(
                    "UPDATE jobs SET attempts = attempts + 1, not_before = ? WHERE id = ?", (time.time() + wait, job.id)
                )

    def give_back(self, job: Job, owner: str, *, wait: float = 0.0) -> None:
        """Makes the job pending again without counting an attempt. wait: seconds until it can be claimed."""
        with self._transaction() as db:
            row = self._row_of_owner(db, job, owner)
            if row is not None:
                self._end(db, row, PENDING, row["reason"])
                db.execute("UPDATE jobs SET not_before = ? WHERE id = ?", (time.time() + wait, job.id))

    def lost(self, owner: str, *, why: str = "") -> bool:
        """Makes the job of a worker that has died pending again, before its lease ends.

        Args:
            owner: name of the worker.
            why: what is known of its death, for users.

        Returns:
            False where it had no job.
        """
        with self._transaction() as db:
            rows = db.execute("SELECT * FROM jobs WHERE owner = ? AND state = ?", (owner, RUNNING)).fetchall()
            self._lose(db, rows, f"{_LOST}: {why}" if why else _LOST)
            return bool(rows)

    def release(self, owner: str) -> None:
        """Makes the job of a worker that was ended on purpose pending again, without counting a loss."""
        with self._transaction() as db:
            for row in db.execute("SELECT * FROM jobs WHERE owner = ? AND state = ?", (owner, RUNNING)).fetchall():
                self._end(db, row, PENDING, row["reason"])

    def owners(self) -> list[str]:
        """Names of the workers that have jobs."""
        rows = self._db.execute("SELECT DISTINCT owner FROM jobs WHERE state = ?", (RUNNING,)).fetchall()
        return [row["owner"] for row in rows]

    def _expire(self, db: sqlite3.Connection, now: float) -> None:
        """Makes jobs pending again whose lease has ended."""
        self._lose(db, db.execute("SELECT * FROM jobs WHERE state = ? AND lease < ?", (RUNNING, now)).fetchall(), _LOST)

    def _lose(self, db: sqlite3.Connection, gone: Sequence[sqlite3.Row], reason: str) -> None:
        """Counts a lost worker for each of these jobs. They become pending, or failed after too many losses in a row.

        Losses start again from 1 where the job has got further since the last one.
        """
        for row in gone:
            mark = self._mark(self._job(row))
            losses = 1 if mark > row["mark"] else row["losses"] + 1
            self._end(db, row, FAILED if losses > _LOSSES else PENDING, reason, last_renewed=row["lease"] - LEASE)
            db.execute("UPDATE jobs SET losses = ?, mark = MAX(mark, ?) WHERE id = ?", (losses, mark, row["id"]))

    def _mark(self, job: Job) -> int:
        """How far the job has got: the number of lines that it has written.

        Lines and not bytes, as a training that goes on from an earlier step writes its lines again, with other times.
        """
        return sum(file.read_bytes().count(b"\n") for file in (self._folder / job.folder).glob("*.jsonl"))

    def _row_of_owner(self, db: sqlite3.Connection, job: Job, owner: str) -> sqlite3.Row | None:
        """The row of a job that this worker is running, None where the job is no longer its own."""
        row: sqlite3.Row | None = db.execute(
            "SELECT * FROM jobs WHERE id = ? AND owner = ? AND state = ?", (job.id, owner, RUNNING)
        ).fetchone()
        return row

    def _end(
        self,
        db: sqlite3.Connection,
        row: sqlite3.Row,
        state: str,
        reason: str | None,
        *,
        last_renewed: float | None = None,
    ) -> None:
        """Ends an attempt and adds its duration to the job's seconds.

        Args:
            db: is in a transaction.
            row: of the job.
            state: the job's new state.
            reason: why it failed last, for users.
            last_renewed: when a lost worker last renewed its lease; None where the attempt ends now.
        """
        now = time.time() if last_renewed is None else last_renewed
        db.execute(
            "UPDATE jobs SET state = ?, owner = NULL, lease = NULL, reason = ?, ended = ?, seconds = seconds + ?"
            " WHERE id = ?",
            (state, reason, now, now - (row["started"] or now), row["id"]),
        )

    def entries(self) -> list[Entry]:
        """All jobs of the sweep with their states, in the order of the plan."""
        now = time.time()
        if self._db.execute("SELECT 1 FROM jobs WHERE state = ? AND lease < ? LIMIT 1", (RUNNING, now)).fetchone():
            with self._transaction() as db:
                self._expire(db, now)
        rows = self._db.execute("SELECT * FROM jobs WHERE wanted = 1 ORDER BY place").fetchall()
        jobs = [self._job(row) for row in rows]
        stuck = _stuck(jobs, {row["id"] for row in rows if row["state"] == FAILED})
        try:
            return [self._entry(row, job, stuck.get(job.id)) for job, row in zip(jobs, rows, strict=True)]
        except (ValueError, TypeError, IndexError, KeyError) as error:
            raise self._damaged(error) from None

    def _entry(self, row: sqlite3.Row, job: Job, blocked: str | None) -> Entry:
        return Entry(
            job=job,
            state=row["state"],
            attempts=row["attempts"],
            owner=row["owner"],
            reason=row["reason"],
            progress=dict(json.loads(row["progress"] or "{}")),
            started=row["started"],
            seconds=row["seconds"],
            result=dict(json.loads(row["result"] or "{}")),
            covered=_extents(row["covered"]),
            blocked=blocked if row["state"] == PENDING else None,
        )

    def unfinished(self) -> bool:
        """Whether a job is running, or is pending and all jobs that it needs are done."""
        row = self._db.execute(
            "SELECT 1 FROM jobs WHERE wanted = 1 AND (state = ? OR (state = ? AND NOT EXISTS ("
            " SELECT 1 FROM needs JOIN jobs AS other ON other.id = needs.need"
            " WHERE needs.job = jobs.id AND other.state != ?))) LIMIT 1",
            (RUNNING, PENDING, DONE),
        ).fetchone()
        return row is not None


def _covers(covered: str | None, job: Job) -> bool:
    """Whether the extents that were drawn hold all that the job must draw now. Trainings have no extents.

    Args:
        covered: the extents that were drawn, as the ledger keeps them.
        job: as the plan has it now.
    """
    return covers(_extents(covered), job.extents)


def _unnamed(text: str) -> dict[str, Any]:
    """A job without its label, which changes when others join the grid."""
    return {**json.loads(text), "label": ""}


def _extents(text: str | None) -> tuple[Extent, ...]:
    """Reads extents as the ledger keeps them: a JSON list of limit, paths and samples each."""
    return tuple((extent[0], extent[1], extent[2]) for extent in json.loads(text or "[]"))


def _stuck(jobs: Iterable[Job], failed: set[str]) -> dict[str, str]:
    """For each job that cannot begin, the id of the failed job that it waits for, directly or by way of others.

    Args:
        jobs: each stands after those that it needs.
        failed: ids of the failed jobs.
    """
    waits_for: dict[str, str] = {}
    for job in jobs:
        for need in job.needs:
            if need in failed or need in waits_for:
                waits_for[job.id] = waits_for.get(need, need)
    return waits_for
