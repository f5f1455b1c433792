"""Losses and gradients against the plain loop that runs every path's full sequence through both models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from contrastive import losses
from contrastive.objective import Objective, backward, think
from contrastive.parallel import Processes
from contrastive.target_loss import Reader, UnsupportedModel

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi")
L = 2
LANGUAGE = Objective(num_slots=L, contrastive="none")
FULL = Objective(num_slots=L, contrastive="view", weight=0.7, question_weight=0.3)


def pair(make_model, family="llama"):
    """Assistant and backbone, two frozen models."""
    return [make_model(family, seed=seed).requires_grad_(False) for seed in (0, 1)]


def gradients(thinker, models, examples, objective, *, step=3, processes=None):
    thinker.zero_grad()
    assistant, backbone = models
    parts = backward(
        thinker, assistant, Reader(backbone), examples, objective, step=step, processes=processes or Processes()
    )
    return parts, {name: p.grad.clone() for name, p in thinker.named_parameters() if p.grad is not None}


def assert_same_gradients(actual, expected, *, atol=1e-5):
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, atol=atol, rtol=1e-4, msg=lambda message, name=name: f"{name}: {message}"
        )


@pytest.mark.parametrize("options", [{}, {"normalise": False}, {"offset": True}])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_equal_the_plain_loop(make_model, new_thinker, some_examples, plain, family, options):
    """Mean over paths and tokens of the batch; targets, prompts and padding of every example differ."""
    if "offset" in options and family != "llama":
        pytest.skip("an offset does not depend on the family")
    thinker, models, examples = new_thinker(**options), pair(make_model, family), some_examples()
    parts, actual = gradients(thinker, models, examples, LANGUAGE)
    thinker.zero_grad()
    tokens = sum(len(example.target) for example in examples) * thinker.num_paths
    expected = sum(plain(thinker, *models, example).sum() for example in examples) / tokens
    expected.backward()
    assert parts.language == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(actual, {name: p.grad for name, p in thinker.named_parameters()})


def test_every_trained_tensor_gets_a_gradient_and_no_frozen_one_does(make_model, new_thinker, some_examples):
    """Mistake: initial tokens that never receive a gradient, as the assistant is run without."""
    thinker, models = new_thinker(offset=True), pair(make_model)
    _, actual = gradients(thinker, models, some_examples(), LANGUAGE)
    assert set(actual) == {"token_sets.vectors", "projection.weight", "projection.bias", "offset"}
    assert all(gradient.abs().max() > 0 for gradient in actual.values())
    assert all(
        gradient.flatten(1).any(1).all()
        for name, gradient in actual.items()
        if name in ("token_sets.vectors", "offset")
    )
    assert all(parameter.grad is None for model in models for parameter in model.parameters())


def test_frozen_token_sets_get_none(make_model, new_thinker, some_examples):
    thinker = new_thinker()
    thinker.token_sets.requires_grad_(False)
    _, actual = gradients(thinker, pair(make_model), some_examples(), LANGUAGE)
    assert set(actual) == {"projection.weight", "projection.bias"}


@pytest.mark.parametrize("objective", [LANGUAGE, FULL])
@pytest.mark.parametrize("micro_batch", [2, 3, 4])
def test_the_split_of_a_batch_changes_nothing(make_model, new_thinker, some_examples, objective, micro_batch):
    thinker, models, examples = new_thinker(), pair(make_model), some_examples()
    parts, expected = gradients(thinker, models, examples, objective)
    other, actual = gradients(thinker, models, examples, replace(objective, micro_batch=micro_batch))
    assert other.language == pytest.approx(parts.language, rel=1e-5)
    assert_same_gradients(actual, expected)


def test_computing_activations_twice_changes_nothing(make_model, new_thinker, some_examples):
    thinker, models, examples = new_thinker(), pair(make_model), some_examples()
    _, expected = gradients(thinker, models, examples, FULL)
    forwards = [layer.forward for model in models for layer in model.base_model.layers]
    _, actual = gradients(thinker, models, examples, replace(FULL, recompute=True))
    assert_same_gradients(actual, expected, atol=1e-7)
    assert forwards == [layer.forward for model in models for layer in model.base_model.layers], "not put back"


def test_one_model_may_be_both(make_model, new_thinker, some_examples):
    thinker, (model, _), examples = new_thinker(), pair(make_model), some_examples()
    _, expected = gradients(thinker, (model, model), examples, FULL)
    _, actual = gradients(thinker, (model, model), examples, replace(FULL, recompute=True))
    assert_same_gradients(actual, expected, atol=1e-7)


@pytest.mark.parametrize("form", ["paper", "uniform"])
def test_contrasts_are_added_with_their_weights(make_model, new_thinker, some_examples, form):
    thinker, models, examples = new_thinker(), pair(make_model), some_examples()
    objective = Objective(num_slots=L, contrastive=form, weight=0.7, temperature=2.0, question_weight=0.3)
    parts, actual = gradients(thinker, models, examples, objective)
    _, language = gradients(thinker, models, examples, LANGUAGE)
    thinker.zero_grad()
    thoughts = think(thinker, models[0], models[1], examples, L)
    paths = getattr(losses, f"{form}_loss")(thoughts, temperature=2.0).mean()
    questions = losses.question_loss(thoughts).mean()
    (0.7 * paths + 0.3 * questions).backward()
    assert (parts.contrastive, parts.questions) == pytest.approx((paths.item(), questions.item()), rel=1e-5)
    assert_same_gradients(actual, {name: p.grad + language[name] for name, p in thinker.named_parameters()})


def test_dropout_is_of_the_step_and_the_question(make_model, new_thinker, some_examples):
    thinker, models, examples = new_thinker(), pair(make_model), some_examples()
    value = [gradients(thinker, models, examples, FULL, step=step)[0].contrastive for step in (3, 3, 4)]
    assert value[0] == value[1] != value[2]
    seeded, _ = gradients(thinker, models, examples, replace(FULL, seed=1))
    assert seeded.contrastive != value[0]


def test_the_order_of_questions_changes_nothing(make_model, new_thinker, some_examples):
    thinker, models, examples = new_thinker(), pair(make_model), some_examples()
    _, expected = gradients(thinker, models, examples, FULL)
    _, actual = gradients(thinker, models, examples[::-1], FULL)
    assert_same_gradients(actual, expected)


class OneOfTwo(Processes):
    """Sees what the other process would add, which is computed beforehand."""

    def __init__(self, rank, everyone):
        self.rank, self.count, self._everyone = rank, 2, everyone

    def gather(self, own, total):
        assert total == len(self._everyone)
        assert torch.allclose(own, self._everyone[self.rank :: 2], atol=1e-6)
        return self._everyone.clone()

    def add_up(self, tensors):
        pass


def test_two_halves_of_the_gradient_add_up(make_model, new_thinker, some_examples):
    """Contrasts across questions are over all processes' questions, and are counted once."""
    thinker, models, examples = new_thinker(), pair(make_model), some_examples(5)
    parts, expected = gradients(thinker, models, examples, FULL)
    everyone = think(thinker, models[0], models[1], examples, L).detach()
    halves = [gradients(thinker, models, examples, FULL, processes=OneOfTwo(rank, everyone)) for rank in (0, 1)]
    assert_same_gradients({name: halves[0][1][name] + halves[1][1][name] for name in expected}, expected)
    assert halves[0][0].language + halves[1][0].language == pytest.approx(parts.language, rel=1e-5)
    assert halves[0][0].contrastive == pytest.approx(parts.contrastive, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_without_thoughts_it_is_the_plain_prompt(make_model, some_examples, family):
    backbone = make_model(family)
    examples = some_examples()
    actual = Reader(backbone).losses(examples, torch.zeros(len(examples), 1, 0, 32))
    for number, example in enumerate(examples):
        ids = torch.tensor([(*example.prefix, *example.suffix, *example.target)])
        logits = backbone(input_ids=ids, use_cache=False).logits[0, :-1]
        count = len(example.target)
        expected = torch.nn.functional.cross_entropy(logits[-count:], ids[0, -count:], reduction="sum")
        assert actual[number, 0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_a_model_that_changes_its_logits_is_judged_by_them(make_model, new_thinker, some_examples, plain):
    """As Cohere's and Granite's models do, which scale what their output layer gives."""
    assistant, model = pair(make_model)
    forward = model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.5
        return output

    model.forward = scaled
    thinker, examples = new_thinker(), some_examples()
    parts, actual = gradients(thinker, (assistant, model), examples, LANGUAGE)
    thinker.zero_grad()
    tokens = sum(len(example.target) for example in examples) * thinker.num_paths
    expected = sum(plain(thinker, assistant, model, example).sum() for example in examples) / tokens
    expected.backward()
    assert parts.language == pytest.approx(expected.item(), rel=1e-5)
    assert_same_gradients(actual, {name: p.grad for name, p in thinker.named_parameters()})


def test_a_model_that_gives_no_logits_is_refused(make_model):
    model = make_model("llama")

    def refusing(*_, **__):
        raise ValueError("pictures are missing")

    model.forward = refusing
    with pytest.raises(UnsupportedModel, match="LlamaForCausalLM gives no logits for embeddings: pictures are missing"):
        Reader(model)
