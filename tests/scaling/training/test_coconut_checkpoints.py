"""What `scale-train --method coconut` wrote is run as it was trained: the same tokens, the same number of thoughts."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from typer.testing import CliRunner

from contrastive.parallel import Processes
from scaling.cli import app
from scaling.config import RunConfig
from scaling.models import loading
from scaling.models.latent_tokens import prepare_tokens
from scaling.run import prepare
from scaling.training.coconut import train_coconut
from scaling.training.config import TrainConfig
from scaling.training.curriculum import Curriculum, stages_of, token_names
from scaling.training.targets import ExampleBuilder, split_of

DATA = [
    {
        "question": f"Tom has {n} apples and buys {n + 1}. How many?",
        "answer": 2 * n + 1,
        "rationale": [f"{n} + {n + 1}."],
    }
    for n in range(3, 11)
]


@pytest.fixture
def settings(tmp_path, tiny_model_folder):
    """`settings(**changes)`: 5 questions of one step, a stage of whole chains and one of two thoughts, a step each."""
    (tmp_path / "data").mkdir()
    for name, rows in {"train": DATA[:5], "test": DATA[5:]}.items():
        lines = [json.dumps({"id": f"{name}{number}", **row}) for number, row in enumerate(rows)]
        (tmp_path / "data" / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    standard = {
        **{"method": "coconut", "data": tmp_path / "data", "backbone": str(tiny_model_folder), "device": "cpu"},
        **{"validation": 2, "max_steps": 1, "batch_size": 2, "select": "loss", "latent_stages": 1, "lr": 0.01},
        "out": tmp_path / "trained",
    }
    return lambda **changes: TrainConfig.model_validate({**standard, **changes})


@pytest.mark.parametrize("thought", ["latent", "pause", "none"])
def test_a_run_asks_as_the_last_stage_was_trained(settings, quiet, thought):
    config = settings(thought=thought)
    result = train_coconut(config, quiet(), Processes())
    name = str(result.folder)
    backbone = loading.load(name, name=name, device="cpu", dtype=torch.float32, own=True)
    split = split_of(config.resolved())
    rows = backbone.rows
    tokens = prepare_tokens(backbone, token_names(thought), seed=0)
    assert backbone.rows == rows, "the checkpoint has all tokens"
    build = ExampleBuilder(backbone, None, task=split.task.definition, num_slots=0)
    trained = Curriculum(build, split.train, thought=thought, tokens=tokens)
    examples = {one.question: one for one in trained.examples(stages_of(config.resolved(), 1)[-1])}
    asked = {"split": "train", "samples": 1, "device": "cpu", "dtype": "float32", "max_new_tokens": 4}
    run = RunConfig(method="coconut", backbone=name, data=config.data, **asked)
    setup = prepare(run, quiet())
    embed, found = setup.backbone.model.get_input_embeddings(), 0
    for question in setup.task.questions:
        if question.id not in examples:  # which the training validates on
            continue
        (prompt,), example = setup.method.prompts(question, [0]), examples[question.id]
        assert len(prompt.thoughts) == {"latent": 2, "pause": 2, "none": 0}[thought]
        read = torch.cat(
            [embed(torch.tensor(prompt.prefix)), prompt.thoughts, embed(torch.tensor(prompt.suffix).long())]
        )
        before, after = embed(torch.tensor(example.prefix)), embed(torch.tensor(example.suffix).long())
        latent = prompt.thoughts if example.latent else prompt.thoughts[:0]
        assert torch.equal(read, torch.cat([before, latent, after]))
        found += 1
    assert found == len(examples) > 0


@pytest.mark.parametrize("changes", [{}, {"rank": 2}, {"rank": 2, "thought": "pause"}], ids=str)
def test_the_printed_command_runs(settings, quiet, tmp_path, monkeypatch, changes):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))
    command = train_coconut(settings(**changes), quiet(), Processes()).command
    assert ("--adapter" in command) == ("rank" in changes)
    name, *options = shlex.split(command)
    small = ["--samples", "1", "--max-new-tokens", "4", "--device", "cpu", "--out", str(tmp_path / "run"), "--json"]
    done = CliRunner().invoke(app, [*options, *small])
    assert (name, done.exit_code) == ("scale-run", 0), done.output
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["latent_steps"], config["latent_thought"]) == (2, changes.get("thought", "latent"))
