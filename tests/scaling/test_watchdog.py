"""What must not outlive its process does not, however that ends."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest

from scaling.engines.vllm.watchdog import Watchdog

WAIT = 30.0  # seconds
SLEEPS = [sys.executable, "-c", "import time; time.sleep(600)"]
NESTS = [sys.executable, "-c", f"import subprocess; subprocess.Popen({SLEEPS}).wait()"]
PARENT = f"""
import subprocess
from scaling.engines.vllm.watchdog import Watchdog
watchdog = Watchdog()
with watchdog.watching():
    watched = subprocess.Popen({NESTS}, start_new_session=True)
other = subprocess.Popen({SLEEPS})
print(watched.pid, other.pid, flush=True)
other.wait()
"""


@pytest.fixture
def spawn():
    """Processes that do not outlive the test, whatever is wrong."""
    started = []

    def start(command, **options):
        started.append(psutil.Popen(command, **options))
        return started[-1]

    yield start
    for process in started:
        if process.is_running():
            process.kill()
        process.communicate()


def child_of(process):
    while not (children := process.children()):
        assert process.is_running()
    (child,) = children
    return child


def ended(process):
    return psutil.wait_procs([process], WAIT)[1] == []


def test_what_a_killed_process_has_started_is_killed_down_to_what_that_started(spawn):
    parent = spawn([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    watched, other = map(psutil.Process, map(int, parent.stdout.readline().split()))
    nested = child_of(watched)
    (watchdog,) = {*parent.children()} - {watched, other}
    parent.kill()
    try:
        assert all(map(ended, (parent, watched, nested, watchdog)))
        assert other.is_running(), "it was not started while watching"
    finally:
        other.kill()


def test_what_is_left_when_it_is_closed_is_killed(spawn):
    watchdog = Watchdog()
    with watchdog.watching():
        left = spawn(NESTS)
    spared, nested = spawn(SLEEPS), child_of(left)
    watchdog.close()
    assert ended(left)
    assert ended(nested)
    assert spared.is_running()
    watchdog.close()


def test_what_has_only_just_been_started_is_killed(spawn):
    """A process has no environment for an instant after it was started, and longer on a busy machine."""
    watchdog = Watchdog()
    busy = [spawn([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
    with watchdog.watching():
        for _ in range(20):
            process = spawn(SLEEPS)
            watchdog.kill()
            assert ended(process)
    watchdog.close()
    assert all(process.is_running() for process in busy)


def test_what_is_started_after_others_were_killed_is_still_watched(spawn):
    watchdog = Watchdog()
    with watchdog.watching():
        first = spawn(SLEEPS)
        watchdog.kill()
        assert ended(first)
        second = spawn(SLEEPS)
    watchdog.close()
    assert ended(second)


def test_the_environment_is_as_before(monkeypatch):
    monkeypatch.setenv("SPT_NOENV", "of the user")
    watchdog, before = Watchdog(), dict(os.environ)
    with watchdog.watching():
        assert os.environ["SPT_NOENV"] == "1", "names of processes are written over their environment otherwise"
    assert dict(os.environ) == before
    watchdog.close()


def test_ctrl_c_in_a_terminal_does_not_reach_it():
    before = {*psutil.Process().children()}
    watchdog = Watchdog()
    (process,) = {*psutil.Process().children()} - before
    assert os.getsid(process.pid) == process.pid
    watchdog.close()
    assert ended(process)
