"""`scale-train` for thinkers without an assistant and on pooled states: what it writes, that it resumes, what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contrastive import checkpoint
from contrastive.parallel import Processes
from contrastive.train import STATE_FILE
from scaling.records.errors import Interrupted, UsageError
from scaling.training.config import TrainConfig
from scaling.training.run import train

CASES: list[dict[str, Any]] = [
    {"method": "prompt-tuning"},
    {"method": "proposer"},
    {"method": "refiner", "refine_steps": 2},
    {"states": "last"},
    {"states": "mean", "standardise": False, "layer": -2},
    {"states": "attention", "layer": 1},
    {"stage": "constant,thoughts"},
    {"stage": "constant,thoughts", "states": "attention"},
    {"stage": "constant,thoughts", "method": "refiner", "refine_steps": 2},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_training_goes_on_where_it_was_interrupted_and_a_run_takes_its_thinker(case, settings, quiet, tmp_path, run):
    whole = train(settings(**case, out=tmp_path / "whole"), watcher := quiet(), Processes())
    with pytest.raises(Interrupted):
        train(settings(**case), quiet(stop_at=3), Processes())
    train(settings(**case, resume=True), quiet(), Processes())
    states = [load_file(tmp_path / name / STATE_FILE) for name in ("whole", "trained")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    thinker, config = checkpoint.load(whole.folder)
    fixed = thinker.offset.numel() if "stage" in case else 0  # the second stage leaves the constants as they are
    if fixed and not case.get("method"):
        fixed += thinker.projection.bias.numel()
    trained = thinker.parameter_count() - fixed
    assert f"{trained:,} parameters to train" in watcher.said
    assert config.about["trained_parameters"] == trained
    assert f"`trained_parameters` | {trained}" in (whole.folder / "README.md").read_text()
    about = json.loads((whole.folder / "train.json").read_text())
    assert about.get("method") == case.get("method")
    assert ("assistant_fingerprint" in about) is ("method" not in case)
    lines = run(tmp_path / "run", thinker=str(whole.folder), method=case.get("method", "softcot++"))
    assert len(lines) == 8
    assert {key[1] for key in lines} == {0, 1}


def test_a_default_training_names_no_new_option(settings, quiet):
    """Trainings of earlier versions go on: their train.json knows none."""
    train(settings(states="slots"), quiet(), Processes())
    result = train(settings(resume=True), quiet(), Processes())
    assert not {"states", "layer", "refine_steps", "method"} & set(
        json.loads((result.folder / "train.json").read_text())
    )
    with pytest.raises(UsageError, match="`--states` was None, now 'last'"):
        train(settings(states="last", resume=True), quiet(), Processes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "prompt-tuning", "assistant": "x"},
            r"`--assistant` is for `--method softcot\+\+`, and `--method` is",
        ),
        ({"method": "proposer", "standardise": False}, r"`--standardise` is for `--method softcot\+\+"),
        ({"method": "proposer", "states": "last"}, r"`--states` is for `--method softcot\+\+"),
        ({"method": "proposer", "refine_steps": 2}, "`--refine-steps` is for `--method refiner"),
        ({"method": "refiner", "rank": 2}, "`--rank` is for `--method lora"),
        (
            {"method": "lora", "contrastive": "none"},
            r"`--contrastive` is for `--method softcot\+\+ or prompt-tuning or",
        ),
        ({"states": "last", "vector_per_slot": True}, "`--vector-per-slot` is for the tokens in the slots"),
        ({"states": "mean", "freeze_token_sets": True}, "`--freeze-token-sets` is for the tokens in the slots"),
    ],
)
def test_options_that_a_thinker_would_ignore_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig.model_validate(changes).resolved()


@pytest.mark.parametrize("layer", [0, 3, -3])
def test_a_layer_that_is_not_there_is_refused(settings, quiet, layer):
    with pytest.raises(UsageError, match=f"`--layer` is layer {layer}, and the assistant .* has 2 layers"):
        train(settings(layer=layer), quiet(), Processes())


def test_prompt_tuning_has_nothing_but_its_prompts(settings, quiet):
    result = train(settings(method="prompt-tuning"), quiet(), Processes())
    tensors = load_file(result.folder / "thinker.safetensors")
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {"offset": [2, 3, 32]}
    assert result.health.information is not None
    assert result.health.information.value == pytest.approx(0.0, abs=1e-6)
