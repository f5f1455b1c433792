"""Which models share prefixes; what does not fit says why, is left as it was, and is decoded all the same."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, PreTrainedModel

from contrastive import windows
from contrastive.forward import attention_masks
from scaling.engines.base import Decoding, Generated, Request
from scaling.engines.local import attention, plain, single
from scaling.engines.local.engine import TransformersEngine
from scaling.engines.local.fitting import fit, why_not_shared

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi")
SAMPLED = Decoding(temperature=1.0, top_p=0.95, top_k=50, max_new_tokens=8)
END = (7,)
WINDOW = 8  # tokens, of the tiny models that have one

MakeModel = Callable[..., PreTrainedModel]
SomeRequests = Callable[..., list[Request]]
WithoutCache = Callable[..., Generated]
Misfit = Callable[[], PreTrainedModel]


def gemma2() -> PreTrainedModel:
    """Its attention caps the scores softly."""
    config = Gemma2Config(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        max_position_embeddings=512,
        sliding_window=8,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Gemma2ForCausalLM(config).float().eval()


def wrong_merge(parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Every part weighs the same."""
    return torch.stack([out for out, _ in parts]).mean(0)


@pytest.fixture
def misfits(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Misfit, str]]:
    """Name -> (how to make the model, what it is to be told)."""

    def not_replaceable() -> PreTrainedModel:
        model = make_model("llama")
        monkeypatch.setattr(type(model), "_supports_attention_backend", False)
        return model

    def with_other_layers() -> PreTrainedModel:
        model = make_model("llama")
        monkeypatch.setattr(model.config, "layer_types", ["full_attention", "linear_attention"], raising=False)
        return model

    def with_other_logits() -> PreTrainedModel:
        monkeypatch.setattr(attention, "merge", wrong_merge)
        return make_model("qwen3")

    return {
        "softcap": (gemma2, "does not fit: attention with softcap"),
        "fixed attention": (not_replaceable, "its attention cannot be replaced"),
        "layer types": (with_other_layers, "it has layers of linear attention"),
        "logits": (with_other_logits, "its logits would differ by"),
    }


MODEL_ERRORS = pytest.mark.parametrize("misfit", ["softcap", "fixed attention", "layer types", "logits"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_share(make_model: MakeModel, family: str, dtype: torch.dtype) -> None:
    assert why_not_shared(make_model(family).to(dtype)) is None


@MODEL_ERRORS
def test_a_misfit_says_why(misfits: dict[str, tuple[Misfit, str]], misfit: str) -> None:
    make, reason = misfits[misfit]
    assert reason in str(why_not_shared(make()))


@pytest.mark.parametrize(
    ("misfit", "before"),
    [
        ("softcap", "eager"),  # all that the library offers for it on a CPU
        ("fixed attention", "sdpa"),
        ("layer types", "sdpa"),
        ("logits", "sdpa"),
        ("logits", "eager"),
    ],
)
def test_a_misfit_keeps_its_own_attention(misfits: dict[str, tuple[Misfit, str]], misfit: str, before: str) -> None:
    model = misfits[misfit][0]()
    model.set_attn_implementation(before)
    ids = torch.arange(10, 30)[None]
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
        assert why_not_shared(model) is not None
        assert model.config._attn_implementation == before
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, expected)


@MODEL_ERRORS
def test_a_misfit_still_gets_the_right_tokens(
    misfits: dict[str, tuple[Misfit, str]], some_requests: SomeRequests, without_cache: WithoutCache, misfit: str
) -> None:
    make, reason = misfits[misfit]
    model = make().double()
    requests = some_requests(model, questions=2)
    expected = {request: without_cache(model, request, SAMPLED, END).tokens for request in requests}
    engine = TransformersEngine(model, end_tokens=END, batch_size=5, max_batch_tokens=1000)
    assert reason in str(engine.plain_because)
    assert {g.request: g.tokens for g in engine.generate(requests, SAMPLED)} == expected


def without(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, *names: str) -> PreTrainedModel:
    """A model that cannot share, whose batched decoding or whose own cache is wrong, too."""
    monkeypatch.setattr(type(model), "_supports_attention_backend", False)
    if "batching" in names:  # everybody sees one token too few

        def shifted(config: Any, allowed: Tensor, *rest: Any) -> Any:
            return attention_masks(config, allowed & (allowed.cumsum(-1) > 1), *rest)

        monkeypatch.setattr(plain, "attention_masks", shifted)
    if "cache" in names:
        monkeypatch.setattr(single, "_CACHES", ())
    return model


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "its attention cannot be replaced"),
        (("batching",), "so they are decoded one at a time"),
        (("batching", "cache"), "so each text is read anew for every token"),
    ],
    ids=["plain", "single rows", "reread"],
)
def test_the_fastest_right_way_is_taken(
    make_model: MakeModel,
    some_requests: SomeRequests,
    without_cache: WithoutCache,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    said: str,
) -> None:
    """Batched decoding that is wrong is found out, and so is a cache that is: nothing is believed of a name."""
    model = without(make_model("mistral").double(), monkeypatch, *names)
    requests = some_requests(model, questions=2)
    expected = {request: without_cache(model, request, SAMPLED, END).tokens for request in requests}
    engine = TransformersEngine(model, end_tokens=END, batch_size=5, max_batch_tokens=1000)
    assert str(engine.plain_because).endswith(said)
    assert {g.request: g.tokens for g in engine.generate(requests, SAMPLED)} == expected
    assert engine.counters.kv_bytes_held > 0 or "cache" in names


def test_what_lies_beyond_a_window_is_tried_where_it_is_reached(
    make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Masks that forget the window are right for texts within it, and a real window is longer than any trial."""
    model = without(make_model("mistral"), monkeypatch)
    monkeypatch.setattr(model.config, "sliding_window", 1000)

    def without_window(_: Any, allowed: Tensor, *rest: Any) -> Any:
        return attention_masks(LlamaConfig(), allowed, *rest)

    monkeypatch.setattr(plain, "attention_masks", without_window)
    assert fit(model, longest=1000).because == "its attention cannot be replaced"
    for longest in (1001, None):
        assert "nor can completions be batched" in str(fit(model, longest=longest).because)
    assert model.config.sliding_window == 1000


@pytest.mark.parametrize("longest", [None, 30, 10])
def test_a_narrowed_model_is_put_back(make_model: MakeModel, longest: int | None) -> None:
    model = make_model("gemma3")
    rope = {"rope_type": "longrope", "original_max_position_embeddings": 20}
    model.config.rope_parameters = {**model.config.rope_parameters, "full_attention": rope}
    before = model.config.to_json_string()
    assert windows.switches(model) == {20}
    assert windows.lengths(model) == {WINDOW, 20}
    with contextlib.suppress(KeyError), windows.narrowed(model, longest=longest):
        assert model.config.sliding_window == windows.TRIAL_WINDOW < WINDOW
        assert windows.switches(model) == {20 if longest == 10 else windows.TRIAL_SWITCH}
        raise KeyError
    assert model.config.to_json_string() == before


def test_a_model_of_no_numbers_does_not_share(make_model: MakeModel) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.nan
    assert why_not_shared(model) is not None


def test_a_lack_of_memory_is_no_misfit(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")

    def none_left(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(model, "forward", none_left)
    with pytest.raises(torch.OutOfMemoryError):
        why_not_shared(model)


def test_a_model_whose_logits_are_no_numbers_is_said_to_be_one(make_model: MakeModel) -> None:
    model = make_model("llama")
    model.get_output_embeddings().weight.data[0] = torch.nan
    assert why_not_shared(model) == "its logits are not numbers (NaN or infinite)"
