"""Thoughts that are optimised themselves: the loss falls, each question's are its own, and nothing else changes."""

from __future__ import annotations

import pytest
import torch

from contrastive.optimised import tune_each, tune_prompt
from contrastive.target_loss import Reader
from tests.conftest import FAMILIES

L, WIDTH = 2, 32
START = torch.full((L, WIDTH), 0.05)


@pytest.fixture
def reader(make_model):
    return Reader(make_model("llama").requires_grad_(False))


def scored(reader, examples, thoughts):
    with torch.no_grad():
        return reader.losses(examples, thoughts.expand(len(examples), 1, L, WIDTH))[:, 0]


def test_the_oracle_lowers_the_loss_of_every_chain_it_is_optimised_on(reader, some_examples):
    examples = some_examples()
    own = tune_each(reader, examples, START, steps=10, lr=0.05)
    assert own.shape == (len(examples), 1, L, WIDTH)
    assert (scored(reader, examples, own) < scored(reader, examples, START)).all()


def test_the_thoughts_of_a_question_do_not_depend_on_the_others(reader, some_examples):
    examples = some_examples(3)
    together = tune_each(reader, examples, START, steps=4, lr=0.02)
    for place, example in enumerate(examples):
        torch.testing.assert_close(
            together[place : place + 1], tune_each(reader, [example], START, steps=4, lr=0.02), rtol=0, atol=2e-3
        )


def test_a_tuned_prompt_lowers_the_mean_loss(reader, some_examples):
    examples, steps = some_examples(), []
    prompt = tune_prompt(reader, [examples] * 10, START, lr=0.05, stepped=lambda: steps.append(1))
    assert prompt.shape == (L, WIDTH)
    assert scored(reader, examples, prompt).mean() < scored(reader, examples, START).mean()
    assert len(steps) == 10


def test_no_step_leaves_the_start(reader, some_examples):
    assert torch.equal(tune_prompt(reader, [], START, lr=1.0), START)
    assert torch.equal(tune_each(reader, some_examples(2), START, steps=0, lr=1.0), START.expand(2, 1, L, WIDTH))


def test_the_backbone_is_as_it_was(reader, some_examples):
    before = [weight.clone() for weight in reader.backbone.parameters()]
    tune_each(reader, some_examples(2), START, steps=2, lr=0.1)
    assert all(torch.equal(*pair) for pair in zip(before, reader.backbone.parameters(), strict=True))
    assert all(weight.grad is None for weight in reader.backbone.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_that_were_read_before_change_no_loss(family, make_model, some_examples):
    reader, examples = Reader(make_model(family)), some_examples(3)
    thoughts = START.expand(3, 1, L, WIDTH)
    before = reader.read_prefixes(examples)
    torch.testing.assert_close(reader.losses(examples, thoughts, before=before), reader.losses(examples, thoughts))
