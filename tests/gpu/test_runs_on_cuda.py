"""Whole runs and trainings on a GPU, and on two devices."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from contrastive.assistant_thinker import AssistantThinker
from contrastive.objective import Objective
from contrastive.projection import new_projection
from contrastive.target_loss import Example, Reader
from contrastive.token_sets import SoftTokenSets
from contrastive.train import Schedule, Trainer
from scaling.config import RunConfig
from scaling.run import execute

TWO_GPUS = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


class Silent:
    """Watches a run or a training and says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def texts(out: Path) -> dict[tuple[Any, ...], str]:
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    return {(line["question_id"], line["path"], line["sample"]): line["text"] for line in lines}


def run_on(folder: Path, out: Path, **devices: Any) -> dict[tuple[Any, ...], str]:
    """Greedy completions in float32, which rounding hardly changes."""
    common = {"backbone": str(folder), "assistant": str(folder), "dtype": "float32", "temperature": 0.0}
    grid = {"limit": 2, "latent_paths": 2, "samples": 1, "max_new_tokens": 12}
    execute(RunConfig.model_validate({**common, **grid, **devices, "out": out}), Silent())
    return texts(out)


@pytest.mark.parametrize(
    "devices",
    [
        {"device": "cuda"},
        {"device": "cuda", "assistant_device": "cpu"},
        {"device": "cpu", "assistant_device": "cuda"},
        pytest.param({"device": "cuda:0", "assistant_device": "cuda:1"}, marks=TWO_GPUS),
        pytest.param({"device": "cuda:1", "assistant_device": "cuda:0"}, marks=TWO_GPUS),
        pytest.param({"device": "cuda:1"}, marks=TWO_GPUS),
    ],
    ids=lambda devices: " ".join(devices.values()),
)
def test_a_run_has_the_completions_of_a_run_on_the_cpu(
    tiny_model_folder: Path, tmp_path: Path, devices: dict[str, str]
) -> None:
    expected = run_on(tiny_model_folder, tmp_path / "cpu", device="cpu")
    assert run_on(tiny_model_folder, tmp_path / "gpu", **devices) == expected
    assert len(expected) == 4


def trained(make_model: Callable[..., Any], folder: Path, device: str) -> dict[str, torch.Tensor]:
    """Parameters after three steps of a softcot++ training of tiny models."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(5)
    sets = SoftTokenSets(torch.randn(3, 1, 32, generator=generator) * 0.3)
    thinker = AssistantThinker(sets, new_projection(32, 32, scale=0.3)).to(device)
    assistant, backbone = (make_model("llama", seed=seed).requires_grad_(False).to(device) for seed in (0, 1))

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(10, 90, (length,), generator=generator).tolist())

    examples = [Example(f"q{n}", ids(3 + 4 * n), ids(4 + 5 * n), ids(3), (*ids(1 + 3 * n), 1)) for n in range(5)]
    Trainer(
        thinker=thinker,
        assistant=assistant,
        reader=Reader(backbone),
        train=examples[:4],
        validation=examples[4:],
        schedule=Schedule(max_steps=3, batch_size=2, lr=0.02, warmup=1, validate_every=3),
        objective=Objective(num_slots=2, weight=0.1, question_weight=0.1),
        folder=folder,
        keep=lambda *_: None,
        watcher=Silent(),
    ).run()
    return {name: tensor.detach().cpu() for name, tensor in thinker.state_dict().items()}


def test_training_steps_are_those_of_the_cpu(make_model: Callable[..., Any], tmp_path: Path) -> None:
    expected = trained(make_model, tmp_path / "cpu", "cpu")
    found = trained(make_model, tmp_path / "gpu", "cuda")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-4, rtol=1e-3)
