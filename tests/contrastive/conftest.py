"""Fixtures: a thinker, examples of different lengths, and a plain computation of the losses to compare with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from contrastive.assistant_thinker import AssistantThinker
from contrastive.projection import new_projection
from contrastive.target_loss import Example
from contrastive.token_sets import SoftTokenSets

N, L, WIDTH = 3, 2, 32


@pytest.fixture
def new_thinker() -> Callable[..., AssistantThinker]:
    """`new_thinker(num_paths=3, **options of Thinker)`: for models of width 32, always the same."""

    def make(*, num_paths: int = N, **options) -> AssistantThinker:
        generator = torch.Generator().manual_seed(5)
        vectors = torch.randn(num_paths, 1, WIDTH, generator=generator) * 0.3
        thinker = AssistantThinker(SoftTokenSets(vectors), new_projection(WIDTH, WIDTH, scale=0.3), **options)
        if thinker.offset is not None:
            with torch.no_grad():
                thinker.offset.normal_(generator=generator)
        return thinker

    return make


@pytest.fixture
def some_examples() -> Callable[..., list[Example]]:
    """`some_examples(5)`: prompts of 4, 9, 14 ... tokens, beyond the sliding window of 8, targets of 2, 5, 8 ... tokens."""

    def make(number: int = 4) -> list[Example]:
        generator = torch.Generator().manual_seed(7)

        def ids(length: int) -> tuple[int, ...]:
            return tuple(torch.randint(10, 90, (length,), generator=generator).tolist())

        return [
            Example(f"q{place}", ids(3 + 4 * place), ids(4 + 5 * place), ids(3), (*ids(1 + 3 * place), 1))
            for place in range(number)
        ]

    return make


def plain_losses(thinker, assistant, backbone, example):
    """Losses summed over the target, [N], by definition: each path runs alone through both models, with gradient."""
    losses = []
    for path in range(thinker.num_paths):
        embed = assistant.get_input_embeddings()
        slots = thinker.token_sets(L)[path]
        inputs = torch.cat([embed(torch.tensor(example.assistant)), slots])[None]
        states = assistant.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -L:]
        thoughts = thinker.project(states.expand(thinker.num_paths, -1, -1))[path]
        embed = backbone.get_input_embeddings()
        before, after = (embed(torch.tensor(ids)) for ids in (example.prefix, (*example.suffix, *example.target)))
        inputs = torch.cat([before, thoughts, after])[None]
        logits = backbone(inputs_embeds=inputs, use_cache=False).logits[0]
        count = len(example.target)
        predicted = logits[-count - 1 : -1].log_softmax(-1)
        losses.append(-predicted.gather(1, torch.tensor(example.target)[:, None]).sum())
    return torch.stack(losses)


@pytest.fixture
def plain() -> Callable[..., torch.Tensor]:
    return plain_losses
