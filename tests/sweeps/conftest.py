"""Sweeps with the tiny model, on disk: written as a user would, carried out in this process or by worker processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from scaling.models import loading
from sweeps.ledger import Ledger
from sweeps.sweep import Sweep
from sweeps.worker import work

Key = tuple[str, int, int]
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def grid(tmp_path: Path) -> Callable[..., str]:
    """`grid(**parts)`: a grid file with these parts; its path."""

    def write(name: str = "grid", **parts: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, **parts}))
        return str(path)

    return write


@pytest.fixture
def tiny(tiny_model_folder: Path) -> dict[str, Any]:
    """Settings of runs that take no time: 2 questions of at most 8 tokens at temperature 1."""
    model = str(tiny_model_folder)
    return {
        **{"backbone": model, "assistant": model, "device": "cpu", "dtype": "float32", "temperature": 1.0},
        **{"limit": 2, "max_new_tokens": 8, "soft_tokens": 2},
    }


@pytest.fixture
def planned(grid: Callable[..., str], tmp_path: Path) -> Callable[..., Sweep]:
    """`planned(**parts)`: the sweep of a grid with these parts, in `tmp_path / "sweep"`."""
    return lambda **parts: Sweep.of(grid(**parts), scale=None, changes=[], out=tmp_path / "sweep")


@pytest.fixture
def drain() -> Iterator[Callable[[Sweep], None]]:
    """`drain(sweep)`: begins the sweep and does all its jobs, in this process."""

    def do(sweep: Sweep) -> None:
        sweep.begin()
        work(lambda: Ledger(sweep.root, retries=sweep.plan.file.retries), "here", sweep.root)

    yield do
    loading.keep_loaded(0)


def read_samples(folder: Path) -> dict[Key, dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    found = {(line["question_id"], line["path"], line["sample"]): line for line in lines}
    assert len(found) == len(lines), "a key stands twice in samples.jsonl"
    for line in lines:  # equal only up to rounding; see `Completion`
        del line["log_prob"], line["self_certainty"], line["crc"]
        line.pop("cost", None)
    return found


@pytest.fixture
def samples() -> Callable[[Path], dict[Key, dict[str, Any]]]:
    """`samples(folder)`: the completions of a run directory by key."""
    return read_samples


@pytest.fixture
def all_samples() -> Callable[[Path], dict[str, dict[Key, dict[str, Any]]]]:
    """`all_samples(root)`: the completions of every run of a sweep, by the run's folder."""
    return lambda root: {folder.name: read_samples(folder) for folder in sorted((root / "runs").iterdir())}


@pytest.fixture
def command() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`command("run", FILE, ...)`: `scale-sweep` in a process of its own, which does not outlive the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: Any) -> subprocess.Popen[str]:
        paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "sweeps", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
