"""`--on ray`: the same workers on the nodes of a Ray cluster. The ledger stays with the driver, behind an actor; the
sweep's folder must be one that all nodes see. Imports ray, the optional extra, when it is asked for.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from scaling.errors import UsageError
from sweeps.ledger import Ledger
from sweeps.local import Seen
from sweeps.plan import Job

_POLL = 0.5  # seconds
_SEEN_FILE = ".seen-by-all-nodes"
_IN_VAIN = 5  # workers in a row that end with an error of their own: then it is not the jobs


class LedgerActor:
    """The ledger, for workers on other machines. Lives in the driver's node, and no longer than the driver."""

    def __init__(self, root: str, retries: int) -> None:
        self._ledger = Ledger(Path(root), retries=retries)

    def call(self, method: str, *given: Any, **named: Any) -> Any:
        """A method of the ledger."""
        return getattr(self._ledger, method)(*given, **named)


class Remote:
    """The ledger as a worker sees it: every call goes to the actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def _call(self, method: str, *given: Any, **named: Any) -> Any:
        import ray

        return ray.get(self._actor.call.remote(method, *given, **named))

    def claim(self, owner: str, *, loaded: str = "") -> Job | None:
        found: Job | None = self._call("claim", owner, loaded=loaded)
        return found

    def renew(self, job: Job, owner: str, progress: dict[str, Any]) -> bool:
        return bool(self._call("renew", job, owner, progress))

    def done(self, job: Job, owner: str, result: dict[str, Any]) -> bool:
        return bool(self._call("done", job, owner, result))

    def failed(self, job: Job, owner: str, reason: str, *, again: bool) -> None:
        self._call("failed", job, owner, reason, again=again)

    def give_back(self, job: Job, owner: str, *, wait: float = 0.0) -> None:
        self._call("give_back", job, owner, wait=wait)

    def unfinished(self) -> bool:
        return bool(self._call("unfinished"))


def work_here(actor: Any, root: str, folder: str, owner: str, threads: int) -> None:
    """A worker in a process of the cluster. folder: where the driver works, on which relative paths depend."""
    import torch

    from sweeps.worker import work

    if not (Path(root) / _SEEN_FILE).is_file():
        raise UsageError(
            f"the node {os.uname().nodename} does not see {root}: give an `--out` on storage that all nodes share"
        )
    os.chdir(folder)
    torch.set_num_threads(threads)
    work(lambda: Remote(actor), owner, Path(os.path.relpath(root)))


def run_ray(
    root: Path,
    *,
    address: str | None,
    workers: int | None,
    cpus: float | None,
    gpus: float | None,
    retries: int,
    seen: Seen,
) -> None:
    """Runs the sweep in `root` on a cluster. address: of one that is there; None starts one on this machine.

    workers: at most so many at once, None for as many as the cluster has room for. cpus, gpus: of each worker.
    Raises KeyboardInterrupt and UsageError.
    """
    ray = _ray()
    began = not ray.is_initialized()
    if began:
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False, configure_logging=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(f"`--address` {address}: no Ray cluster answers there ({error}).") from None
    (root / _SEEN_FILE).touch()
    crew = _Crew(ray, root, workers=workers, cpus=cpus, gpus=gpus, retries=retries)
    ledger = Ledger(root, retries=retries)
    try:
        while ledger.unfinished():
            crew.tend(ledger)
            seen()
            time.sleep(_POLL)
    finally:
        crew.end(ledger)
        ledger.close()
        if began:
            ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError('`--on ray` needs an optional package: pip install "softcotpp[ray]"') from None
    return ray


class _Crew:
    """The worker tasks of a cluster, replaced as they are lost."""

    def __init__(
        self, ray: Any, root: Path, *, workers: int | None, cpus: float | None, gpus: float | None, retries: int
    ) -> None:
        here = ray.get_runtime_context().get_node_id()
        pinned = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
        place = {"num_cpus": 0, "scheduling_strategy": pinned, "max_concurrency": 1}
        self._actor = ray.remote(LedgerActor).options(**place).remote(str(root.resolve()), retries)
        self._ray, self._root, self._asked = ray, root, workers
        total = ray.cluster_resources()
        self._gpus = gpus if gpus is not None else (1.0 if total.get("GPU") else 0.0)
        self._cpus = cpus if cpus is not None else (1.0 if self._gpus else min(8.0, _smallest_node(ray)))
        if self._cpus > _largest_node(ray, "CPU") or self._gpus > _largest_node(ray, "GPU"):
            raise UsageError(
                f"no node of the cluster has {self._cpus:g} CPUs and {self._gpus:g} GPUs for one worker: lower "
                f"`--cpus-per-worker` or `--gpus-per-worker`."
            )
        self._task = ray.remote(work_here).options(num_cpus=self._cpus, num_gpus=self._gpus, max_retries=0)
        self._running: dict[Any, str] = {}
        self._number = self._in_vain = 0

    def tend(self, ledger: Ledger) -> None:
        """Gives back what lost workers held, and starts as many as there is room for."""
        ended, _ = (
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
            if self._running
            else ([], [])
        )
        for task in ended:
            self._ended(task, ledger)
        while len(self._running) < self._room():
            owner = f"ray:{os.getpid()}:{self._number}:{time.time_ns()}"
            self._number += 1
            threads = max(1, int(self._cpus))
            task = self._task.remote(self._actor, str(self._root.resolve()), os.getcwd(), owner, threads)
            self._running[task] = owner

    def _ended(self, task: Any, ledger: Ledger) -> None:
        owner = self._running.pop(task)
        try:
            self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UsageError):
                raise error.cause from None
            self._in_vain += 1
            if self._in_vain >= _IN_VAIN:
                raise UsageError(f"workers end with an error of their own: {error.cause!r}") from None
        except self._ray.exceptions.RayError:
            pass  # its process or node is gone; what it held goes to another
        ledger.lost(owner)

    def _room(self) -> int:
        """Workers that the cluster could hold now; nodes may have come and gone."""
        total = self._ray.cluster_resources()
        fits = [int(total.get("CPU", 0) / self._cpus)] if self._cpus else []
        fits += [int(total.get("GPU", 0) / self._gpus)] if self._gpus else []
        room = min(fits, default=1)
        return min(room, self._asked) if self._asked else max(1, room)

    def end(self, ledger: Ledger) -> None:
        """Stops what still runs; what it held is pending again."""
        for task, owner in self._running.items():
            self._ray.cancel(task, force=True)
            ledger.lost(owner)
        self._ray.kill(self._actor)


def _largest_node(ray: Any, kind: str) -> float:
    return max((float(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]), default=0.0)


def _smallest_node(ray: Any) -> float:
    return max(1.0, min((float(n["Resources"].get("CPU", 0)) for n in ray.nodes() if n["Alive"]), default=1.0))
