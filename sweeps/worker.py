"""A worker: takes one job after another from the ledger until nothing is left. The same on one machine and on a cluster.

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

_PULSE = LEASE / 12  # seconds between signs of life
_LOOK = 0.5  # seconds between looks at how far the job is
_IDLE = (0.5, 5.0)  # seconds between looks at the ledger where every job is waiting for another: at first, and at most
_BUSY = 5.0  # seconds before a job is tried again whose folder another process has
_AWAY = 30.0  # seconds before a job is tried again whose server is away
_KEPT = 2  # models in memory: a backbone and an assistant


class Book(Protocol):
    """What a worker needs of the ledger: the ledger itself, or one on another machine."""

    def claim(self, owner: str, *, loaded: str = "") -> Job | None: ...
    def renew(self, job: Job, owner: str, progress: dict[str, Any]) -> bool: ...
    def done(self, job: Job, owner: str, result: dict[str, Any]) -> bool: ...
    def failed(self, job: Job, owner: str, reason: str, *, again: bool, wait: float = 0.0) -> None: ...
    def give_back(self, job: Job, owner: str, *, wait: float = 0.0) -> None: ...
    def unfinished(self) -> bool: ...


class Pulse:
    """Renews the lease of one job from a thread of its own. Use as a context manager.

    book: makes the thread's own connection. alive: whether whoever started the worker is still there.
    """

    def __init__(self, book: Callable[[], Book], job: Job, owner: str, alive: Callable[[], bool]) -> None:
        self._book, self._job, self._owner, self._alive = book, job, owner, alive
        self._progress: dict[str, Any] = {}
        self._over = threading.Event()
        self._stopped = False
        self.taken = False  # whether the job was left because it is another's now
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def tell(self, progress: dict[str, Any]) -> None:
        """How far the job is. Raises KeyboardInterrupt once the job is no longer this worker's."""
        self._progress = progress
        if self._stopped:
            self.taken = True
            raise KeyboardInterrupt

    def _beat(self) -> None:
        try:
            self._renew()
        except Exception:  # a ledger that cannot be reached: the lease ends, and the job is somebody else's
            traceback.print_exc()
            self._stopped = True

    def _renew(self) -> None:
        book, last = self._book(), 0.0
        sent: dict[str, Any] = {}
        while not self._over.wait(_LOOK):
            fresh = self._progress
            if fresh == sent and time.monotonic() - last < _PULSE:
                continue
            sent, last = fresh, time.monotonic()
            if not self._alive() or not book.renew(self._job, self._owner, sent):
                self._stopped = True
                return


def work(book: Callable[[], Book], owner: str, root: Path, *, alive: Callable[[], bool] = lambda: True) -> None:
    """Carries out jobs until none is left, or `alive` says no. Raises KeyboardInterrupt; the job is given back before."""
    from scaling.models import devices

    with devices.keeping(_KEPT):
        _work(book, owner, root, alive, devices.release_engine)


def _work(
    book: Callable[[], Book], owner: str, root: Path, alive: Callable[[], bool], release_engine: Callable[[], None]
) -> None:
    """release_engine: ends the engine that another job has left on the devices."""
    from sweeps.execute import perform

    own, loaded, pause = book(), "", _IDLE[0]
    while alive() and own.unfinished():
        job = own.claim(owner, loaded=loaded)
        if job is None:
            time.sleep(pause)
            pause = min(2 * pause, _IDLE[1])
            continue
        pause = _IDLE[0]
        if job.models != loaded or not (job.kind == "merge" or _may_use_kept_engine(job)):
            release_engine()
        try:
            with Pulse(book, job, owner, alive) as pulse:
                _carry_out(own, job, owner, partial(perform, job, root, pulse.tell))
        except KeyboardInterrupt:
            if not (pulse.taken and alive()):
                raise
        loaded = job.models


def _may_use_kept_engine(job: Job) -> bool:
    """Whether the job's engine is one that stays up between runs."""
    engine = job.settings.get("engine")
    return engine is not None and KINDS[engine].takes_gpus


def _carry_out(book: Book, job: Job, owner: str, do: Callable[[], dict[str, Any]]) -> None:
    try:
        book.done(job, owner, do())
    except InUse:
        book.give_back(job, owner, wait=_BUSY)
    except MayPass as error:
        book.failed(job, owner, str(error), again=True, wait=_AWAY)
    except UsageError as error:
        book.failed(job, owner, str(error), again=False)
    except OSError as error:
        book.failed(job, owner, of_the_system(error), again=True)
    except (KeyboardInterrupt, Interrupted):
        book.give_back(job, owner)
        raise KeyboardInterrupt from None
    except Exception as error:  # whatever it is, it belongs to this job and not to the sweep
        traceback.print_exc()
        said = one_line(error, limit=300)
        book.failed(job, owner, f"{type(error).__name__}: {said}", again=True)


def main() -> int:
    """A process of the local engine: ends when the ledger has nothing left, or its parent is gone."""
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
