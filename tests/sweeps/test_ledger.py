"""The ledger gives every job to one owner, loses none and hides no failure."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from scaling.records.errors import UsageError
from sweeps import ledger as ledger_module
from sweeps.ledger import DONE, FAILED, LEASE, LEDGER, PENDING, RUNNING, Ledger
from sweeps.plan import Job

REPOSITORY = Path(__file__).resolve().parents[2]


def a_job(name, *, needs=(), models="m", extents=((2, 1, 1),)):
    return Job(name, "run", {"method": "cot"}, f"runs/{name}", tuple(needs), extents, models=models)


@pytest.fixture
def book(tmp_path):
    return Ledger(tmp_path, retries=1)


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)`: so much time passes for the ledger."""
    passed = 0.0

    def later(seconds):
        nonlocal passed
        passed += seconds

    start = time.time()
    monkeypatch.setattr(ledger_module.time, "time", lambda: start + passed)
    return later


def states(book):
    return {entry.job.id: entry.state for entry in book.entries()}


def test_jobs_come_in_order_once_and_after_what_they_need(book):
    book.take([a_job("a"), a_job("b", needs=["a"]), a_job("c")])
    first, second = book.claim("x"), book.claim("y")
    assert (first.id, second.id) == ("a", "c")
    assert book.claim("z") is None
    assert book.unfinished()
    assert book.done(first, "x", {"answer": 1})
    third = book.claim("z")
    assert third.id == "b"
    assert book.done(third, "z", {})
    assert book.done(second, "y", {})
    assert not book.unfinished()
    assert book.entries()[0].result == {"answer": 1}


def test_jobs_of_the_models_that_are_loaded_come_first(book):
    book.take([a_job("a", models="m"), a_job("b", models="n"), a_job("c", models="m")])
    assert book.claim("x", loaded="n").id == "b"
    assert book.claim("x", loaded="n").id == "a"


def test_jobs_in_turn_are_given_in_their_order_whatever_is_loaded(book):
    book.take([a_job("a", models="m"), a_job("b", models="n"), a_job("c", models="m")], in_turn=True)
    claimed = []
    for loaded in ("", "m", "n"):
        claimed.append(book.claim("x", loaded=loaded).id)
    assert claimed == ["a", "b", "c"]
    assert [entry.job.models for entry in book.entries()] == ["m", "n", "m"], "each still knows its models"


def test_a_silent_owner_loses_its_job_and_a_living_one_keeps_it(book, clock):
    book.take([a_job("a"), a_job("b")])
    silent, living = book.claim("x"), book.claim("y")
    clock(LEASE - 1)
    assert book.renew(living, "y", {"done": 1})
    assert book.claim("z") is None
    clock(2)
    assert book.claim("z").id == silent.id
    assert not book.renew(silent, "x", {})
    assert not book.done(silent, "x", {"wrong": 1}), "it is another's now"
    assert states(book) == {"a": RUNNING, "b": RUNNING}
    assert book.done(silent, "z", {"right": 1})
    assert book.entries()[0].result == {"right": 1}


def test_the_silence_of_a_lost_owner_is_not_counted_as_work(book, clock):
    book.take([a_job("a")])
    job = book.claim("x")
    clock(5)
    book.renew(job, "x", {})
    clock(LEASE + 1000)
    again = book.claim("y")
    clock(2)
    book.done(again, "y", {})
    assert book.entries()[0].seconds == pytest.approx(5 + 2)


def test_a_failure_is_retried_as_often_as_stated_and_then_stands_with_its_reason(tmp_path):
    for retries in (0, 1, 3):
        folder = tmp_path / str(retries)
        folder.mkdir()
        book = Ledger(folder, retries=retries)
        book.take([a_job("a"), a_job("b", needs=["a"]), a_job("c", needs=["b"])])
        for attempt in range(retries + 1):
            assert book.unfinished()
            book.failed(book.claim("x"), "x", f"reason {attempt}", again=True)
        assert book.claim("x") is None
        assert not book.unfinished(), "what waits for a failed job can never begin"
        entry, *others = book.entries()
        assert (entry.state, entry.attempts, entry.reason) == (FAILED, retries + 1, f"reason {retries}")
        assert [(other.state, other.blocked) for other in others] == [(PENDING, "a"), (PENDING, "a")]
        assert book.retry_failed() == 1
        assert book.claim("x").id == "a"


def test_a_failure_that_would_come_again_is_not_retried(book):
    book.take([a_job("a")])
    book.failed(book.claim("x"), "x", "no such model", again=False)
    assert book.claim("x") is None
    assert states(book) == {"a": FAILED}


def test_a_lost_owner_counts_only_where_nothing_was_added(book, tmp_path):
    book.take([a_job("a")])
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    for number in range(30):  # every owner gets a line further
        job = book.claim(f"x{number}")
        with (folder / "samples.jsonl").open("a") as file:
            file.write("line\n")
        book.lost(f"x{number}")
        assert states(book) == {job.id: PENDING}
    for number in range(ledger_module._LOSSES):  # the last of those was one loss already
        assert states(book) == {"a": PENDING}, number
        book.claim(f"y{number}")
        book.lost(f"y{number}")
    (entry,) = book.entries()
    assert (entry.state, entry.reason) == (FAILED, "its worker was lost")


def test_losing_an_owner_touches_nobody_else(book):
    book.take([a_job("a"), a_job("b")])
    book.claim("x"), book.claim("y")
    assert book.lost("x")
    assert states(book) == {"a": PENDING, "b": RUNNING}
    assert not book.lost("x"), "it holds nothing any more"


def test_an_owner_that_was_ended_on_purpose_counts_for_nothing(book):
    book.take([a_job("a"), a_job("b")])
    book.claim("x")
    other = book.claim("y")
    book.release("x")
    assert states(book) == {"a": PENDING, "b": RUNNING}
    assert book.entries()[0].reason is None
    assert book.done(other, "y", {})
    for _ in range(50):
        assert book.claim("x")
        book.release("x")
    assert states(book) == {"a": PENDING, "b": DONE}


def test_why_an_owner_was_lost_is_kept_with_its_job_alone(book):
    book.take([a_job("a"), a_job("b")])
    book.claim("x"), book.claim("y")
    assert sorted(book.owners()) == ["x", "y"]
    assert book.lost("x", why="no memory")
    assert {entry.job.id: entry.reason for entry in book.entries()} == {
        "a": "its worker was lost: no memory",
        "b": None,
    }
    assert book.owners() == ["y"]


def test_a_job_that_lost_an_owner_comes_after_the_others(book):
    book.take([a_job("a"), a_job("b")])
    book.claim("x")
    book.lost("x")
    assert [book.claim("y").id, book.claim("y").id] == ["b", "a"]


def test_what_is_given_back_waits_and_is_held_against_nobody(book, clock):
    book.take([a_job("a")])
    for _ in range(5):
        book.give_back(book.claim("x"), "x", wait=10)
        assert book.claim("x") is None
        clock(11)
    (entry,) = book.entries()
    assert (entry.state, entry.attempts) == (PENDING, 0)


def test_a_done_job_runs_again_only_where_it_must_draw_more(book):
    def finish(job):
        book.take([job])
        claimed = book.claim("x")
        return claimed is not None and book.done(claimed, "x", {})

    job = a_job("a", extents=((2, 4, 4),))
    assert finish(job)
    assert not finish(job)
    assert not finish(replace(job, extents=((2, 4, 2),))), "less of it is there"
    assert finish(replace(job, extents=((2, 8, 4),)))
    assert not finish(job)


def test_a_job_that_grows_while_it_runs_is_not_done(book):
    job = a_job("a")
    book.take([job])
    running = book.claim("x")
    book.take([replace(job, extents=((2, 1, 8),))])
    assert not book.done(running, "x", {})
    assert book.claim("x").extents == ((2, 1, 8),)


def test_a_job_that_is_no_longer_wanted_is_kept_and_not_run(book):
    book.take([a_job("a"), a_job("b")])
    book.done(book.claim("x"), "x", {"kept": 1})
    book.take([a_job("b")])
    assert states(book) == {"b": PENDING}
    book.take([a_job("a"), a_job("b")])
    assert states(book) == {"a": DONE, "b": PENDING}
    assert book.entries()[0].result == {"kept": 1}


_CLAIMS = """
import sys
from pathlib import Path
from sweeps.ledger import Ledger
book = Ledger(Path(sys.argv[1]))
while (job := book.claim(sys.argv[2])) is not None:
    print(job.id, flush=True)
    assert book.done(job, sys.argv[2], {})
"""


def test_processes_that_claim_at_once_never_get_the_same_job(book, tmp_path):
    names = [f"job-{number}" for number in range(120)]
    book.take([a_job(name) for name in names])
    command = [sys.executable, "-c", _CLAIMS, str(tmp_path)]
    both = [subprocess.Popen([*command, owner], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) for owner in "xy"]
    told = [process.communicate()[0].split() for process in both]
    assert all(process.returncode == 0 for process in both)
    assert sorted(told[0] + told[1]) == sorted(names)


def test_a_file_that_is_no_ledger_is_refused(tmp_path):
    (tmp_path / "ledger.sqlite").write_text("something else, and long enough to be looked at " * 20)
    with pytest.raises(UsageError, match="cannot be used as a ledger"):
        Ledger(tmp_path)


def test_what_is_at_work_is_not_taken_out(book, clock):
    book.take([a_job("a"), a_job("b")])
    book.claim("x")
    with pytest.raises(UsageError, match=r"another command is at work on a in .* give this grid another `--out`"):
        book.take([a_job("b")])
    assert states(book) == {"a": RUNNING, "b": PENDING}, "nothing has changed"
    book.take([a_job("a"), a_job("c")])
    clock(LEASE + 1)
    book.take([a_job("b")])
    assert states(book) == {"b": PENDING}


def test_a_silent_owner_is_gone_for_whoever_looks(book, clock):
    book.take([a_job("a")])
    book.claim("x")
    clock(LEASE + 1)
    (entry,) = book.entries()
    assert (entry.state, entry.reason) == (PENDING, "its worker was lost")


def test_a_failed_job_whose_settings_were_mended_is_tried_again(book):
    training = Job("train-a", "train", {"device": "cuda"}, "checkpoints/a")
    book.take([training])
    book.failed(book.claim("x"), "x", "no such device", again=False)
    book.take([training])
    assert states(book) == {"train-a": FAILED}
    book.take([replace(training, settings={"device": "cpu"})])
    assert states(book) == {"train-a": PENDING}


def test_parts_of_a_run_that_is_done_are_done(book):
    whole = a_job("whole")
    parts = [replace(a_job(f"whole.{start}"), part=(start, start + 1)) for start in range(2)]
    merged = replace(whole, kind="merge", needs=tuple(part.id for part in parts))
    book.take([whole])
    book.done(book.claim("x"), "x", {})
    book.take([*parts, merged])
    assert set(states(book).values()) == {DONE}
    more = [replace(job, extents=((2, 1, 5),)) for job in (*parts, merged)]
    book.take(more)
    assert set(states(book).values()) == {PENDING}


def test_thousands_of_jobs_that_wait_do_not_slow_a_claim(tmp_path, monkeypatch):
    """Counted in steps of SQLite's machine rather than in seconds: what a claim looks at must not grow with what waits."""
    connection = sqlite3.connect(tmp_path / LEDGER, isolation_level=None)
    monkeypatch.setattr(sqlite3, "connect", lambda *_, **__: connection)
    book, steps = Ledger(tmp_path), []
    for number in (100, 4000):
        book.take([a_job(f"{number}-{place}", models=str(place % 3)) for place in range(number)])
        counted = 0

        def step():
            nonlocal counted
            counted += 1

        connection.set_progress_handler(step, 10)
        book.give_back(book.claim("x", loaded="1"), "x")
        connection.set_progress_handler(None, 0)
        steps.append(counted)
    assert steps[1] < 3 * steps[0]


def test_lines_that_are_written_again_are_no_progress(book, tmp_path):
    """A training goes on from its last checkpoint and writes the same steps again, with other times, hence other bytes."""
    book.take([a_job("a")])
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    for number in range(ledger_module._LOSSES + 2):
        if states(book) == {"a": FAILED}:
            break
        book.claim("x")
        (folder / "metrics.jsonl").write_text(
            "".join(f"{'9' * (number % 7)}{step}\n" for step in range(3 - number % 2))
        )
        book.lost("x")
    assert states(book) == {"a": FAILED}


def test_what_was_deleted_may_be_written_again_from_its_start(book, tmp_path):
    book.take([a_job("a")])
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("line\n" * 9)
    job = book.claim("x")
    book.done(job, "x", {})
    (folder / "samples.jsonl").unlink()
    book.redo([job])
    for number in range(ledger_module._LOSSES + 5):
        book.claim("x")
        (folder / "samples.jsonl").write_text("line\n" * number)
        book.lost("x")
    assert states(book) == {"a": PENDING}


def test_a_failed_job_of_another_name_is_not_tried_again(book):
    book.take([a_job("a")])
    book.failed(book.claim("x"), "x", "never", again=False)
    book.take([replace(a_job("a"), label="seed 0")])
    assert states(book) == {"a": FAILED}


def test_another_attempt_may_be_made_later(book, clock):
    book.take([a_job("a")])
    book.failed(book.claim("x"), "x", "the server is away", again=True, wait=30.0)
    assert states(book) == {"a": PENDING}
    assert book.claim("x") is None
    clock(31)
    assert book.claim("x").id == "a"
