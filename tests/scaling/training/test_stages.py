"""Trainings in two stages: constants for all questions first, and thoughts on top of them."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from contrastive import checkpoint
from contrastive.parallel import Processes
from contrastive.prompt_tuning import PromptTuning
from contrastive.train import METRICS_FILE
from scaling.records.errors import Interrupted, UsageError
from scaling.training.display import TrainingProgress
from scaling.training.run import train

STAGED = {"stage": "constant,thoughts"}
KINDS: list[dict[str, Any]] = [
    {},
    {"states": "last"},
    {"states": "attention"},
    {"method": "proposer"},
    {"method": "refiner"},
]


def validations(folder) -> list[tuple[int, dict[str, Any]]]:
    rows = map(json.loads, (folder / METRICS_FILE).read_text().splitlines())
    return [(row["step"], row["validation"]) for row in rows if "validation" in row]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_constant_is_that_of_prompt_tuning_and_stays_as_it_was_learned(kind, settings, quiet, tmp_path):
    whole = train(settings(**kind, **STAGED), quiet(), Processes())
    baseline = train(settings(method="prompt-tuning", out=tmp_path / "baseline"), quiet(), Processes())
    learned, _ = checkpoint.load(baseline.folder)
    first, config = checkpoint.load(whole.folder / "constant")
    second, _ = checkpoint.load(whole.folder / "last")
    assert isinstance(first, PromptTuning)
    assert config.about["method"] == "prompt-tuning"
    assert torch.equal(first.offset, learned.offset)
    assert torch.equal(second.offset, first.offset)
    changed = [name for name, tensor in second.state_dict().items() if name != "offset" and tensor.abs().sum() > 0]
    assert changed, "the second stage has learned nothing"


@pytest.mark.parametrize("kind", KINDS[:3], ids=str)
def test_the_second_stage_begins_at_the_loss_of_its_constants_and_is_compared_with_it(kind, settings, quiet):
    folder = train(settings(**kind, **STAGED), quiet(), Processes()).folder
    best = json.loads((folder / "constant" / "config.json").read_text())["about"]["metrics"]["loss"]
    for step, health in validations(folder):
        assert health["constant"] == pytest.approx(best, abs=1e-4)
        constant = min(best, health["mean"])  # what is useful is measured against the better one
        assert health["useful"]["value"] == pytest.approx(constant - health["loss"], abs=1e-4)
        assert step or health["loss"] == pytest.approx(best, abs=1e-4)  # before the first step


@pytest.mark.parametrize("stop_at", [1, 6])  # of the eight steps, four are of the first stage
def test_a_staged_training_goes_on_in_the_stage_that_was_interrupted(stop_at, settings, quiet, tmp_path):
    whole = train(settings(**STAGED, out=tmp_path / "whole"), quiet(), Processes())
    with pytest.raises(Interrupted):
        train(settings(**STAGED), quiet(stop_at), Processes())
    resumed = train(settings(**STAGED, resume=True), quiet(), Processes())
    for name in ("thinker.safetensors", "constant/thinker.safetensors", "last/thinker.safetensors"):
        assert (whole.folder / name).read_bytes() == (resumed.folder / name).read_bytes()


def test_a_training_that_was_interrupted_before_its_first_stage_goes_on(settings, quiet):
    class Early(quiet):
        def status(self, text):
            if "first stage" in text:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings(**STAGED), Early(), Processes())
    folder = train(settings(**STAGED, resume=True), quiet(), Processes()).folder
    assert (folder / "constant" / "thinker.safetensors").is_file()


def test_constants_are_chosen_by_their_loss_whatever_chooses_the_thoughts(settings, quiet):
    folder = train(settings(**STAGED, select="accuracy"), quiet(), Processes()).folder
    losses = [health["loss"] for _, health in validations(folder / "constant")]
    kept = json.loads((folder / "constant" / "config.json").read_text())["about"]
    assert kept["chosen_by"] == "loss"
    assert kept["metrics"]["loss"] == min(losses)
    assert json.loads((folder / "config.json").read_text())["about"]["chosen_by"] == "accuracy"


def test_constants_of_another_training_stand_for_the_first_stage(settings, quiet, tmp_path):
    baseline = train(settings(method="prompt-tuning", out=tmp_path / "constants"), quiet(), Processes()).folder
    staged = train(settings(**STAGED, out=tmp_path / "staged"), quiet(), Processes()).folder
    given = train(settings(constant=baseline, out=tmp_path / "given"), quiet(), Processes()).folder
    assert not (given / "constant").exists()
    assert (given / "thinker.safetensors").read_bytes() == (staged / "thinker.safetensors").read_bytes()
    fewer = train(settings(constant=baseline, latent_paths=1, out=tmp_path / "one"), quiet(), Processes()).folder
    assert torch.equal(checkpoint.load(fewer)[0].offset, checkpoint.load(baseline)[0].offset[:1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**STAGED, "path_offset": False}, "`--no-path-offset`"),
        ({**STAGED, "method": "prompt-tuning"}, "`--stage`"),
        ({"constant": "nothing"}, "`--constant`"),
    ],
)
def test_stages_that_cannot_be_are_refused(changes, message, settings, quiet, tmp_path):
    if "constant" in changes:
        changes = {"constant": tmp_path / changes["constant"]}
    with pytest.raises(UsageError, match=message):
        train(settings(**changes), quiet(), Processes())


def test_constants_that_do_not_fit_are_refused(settings, quiet, tmp_path):
    baseline = train(settings(method="prompt-tuning", out=tmp_path / "constants"), quiet(), Processes()).folder
    for changes in ({"latent_paths": 3}, {"soft_tokens": 2}):
        with pytest.raises(UsageError, match=r"`--constant`.*are needed"):
            train(settings(constant=baseline, **changes, out=tmp_path / "other"), quiet(), Processes())
    other = train(settings(out=tmp_path / "thinker"), quiet(), Processes()).folder
    with pytest.raises(UsageError, match="of the kind softcot"):
        train(settings(constant=other, out=tmp_path / "other"), quiet(), Processes())


def test_both_stages_are_shown_by_one_bar_and_tracked_as_one_series(settings):
    """On a terminal, the cursor is shown again after each bar."""
    written, tracked = io.StringIO(), []
    console = Console(file=written, force_terminal=True, width=100)
    accelerator = SimpleNamespace(is_main_process=True, log=lambda _, step: tracked.append(step))
    with TrainingProgress(console, accelerator) as shown:
        train(settings(**STAGED), shown, Processes())
    assert written.getvalue().count("\x1b[?25l") == written.getvalue().count("\x1b[?25h") == 2
    assert tracked == sorted(tracked)
    assert tracked[-1] == 2 * 4  # steps of both stages
