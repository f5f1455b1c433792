"""Runs a sweep by workers on the nodes of a Ray cluster (`--on ray`). All nodes must see the sweep's folder.

This process is the driver: it starts workers, replaces lost ones, and makes their jobs pending again. What runs on the nodes
is in `sweeps.ray_worker`. Ray is an optional package, which is imported only with this option.
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
from sweeps.local import MAX_EARLY_DEATHS, OnPoll, cores
from sweeps.ray_worker import LedgerActor, work_here

_POLL = 0.5  # seconds between two looks at the workers
_GRACE = 30.0  # seconds that workers have to end by themselves
_ANSWER = 10.0  # seconds that the head of a cluster has to answer
_START = 120.0  # seconds that a process of the cluster has to start
_STORE = 100 * 2**20  # bytes of Ray's object store, which sweeps do not use
_NAMESPACE, _OWNER = "softcotpp", "ray:"  # the latter begins the names of workers in the ledger
# Ray puts the folder that is current when a cluster is joined first on its workers' import path. It must be this one, as the
# user's current folder may hold modules with the same names as ours.
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
        root: the sweep's folder.
        address: HOST:PORT of the cluster's head, `auto` for the cluster that this machine is part of, `local` for a new one
            on this machine; None for RAY_ADDRESS where it is set, else `local`.
        workers: how many work at once; those for which there is no room wait. None for as many as there is room for.
        cpus_per_worker: cores of a worker; None for 1 with a GPU, else up to 8.
        gpus_per_worker: GPUs of a worker; None for 1 where the cluster has GPUs, else 0.
        retries: how often a job that fails is tried again.
        on_poll: called every half second, for a display.

    Raises:
        KeyboardInterrupt: on Ctrl-C, after the workers have given back their jobs.
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
    """Sets a key for the cluster that will be started, so that nobody else can use it.

    Ray would otherwise make a key and leave it in the home folder, and with such a file the user could no longer join
    clusters without keys by `auto`. Must be called before ray is imported, which reads these variables.
    """
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _ray() -> Any:
    """Imports ray. Raises UsageError where it is not installed."""
    try:
        import ray
    except ImportError:
        raise UsageError(f"`--on ray` needs an optional package: {install('ray')}") from None
    return ray


def _join(ray: Any, address: str) -> None:
    """Connects this process to a cluster, or starts one for `local`. Raises UsageError where that fails."""
    settings = {"num_cpus": cores(), "object_store_memory": _STORE, "include_dashboard": False}
    of_new = settings if address == "local" else {}
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        with chdir(_HOME):
            ray.init(address=address, namespace=_NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, **of_new)
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        reason = one_line(error, limit=300)
        if of_new:
            raise UsageError(f"Ray cannot start here: {reason}; RAY_TMPDIR names the folder of its files") from None
        raise UsageError(f"`--address` {address} cannot be joined: {reason}{_KEY}") from None
    finally:
        signal.signal(signal.SIGTERM, on_term)  # Ray sets a handler of its own, which ends this process without a word


def _refuse_unreachable(address: str) -> None:
    """Raises UsageError where nothing listens at an address. Ray itself would take minutes to find out."""
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
    """How many cores and GPUs of a node a worker gets."""

    cpus: float
    gpus: float

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many workers fit on a node. resources: the node's, by Ray's names."""
        kinds = (("CPU", self.cpus), ("GPU", self.gpus))
        # the small number makes up for rounding, as of 0.3 / 0.1
        return min(int(resources.get(kind, 0.0) / share + 1e-6) for kind, share in kinds if share)


def _nodes(ray: Any) -> list[dict[str, float]]:
    """The resources of every node that is alive, by Ray's names."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def share_of(nodes: list[dict[str, float]], cpus: float | None, gpus: float | None) -> Share:
    """Decides how many cores and GPUs a worker gets.

    Args:
        nodes: resources of every node.
        cpus: cores that the user asks for. None for 1 with a GPU; without one for 8, or for all of the node with the fewest
            where that has fewer.
        gpus: GPUs that the user asks for. None for 1 where any node has a GPU, else 0.

    Raises:
        UsageError: no node has so much, or the numbers make no sense.
    """
    gpus = float(any(node.get("GPU") for node in nodes)) if gpus is None else gpus
    most = min((node["CPU"] for node in nodes if node.get("CPU")), default=1.0)
    cpus = (1.0 if gpus else min(8.0, most)) if cpus is None else cpus
    asked = f"`--cpus-per-worker` {cpus:g} and `--gpus-per-worker` {gpus:g}"
    if min(cpus, gpus) < 0 or not (cpus or gpus) or (gpus > 1 and gpus % 1):
        raise UsageError(f"{asked}: neither may be negative, one must be above 0, and more than one GPU are whole ones")
    share = Share(cpus, gpus)
    if not any(share.fits(node) for node in nodes):
        have = "; ".join(sorted({f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes}))
        raise UsageError(f"{asked}: no node of the cluster has so much, they have {have}; lower the options")
    return share


def _drive(ray: Any, root: Path, share: Share, workers: int | None, retries: int, on_poll: OnPoll) -> None:
    """Tends the workers until no job is left that can run. Arguments are those of `run_ray`."""
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
        # the actor has the same name: while it is there, other drivers see that this one is alive
        self._name = f"{_OWNER}{node}/{key}"
        self._root = Path(os.path.abspath(root))
        # a node that does not see this file does not share the sweep's folder
        self._mark = self._root / f".seen-by-nodes-{key}"
        self._mark.touch()
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        place = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
        self._actor = ray.remote(LedgerActor).options(name=self._name, **place).remote(str(self._root), retries)
        needs = {"num_cpus": share.cpus, "num_gpus": share.gpus, "scheduling_strategy": "SPREAD"}
        self._task = ray.remote(max_retries=0, max_calls=1, **needs)(work_here)
        self._running: dict[Any, tuple[str, float]] = {}  # by task: the worker's name, and when it was started
        self._number = self._early_deaths = 0
        self._last_early_death = 0.0

    def begin(self) -> None:
        """Waits until the ledger's actor answers. Raises UsageError where it does not, as workers could not begin then."""
        try:
            self._ray.get(self._actor.call.remote("unfinished"), timeout=_START)
        except self._ray.exceptions.RayError as error:
            raise UsageError(f"the cluster cannot serve this driver: {one_line(error, limit=300)}{_KEY}") from None

    def tend(self, ledger: Ledger) -> None:
        """Makes the jobs of lost workers pending again, and starts new workers in their place.

        Raises UsageError where one worker after another ends early.
        """
        for task in self._ended(list(self._running), 0.0):
            self._collect(task, ledger)
        self._free_orphans(ledger)
        for _ in range(len(self._running), self._asked or self._room()):
            self._start()

    def _ended(self, tasks: list[Any], seconds: float) -> list[Any]:
        """Those of the tasks that have ended by now, or end within some seconds."""
        ended: list[Any] = self._ray.wait(tasks, num_returns=len(tasks), timeout=seconds)[0] if tasks else []
        return ended

    def _room(self) -> int:
        """How many workers the cluster can hold now, but at least 1: a node with room may still join."""
        return max(1, sum(self._share.fits(node) for node in _nodes(self._ray)))

    def _start(self) -> None:
        """Starts one worker. It waits in Ray's queue where no node has room for it."""
        owner = f"{self._name}/{self._number}"
        self._number += 1
        threads = max(1, int(self._share.cpus))
        task = self._task.remote(self._actor, os.getcwd(), str(self._root), self._mark.name, owner, threads)
        self._running[task] = owner, time.monotonic()

    def _collect(self, task: Any, ledger: Ledger) -> None:
        """Makes the job of a worker that has ended pending again.

        Raises UsageError where the next worker would end in the same way.
        """
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
        """Counts early deaths of workers. Raises UsageError after several of them in a row.

        Args:
            born: when the worker was started.
            early: whether it ended with an error and without a job.
            why: its error.
        """
        if not early:
            self._early_deaths = 0
        elif born > self._last_early_death:  # workers that end at the same time, as those of one node do, count once
            self._early_deaths, self._last_early_death = self._early_deaths + 1, time.monotonic()
        if self._early_deaths >= MAX_EARLY_DEATHS:
            error = f"{type(why).__name__}: {one_line(why, limit=300)}"
            raise UsageError(f"workers end before they have a job; the same command goes on once they can: {error}")

    def _free_orphans(self, ledger: Ledger) -> None:
        """Makes the jobs of other drivers' workers pending again where the driver has died, before their leases end."""
        drivers = {owner: owner.rpartition("/")[0] for owner in ledger.owners() if owner.startswith(_OWNER)}
        if set(drivers.values()) <= {self._name}:
            return
        # nodes that have left this cluster are among them; nothing is known of drivers on other clusters
        nodes = {node["NodeID"] for node in self._ray.nodes()}
        alive = set(self._ray.util.list_named_actors())
        for owner, driver in drivers.items():
            if driver.removeprefix(_OWNER).partition("/")[0] in nodes and driver not in alive:
                ledger.lost(owner)

    def end(self, ledger: Ledger) -> None:
        """Ends all workers. They have 30 seconds to give back their jobs; those that do not are killed."""
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
