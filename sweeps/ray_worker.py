"""What runs on the nodes of a Ray cluster: an actor that has the ledger open, and workers that ask it for jobs.

SQLite needs the file system's locks, which network storage may lack. So only the driver's node opens the ledger.
"""

from __future__ import annotations

import os
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from scaling.records.errors import UsageError
from sweeps.ledger import LEASE, Ledger
from sweeps.local import LOGS
from sweeps.plan import Job


class LedgerActor:
    """A Ray actor on the driver's node through which workers on other nodes use the ledger. It ends with the driver."""

    def __init__(self, root: str, retries: int) -> None:
        self._ledger = Ledger(Path(root), retries=retries)

    def call(self, method: str, *given: Any, **named: Any) -> Any:
        """Calls a method of the ledger by its name, with these arguments, and returns its result."""
        return getattr(self._ledger, method)(*given, **named)


class RemoteLedger:
    """The ledger as a worker uses it: every call is sent to the actor. Calls raise RayError once the driver is gone.

    The methods are those of `Ledger`.
    """

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def _call(self, method: str, *given: Any, seconds: float | None = None, **named: Any) -> Any:
        # not by `ray.get`: while a task waits in it, Ray gives the task's cores to another one
        return self._actor.call.remote(method, *given, **named).future().result(seconds)

    def claim(self, owner: str, *, loaded: str = "") -> Job | None:
        job: Job | None = self._call("claim", owner, loaded=loaded)
        return job

    def renew(self, job: Job, owner: str, progress: dict[str, Any]) -> bool:
        """As `Ledger.renew`, and False where no answer comes within half a lease.

        The worker must then stop, as the job is another worker's once the lease has ended.
        """
        from ray.exceptions import RayError

        try:
            return bool(self._call("renew", job, owner, progress, seconds=LEASE / 2))
        except (RayError, TimeoutError):
            return False

    def done(self, job: Job, owner: str, result: dict[str, Any]) -> bool:
        return bool(self._call("done", job, owner, result))

    def failed(self, job: Job, owner: str, reason: str, *, again: bool, wait: float = 0.0) -> None:
        self._call("failed", job, owner, reason, again=again, wait=wait)

    def give_back(self, job: Job, owner: str, *, wait: float = 0.0) -> None:
        self._call("give_back", job, owner, wait=wait)

    def unfinished(self) -> bool:
        return bool(self._call("unfinished"))


def work_here(actor: Any, folder: str, root: str, mark: str, owner: str, threads: int) -> None:
    """Works as one worker of the sweep, in a process of the cluster, until no job is left.

    Args:
        actor: has the ledger open.
        folder: the driver's current folder, from which relative paths start.
        root: the sweep's folder.
        mark: name of a file that the driver has put into `root`, to prove that this node sees the same folder.
        owner: the worker's name in the ledger.
        threads: how many threads torch uses.

    Raises:
        UsageError: this node does not see the folders as the driver does.
    """
    node = os.uname().nodename
    for place, proof in ((root, Path(root) / mark), (folder, Path(folder))):
        if not proof.exists():
            raise UsageError(
                f"the node {node} does not see {place} as the driver does: give an `--out` on storage that all nodes "
                f"share, and start the sweep in a folder there."
            )
    os.chdir(folder)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    logs = Path(root) / LOGS
    logs.mkdir(exist_ok=True)
    with (
        (logs / f"{node}-{os.getpid()}.log").open("a", buffering=1) as log,
        redirect_stdout(log),
        redirect_stderr(log),
    ):
        _work(actor, Path(os.path.relpath(root)), owner, threads)


def _work(actor: Any, root: Path, owner: str, threads: int) -> None:
    import torch

    from sweeps.worker import work

    torch.set_num_threads(threads)
    work(lambda: RemoteLedger(actor), owner, root)
