"""`--train-soft-tokens`: a thinker is trained with K soft tokens, and validated and used with the first L of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contrastive import checkpoint
from contrastive.health import examine
from contrastive.objective import Objective
from contrastive.parallel import Processes
from contrastive.target_loss import Reader
from contrastive.train import STATE_FILE
from scaling.models import loading
from scaling.records.errors import Interrupted, UsageError
from scaling.run import Setup, prepare
from scaling.training.config import TrainConfig
from scaling.training.run import train
from scaling.training.targets import ExampleBuilder, examples_of, split_of

K, L = 5, 3
CASES: list[dict[str, Any]] = [
    {"states": "slots"},
    {"states": "slots", "vector_per_slot": True, "standardise": False},
    {"states": "attention"},
    {"method": "prompt-tuning"},
    {"method": "proposer"},
    {"method": "refiner"},
]


class Quiet:
    """Observes a training. stop_at: the step after which it is interrupted."""

    def __init__(self, stop_at: int = 0):
        self._stop_at = stop_at

    def status(self, text):
        pass

    def started(self, progress, schedule):
        pass

    def stepped(self, progress, row):  # noqa: ARG002
        if progress.step == self._stop_at:
            raise KeyboardInterrupt

    def examined(self, progress, health):
        pass


@pytest.fixture
def settings(tiny_model_folder, tmp_path) -> Callable[..., TrainConfig]:
    """`settings(**changes)`: 6 questions, 2 paths, 5 soft tokens of which 3 are used, 4 steps."""
    model = str(tiny_model_folder)
    standard = {
        **{"backbone": model, "device": "cpu", "dtype": "float32", "limit": 6, "validation": 3},
        **{"latent_paths": 2, "soft_tokens": L, "train_soft_tokens": K},
        **{"max_steps": 4, "batch_size": 3, "validate_every": 2, "out": tmp_path / "trained"},
    }

    def make(**changes: Any) -> TrainConfig:
        assistant = {} if "method" in changes else {"assistant": model, "stage": "at-once"}
        return TrainConfig.model_validate({**standard, **assistant, **changes})

    return make


@pytest.mark.parametrize("case", CASES, ids=str)
def test_runs_use_the_first_slots_of_what_was_trained(case, settings, config_of, silent, tiny_model_folder):
    """The figures in the checkpoint are those of the thinker in the checkpoint: validation is with L soft tokens."""
    config = settings(**case).resolved()
    result = train(config, Quiet(), Processes())
    thinker, saved = checkpoint.load(result.folder)
    assert (saved.soft_tokens, saved.about["soft_tokens"], saved.about["train_soft_tokens"]) == (L, L, K)
    model = loading.load(str(tiny_model_folder), name="tiny", device="cpu", dtype=torch.float32)
    split = split_of(config)
    build = ExampleBuilder(model, model, task=split.task.definition, num_slots=L)
    examples = examples_of("gold", split.validation, {}, build)
    arguments = (thinker, model.model, Reader(model.model), examples, Objective(num_slots=L))
    again = replace(examine(*arguments, processes=Processes()), **beside(result.health))
    assert again.loss == pytest.approx(result.health.loss, rel=1e-4)
    assert again.per_path == pytest.approx(result.health.per_path, rel=1e-4)

    def prepared(**changes: Any) -> Setup:
        return prepare(config_of(thinker=str(result.folder), method=case.get("method", "softcot++"), **changes), silent)

    setup = prepared()
    prompts = setup.method.prompts(setup.task.questions[0], [0, 1])
    assert [prompt.thoughts.shape for prompt in prompts] == [(L, 32)] * 2
    assert setup.asked[0].soft_tokens == L
    if "vector_per_slot" in case or "method" in case:
        with pytest.raises(UsageError, match=f"`--soft-tokens` {K} does not fit .* each of {L} slots"):
            prepared(soft_tokens=K)


def beside(health: Any) -> dict[str, Any]:
    """The figures of a validation that compare it with training."""
    return {key: getattr(health, key) for key in ("training", "rise", "training_fall")}


@pytest.mark.parametrize("method", ["proposer", "refiner"])
def test_a_run_pays_for_all_slots_that_a_proposer_computes(method, settings, config_of, silent):
    """In the backbone it pays for those that are used."""
    cut, whole = (
        train(settings(method=method, out=settings().out.with_name(name), **changes), Quiet(), Processes()).folder
        for name, changes in (("cut", {}), ("whole", {"soft_tokens": K, "train_soft_tokens": None}))
    )
    fewer, all_of_them = (prepare(config_of(method=method, thinker=str(one)), silent) for one in (cut, whole))
    (few, costs), (many, all_costs) = ((each.asked[0], each.method.costs()) for each in (fewer, all_of_them))
    assert (few.soft_tokens, many.soft_tokens) == (L, K)

    def in_backbone(asked):
        return costs.backbone.forward(asked.soft_tokens + asked.suffix_tokens, behind=asked.prefix_tokens)

    assert costs.path(few) - in_backbone(few) == all_costs.path(many) - in_backbone(many) > 0
    without = prepare(config_of(method=method, thinker=str(cut), control="none"), silent)
    asked = without.asked[0]
    assert without.method.costs().path(asked) == in_backbone(asked), "nothing is computed without thoughts"


@pytest.mark.parametrize("case", [{}, {"method": "refiner"}], ids=str)
def test_a_training_with_more_slots_resumes(case, settings, tmp_path):
    whole = train(settings(**case, out=tmp_path / "whole"), Quiet(), Processes())
    with pytest.raises(Interrupted):
        train(settings(**case), Quiet(stop_at=3), Processes())
    train(settings(**case, resume=True), Quiet(), Processes())
    states = [load_file(folder / STATE_FILE) for folder in (whole.folder, tmp_path / "trained")]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with pytest.raises(UsageError, match=r"`--train-soft-tokens` was 5, now None"):
        train(settings(**case, resume=True, train_soft_tokens=None), Quiet(), Processes())


def test_as_many_slots_as_runs_use_are_no_setting(settings):
    """Trainings of earlier versions go on: their train.json knows none."""
    assert settings(train_soft_tokens=L).resolved() == settings(train_soft_tokens=None).resolved()
    result = train(settings(train_soft_tokens=L), Quiet(), Processes())
    assert "train_soft_tokens" not in json.loads((result.folder / "train.json").read_text())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_soft_tokens": 2, "soft_tokens": 3}, r"`--train-soft-tokens` 2 are fewer than the `--soft-tokens` 3"),
        ({"train_soft_tokens": 2}, r"`--train-soft-tokens` 2 are fewer than the `--soft-tokens` 4"),
        ({"train_soft_tokens": 32}, r"`--train-soft-tokens` trains more .*: add `--stage at-once`, or leave it out"),
        ({"train_soft_tokens": 32, "method": "lora"}, r"`--train-soft-tokens` is for `--method softcot"),
    ],
)
def test_soft_tokens_that_cannot_be_are_refused(given, message):
    with pytest.raises(UsageError, match=message):
        TrainConfig(**given).resolved()
