"""The in-process engine on a GPU: the right tokens, memory, waits, and going on where memory runs out."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from scaling.engines.base import Decoding, Request
from scaling.engines.local.engine import TransformersEngine, fitted_engine

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi")
GREEDY = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=12)
SAMPLED = Decoding(temperature=1.0, top_p=0.95, top_k=0, max_new_tokens=12, log_probs=True)

Fixture = Callable[..., Any]


def engine_of(model: PreTrainedModel, *, rows: int = 5, **options: Any) -> TransformersEngine:
    return TransformersEngine(
        model, **{"end_tokens": (1, 5), "batch_size": rows, "max_batch_tokens": 100_000, **options}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_a_loop_without_cache(
    make_model: Fixture, requests_of: Fixture, decoded: Fixture, logits_before: Fixture, family: str
) -> None:
    model = make_model(family).cuda()
    requests = requests_of(32)
    engine = engine_of(model)
    assert engine.plain_because is None
    for request, tokens in zip(requests, decoded(engine, requests, GREEDY), strict=True):
        assert logits_before(model, request, tokens).argmax(-1).tolist() == tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", FAMILIES)
def test_in_half_precision_no_token_is_worse_than_rounding_explains(
    make_model: Fixture, requests_of: Fixture, decoded: Fixture, logits_before: Fixture, family: str, dtype: torch.dtype
) -> None:
    model = make_model(family).to(dtype).cuda()
    requests = requests_of(32)
    for request, tokens in zip(requests, decoded(engine_of(model), requests, GREEDY), strict=True):
        logits = logits_before(model, request, tokens).float()
        lost = logits.amax(-1) - logits.gather(1, torch.tensor(tokens, device="cuda")[:, None])[:, 0]
        assert float((lost / logits.std(-1)).max()) < 0.2


def test_sampled_tokens_and_their_measures_are_those_of_the_cpu(make_model: Fixture, requests_of: Fixture) -> None:
    requests = requests_of(32)
    found = []
    for device in ("cpu", "cuda"):
        engine = engine_of(make_model("llama").to(device))
        done = {id(one.request): one for one in engine.generate(requests, SAMPLED)}
        found.append([done[id(request)] for request in requests])
    assert [one.tokens for one in found[1]] == [one.tokens for one in found[0]]
    for cpu, gpu in zip(*found, strict=True):
        assert gpu.log_prob == pytest.approx(cpu.log_prob, rel=1e-3)
        assert gpu.self_certainty == pytest.approx(cpu.self_certainty, rel=1e-3)


def long_model(dtype: torch.dtype) -> PreTrainedModel:
    """A Llama of two layers for long texts."""
    config = LlamaConfig(
        vocab_size=100, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32768, bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype).eval().cuda()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_long_prefix_takes_no_memory_for_its_scores(
    requests_of: Fixture, decoded: Fixture, dtype: torch.dtype
) -> None:
    """16,384 tokens have 4 GiB of scores in float32, and half a GiB in a mask of half precision: neither is held."""
    length = 16384
    engine = engine_of(long_model(dtype), end_tokens=())
    requests = requests_of(64, questions=1, prefix=length)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    assert all(len(tokens) == 12 for tokens in decoded(engine, requests, GREEDY))
    assert torch.cuda.max_memory_allocated() - before < 300 << 20


@pytest.fixture
def little_memory() -> Iterator[Callable[[int], None]]:
    """`little_memory(more)`: torch may take so many bytes more than it has."""

    def limit(more: int) -> None:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more) / total)

    yield limit
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_memory_that_runs_out_halves_the_batch_and_loses_nothing(
    make_model: Fixture, requests_of: Fixture, decoded: Fixture, little_memory: Fixture
) -> None:
    """4,096 rows of 2,048 tokens have 2 GiB of keys and values, of which there is room for a quarter."""
    model = make_model("llama").cuda()
    requests = requests_of(32)
    long = Decoding(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=2048)
    end = tuple(range(50))  # which is soon
    expected = decoded(engine_of(model, end_tokens=end), requests, long)
    engine = engine_of(model, rows=4096, end_tokens=end)
    said: list[str] = []
    engine.tell = said.append
    little_memory(700 << 20)
    assert decoded(engine, requests, long) == expected
    assert engine.batch_size < 4096
    assert said


def test_a_single_completion_that_finds_no_memory_is_a_sentence(
    make_model: Fixture, requests_of: Fixture, decoded: Fixture, little_memory: Fixture
) -> None:
    from scaling.records.errors import UsageError

    engine = engine_of(make_model("llama").cuda(), rows=4)
    little_memory(64 << 20)
    with pytest.raises(UsageError, match="memory ran out"):
        decoded(engine, requests_of(32), Decoding(1.0, 1.0, 0, max_new_tokens=4_000_000))


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_the_host_waits_once_a_token(make_model: Fixture, requests_of: Fixture, decoding: Decoding) -> None:
    """As torch itself counts what synchronises."""
    model = make_model("llama").cuda()
    engine = engine_of(model, rows=12, end_tokens=())
    requests = requests_of(32)
    list(engine.generate(requests, decoding))  # libraries load their kernels
    engine.counters.decode_steps = 0
    waits_before: list[int] = []
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        hook = model.register_forward_pre_hook(lambda *_: waits_before.append(len(waits)))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            list(engine.generate(requests, decoding))
        finally:
            torch.cuda.set_sync_debug_mode("default")
            hook.remove()
    steps = waits_before[-engine.counters.decode_steps :]
    why = [str(wait.message) for wait in waits]
    assert {after - before for before, after in itertools.pairwise(steps)} == {1}, why


def test_exact_results_do_not_depend_on_what_else_is_decoded(make_model: Fixture, requests_of: Fixture) -> None:
    """Bit for bit, log-probabilities too, and again in the next pass."""
    model = make_model("llama").cuda()
    requests: list[Request] = requests_of(32)
    engine = engine_of(model, exact=True, rows=8)

    def results(some: list[Request]) -> dict[int, tuple[Any, ...]]:
        return {
            id(one.request): (one.tokens, one.log_prob, one.self_certainty) for one in engine.generate(some, SAMPLED)
        }

    together = results(requests)
    assert results(requests) == together
    assert results(requests[::-1]) == together
    for request in requests[:4]:
        assert results([request]) == {id(request): together[id(request)]}


def test_limits_are_chosen_by_the_memory_of_the_models_own_gpu(make_model: Fixture) -> None:
    for number in range(torch.cuda.device_count()):
        engine = fitted_engine(make_model("llama").to(f"cuda:{number}"), end_tokens=(), tokens_per_row=100)
        assert engine.batch_size == 512
        held = engine.max_batch_tokens * 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
        assert held <= torch.cuda.get_device_properties(number).total_memory
