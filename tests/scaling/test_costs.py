"""Costs: formulas against brute force, against each other, and against torch's FLOP counter on real architectures."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from scaling.models import loading, model_files
from scaling.models.loading import LanguageModel
from scaling.records.costs import ModelCosts, RunCosts
from scaling.records.errors import UsageError
from scaling.records.records import PromptedQuestion

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


def test_costs_survive_run_json():
    assert RunCosts.from_json(asdict(COSTS)) == COSTS
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
