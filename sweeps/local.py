"""Runs a sweep by worker processes on this machine, which share its cores and GPUs (`--on local`).

This process starts the workers (`sweeps.worker`), replaces those that die, and makes their jobs pending again. The ledger
decides which job a worker gets next.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from scaling.records.errors import UsageError
from scaling.records.files import MODULE
from sweeps.ledger import Ledger

LOGS = "logs"
_POLL = 0.2  # seconds between two looks at the workers
_GRACE = 30.0  # seconds that workers have to end by themselves
_CORES = 8  # cores of one worker, where the user asks for no number of workers and there is no GPU
MAX_EARLY_DEATHS = 5  # early deaths in a row after which the sweep ends
_EARLY = 20.0  # seconds; a worker that dies sooner and without a job died early, and no job is to blame

OnPoll = Callable[[], None]


def gpus() -> list[str]:
    """Names of this machine's GPUs for CUDA_VISIBLE_DEVICES, without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_local(root: Path, *, workers: int | None, retries: int, on_poll: OnPoll) -> None:
    """Runs the sweep in `root` until no job is left that can run.

    Args:
        root: the sweep's folder.
        workers: how many work at once; None for one a GPU, or without a GPU one for every 8 cores.
        retries: how often a job that fails is tried again.
        on_poll: called several times a second, for a display.

    Raises:
        KeyboardInterrupt: after the workers have given back their jobs.
        UsageError: workers die as soon as they begin.
    """
    devices = gpus()
    count = workers or len(devices) or max(1, cores() // _CORES)
    pool = [_Worker(root, number, worker_environment(number, count, devices), retries) for number in range(count)]
    ledger = Ledger(root, retries=retries)
    try:
        while ledger.unfinished():
            for worker in pool:
                worker.tend(ledger)
            on_poll()
            time.sleep(_POLL)
    finally:
        _end(pool, ledger)
        ledger.close()


def worker_environment(number: int, count: int, devices: list[str]) -> dict[str, str]:
    """The environment variables of a worker, which give it its share of the cores and of the GPUs.

    Args:
        number: of the worker, from 0.
        count: how many workers there are.
        devices: names of the machine's GPUs. Where there are fewer than workers, several workers share one.
    """
    limit = os.environ.get("OMP_NUM_THREADS", "")  # the user may ask for fewer threads
    share = max(1, cores() // count)
    threads = str(min(share, int(limit)) if limit.isdigit() and int(limit) else share)
    shares = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    if devices:
        shares["CUDA_VISIBLE_DEVICES"] = ",".join(devices[number::count] or [devices[number % len(devices)]])
    return {**os.environ, **shares}


class _Worker:
    """One of the worker processes; a new process takes its place when it dies."""

    def __init__(self, root: Path, number: int, environment: dict[str, str], retries: int) -> None:
        self._root, self._number, self._environment, self._retries = root, number, environment, retries
        self._log = root / LOGS / f"worker-{number}.log"
        self._log.parent.mkdir(exist_ok=True)
        self._born, self._early_deaths = 0.0, 0
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = ""

    def tend(self, ledger: Ledger) -> None:
        """Starts a process if none is running. The job of a process that has died is made pending again first.

        Raises UsageError where one process after another dies early.
        """
        if self._process is not None:
            if self._process.poll() is None:
                return
            idle = not ledger.lost(self._owner)
            by_itself = self._process.returncode not in (0, -signal.SIGKILL)  # SIGKILL is from outside, as for memory
            early = idle and by_itself and time.monotonic() - self._born < _EARLY
            self._early_deaths = self._early_deaths + 1 if early else 0
            if self._early_deaths >= MAX_EARLY_DEATHS:
                raise UsageError(f"workers end as soon as they begin; the reason is at the end of {self._log}")
        self._owner = f"{os.uname().nodename}:{os.getpid()}:{self._number}:{time.time_ns()}"
        self._born = time.monotonic()
        driver = str(os.getpid())
        command = [*MODULE, "sweeps.worker", str(self._root), self._owner, str(self._retries), driver]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True
            )

    def terminate(self) -> None:
        """Asks the process to end. It then makes its job pending again."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def join(self, ledger: Ledger, patience: float) -> None:
        """Waits for the process to end, and makes its job pending again.

        Args:
            ledger: of the sweep.
            patience: seconds after which the process is killed.
        """
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, patience))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        ledger.release(self._owner)


def _end(pool: list[_Worker], ledger: Ledger) -> None:
    """Ends all workers. They have 30 seconds, all at the same time, to end by themselves."""
    for worker in pool:
        worker.terminate()
    until = time.monotonic() + _GRACE
    for worker in pool:
        worker.join(ledger, until - time.monotonic())
