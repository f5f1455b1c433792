"""Packed weights: the same products up to rounding, only while entered, and only for rows that have lasted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers import PreTrainedModel

from scaling.engines.base import Decoding
from scaling.engines.local import packing
from scaling.engines.local.engine import TransformersEngine
from scaling.engines.local.packing import PackedWeights

MakeModel = Callable[..., PreTrainedModel]

ROWS = (1, 5, 32, 33, 64)
LONG = 20  # steps, beyond anybody's patience
FAMILIES = ("llama", "phi")  # without biases, and with them in every layer
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # a few roundings of either type


def makes_packs(model: PreTrainedModel) -> bool:
    return packing._packer(model) is not None


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.nn.Linear, int]]:
    """Every layer and number of rows that something was packed for; the products are then exact ones."""
    made: list[tuple[torch.nn.Linear, int]] = []

    def make(module: torch.nn.Linear, rows: int) -> Callable[[Tensor, int], Tensor]:
        made.append((module, rows))
        return lambda inputs, _: linear(inputs, module.weight, module.bias)

    monkeypatch.setattr(packing, "_packer", lambda _: make)
    return made


def step_of(model: PreTrainedModel, rows: int) -> Tensor:
    """Logits [rows, V] of one token a row."""
    width = model.config.hidden_size
    inputs = torch.randn(rows, 1, width, generator=torch.Generator().manual_seed(rows)).to(model.dtype)
    with torch.inference_mode():
        return model(inputs_embeds=inputs, use_cache=False).logits[:, 0]


def linears(model: PreTrainedModel) -> list[torch.nn.Linear]:
    return [module for module in model.modules() if type(module) is torch.nn.Linear]


def off(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_equal_the_models_own(make_model: MakeModel, family: str, dtype: torch.dtype, rows: int) -> None:
    model = make_model(family).to(dtype)
    assert any(module.bias is not None for module in linears(model)) is (family == "phi")
    expected = step_of(model, rows)
    packed = PackedWeights(model)
    with packed:
        for _ in range(LONG):
            packed.choose(rows)
            assert off(step_of(model, rows), expected) < CLOSE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_numbers_of_rows_are_served_too(make_model: MakeModel, dtype: torch.dtype) -> None:
    """A prefill, while the weights are packed for steps of 5 rows."""
    model = make_model("phi").to(dtype)
    expected = {rows: step_of(model, rows) for rows in (1, 6, 40, 100)}
    packed = PackedWeights(model)
    with packed:
        for _ in range(LONG):
            packed.choose(5)
        for rows, own in expected.items():
            assert off(step_of(model, rows), own) < CLOSE[dtype]


def test_one_layer_against_float64(make_model: MakeModel) -> None:
    """Bfloat16 products are exact in float32: what is left is the rounding of sums, and of the result."""
    for dtype, atol in ((torch.float32, 1e-6), (torch.bfloat16, 2.0**-8)):
        model = make_model("phi").to(dtype)
        module = linears(model)[0]
        inputs = torch.randn(3, module.in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
        expected = linear(inputs.double(), module.weight.double(), module.bias.double())
        packed = PackedWeights(model)
        with packed, torch.inference_mode():
            for _ in range(LONG):
                packed.choose(3)
            found = module(inputs)
        assert found.dtype == dtype
        assert ((found - expected).abs() <= atol * expected.abs().clamp(min=1)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_afterwards_the_model_is_as_before(make_model: MakeModel, dtype: torch.dtype) -> None:
    model = make_model("phi").to(dtype)
    before = step_of(model, 5)
    packed = PackedWeights(model)
    for _ in range(2):
        with packed:
            assert all(("forward" in module.__dict__) is makes_packs(model) for module in linears(model))
            for _ in range(LONG):
                packed.choose(5)
            step_of(model, 5)
        assert all("forward" not in module.__dict__ for module in model.modules())
        assert torch.equal(step_of(model, 5), before)


def test_an_error_also_leaves_the_model_as_before(make_model: MakeModel) -> None:
    model = make_model("llama")
    with pytest.raises(ValueError, match="inside"), PackedWeights(model):
        raise ValueError("inside")
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_a_float64_model_is_left_alone(make_model: MakeModel) -> None:
    model = make_model("phi").double()
    before = step_of(model, 5)
    packed = PackedWeights(model)
    with packed:
        for _ in range(LONG):
            packed.choose(5)
        assert all("forward" not in module.__dict__ for module in model.modules())
        assert torch.equal(step_of(model, 5), before)


def test_nothing_is_packed_before_patience_has_run_out(make_model: MakeModel, packs: list[Any]) -> None:
    model = make_model("llama")
    packed = PackedWeights(model)
    with packed:
        for steps in range(1, LONG):
            packed.choose(5)
            assert bool(packs) is (steps >= packing._PATIENCE)
    assert [module for module, _ in packs] == linears(model), "every layer, once"
    assert {rows for _, rows in packs} == {8}


def test_patience_starts_again_in_another_band(make_model: MakeModel, packs: list[Any]) -> None:
    packed = PackedWeights(make_model("llama"))
    with packed:
        for _ in range(LONG):
            for rows in (packing._BAND, packing._BAND + 1):
                for _ in range(packing._PATIENCE - 1):
                    packed.choose(rows)
    assert packs == []


@pytest.mark.parametrize(
    ("rows", "band"), [(1, None), (2, 8), (8, 8), (9, 16), (17, 32), (32, 32), (33, 64), (128, 128)]
)
def test_bands(make_model: MakeModel, packs: list[Any], rows: int, band: int | None) -> None:
    packed = PackedWeights(make_model("llama"))
    with packed:
        for _ in range(LONG):
            packed.choose(rows)
    assert {found for _, found in packs} == ({band} if band else set())


def test_rows_of_one_band_share_what_is_packed(make_model: MakeModel, packs: list[Any]) -> None:
    model = make_model("llama")
    packed = PackedWeights(model)
    with packed:
        for rows in [packing._BAND, 17, 20] * LONG:
            packed.choose(rows)
    assert len(packs) == len(linears(model))


def test_at_most_two_bands_are_kept(make_model: MakeModel, packs: list[Any]) -> None:
    """The third band pushes out the first, which has to be packed again; the third is then still there."""
    packed = PackedWeights(make_model("llama"))
    found = []
    with packed:
        for band in (1, 2, 1, 2, 3, 1, 3):
            packs.clear()
            for _ in range(LONG):
                packed.choose(band * packing._BAND)
            found.append(bool(packs))
    assert found == [True, True, False, False, True, True, False]


def test_nothing_is_packed_where_memory_is_short(
    make_model: MakeModel, packs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "available_memory", lambda: 0)
    packed = PackedWeights(make_model("llama"))
    with packed:
        for _ in range(LONG):
            packed.choose(5)
    assert packs == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_engines_tokens_do_not_depend_on_packing(
    make_model: MakeModel, some_requests: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    """40 tokens of 12 requests at 8 rows: most steps run on packed weights, the last ones on other rows."""
    model = make_model(family)
    if not makes_packs(model):
        pytest.skip("nothing is packed on this machine")
    requests = some_requests(model, questions=2)
    decoding = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=40)

    def tokens() -> dict[tuple[str, int, int], list[int]]:
        engine = TransformersEngine(model, end_tokens=(), batch_size=8, max_batch_tokens=10_000)
        results = engine.generate(requests, decoding)
        return {(g.request.prompt.question_id, g.request.prompt.path, g.request.sample): g.tokens for g in results}

    packed = tokens()
    assert len(packed) == 12
    monkeypatch.setattr(packing, "_packer", lambda _: None)
    assert tokens() == packed
