"""The engine against the plainest possible decoder: one row, no cache, the whole sequence again for every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import PreTrainedModel

from scaling.engines.base import Decoding, Generated, Request, SoftPrompt
from scaling.engines.sampling import sample_tokens, uniforms
from scaling.engines.transformers import TransformersEngine, auto_limits
from scaling.errors import UsageError
from scaling.seeds import stream_seed

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi")
GREEDY = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=12)
SAMPLED = Decoding(temperature=1.0, top_p=0.95, top_k=50, max_new_tokens=12)
END = (7,)

MakeModel = Callable[..., PreTrainedModel]


def some_requests(model: PreTrainedModel, *, questions: int = 3, paths: int = 2, samples: int = 3) -> list[Request]:
    """Prompts of different lengths, the longest beyond the families' sliding window of 8."""
    generator = torch.Generator().manual_seed(1)
    width = model.config.hidden_size
    requests = []
    for question in range(questions):
        prefix = tuple(torch.randint(10, 90, (3 + 7 * question,), generator=generator).tolist())
        for path in range(paths):
            prompt = SoftPrompt(
                f"q{question}", path, prefix, torch.randn(2, width, generator=generator) * 0.3, (11, 12)
            )
            requests += [Request(prompt, s, stream_seed(0, f"q{question}", path, s)) for s in range(samples)]
    return requests


def engine_of(model: PreTrainedModel, batch_size: int, *, max_batch_tokens: int = 10_000) -> TransformersEngine:
    return TransformersEngine(model, end_tokens=END, batch_size=batch_size, max_batch_tokens=max_batch_tokens)


@torch.inference_mode()
def plain(model: PreTrainedModel, request: Request, decoding: Decoding) -> list[int]:
    embed = model.get_input_embeddings()
    prompt = request.prompt
    inputs = torch.cat([embed(torch.tensor(prompt.prefix)), prompt.thoughts, embed(torch.tensor(prompt.suffix))])[None]
    tokens: list[int] = []
    while len(tokens) < decoding.max_new_tokens:
        logits = model(inputs_embeds=inputs, use_cache=False).logits[:, -1]
        uniform = uniforms(torch.tensor([request.seed]), torch.tensor([len(tokens)]))
        tokens.append(int(sample_tokens(logits, uniform, decoding)))
        if tokens[-1] in END:
            break
        inputs = torch.cat([inputs, embed(torch.tensor([tokens[-1:]]))], dim=1)
    return tokens


def decoded(
    model: PreTrainedModel, requests: Sequence[Request], decoding: Decoding, *, batch_size: int
) -> dict[tuple[str, int, int], Generated]:
    engine = engine_of(model, batch_size)
    results = list(engine.generate(requests, decoding))
    found = {(g.request.prompt.question_id, g.request.prompt.path, g.request.sample): g for g in results}
    assert len(found) == len(results) == len(requests)
    return found


@pytest.mark.parametrize("decoding", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_equal_the_plain_decoder(make_model: MakeModel, family: str, decoding: Decoding) -> None:
    model = make_model(family).double()
    requests = some_requests(model)
    found = decoded(model, requests, decoding, batch_size=8)
    for request in requests:
        generated = found[request.prompt.question_id, request.prompt.path, request.sample]
        assert generated.tokens == plain(model, with_doubles(request), decoding)
        assert generated.stop_reason == ("end" if generated.tokens[-1] in END else "length")


def with_doubles(request: Request) -> Request:
    prompt = request.prompt
    return Request(
        SoftPrompt(prompt.question_id, prompt.path, prompt.prefix, prompt.thoughts.double(), prompt.suffix),
        request.sample,
        request.seed,
    )


def test_rows_stop_at_different_times_and_refill(make_model: MakeModel) -> None:
    """The comparison above means something only if rows end early, at different steps."""
    model = make_model("llama")
    found = decoded(model, some_requests(model, samples=40), SAMPLED, batch_size=8)
    ended = {len(g.tokens) for g in found.values() if g.stop_reason == "end"}
    assert len(ended) > 3
    assert any(g.stop_reason == "length" for g in found.values())


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_changes_nothing(make_model: MakeModel, batch_size: int) -> None:
    model = make_model("qwen3").double()
    requests = some_requests(model)
    expected = {key: g.tokens for key, g in decoded(model, requests, SAMPLED, batch_size=7).items()}
    assert {key: g.tokens for key, g in decoded(model, requests, SAMPLED, batch_size=batch_size).items()} == expected


def test_the_order_of_requests_changes_nothing(make_model: MakeModel) -> None:
    model = make_model("gpt2").double()
    requests = some_requests(model)
    expected = {key: g.tokens for key, g in decoded(model, requests, SAMPLED, batch_size=4).items()}
    backwards = decoded(model, requests[::-1], SAMPLED, batch_size=4)
    assert {key: g.tokens for key, g in backwards.items()} == expected


def test_prompts_are_prefilled_once_for_all_their_samples(make_model: MakeModel) -> None:
    model = make_model("llama")
    requests = some_requests(model, questions=1, paths=2, samples=3)
    engine = engine_of(model, 6)
    list(engine.generate(requests, GREEDY))
    length = 3 + 2 + 2  # prefix, soft tokens, suffix
    assert engine.counters.prefill_computed == 2 * length
    assert engine.counters.prefill_avoided == (6 - 2) * length


def test_running_out_of_memory_halves_the_batch_and_loses_nothing(make_model: MakeModel) -> None:
    model = make_model("llama").double()
    requests = some_requests(model)
    expected = {key: g.tokens for key, g in decoded(model, requests, SAMPLED, batch_size=3).items()}
    forward, calls = model.forward, []

    def scarce(*args: object, **kwargs: torch.Tensor) -> object:
        calls.append(kwargs["inputs_embeds"].shape[0])
        if len(calls) > 5 and calls[-1] > 4:
            raise torch.OutOfMemoryError("out of memory")
        return forward(*args, **kwargs)

    model.forward = scarce
    engine = engine_of(model, 16)
    results = list(engine.generate(requests, SAMPLED))
    assert engine.batch_size == 4
    found = {(g.request.prompt.question_id, g.request.prompt.path, g.request.sample): g.tokens for g in results}
    assert len(results) == len(requests)
    assert found == expected


def test_no_memory_even_for_one_row_is_the_users_to_fix(make_model: MakeModel) -> None:
    model = make_model("llama")

    def none_left(*_: object, **__: object) -> object:
        raise torch.OutOfMemoryError("out of memory")

    model.forward = none_left
    with pytest.raises(UsageError, match="max-new-tokens"):
        list(engine_of(model, 2).generate(some_requests(model), GREEDY))


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_model: MakeModel) -> None:
    model = make_model("llama")

    def broken(*_: object, **__: object) -> object:
        raise RuntimeError("a bug")

    model.forward = broken
    with pytest.raises(RuntimeError, match="a bug"):
        list(engine_of(model, 2).generate(some_requests(model), GREEDY))


def test_logits_that_are_not_numbers_are_reported(make_model: MakeModel) -> None:
    model = make_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3, 0] = torch.nan
    with pytest.raises(UsageError, match="NaN"):
        list(engine_of(model, 2).generate(some_requests(model), GREEDY))


def test_the_automatic_batch_shrinks_with_memory(make_model: MakeModel) -> None:
    model = make_model("llama")
    sizes = [auto_batch_size(model, tokens_per_row=1000, free_bytes=free) for free in (0, 10**7, 10**12)]
    assert sizes[0] == 1
    assert sizes[0] < sizes[1] < sizes[2]
