"""A run that is killed, stopped or torn at any moment and continued is the run that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from scaling.cli import app
from scaling.run import execute

LONG = {"limit": 2, "latent_paths": 2, "samples": 3, "max_new_tokens": 50, "batch_size": 2, "soft_tokens": 2}
COUNT = 12
LONGER = {**LONG, "samples": 20}  # does not end between a first line and a signal
WAIT = 120.0  # seconds


@pytest.fixture
def options(config_of, tmp_path):
    """The command line of the long run in `tmp_path / "run"`."""
    config = config_of(**LONG, out=tmp_path / "run")
    asked = config.model_dump(exclude_unset=True)
    return [part for key, value in asked.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def lines_in(out: Path) -> int:
    file = out / "samples.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for_lines(out: Path, count: int, process) -> None:
    end = time.monotonic() + WAIT
    while lines_in(out) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"no {count} lines after {WAIT} seconds"
        time.sleep(0.005)


def test_a_killed_run_continues_to_the_uninterrupted_one(tmp_path, options, command, run, lines_of, config_of, silent):
    out = tmp_path / "run"
    for count in (1, 5):
        process = command(*options)
        wait_for_lines(out, count, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert count <= lines_in(out) < COUNT, "the run is too short to be killed in the middle"
    killed = (out / "samples.jsonl").read_bytes()
    costs = [json.loads(line).get("cost", {}) for line in killed.splitlines(keepends=True) if line.endswith(b"\n")]
    summary = execute(config_of(**LONG, out=out), silent)
    whole = killed[: killed.rindex(b"\n") + 1]  # a torn last line may be cut
    assert (out / "samples.jsonl").read_bytes().startswith(whole)
    assert (summary["complete"], summary["num_completions"]) == (True, COUNT)
    assert lines_of(out) == run(tmp_path / "uninterrupted", **{**LONG, "batch_size": "auto"})
    # what was in flight is all that is not known: at most two completions a kill, and their prompts were read again
    told = json.loads((tmp_path / "uninterrupted" / "summary.json").read_text())
    whole_prompts, found = (
        sum(one["tokens"][f"prefill_{k}"] for k in ("computed", "avoided")) for one in (told, summary)
    )
    assert whole_prompts <= found <= whole_prompts * (COUNT + 2 * 3) / COUNT + 1
    assert summary["seconds"] > sum(cost.get("seconds", 0) for cost in costs) > 0
    steps = sum(cost.get("decode_steps", 0) for cost in costs)
    assert summary["engine"]["decode_steps"] > steps >= max(line["num_tokens"] for line in lines_of(out).values()) - 1


def test_ctrl_c_says_how_to_continue_and_a_second_process_is_refused(tmp_path, options, command, config_of, silent):
    out, count = tmp_path / "run", 80
    process = command(*options, "--samples", 20)
    wait_for_lines(out, 1, process)

    os.kill(process.pid, signal.SIGSTOP)  # holds the directory for as long as the second process needs
    before = (out / "samples.jsonl").read_bytes()
    second = CliRunner().invoke(app, options)
    assert second.exit_code == 2
    assert second.stdout == ""
    said = second.stderr
    assert f"run directory {out} is in use by another process" in said
    assert "Traceback" not in said
    assert (out / "samples.jsonl").read_bytes() == before

    os.kill(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
    printed, said = process.communicate(timeout=WAIT)
    assert process.returncode == 130
    assert printed == ""
    held = lines_in(out)
    assert 1 <= held < count
    assert f"scale-run: stopped: {held} of {count} samples are in {out}; the same command continues the run." in said
    assert "Traceback" not in said
    assert json.loads((out / "summary.json").read_text())["complete"] is False

    summary = execute(config_of(**LONGER, out=out), silent)
    assert len(silent.completions) == count - held
    assert (summary["complete"], summary["num_completions"]) == (True, count)


def test_sigterm_before_the_first_sample_is_taken_like_ctrl_c(options, monkeypatch):
    monkeypatch.setattr("scaling.run.execute", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or time.sleep(5))
    before = signal.getsignal(signal.SIGTERM)
    try:
        result = CliRunner().invoke(app, options)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1].startswith("scale-run: stopped")


@pytest.mark.parametrize("torn", [b'{"question_id": "arithm', b'{"question_id": "a"}', b"\x00\x00\x00", b"not json\n"])
def test_a_torn_last_line_is_cut_and_the_run_goes_on(tmp_path, run, config_of, silent, lines_of, torn):
    whole = run(tmp_path / "run")
    file = tmp_path / "run" / "samples.jsonl"
    kept = b"".join(file.read_bytes().splitlines(keepends=True)[:-2])
    file.write_bytes(kept + torn)
    execute(config_of(out=tmp_path / "run"), silent)
    assert len(silent.completions) == 2
    lines = file.read_bytes()
    assert lines.startswith(kept)
    assert b"\x00" not in lines
    assert lines_of(tmp_path / "run") == whole


def test_a_line_cut_in_the_middle_is_drawn_again(tmp_path, run, config_of, silent, lines_of):
    whole = run(tmp_path / "run")
    file = tmp_path / "run" / "samples.jsonl"
    content = file.read_bytes()
    file.write_bytes(content[:-25])
    execute(config_of(out=tmp_path / "run"), silent)
    assert [c.key for c in silent.completions] == [list(whole)[-1]]
    assert file.read_bytes().startswith(content[: content[:-1].rindex(b"\n") + 1])
    assert lines_of(tmp_path / "run") == whole
