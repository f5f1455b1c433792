"""Trainings in two stages: constants for all questions first, and thoughts on top of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from contrastive import checkpoint
from contrastive.assistant_thinker import AssistantThinker
from contrastive.parallel import Processes
from contrastive.prompt_tuning import PromptTuning
from contrastive.train import METRICS_FILE
from scaling.records.errors import WARNING, Interrupted, UsageError
from scaling.records.overlap import learned_from, overlap_of
from scaling.tasks.catalogue import load_task
from scaling.training.display import TrainingProgress
from scaling.training.run import train
from scaling.training.targets import split_of

STAGED = {"stage": "constant,thoughts"}
KINDS: list[dict[str, Any]] = [
    {"states": "slots"},
    {"states": "last"},
    {},
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


def test_by_default_constants_come_first_and_then_thoughts_by_attention(settings, quiet, tmp_path):
    plain = train(settings(), quiet(), Processes()).folder
    asked = train(settings(**STAGED, states="attention", out=tmp_path / "asked"), quiet(), Processes()).folder
    for name in ("thinker.safetensors", "last/thinker.safetensors", "constant/thinker.safetensors"):
        assert (plain / name).read_bytes() == (asked / name).read_bytes()
    about = [json.loads((folder / "train.json").read_text()) for folder in (plain, asked)]
    assert about[0] == about[1]
    assert (about[0]["stage"], about[0]["states"]) == ("constant,thoughts", "attention")
    assert isinstance(checkpoint.load(plain / "constant")[0], PromptTuning)
    thoughts, _ = checkpoint.load(plain)
    assert isinstance(thoughts, AssistantThinker)
    assert thoughts.states_of == "attention"


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
    def interrupt(text):
        if "first stage" in text:
            raise KeyboardInterrupt

    early = quiet()
    early.status = interrupt
    with pytest.raises(KeyboardInterrupt):
        train(settings(**STAGED), early, Processes())
    folder = train(settings(**STAGED, resume=True), quiet(), Processes()).folder
    assert (folder / "constant" / "thinker.safetensors").is_file()


@pytest.mark.parametrize("name", ["config.json", "thinker.safetensors"])
def test_damaged_constants_are_reported_as_a_file_of_the_training(name, settings, quiet):
    folder = train(settings(), quiet(), Processes()).folder
    (folder / "constant" / name).write_bytes(b"{")
    with pytest.raises(UsageError, match=r"constant.*: restore the file") as refused:
        train(settings(resume=True), quiet(), Processes())
    assert "--constant" not in str(refused.value)


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


# ---- what the constants of another training were trained on


def questions_at(path: Path, numbers: range | list[int]) -> Path:
    rows = [{"id": f"q{n}", "question": f"What is {n} + 1?", "answer": n + 1} for n in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def on_file(settings, quiet, tmp_path):
    """`on_file(name, data, **changes)`: trains on all questions of a file, in a folder of that name.

    Returns the folder and the warnings.
    """

    def do(name: str, data: Path, **changes: Any) -> tuple[Path, list[str]]:
        watcher = quiet()
        folder = train(settings(data=data, limit=None, **changes, out=tmp_path / name), watcher, Processes()).folder
        return folder, [line for line in watcher.said if line.startswith(WARNING)]

    return do


def test_thoughts_know_what_their_constants_were_trained_on(on_file, tmp_path):
    first, second = questions_at(tmp_path / "a.jsonl", range(9)), questions_at(tmp_path / "b.jsonl", range(20, 29))
    constants, _ = on_file("constants", first, method="prompt-tuning")
    thoughts, warnings = on_file("thoughts", second, constant=constants)
    kept = {folder: learned_from(checkpoint.read_config(folder).about) for folder in (constants, thoughts)}
    of_first, of_second = (load_task(None, data=data).questions for data in (first, second))
    seen = overlap_of(of_first, kept[thoughts])
    assert seen == overlap_of(of_first, kept[constants])
    assert (len(seen.trained), len(seen.validated)) == (6, 3)
    assert len(overlap_of(of_second, kept[thoughts]).ids) == 9
    assert len(overlap_of(of_second, kept[constants]).ids) == 0
    assert kept[thoughts].name == "b", "the name stays that of its own questions"
    assert len(warnings) == 1
    assert f"{WARNING}the constant prompt {constants} was trained on a, and these questions are of b" in warnings


def test_held_out_questions_that_the_constants_learned_from_are_named(on_file, settings, tmp_path):
    data = questions_at(tmp_path / "a.jsonl", range(12))
    constants, _ = on_file("constants", data, method="prompt-tuning")
    _, warnings = on_file("same", data, constant=constants)
    assert warnings == [], "the same split holds out the same questions"
    held = {question.id for question in split_of(settings(data=data, limit=None).resolved()).validation}
    (tmp_path / "part").mkdir()
    part = questions_at(tmp_path / "part" / "a.jsonl", [n for n in range(12) if f"q{n}" not in held])
    _, warnings = on_file("leaking", part, constant=constants)
    assert sum("3 of the 3 held-out questions" in line and "useful information" in line for line in warnings) == 1


def test_constants_of_another_prompt_are_named_and_the_assistants_is_none_of_theirs(on_file, tmp_path):
    data = questions_at(tmp_path / "a.jsonl", range(9))
    constants, _ = on_file("constants", data, method="prompt-tuning", prefill="Well,")
    _, warnings = on_file("same", data, constant=constants, prefill="Well,", assistant_prompt="answer", states="last")
    assert warnings == []
    _, (warning,) = on_file("other", data, constant=constants, prompt="boxed", prefill="Well,")
    assert warning.startswith(f"{WARNING}the constant prompt {constants} was trained with another prompt")
    assert "`--prompt` plain there, boxed here" in warning


def test_constants_of_another_backbone_of_the_same_width_are_refused(settings, quiet, tmp_path):
    constants = train(settings(method="prompt-tuning", out=tmp_path / "constants"), quiet(), Processes()).folder
    file = constants / checkpoint.CONFIG_FILE
    config = json.loads(file.read_text())
    config["about"] |= {"backbone": "another/model", "backbone_fingerprint": "0" * 12}
    file.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"`--constant`.*another backbone \(another/model\).*give the folder"):
        train(settings(constant=constants), quiet(), Processes())
    assert not (tmp_path / "trained").exists(), "it is refused before anything is written"
