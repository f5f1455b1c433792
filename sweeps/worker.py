"""A worker of a sweep: takes one job after another from the ledger until no job is left.

Workers are the same on one machine and on a cluster.
`python -m sweeps.worker FOLDER OWNER RETRIES DRIVER` is one worker process of `--on local`; DRIVER is a process id.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from scaling.engines.kinds import KINDS
from scaling.records.errors import Interrupted, InUse, MayPass, UsageError, of_the_system, one_line
from sweeps.ledger import LEASE, Ledger
from sweeps.plan import Job

_HEARTBEAT = LEASE / 12  # seconds between signs of life
_LOOK = 0.5  # seconds between looks at how far the job is
_IDLE = (0.5, 5.0)  # seconds between looks at the ledger while all jobs wait for others: at first, and at most
_BUSY = 5.0  # seconds before a job is tried again whose folder another process has
_AWAY = 30.0  # seconds before a job is tried again whose server is away
_KEPT = 2  # models in memory: a backbone and an assistant


class LedgerClient(Protocol):
    """The calls of the ledger that a worker makes. Implemented by `Ledger`, and by `RemoteLedger` for other machines."""

    def claim(self, owner: str, *, loaded: str = "") -> Job | None: ...
    def renew(self, job: Job, owner: str, progress: dict[str, Any]) -> bool: ...
    def done(self, job: Job, owner: str, result: dict[str, Any]) -> bool: ...
    def failed(self, job: Job, owner: str, reason: str, *, again: bool, wait: float = 0.0) -> None: ...
    def give_back(self, job: Job, owner: str, *, wait: float = 0.0) -> None: ...
    def unfinished(self) -> bool: ...


class Heartbeat:
    """Renews the lease of one job from a thread of its own, and sends the job's progress. Use as a context manager.

    Attributes:
        taken: whether the work on the job was stopped because it no longer belongs to this worker.
    """

    def __init__(self, connect: Callable[[], LedgerClient], job: Job, owner: str, alive: Callable[[], bool]) -> None:
        """Prepares the thread; entering the context starts it.

        Args:
            connect: opens the ledger. It is called in the thread, as each thread needs a connection of its own.
            job: the job whose lease is renewed.
            owner: name of this worker.
            alive: whether the process that started the worker is still there.
        """
        self._connect, self._job, self._owner, self._alive = connect, job, owner, alive
        self._progress: dict[str, Any] = {}
        self._over = threading.Event()
        self._stopped = False
        self.taken = False
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def tell(self, progress: dict[str, Any]) -> None:
        """Notes how far the job is. Raises KeyboardInterrupt once the job no longer belongs to this worker."""
        self._progress = progress
        if self._stopped:
            self.taken = True
            raise KeyboardInterrupt

    def _beat(self) -> None:
        try:
            self._renew()
        except Exception:  # the ledger cannot be reached, so the lease ends and another worker gets the job
            traceback.print_exc()
            self._stopped = True

    def _renew(self) -> None:
        ledger, last = self._connect(), 0.0
        sent: dict[str, Any] = {}
        while not self._over.wait(_LOOK):
            progress = self._progress
            if progress == sent and time.monotonic() - last < _HEARTBEAT:
                continue
            sent, last = progress, time.monotonic()
            if not self._alive() or not ledger.renew(self._job, self._owner, sent):
                self._stopped = True
                return


def work(
    connect: Callable[[], LedgerClient], owner: str, root: Path, *, alive: Callable[[], bool] = lambda: True
) -> None:
    """Carries out jobs until none is left that can run.

    Args:
        connect: opens the ledger. Each thread gets a connection of its own.
        owner: name of this worker.
        root: folder of the sweep.
        alive: whether the process that started this worker is still there. The worker ends once it is not.

    Raises:
        KeyboardInterrupt: the worker was interrupted. Its job was given back to the ledger before.
    """
    from scaling.models import devices

    with devices.keeping(_KEPT):
        _work(connect, owner, root, alive, devices.release_engine)


def _work(
    connect: Callable[[], LedgerClient],
    owner: str,
    root: Path,
    alive: Callable[[], bool],
    release_engine: Callable[[], None],
) -> None:
    """The loop of `work`. release_engine: ends the engine that an earlier job has left on the devices."""
    from sweeps.execute import perform

    ledger, loaded, pause = connect(), "", _IDLE[0]
    while alive() and ledger.unfinished():
        job = ledger.claim(owner, loaded=loaded)
        if job is None:
            time.sleep(pause)
            pause = min(2 * pause, _IDLE[1])
            continue
        pause = _IDLE[0]
        if job.models != loaded or not (job.kind == "merge" or _may_use_kept_engine(job)):
            release_engine()
        try:
            with Heartbeat(connect, job, owner, alive) as heartbeat:
                carry_out(ledger, job, owner, partial(perform, job, root, heartbeat.tell))
        except KeyboardInterrupt:
            if not (heartbeat.taken and alive()):
                raise
        loaded = job.models


def _may_use_kept_engine(job: Job) -> bool:
    """Whether the job's engine is one that stays up between runs, so that this job can use the one that is there."""
    engine = job.settings.get("engine")
    return engine is not None and KINDS[engine].takes_gpus


def carry_out(ledger: LedgerClient, job: Job, owner: str, do: Callable[[], dict[str, Any]]) -> None:
    """Carries out one job and notes in the ledger how it ended: done, failed, or given back.

    Args:
        ledger: where the end is noted.
        job: the job, which `owner` has claimed.
        owner: name of this worker.
        do: does the work and returns the figures that the ledger keeps.

    Raises:
        KeyboardInterrupt: the work was interrupted, and the job given back.
    """
    try:
        ledger.done(job, owner, do())
    except InUse:
        ledger.give_back(job, owner, wait=_BUSY)
    except MayPass as error:
        ledger.failed(job, owner, str(error), again=True, wait=_AWAY)
    except UsageError as error:
        ledger.failed(job, owner, str(error), again=False)
    except OSError as error:
        ledger.failed(job, owner, of_the_system(error), again=True)
    except (KeyboardInterrupt, Interrupted):
        ledger.give_back(job, owner)
        raise KeyboardInterrupt from None
    except Exception as error:  # whatever it is, it belongs to this job and not to the sweep
        traceback.print_exc()
        ledger.failed(job, owner, f"{type(error).__name__}: {one_line(error, limit=300)}", again=True)


def main() -> int:
    """Runs one worker process of `--on local`. It ends when no job is left, or when its parent process is gone."""
    import signal

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    root, owner, retries, driver = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    try:
        work(lambda: Ledger(root, retries=retries), owner, root, alive=lambda: os.getppid() == driver)
    except KeyboardInterrupt:
        return 130
    finally:  # it is ending: a signal now would only interrupt that
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
