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
    {"states": "slots", "stage": "at-once"},
    {"states": "last", "stage": "at-once"},
    {"states": "mean", "stage": "at-once", "standardise": False, "layer": -2},
    {"states": "attention", "stage": "at-once", "layer": 1},
    {"states": "slots"},
    {},
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
    staged = settings(**case).resolved().staged
    fixed = thinker.offset.numel() if staged else 0  # the second stage leaves the constants as they are
    if staged and not case.get("method"):
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


def test_a_training_of_slots_at_once_names_no_new_option(settings, quiet, tmp_path):
    """Trainings of earlier versions, which knew none, go on when they are asked for as what they are."""
    formerly = {"states": "slots", "stage": "at-once"}
    whole = train(settings(**formerly, out=tmp_path / "whole"), quiet(), Processes())
    with pytest.raises(Interrupted):
        train(settings(**formerly), quiet(stop_at=3), Processes())
    about = json.loads((tmp_path / "trained" / "train.json").read_text())
    assert not {"states", "stage", "constant", "layer", "refine_steps", "method"} & set(about)
    told = (
        "`--stage` was 'at-once', now 'constant,thoughts', `--states` was 'slots', now 'attention'; give them as they"
    )
    with pytest.raises(UsageError, match=f"another training: {told} were"):
        train(settings(resume=True), quiet(), Processes())
    with pytest.raises(UsageError, match="another training: `--states` was 'slots', now 'last'; give"):
        train(settings(stage="at-once", states="last", resume=True), quiet(), Processes())
    result = train(settings(**formerly, resume=True), quiet(), Processes())
    assert (result.folder / "thinker.safetensors").read_bytes() == (whole.folder / "thinker.safetensors").read_bytes()


def test_a_method_without_states_is_not_said_to_have_had_some(settings, quiet):
    train(settings(method="prompt-tuning"), quiet(), Processes())
    told = "`--stage` was None, now 'constant,thoughts', .*`--states` was None, now 'attention'"
    with pytest.raises(UsageError, match=told):
        train(settings(resume=True), quiet(), Processes())


def test_resolved_settings_say_the_states_and_stages_that_are_used():
    def said(**changes: Any) -> tuple[Any, Any]:
        config = TrainConfig.model_validate(changes).resolved()
        assert config.resolved() == config
        return config.states, config.stage

    assert said() == ("attention", "constant,thoughts")
    assert said(states="slots") == ("slots", "constant,thoughts")
    assert said(stage="at-once") == ("attention", "at-once")
    for method in ("proposer", "refiner"):
        assert said(method=method) == (None, "at-once")
    for method in ("prompt-tuning", "lora", "coconut", "ccot"):
        assert said(method=method) == (None, None)


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
        (
            {"freeze_token_sets": True},
            "`--freeze-token-sets` is .* of `--states slots`, and `--states` is attention: give",
        ),
        ({"path_offset": False}, "with `--stage constant,thoughts`: add `--stage at-once`, or leave it out"),
        ({"constant": "there", "path_offset": False}, "come first with `--constant`: leave one of them out"),
        (
            {"constant": "there", "stage": "at-once"},
            "`--constant` there .* `--stage at-once` .*: leave one of them out",
        ),
        ({"method": "coconut", "stage": "at-once"}, r"`--stage` is for `--method softcot\+\+ or proposer or refiner`"),
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
