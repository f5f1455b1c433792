"""`--on ray`: runs a sweep by workers on the nodes of a Ray cluster, which all must see the sweep's folder.

This process is the driver: it starts workers, replaces lost ones and gives back their jobs. What runs on the nodes is in
`sweeps.ray_worker`. Ray is an optional package, and is imported only when it is asked for.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import time
import uuid
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaling.records.errors import UsageError, install, one_line
from sweeps.ledger import Ledger
from sweeps.local import OnPoll, cores
from sweeps.ray_worker import LedgerActor, work_here

_POLL = 0.5  # seconds
_GRACE = 30.0  # seconds that workers have to give back what they have
_ANSWER = 10.0  # seconds that the head of a cluster has to answer
_START = 120.0  # seconds that a process of the cluster has to begin
MAX_EARLY_DEATHS = 5  # workers, each begun after the one before ended, that end with an error and no job
_STORE = 100 * 2**20  # bytes of Ray's object store, which sweeps do not use
_NAMESPACE, _OWNER = "softcotpp", "ray:"
# Ray puts the current folder first on its workers' path. While a cluster is joined that is this one: a user's own may hold
# modules that are named like ours.
_HOME = Path(__file__).resolve().parents[1]
_KEY = "; a cluster that was started with a key needs RAY_AUTH_MODE=token here, and one without RAY_AUTH_MODE=disabled"


def run_ray(
    root: Path,
    *,
    address: str | None,
    workers: int | None,
    cpus_per_worker: float | None,
    gpus_per_worker: float | None,
    retries: int,
    on_poll: OnPoll,
) -> None:
    """Runs the sweep in `root` on a cluster until no job is left that can run.

    Args:
        address: HOST:PORT of the cluster's head, `auto` for the cluster that this machine is part of, `local` for a new one
            on this machine; None for RAY_ADDRESS where it is set, else `local`.
        workers: how many at once, of which those wait that find no room; None for as many as there is room for.
        cpus_per_worker, gpus_per_worker: what each gets of its node; None for a GPU and a core where there are GPUs.
        retries: how often a job that fails is tried again.
        on_poll: called every half second, for a display.

    Raises:
        KeyboardInterrupt: after the workers have given back their jobs.
        UsageError: the cluster cannot be joined or has no room, or workers end as soon as they begin.
    """
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _refuse_unreachable(address)
    if address == "local":
        _lock_out_others()
    ray = _ray()
    _join(ray, address)
    try:
        _drive(ray, root, share_of(_nodes(ray), cpus_per_worker, gpus_per_worker), workers, retries, on_poll)
    finally:
        ray.shutdown()


def _lock_out_others() -> None:
    """Gives the cluster to be started a key of its own, before ray is imported and reads it: one that Ray makes stays in the
    home folder, and whoever has such a file cannot join clusters without keys by `auto`."""
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(f"`--on ray` needs an optional package: {install('ray')}") from None
    return ray


def _join(ray: Any, address: str) -> None:
    """Connects this process to a cluster, a new one for `local`. Raises UsageError."""
    own = {"num_cpus": cores(), "object_store_memory": _STORE, "include_dashboard": False}
    given = own if address == "local" else {}
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        with chdir(_HOME):
            ray.init(address=address, namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **given)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        said = one_line(error, limit=300)
        if given:
            raise UsageError(f"Ray cannot start here: {said}; RAY_TMPDIR names the folder of its files") from None
        raise UsageError(f"`--address` {address} cannot be joined: {said}{_KEY}") from None
    finally:
        signal.signal(signal.SIGTERM, on_term)  # Ray put its own there, which ends this process without a word


def _refuse_unreachable(address: str) -> None:
    """Raises UsageError where nothing listens, which Ray itself finds out after minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in host or not host or not port.isdigit():
        raise UsageError(
            f"`--address` must be HOST:PORT of a cluster's head, auto or local, and is {address}; run the sweep on a node "
            f"of the cluster."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"`--address` {address}: no Ray cluster answers there ({one_line(error)}); `ray status` on a node shows "
            f"whether it runs."
        ) from None


@dataclass(frozen=True)
class Share:
    """What one worker gets of a node."""

    cpus: float
    gpus: float

    def fits(self, resources: Mapping[str, float]) -> int:
        """Workers that a node with these resources can hold."""
        kinds = (("CPU", self.cpus), ("GPU", self.gpus))
        return min(int(resources.get(kind, 0.0) / own + 1e-6) for kind, own in kinds if own)


def _nodes(ray: Any) -> list[dict[str, float]]:
    """Resources of every node that is there."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_of(nodes: list[dict[str, float]], cpus: float | None, gpus: float | None) -> Share:
    """What a worker gets: what is asked for, else a GPU and a core, else 8 cores or as many as every node has that has any.

    Raises UsageError where no node has so much.
    """
    gpus = float(any(node.get("GPU") for node in nodes)) if gpus is None else gpus
    most = min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
    cpus = (1.0 if gpus else min(8.0, most)) if cpus is None else cpus
    asked = f"`--cpus-per-worker` {cpus:g} and `--gpus-per-worker` {gpus:g}"
    if min(cpus, gpus) < 0 or not (cpus or gpus) or (gpus > 1 and gpus % 1):
        raise UsageError(f"{asked}: neither may be negative, one must be above 0, and more than one GPU are whole ones")
    share = Share(cpus, gpus)
    if not any(share.fits(node) for node in nodes):
        there = "; ".join(sorted({f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}))
        raise UsageError(f"{asked}: no node of the cluster has so much, they have {there}; lower the options")
    return share


def _drive(ray: Any, root: Path, share: Share, workers: int | None, retries: int, on_poll: OnPoll) -> None:
    ledger = Ledger(root, retries=retries)
    pool = _WorkerPool(ray, root, share, workers=workers, retries=retries)
    try:
        pool.begin()
        while ledger.unfinished():
            pool.tend(ledger)
            on_poll()
            time.sleep(_POLL)
    finally:
        pool.end(ledger)
        ledger.close()


class _WorkerPool:
    """The workers that this driver has on the cluster."""

    def __init__(self, ray: Any, root: Path, share: Share, *, workers: int | None, retries: int) -> None:
        self._ray, self._share, self._asked = ray, share, workers
        node = ray.get_runtime_context().get_node_id()
        key = uuid.uuid4().hex[:12]
        self._name = f"{_OWNER}{node}/{key}"  # also the actor's, which is there while the driver lives
        self._root = Path(os.path.abspath(root))
        self._mark = self._root / f".seen-by-nodes-{key}"
        self._mark.touch()
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        place = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
        self._actor = ray.remote(LedgerActor).options(name=self._name, **place).remote(str(self._root), retries)
        wanted = {"num_cpus": share.cpus, "num_gpus": share.gpus, "scheduling_strategy": "SPREAD"}
        self._task = ray.remote(max_retries=0, max_calls=1, **wanted)(work_here)
        self._running: dict[Any, tuple[str, float]] = {}  # owner and time of birth of each task
        self._number = self._early_deaths = 0
        self._last_early_death = 0.0

    def begin(self) -> None:
        """Waits for the ledger's actor. Raises UsageError where there is none, as without it no worker could begin."""
        try:
            self._ray.get(self._actor.call.remote("unfinished"), timeout=_START)
        except self._ray.exceptions.RayError as error:
            raise UsageError(f"the cluster cannot serve this driver: {one_line(error, limit=300)}{_KEY}") from None

    def tend(self, ledger: Ledger) -> None:
        """Gives back the jobs of lost workers and starts as many as are wanted. Raises UsageError if none can work."""
        for task in self._ended(list(self._running), 0.0):
            self._collect(task, ledger)
        self._free_orphans(ledger)
        for _ in range(len(self._running), self._asked or self._room()):
            self._start()

    def _ended(self, tasks: list[Any], seconds: float) -> list[Any]:
        """Those of the tasks that have ended, or end within so many seconds."""
        ended: list[Any] = self._ray.wait(tasks, num_returns=len(tasks), timeout=seconds)[0] if tasks else []
        return ended

    def _room(self) -> int:
        """Workers that the cluster can hold now, one where it can hold none: nodes come and go."""
        return max(1, sum(self._share.fits(node) for node in _nodes(self._ray)))

    def _start(self) -> None:
        owner = f"{self._name}/{self._number}"
        self._number += 1
        threads = max(1, int(self._share.cpus))
        task = self._task.remote(self._actor, os.getcwd(), str(self._root), self._mark.name, owner, threads)
        self._running[task] = owner, time.monotonic()

    def _collect(self, task: Any, ledger: Ledger) -> None:
        """Gives back the job of a worker that has ended. Raises UsageError where the next worker would end the same way."""
        owner, born = self._running.pop(task)
        errors = self._ray.exceptions
        try:
            self._ray.get(task)
        except errors.RayError as error:
            starved = isinstance(error, errors.OutOfMemoryError)
            idle = not ledger.lost(owner, why="its node ran out of memory" if starved else "")
            cause = getattr(error, "cause", None) or error
            if isinstance(cause, UsageError):
                raise cause from None
            self._count(born, early=idle and not isinstance(error, errors.NodeDiedError), why=cause)
        else:
            ledger.lost(owner)

    def _count(self, born: float, *, early: bool, why: Exception) -> None:
        """Counts a worker that ended. Raises UsageError after several early deaths in a row."""
        if not early:
            self._early_deaths = 0
        elif born > self._last_early_death:  # many that end at once, as those of one node do, count once
            self._early_deaths, self._last_early_death = self._early_deaths + 1, time.monotonic()
        if self._early_deaths >= MAX_EARLY_DEATHS:
            said = f"{type(why).__name__}: {one_line(why, limit=300)}"
            raise UsageError(f"workers end before they have a job; the same command goes on once they can: {said}")

    def _free_orphans(self, ledger: Ledger) -> None:
        """Gives back the jobs of workers whose drivers have died on this cluster, before their leases end."""
        drivers = {owner: owner.rpartition("/")[0] for owner in ledger.owners() if owner.startswith(_OWNER)}
        if set(drivers.values()) <= {self._name}:
            return
        nodes = {node["NodeID"] for node in self._ray.nodes()}  # of this cluster, those that are gone too
        alive = set(self._ray.util.list_named_actors())
        for owner, driver in drivers.items():
            if driver.removeprefix(_OWNER).partition("/")[0] in nodes and driver not in alive:
                ledger.lost(owner)

    def end(self, ledger: Ledger) -> None:
        """Lets workers give back what they have, and kills those that do not within _GRACE seconds."""
        tasks = list(self._running)
        for task in tasks:
            self._ray.cancel(task)  # raises KeyboardInterrupt there
        ended = self._ended(tasks, _GRACE)
        for task in set(tasks) - set(ended):
            self._ray.cancel(task, force=True)
        for owner, _ in self._running.values():
            ledger.release(owner)
        self._ray.kill(self._actor)
        self._mark.unlink(missing_ok=True)
