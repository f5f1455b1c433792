"""What needs CUDA: `make test-gpu`. Elsewhere these tests are collected and skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from scaling.engines.base import Decoding, Request, SoftPrompt
from scaling.engines.embedded import embedded
from scaling.engines.local.engine import TransformersEngine

WHY = "needs a GPU that torch can use through CUDA"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason=WHY))


@pytest.fixture(autouse=True)
def _nothing_is_left_on_the_gpu() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@pytest.fixture
def requests_of() -> Callable[..., list[Request]]:
    """`requests_of(width, questions=3, paths=2, samples=2, prefix=10)`: prefixes of that many tokens, 7 more a question."""

    def make(width: int, *, questions: int = 3, paths: int = 2, samples: int = 2, prefix: int = 10) -> list[Request]:
        generator = torch.Generator().manual_seed(1)
        found = []
        for question in range(questions):
            ids = tuple(torch.randint(10, 90, (prefix + 7 * question,), generator=generator).tolist())
            for path in range(paths):
                prompt = SoftPrompt(
                    f"q{question}", path, ids, torch.randn(2, width, generator=generator) * 0.3, (11, 12)
                )
                found += [Request(prompt, sample, seed=100 * path + sample) for sample in range(samples)]
        return found

    return make


@pytest.fixture
def decoded() -> Callable[..., list[list[int]]]:
    """`decoded(engine, requests, decoding)`: the tokens of each request, in their order."""

    def decode(engine: TransformersEngine, requests: Sequence[Request], decoding: Decoding) -> list[list[int]]:
        found = {id(done.request): done.tokens for done in engine.generate(requests, decoding)}
        return [found[id(request)] for request in requests]

    return decode


@pytest.fixture
def logits_before() -> Callable[..., torch.Tensor]:
    """`logits_before(model, request, tokens)`: of each token, [len(tokens), V], by one forward pass without cache."""

    @torch.inference_mode()
    def compute(model: PreTrainedModel, request: Request, tokens: Sequence[int]) -> torch.Tensor:
        prompt = embedded(model, request.prompt)
        after = model.get_input_embeddings()(torch.tensor(tokens, device=model.device))
        logits = model(inputs_embeds=torch.cat([prompt, after])[None], use_cache=False).logits[0]
        return logits[len(prompt) - 1 : -1]

    return compute
