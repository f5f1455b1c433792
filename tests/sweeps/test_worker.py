"""What a worker keeps from one job to the next, and what it ends."""

from __future__ import annotations

import threading
import time

import pytest

from scaling.models import devices
from sweeps import execute as carrying_out
from sweeps.plan import Job
from sweeps.worker import Heartbeat, work


class MemoryLedger:
    """A ledger in memory: hands out these jobs in turn."""

    def __init__(self, jobs):
        self.left, self.ended = list(jobs), []

    def unfinished(self):
        return bool(self.left)

    def claim(self, owner, *, loaded=""):  # noqa: ARG002
        return self.left.pop(0)

    def renew(self, job, owner, progress):  # noqa: ARG002
        return True

    def done(self, job, owner, result):  # noqa: ARG002
        self.ended.append(job.id)

    def failed(self, job, owner, reason, *, again, wait=0.0):  # noqa: ARG002
        raise AssertionError(reason)


def job(name, kind="run", models="a|b", **settings):
    return Job(name, kind, settings, name, models=models)


class Process:
    """An engine that outlasts its run; `happened` is told when it ends."""

    def __init__(self, happened):
        self.happened = happened

    def close(self):
        self.happened.append("closed")


@pytest.fixture
def happened(monkeypatch):
    """What jobs do, and when an engine starts and ends, in order. Jobs on vLLM leave the engine that they used."""
    seen = []

    def perform(job, *_):
        if job.settings.get("engine") == "vllm":
            engine = devices.take_engine(Process, lambda _: True)
            seen.extend([] if engine else ["started"])
            devices.keep_or_close(engine or Process(seen))
        seen.append(job.id)
        return {}

    monkeypatch.setattr(carrying_out, "perform", perform)
    return seen


def test_vllm_stays_for_runs_of_the_same_models_and_leaves_for_all_others(happened):
    jobs = [
        job("first", engine="vllm"),
        job("second", engine="vllm"),
        job("merged", "merge", engine="vllm"),
        job("third", engine="vllm"),
        job("training", "train"),
        job("fourth", engine="vllm"),
        job("here"),
        job("fifth", engine="vllm"),
        job("other", engine="vllm", models="c|b"),
    ]
    ledger = MemoryLedger(jobs)
    work(lambda: ledger, "here", root=None)
    assert ledger.ended == [one.id for one in jobs]
    shared = ["started", "first", "second", "merged", "third", "closed", "training"]
    assert happened == [
        *shared,
        *("started", "fourth", "closed", "here"),
        *("started", "fifth", "closed"),
        *("started", "other", "closed"),
    ]


def test_an_engine_ends_with_a_worker_that_is_interrupted(happened, monkeypatch):
    def interrupted(*_):
        devices.keep_or_close(Process(happened))
        raise KeyboardInterrupt

    ledger = MemoryLedger([job("first", engine="vllm")])
    ledger.give_back = lambda *_, **__: happened.append("given back")
    monkeypatch.setattr(carrying_out, "perform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(lambda: ledger, "here", root=None)
    assert happened == ["given back", "closed"]
    devices.keep_or_close(Process(happened))
    assert happened[-2:] == ["closed", "closed"], "without a worker nothing is kept"


@pytest.mark.usefixtures("happened")
def test_an_interrupted_worker_ends_although_its_job_is_no_longer_its_own(monkeypatch):
    """The lease may be renewed between the job's return and the worker's end."""

    def interrupted(*_):
        raise KeyboardInterrupt

    beaten = threading.Event()
    ledger = MemoryLedger([job("first"), job("second")])
    ledger.renew = lambda *_: beaten.set()  # no: it was given back
    ledger.give_back = lambda *_, **__: beaten.wait(60)
    monkeypatch.setattr(carrying_out, "perform", interrupted)
    with pytest.raises(KeyboardInterrupt):
        work(lambda: ledger, "here", root=None)
    assert beaten.is_set()
    assert [one.id for one in ledger.left] == ["second"]


@pytest.mark.usefixtures("happened")
def test_a_worker_whose_job_was_taken_goes_on_with_another(monkeypatch):
    def told(job, root, tell):  # noqa: ARG001
        if job.id == "second":
            return {}
        while True:
            tell({})

    ledger = MemoryLedger([job("first"), job("second")])
    ledger.renew = lambda job, *_: job.id == "second"
    ledger.give_back = lambda *_, **__: None
    monkeypatch.setattr(carrying_out, "perform", told)
    work(lambda: ledger, "here", root=None)
    assert ledger.ended == ["second"]


def test_a_job_whose_lease_cannot_be_renewed_is_left():
    """Its lease ends, and another worker gets it: two would write into one folder."""

    class Unreachable(MemoryLedger):
        def renew(self, job, owner, progress):  # noqa: ARG002
            raise OSError("the ledger is away")

    def tell_for(seconds):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            heartbeat.tell({})
            time.sleep(0.05)

    with (
        Heartbeat(lambda: Unreachable([]), job("a"), "me", lambda: True) as heartbeat,
        pytest.raises(KeyboardInterrupt),
    ):
        tell_for(30)
    assert heartbeat.taken
