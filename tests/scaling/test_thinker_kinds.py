"""Runs with thinkers that have no assistant, and with pooled states: thoughts, controls, costs, engines, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from contrastive import checkpoint
from contrastive.assistant_thinker import AssistantThinker
from contrastive.projection import new_projection
from contrastive.proposer import Refiner
from scaling.config import RunConfig
from scaling.methods.kinds import KINDS, Trait
from scaling.methods.thoughts import CachedThoughts, Thinking
from scaling.preview import preview
from scaling.prompts import PROMPT_VERSION
from scaling.records.costs import RunCosts, ThinkerCosts
from scaling.records.errors import UsageError
from scaling.records.names import called
from scaling.run import Setup, execute, prepare
from scaling.training.config import TrainConfig
from scaling.training.hint import command_for

OWN = [name for name, kind in KINDS.items() if kind.has(Trait.THINKER) and not kind.has(Trait.ASSISTANT)]


@pytest.fixture
def made(config_of, silent) -> Callable[..., Setup]:
    return lambda **changes: prepare(config_of(**changes), silent)


@pytest.fixture
def refiner(tmp_path) -> Path:
    """The folder of a refiner with 3 paths and 3 soft tokens for the tiny model, of 2 rounds."""
    rows = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    thinker = Refiner.untrained(rows, num_paths=3, num_slots=3, scale=0.2, width=16).with_steps(2)
    checkpoint.save(thinker, tmp_path / "refiner", soft_tokens=3, prompt_version=PROMPT_VERSION)
    return tmp_path / "refiner"


def thoughts_of(setup: Setup, number: int = 0, paths: int = 2) -> torch.Tensor:
    prompts = setup.method.prompts(setup.task.questions[number], range(paths))
    return torch.stack([prompt.thoughts for prompt in prompts])


@pytest.mark.parametrize("method", OWN)
def test_a_method_without_an_assistant_loads_and_names_none(made, method, tmp_path, silent, config_of):
    setup = made(method=method)
    assert setup.assistant is None
    assert thoughts_of(setup).shape == (2, 4, 32)
    assert setup.asked[0].assistant_tokens == 0
    differs = not torch.equal(thoughts_of(setup, 0), thoughts_of(setup, 1))
    assert differs is (method != "prompt-tuning")
    execute(config_of(method=method, out=tmp_path / "run"), silent)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert "assistant_fingerprint" not in described["config"]
    assert RunCosts.from_json(described["environment"]["costs"]) == setup.method.costs()
    with pytest.raises(UsageError, match="`--assistant-device` is for methods with an assistant"):
        RunConfig(method=method, engine="vllm", assistant_device="cuda").resolved()


@pytest.mark.parametrize("method", OWN)
@pytest.mark.parametrize("control", ["mean", "shuffled", "zero", "none"])
def test_controls_work_on_every_method(made, method, control):
    own, other = made(method=method), made(method=method, control=control)
    before, after = (setup.method.prompts(own.task.questions[0], [0, 1]) for setup in (own, other))
    assert [(p.prefix, p.suffix) for p in before] == [(p.prefix, p.suffix) for p in after]
    same = torch.allclose(before[0].thoughts, after[0].thoughts) if control != "none" else False
    assert same is (method == "prompt-tuning" and control in ("mean", "shuffled")), "a constant is its own mean"
    assert len(after[0].thoughts) == (0 if control == "none" else 4)


@pytest.mark.parametrize("method", OWN)
def test_exact_thoughts_do_not_depend_on_the_number_of_paths(made, method):
    few, many = (made(method=method, exact=True, latent_paths=paths) for paths in (2, 5))
    assert torch.equal(thoughts_of(few), thoughts_of(many)[:2])


def test_rounds_come_from_the_checkpoint_unless_they_are_asked_for(made, refiner):
    from_file, asked = (
        made(method="refiner", thinker=str(refiner)),
        made(method="refiner", thinker=str(refiner), refine_steps=7),
    )
    assert (from_file.config.refine_steps, asked.config.refine_steps) == (2, 7)
    assert (from_file.config.soft_tokens, made(method="refiner").config.refine_steps) == (3, 3)
    assert not torch.allclose(thoughts_of(from_file), thoughts_of(asked), atol=1e-5)
    costs = [made(method="refiner", thinker=str(refiner), refine_steps=n).method.costs() for n in (0, 1, 2, 7)]
    prompted = from_file.asked[0]
    first, *paths = [cost.path(prompted) for cost in costs]
    assert first < paths[0]
    assert paths[1] - paths[0] == (paths[2] - paths[1]) // 5, "a round costs what every other does"
    assert called({"method": "refiner", "refine_steps": 7, "latent_paths": 3}) == "Refiner, 7 rounds"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "proposer"}, r"trained by `scale-train --method refiner`, and `--method proposer` needs one of"),
        ({"method": "softcot++"}, r"`--method softcot\+\+` needs one of `scale-train --method softcot\+\+`"),
        ({"method": "refiner", "latent_paths": 4}, "holds 3 latent paths, fewer than `--latent-paths` 4"),
        ({"method": "refiner", "soft_tokens": 5}, "`--soft-tokens` 5 does not fit"),
        ({"method": "softcot-p"}, "`--method refiner`"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(config_of, refiner, options, message):
    with pytest.raises(UsageError, match=message):
        preview(config_of(thinker=str(refiner), **options))


def test_a_thinker_of_another_width_is_refused(config_of, refiner, other_model_folder):
    with pytest.raises(UsageError, match="backbone width"):
        preview(config_of(method="refiner", thinker=str(refiner), backbone=str(other_model_folder)))


def test_rounds_are_for_the_refiner(config_of):
    with pytest.raises(UsageError, match="`--refine-steps` is for `refiner`, and `--method` is `proposer`"):
        config_of(method="proposer", refine_steps=2).resolved()


@pytest.mark.parametrize("method", OWN)
def test_a_preview_shows_the_backbones_prompt_alone(config_of, method):
    settings, text = preview(config_of(method=method))
    assert "backbone prompt" in text
    assert "assistant prompt" not in text
    assert settings["thinker"] == "untrained"


@pytest.mark.parametrize("states", ["last", "mean", "attention"])
def test_pooled_states_cost_no_slots_in_the_assistant(made, tmp_path, states):
    thinker = AssistantThinker.pooled(states, new_projection(32, 32, scale=0.3), num_paths=2, num_slots=4)
    checkpoint.save(thinker, tmp_path / "pooled", soft_tokens=4, prompt_version=PROMPT_VERSION)
    pooled, slots = made(thinker=str(tmp_path / "pooled")), made()
    prompted = pooled.asked[0]
    assert prompted == slots.asked[0]
    costs, whole = pooled.method.costs(), slots.method.costs()
    assert costs.question(prompted) == whole.question(prompted)
    read = costs.assistant.forward(4, behind=prompted.assistant_tokens)
    attention = 4 * prompted.assistant_tokens * 4 * 32 if states == "attention" else 0
    assert whole.path(prompted) - costs.path(prompted) == read - attention
    one, two = (made(thinker=str(tmp_path / "pooled"), exact=True, latent_paths=paths) for paths in (1, 2))
    assert torch.equal(thoughts_of(one, paths=1), thoughts_of(two)[:1])


def test_a_proposer_reads_its_prompt_once_for_all_paths(made):
    setup = made(method="proposer")
    costs, prompted = setup.method.costs(), setup.asked[0]
    plain = RunCosts(costs.backbone)
    reading = costs.question(prompted) - plain.question(prompted)
    assert reading == prompted.prefix_tokens * costs.thinker.position + prompted.prefix_tokens**2 * costs.thinker.pair
    assert costs.unshared(prompted, [], paths=2) == 2 * (reading + costs.path(prompted) - plain.path(prompted))


def test_costs_of_a_damaged_file_are_refused():
    fields = {"backbone": {"layers": 1, "head": 1, "attention": 1, "windows": [0], "kv_bytes": 1}, "projection": 0}
    assert RunCosts.from_json(fields).thinker == ThinkerCosts()
    for damage in ({"pair": -1}, {"position": "1"}, {"slots_read": "no"}):
        with pytest.raises(ValueError, match="is no count"):
            RunCosts.from_json({**fields, "thinker": damage})


@pytest.mark.parametrize("method", OWN)
def test_thoughts_for_an_engine_elsewhere_are_kept(made, method, tmp_path):
    setup = made(method=method)
    source, moved = setup.method.thoughts, []
    assert isinstance(source, Thinking)
    kept = CachedThoughts(source, made_by={"test": str(tmp_path)}, to_device=lambda: moved.append(1))
    question, other = setup.task.questions
    first = kept(question)
    assert torch.equal(first, source(question).cpu())
    assert torch.equal(kept(question), first)
    assert len(moved) == 1
    kept(other)
    assert len(moved) == (1 if method == "prompt-tuning" else 2), "what reads nothing is made once for all questions"
    assert kept.costs == source.costs


@pytest.mark.parametrize("method", OWN)
def test_the_command_that_uses_a_checkpoint_names_its_method(method):
    command = command_for(TrainConfig(method=method, latent_paths=1).resolved(), Path("here"))
    assert command == f"scale-run --method {method} --thinker here"
