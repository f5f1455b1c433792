"""`--on ray` on a real cluster of two nodes: nodes, drivers and workers may go, the samples stay those of bare runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path

import psutil
import pytest

from scaling.records.errors import UsageError
from scaling.run import execute
from sweeps import ray_driver, ray_worker
from sweeps.execute import ProgressReporter
from sweeps.ledger import DONE, RUNNING, Ledger
from sweeps.plan import config_of
from sweeps.ray_worker import work_here
from sweeps.sweep import Sweep

pytest.importorskip("ray", reason="`--on ray` needs the optional extra: pip install 'softcotpp[ray]'")
from ray.cluster_utils import Cluster
from ray.exceptions import ActorDiedError

WAIT = 240.0  # seconds
AXES = {"method": ["cot", "softcot++"], "latent_paths": [1, 2], "samples": [1, 6]}


@pytest.fixture(scope="module", autouse=True)
def own_folder():
    """Where Ray keeps its sockets, whose paths must be short."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        patch.delenv("RAY_ADDRESS", raising=False)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def head():
    """A cluster whose first node has one core."""
    on_term = signal.getsignal(signal.SIGTERM)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()
    signal.signal(signal.SIGTERM, on_term)


@pytest.fixture
def nodes(head):
    """A head and one more node, of one core each."""
    if not head.worker_nodes:
        head.add_node(num_cpus=1)
        head.wait_for_nodes()
    return head


@pytest.fixture(scope="module")
def settings(tiny_model_folder):
    """Runs that do not end between a look at the ledger and what is done then."""
    model = str(tiny_model_folder)
    return {
        **{"backbone": model, "assistant": model, "device": "cpu", "dtype": "float32", "temperature": 1.0},
        **{"limit": 4, "max_new_tokens": 40, "soft_tokens": 2, "batch_size": 2},
    }


@pytest.fixture
def file(grid, settings):
    return grid(run=settings, axes=AXES)


@pytest.fixture
def sweep(file, tmp_path):
    return Sweep.of(file, scale=None, changes=[], out=tmp_path / "sweep")


@pytest.fixture
def expected(sweep, tmp_path, samples, drawn_before):
    """What bare runs draw, by the folder that the sweep gives them."""
    if not drawn_before:
        for job in sweep.plan.jobs:
            (extent,) = job.extents
            out = tmp_path / "bare" / Path(job.folder).name
            execute(
                config_of(job, extent, trained=None).model_copy(update={"out": out}), ProgressReporter(lambda _: None)
            )
            drawn_before[out.name] = samples(out)
    return drawn_before


@pytest.fixture(scope="module")
def drawn_before():
    return {}


@pytest.fixture
def on_ray(command, nodes, sweep, file):
    """`on_ray(...)`: the sweep on the cluster, from a process of its own."""
    return lambda *more: command("run", file, "--out", sweep.root, "--on", "ray", "--address", nodes.address, *more)


def wait_for(condition, process):
    end = time.monotonic() + WAIT
    while not (found := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def ended(process, code=0):
    """What the process printed, once it has ended with this code."""
    out, said = process.communicate(timeout=WAIT)
    assert process.returncode == code, said
    return out, " ".join(said.split())


def book_of(sweep, process):
    wait_for((sweep.root / "ledger.sqlite").is_file, process)
    return Ledger(sweep.root)


def at_work(sweep, book):
    """Owners of the jobs that have begun to draw, by job; what is on disk is seen before the next pulse tells of it."""
    return {e.job.id: e.owner for e in book.entries() if e.state == RUNNING and drawn(sweep, e.job)}


def taken_over(book, before):
    """Jobs that others have now than before."""
    now = {entry.job.id: entry.owner for entry in book.entries() if entry.state == RUNNING}
    return [job for job, owner in before.items() if now.get(job, owner) != owner]


def states(book):
    return {entry.state for entry in book.entries()}


def workers_of(sweep):
    """Process ids of the workers that ever began."""
    return [int(path.stem.rpartition("-")[2]) for path in (sweep.root / "logs").glob("*.log")]


def drawn(sweep, job):
    """Bytes that a run, or its part, has drawn."""
    journal = sweep.root / job.folder / "samples.jsonl"
    return journal.stat().st_size if journal.exists() else 0


def in_ledger(sweep, statement):
    db = sqlite3.connect(sweep.root / "ledger.sqlite", timeout=60)
    try:
        with db:
            return db.execute(statement).fetchall()
    finally:
        db.close()


def lengthen_leases(sweep):
    """So that their end is not what a job is given back by."""
    in_ledger(sweep, "UPDATE jobs SET lease = lease + 3600 WHERE state = 'running'")


def begun(process, sweep):
    """The worker that has begun to draw."""
    before = set(workers_of(sweep))
    wait_for(lambda: at_work(sweep, book_of(sweep, process)), process)
    (pid,) = set(workers_of(sweep)) - before
    return psutil.Process(pid)


def test_a_killed_driver_takes_its_worker_along_and_the_same_command_goes_on(on_ray, sweep, expected, all_samples):
    killed = on_ray("--workers", 1)
    worker = begun(killed, sweep)
    killed.kill()
    killed.communicate()
    worker.wait(WAIT)
    book = Ledger(sweep.root)
    assert RUNNING in states(book), "nobody was left to give the job back"
    lengthen_leases(sweep)
    ended(on_ray("--workers", 1))
    assert states(book) == {DONE}
    assert all_samples(sweep.root) == expected


def test_ctrl_c_gives_jobs_back_and_ends_the_cluster_that_began_with_the_sweep(
    command, sweep, file, monkeypatch, tmp_path
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    process = command("run", file, "--out", sweep.root, "--on", "ray", "--workers", 1)
    worker = begun(process, sweep)
    processes = psutil.Process(process.pid).children(recursive=True)
    assert worker in processes
    process.send_signal(signal.SIGINT)
    _, said = ended(process, 130)
    assert re.fullmatch(r"6 points, .* the same command continues the sweep\.", said), (
        "nothing but the sweep's own lines"
    )
    assert "ray" not in said.replace(str(sweep.root), "")
    assert RUNNING not in states(Ledger(sweep.root))
    assert in_ledger(sweep, "SELECT max(losses) FROM jobs") == [(0,)], "given back, not lost"
    assert any(drawn(sweep, entry.job) for entry in Ledger(sweep.root).entries())
    assert psutil.wait_procs(processes, WAIT)[1] == []
    assert not (tmp_path / "home" / ".ray").exists(), (
        "a key in the home folder keeps its owner out of clusters without one"
    )


def lacking_the_project():
    """A worker in place of the real one. It is nested, as Ray sends such functions by value."""

    def worker(*_):
        raise ModuleNotFoundError("No module named 'sweeps'")

    return worker


def lacking_the_folder():
    def worker(actor, folder, root, mark, *rest):
        os.rename(f"{root}/{mark}", f"{root}/elsewhere")
        work_here(actor, folder, root, mark, *rest)

    return worker


def crashing():
    def worker(*_):
        os._exit(1)

    return worker


@pytest.fixture
def run_here(sweep, monkeypatch):
    """`run_here(worker, ...)`: the sweep, driven by this process, with such workers."""
    share = {"workers": None, "cpus_per_worker": None, "gpus_per_worker": None}
    asked = share | {"address": None, "retries": 0, "on_poll": lambda: None}

    def run(worker, **given):
        monkeypatch.setattr(ray_driver, "work_here", worker)
        sweep.begin()
        ray_driver.run_ray(sweep.root, **(asked | given))

    return run


@pytest.mark.parametrize(
    ("worker", "told"),
    [
        (lacking_the_project, r"workers end before they have a job; .* ModuleNotFoundError: No module named 'sweeps'"),
        (lacking_the_folder, r"does not see .*: give an `--out` on storage that all nodes share"),
        (crashing, r"workers end before they have a job; .* WorkerCrashedError"),
    ],
)
def test_workers_that_cannot_begin_end_the_sweep_with_the_reason(run_here, head, monkeypatch, worker, told):
    monkeypatch.setattr(ray_driver, "MAX_EARLY_DEATHS", 2)
    on_term = signal.getsignal(signal.SIGTERM)
    with pytest.raises(UsageError, match=told):
        run_here(worker(), address=head.address, workers=1)
    assert signal.getsignal(signal.SIGTERM) == on_term, "Ray's own would end the driver without a word"


def test_ray_is_asked_for_by_name(run_here, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "softcotpp\[ray\]"'):
        run_here(crashing(), address="auto")


@pytest.mark.parametrize("missing", ["root", "folder"])
def test_a_node_that_sees_another_disk_says_so(tmp_path, missing):
    places = {"root": str(tmp_path), "folder": str(tmp_path)} | {missing: str(tmp_path / "elsewhere")}
    (tmp_path / "mark").touch()
    with pytest.raises(UsageError, match=f"does not see {places[missing]} as the driver does"):
        work_here(None, places["folder"], places["root"], "mark", "owner", 1)


class Answering:
    """An actor's handle of which every call has this answer."""

    def __init__(self, answer):
        self.call, self.remote, self.future = self, lambda *_: self, lambda: answer


def test_a_lease_that_cannot_be_renewed_is_given_up_before_it_ends(monkeypatch):
    monkeypatch.setattr(ray_worker, "LEASE", 0.02)
    silent, dead, alive = Future(), Future(), Future()
    dead.set_exception(ActorDiedError())
    alive.set_result(True)
    renewed = [ray_worker.RemoteLedger(Answering(answer)).renew(None, "x", {}) for answer in (silent, dead, alive)]
    assert renewed == [False, False, True]
    with pytest.raises(ActorDiedError):
        ray_worker.RemoteLedger(Answering(dead)).unfinished()


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", r"`--address` 127\.0\.0\.1:1: no Ray cluster answers there"),
        ("ray://127.0.0.1:10001", r"`--address` must be HOST:PORT .* is ray://127\.0\.0\.1:10001"),
        ("somewhere", r"`--address` must be HOST:PORT"),
        ("127.0.0.1:99999", "no Ray cluster answers there"),
    ],
)
def test_an_address_without_a_cluster_is_told_at_once(run_here, address, told):
    with pytest.raises(UsageError, match=told):
        run_here(crashing(), address=address)


def test_the_address_in_the_environment_is_the_default(run_here, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:1: no Ray cluster answers there"):
        run_here(crashing())


def test_a_worker_that_fits_on_no_node_is_refused(run_here, head):
    with pytest.raises(
        UsageError, match=r"`--cpus-per-worker` 64 and `--gpus-per-worker` 0: no node .* 1 CPUs and 0 GPUs"
    ):
        run_here(crashing(), address=head.address, cpus_per_worker=64.0)


CPU, GPUS, HEAD = {"CPU": 16.0}, {"CPU": 8.0, "GPU": 4.0}, {"memory": 1.0}


@pytest.mark.parametrize(
    ("nodes_there", "cpus", "gpus", "share", "room"),
    [
        ([CPU, CPU], None, None, (8, 0), [2, 2]),
        ([CPU, {"CPU": 4.0}, HEAD], None, None, (4, 0), [4, 1, 0]),
        ([CPU, GPUS], None, None, (1, 1), [0, 4]),
        ([CPU, GPUS], None, 0.0, (8, 0), [2, 1]),
        ([GPUS], 4.0, 0.5, (4, 0.5), [2]),
        ([GPUS], 0.1, 0.0, (0.1, 0), [80]),
        ([GPUS], 0.0, 0.3, (0, 0.3), [13]),
        ([CPU, {"CPU": 64.0}], 32.0, None, (32, 0), [0, 2]),
    ],
)
def test_what_a_worker_gets_and_how_many_fit(nodes_there, cpus, gpus, share, room):
    found = ray_driver.share_of(nodes_there, cpus, gpus)
    assert (found.cpus, found.gpus) == share
    assert [found.fits(node) for node in nodes_there] == room


@pytest.mark.parametrize(
    ("cpus", "gpus"), [(17.0, 0.0), (None, 5.0), (9.0, 1.0), (0.0, 0.0), (-1.0, 1.0), (1.0, -1.0), (1.0, 1.5)]
)
def test_a_share_that_no_node_has_or_that_means_nothing_is_refused(cpus, gpus):
    with pytest.raises(UsageError, match="`--cpus-per-worker`"):
        ray_driver.share_of([CPU, GPUS], cpus, gpus)


def test_two_nodes_share_the_parts_of_runs_and_one_ends_what_the_other_lost(
    on_ray, sweep, expected, settings, grid, all_samples, nodes
):
    grid(run=settings, axes=AXES, shard=2)  # the same file, and so the same folders of runs
    process = on_ray("--workers", 4)
    book = book_of(sweep, process)
    before = wait_for(lambda: found if len(found := at_work(sweep, book)) == 2 else {}, process)
    assert len(workers_of(sweep)) == 2, "those that find no core must wait for one"
    (lost,) = nodes.worker_nodes
    nodes.remove_node(lost, allow_graceful=False)
    lengthen_leases(sweep)
    wait_for(lambda: taken_over(book, before), process)
    _, said = ended(process)
    assert states(book) == {DONE}
    assert sum(entry.job.part is not None for entry in book.entries()) == 2 * len(expected)
    assert all_samples(sweep.root) == expected
    assert "raylet" not in said
