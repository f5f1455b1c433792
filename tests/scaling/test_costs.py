"""Costs: formulas against brute force, against each other, and against torch's FLOP counter on real architectures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from contrastive import checkpoint
from contrastive.assistant_thinker import AssistantThinker
from contrastive.prompt_tuning import PromptTuning
from contrastive.proposer import Proposer, Refiner
from scaling.engines.base import Decoding, Request, SoftPrompt
from scaling.engines.local.engine import fitted_engine
from scaling.models import loading, model_files
from scaling.models.loading import LanguageModel
from scaling.prompts import PROMPT_VERSION, PromptBuilder
from scaling.records.costs import ModelCosts, RunCosts, ThinkerCosts
from scaling.records.errors import UsageError
from scaling.records.records import PromptedQuestion
from scaling.run import Setup, prepare

BACKBONE = ModelCosts(layers=1000, head=70, attention=8, windows=(0, 5, 0), kv_bytes=64)
ASSISTANT = ModelCosts(layers=300, head=20, attention=4, windows=(0,), kv_bytes=16)
COSTS = RunCosts(BACKBONE, ASSISTANT, projection=11)
COUNTS = st.integers(0, 30)


def asked(prefix: int = 9, slots: int = 4, suffix: int = 3, assistant: int = 12) -> PromptedQuestion:
    return PromptedQuestion("q", "How many?", "5", (), "How many?", prefix, slots, suffix, assistant)


@given(behind=COUNTS, tokens=COUNTS, window=st.integers(0, 20))
def test_a_query_attends_to_itself_and_what_it_may_see_before(behind, tokens, window):
    costs = ModelCosts(layers=0, head=0, attention=1, windows=(window,), kv_bytes=0)
    seen = [at + 1 for at in range(behind, behind + tokens)]
    assert costs.forward(tokens, behind=behind) == sum(min(n, window) if window else n for n in seen)


@given(first=COUNTS, second=COUNTS, behind=COUNTS)
def test_reading_in_two_parts_costs_the_same(first, second, behind):
    whole = BACKBONE.forward(first + second, behind=behind)
    assert whole == BACKBONE.forward(first, behind=behind) + BACKBONE.forward(second, behind=behind + first)


@given(tokens=st.integers(1, 30), behind=COUNTS)
def test_the_last_token_is_drawn_and_not_read(tokens, behind):
    more = BACKBONE.decode(tokens + 1, behind=behind) - BACKBONE.decode(tokens, behind=behind)
    assert more == BACKBONE.head + BACKBONE.forward(1, behind=behind + tokens - 1)
    assert (BACKBONE.decode(0, behind=behind), BACKBONE.decode(1, behind=behind)) == (0, BACKBONE.head)


@given(tokens=COUNTS, slots=st.integers(0, 6))
def test_a_single_completion_has_nothing_to_share(tokens, slots):
    one = asked(slots=slots)
    shared = COSTS.question(one) + COSTS.path(one) + COSTS.completion(one, tokens)
    assert shared == COSTS.unshared(one, [tokens], paths=1)


def test_sharing_spares_the_prompt_of_every_further_completion():
    tokens = [5, 6, 7, 8]
    shared = COSTS.question(asked()) + 2 * COSTS.path(asked()) + sum(COSTS.completion(asked(), n) for n in tokens)
    # two paths of two samples: the assistant's question once, the prefix three times, the path's segment twice
    spared = ASSISTANT.forward(12) + 3 * BACKBONE.forward(9) + 2 * BACKBONE.forward(7, behind=9)
    assert COSTS.unshared(asked(), tokens, paths=2) - shared == spared


DRAWN = replace(COSTS, thinker=ThinkerCosts(one_thought=True, draw=5))


@given(tokens=COUNTS, slots=st.integers(0, 6), paths=st.integers(1, 9))
def test_draws_around_one_thought_spare_its_slots_on_every_path_but_one(tokens, slots, paths):
    one = asked(slots=slots)
    each, drawn = (costs.question(one) + paths * costs.path(one) for costs in (COSTS, DRAWN))
    thought = ASSISTANT.forward(slots, behind=12) + slots * COSTS.projection
    assert each - drawn == (paths - 1) * thought - paths * slots * 5
    shared = DRAWN.question(one) + DRAWN.path(one) + DRAWN.completion(one, tokens)
    assert shared == DRAWN.unshared(one, [tokens], paths=1)


def test_costs_survive_run_json():
    assert RunCosts.from_json(asdict(COSTS)) == COSTS
    assert RunCosts.from_json(asdict(DRAWN)) == DRAWN
    assert RunCosts.from_json(asdict(RunCosts(BACKBONE))) == RunCosts(BACKBONE)


def counted(model: torch.nn.Module, ids: torch.Tensor) -> int:
    """FLOPs of reading ids one by one by torch's counter; eager products, as it knows no CPU attention kernel."""
    cache = None
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for token in ids:
            cache = model(input_ids=token.view(1, 1), past_key_values=cache, use_cache=True).past_key_values
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2", "phi"])
def test_tiny_models_cost_what_torch_counts(make_model, family):
    model = make_model(family)
    costs = LanguageModel("tiny", "", model, SimpleNamespace()).costs
    expected = costs.forward(20) + 20 * costs.head
    assert counted(model, torch.arange(20)) == pytest.approx(expected, rel=0.02)


def test_sliding_layers_see_their_window(make_model):
    costs = LanguageModel("tiny", "", make_model("gemma3"), SimpleNamespace()).costs
    assert costs.windows == (8, 0, 8, 0)
    assert LanguageModel("tiny", "", make_model("mistral"), SimpleNamespace()).costs.windows == (8, 8)


def test_the_bundled_model_costs_what_torch_counts():
    try:
        source = model_files.locate("smollm2-135m")
    except UsageError as error:
        pytest.skip(str(error))
    model = loading.load(source, name="smollm2-135m", device="cpu", dtype=torch.float32)
    expected = model.costs.forward(24) + 24 * model.costs.head
    assert counted(model.model, torch.arange(100, 124)) == pytest.approx(expected, rel=0.02)
    keys = model.model(input_ids=torch.arange(100, 124)[None], use_cache=True).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in keys.layers)
    assert held == 24 * model.costs.kv_bytes


# ---- whole methods: what is computed, against what run.json says of it


def operations(work: Callable[[], object]) -> dict[str, int]:
    """FLOPs of some work by torch's counter: "weights" for products with weights, "attention" for all batched products."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    counts = counter.get_flop_counts().get("Global", {})
    named = {str(name): int(count) for name, count in counts.items()}
    assert set(named) <= {"aten.mm", "aten.addmm", "aten.bmm"}
    return {"weights": named.get("aten.mm", 0) + named.get("aten.addmm", 0), "attention": named.get("aten.bmm", 0)}


@pytest.fixture
def with_thinker(config_of, silent, tmp_path) -> Callable[..., Setup]:
    """`with_thinker(method, paths)`: a run whose thinker is read from disk, as torch counts no modules that learn."""

    def make(method: str, paths: int) -> Setup:
        rows = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
        own = {"prompt-tuning": PromptTuning, "proposer": Proposer, "refiner": Refiner}
        if method in own:
            thinker = own[method].untrained(rows, num_paths=paths, num_slots=4, scale=0.2)
        else:
            thinker = AssistantThinker.untrained(rows, num_paths=paths, backbone_width=32, scale=0.2)
        checkpoint.save(thinker, tmp_path / "thinker", soft_tokens=4, prompt_version=PROMPT_VERSION)
        return prepare(config_of(method=method, latent_paths=paths, thinker=str(tmp_path / "thinker")), silent)

    return make


PERTURBED = ("softcot-p", "softcot-dropout", "softcot-gumbel")


@pytest.mark.parametrize(
    ("method", "paths"),
    [
        *((method, 1) for method in ("softcot++", "prompt-tuning", "proposer", "refiner")),
        *((method, paths) for method in PERTURBED for paths in (1, 4)),
    ],
)
def test_thinking_costs_what_torch_counts(with_thinker, method, paths):
    """Several paths are tested where they share one thought: elsewhere masked pairs are computed that are not counted."""
    setup = with_thinker(method, paths)
    question, other = setup.task.questions
    setup.method.prompts(other, range(paths))  # trials of what the models can do are over
    found = operations(lambda: setup.method.prompts(question, range(paths)))
    costs, prompted = setup.method.costs(), setup.asked[0]
    reading = RunCosts(costs.backbone)  # what the backbone computes later
    expected = costs.question(prompted) - reading.question(prompted)
    expected += paths * (costs.path(prompted) - reading.path(prompted))
    masked = 0
    if costs.assistant:  # queries times keys that they may not see, in the eager products
        longest = prompted.assistant_tokens, prompted.soft_tokens
        masked = costs.assistant.attention * len(costs.assistant.windows) * sum(n * (n - 1) // 2 for n in longest)
    assert sum(found.values()) == expected + masked
    assert (expected > 0) == (method != "prompt-tuning")


def decoded(model: LanguageModel, prompt: Sequence[int], most: int) -> tuple[dict[str, int], list[int]]:
    """FLOPs of decoding greedily behind a prompt with the engine, and the tokens.

    The engine reads what chains share with a row of logits that nobody needs; its FLOPs are left out.
    """
    engine = fitted_engine(model.model, end_tokens=model.end_tokens, tokens_per_row=len(prompt) + most)
    request = Request(SoftPrompt("q", 0, tuple(prompt), torch.empty(0, model.width), ()), 0, 0)
    chains = []

    def work() -> None:
        chains.extend(engine.generate([request], Decoding(0.0, 1.0, 0, most)))

    work()  # trials of what the model can do are over
    found = operations(work)
    return {**found, "weights": found["weights"] - model.costs.head}, chains[-1].tokens


def by_weights(costs: RunCosts) -> RunCosts:
    """The same costs without attention."""
    assistant = replace(costs.assistant, attention=0) if costs.assistant else None
    return replace(costs, backbone=replace(costs.backbone, attention=0), assistant=assistant)


@pytest.mark.parametrize("shots", [0, 2])
def test_few_shot_chains_cost_what_torch_counts(config_of, silent, shots):
    setup = prepare(config_of(method="cot", latent_paths=1, shots=shots), silent)
    prompt, prompted = setup.method.prompts(setup.task.questions[0], [0])[0], setup.asked[0]
    costs, model = setup.method.costs(), setup.method.backbone
    found, tokens = decoded(model, prompt.prefix, 12)

    def total(of: RunCosts) -> int:
        return of.question(prompted) + of.path(prompted) + of.completion(prompted, len(tokens))

    assert found["weights"] == total(by_weights(costs))
    # and with attention, token by token; the counter draws from every position of the prompt, a run from the last alone
    drawn = (prompted.prefix_tokens - 1) * costs.backbone.head
    ids = torch.tensor([*prompt.prefix, *tokens[:-1]])
    assert counted(model.model, ids) == pytest.approx(total(costs) + drawn, rel=0.02)


def test_hints_cost_what_torch_counts(config_of, silent, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))
    setup = prepare(config_of(method="assist-cot", latent_paths=1), silent)
    question, prompted, costs = setup.task.questions[0], setup.asked[0], setup.method.costs()
    assert setup.assistant is not None
    request = PromptBuilder.of_assistant(setup.assistant, task=setup.task.definition).hint_request(question)
    hinting, hint = decoded(setup.assistant, request, prompted.hint_tokens)
    assert len(hint) == prompted.hint_tokens > 0
    prompt = setup.method.prompts(question, [0])[0]
    answering, tokens = decoded(setup.method.backbone, prompt.prefix, 12)
    plain = RunCosts(costs.backbone)
    answer = plain.question(prompted) + plain.path(prompted) + plain.completion(prompted, len(tokens))
    whole = costs.question(prompted) + costs.path(prompted) + costs.completion(prompted, len(tokens))
    light = by_weights(costs)
    assert hinting["weights"] == light.question(prompted) - by_weights(plain).question(prompted)
    assert hinting["weights"] + answering["weights"] == sum(
        (light.question(prompted), light.path(prompted), light.completion(prompted, len(tokens)))
    )
    drawn = (len(request) - 1) * costs.assistant.head
    ids = torch.tensor([*request, *hint[:-1]])
    assert counted(setup.assistant.model, ids) == pytest.approx(whole - answer + drawn, rel=0.02)
