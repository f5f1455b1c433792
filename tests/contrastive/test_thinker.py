"""The packed pass of the thinker against the plain definition: one question, one path, no padding, one sequence."""

from __future__ import annotations

import pytest
import torch

from contrastive.assistant_thinker import AssistantThinker
from contrastive.projection import new_projection
from contrastive.thinker import Inputs
from contrastive.token_sets import SoftTokenSets

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi")
SLIDING = ("mistral", "gemma3")
N, L, WIDTH, BACKBONE_WIDTH = 3, 4, 32, 24
LENGTHS = (21, 5, 13, 1)  # tokens: longer than, shorter than and about the sliding window of 8


def frozen(model):
    return model.requires_grad_(False)


def new_thinker(*, num_paths=N, normalise=True, per_path=1, seed=5):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(num_paths, per_path, WIDTH, generator=generator) * 0.3
    projection = new_projection(WIDTH, BACKBONE_WIDTH, scale=1.0)
    with torch.no_grad():
        projection.bias.normal_(generator=generator)
    return AssistantThinker(SoftTokenSets(vectors), projection, normalise=normalise)


def questions(lengths=LENGTHS, *, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(2, 100, (length,), generator=generator) for length in lengths]


def padded(rows):
    """Right-padded ids and mask, with ids of real tokens in the padding so that attending to it would show."""
    ids = torch.full((len(rows), max(map(len, rows))), 7)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return ids, mask


def plain_thoughts(thinker, assistant, question, path, *, num_slots=L):
    """T = W h + b from the full sequence [question ; INI^k x L] alone: B = 1, no padding, the model's own masks."""
    initial = thinker.token_sets.vectors[path]  # [K, D_a]
    slots = initial.expand(num_slots, -1)
    inputs = torch.cat([assistant.get_input_embeddings()(question), slots])[None]
    states = assistant.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, len(question) :]
    if thinker.normalise:
        states = states / states.square().mean(-1, keepdim=True).sqrt()
    return states @ thinker.projection.weight.T + thinker.projection.bias


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_one_packed_pass_equals_every_sequence_alone(make_model, family, normalise):
    assistant, thinker, rows = make_model(family), new_thinker(normalise=normalise), questions()
    thoughts = thinker(Inputs.of_assistant(assistant, *padded(rows)), L)
    assert thoughts.shape == (len(rows), N, L, BACKBONE_WIDTH)
    assert thoughts.dtype == torch.float32
    expected = torch.stack(
        [torch.stack([plain_thoughts(thinker, assistant, row, k) for k in range(N)]) for row in rows]
    )
    torch.testing.assert_close(thoughts, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", SLIDING)
@torch.no_grad()
def test_the_sliding_window_matters_to_this_comparison(make_model, family):
    """Guards the test above: with the window switched off the same weights give other thoughts."""
    thinker, rows = new_thinker(), questions()
    thoughts = thinker(Inputs.of_assistant(make_model(family), *padded(rows)), L)
    unlimited = make_model(family)
    unlimited.config.sliding_window = 10_000
    assert (thinker(Inputs.of_assistant(unlimited, *padded(rows)), L) - thoughts)[0].abs().max() > 1e-3


@torch.no_grad()
def test_one_vector_a_slot(make_model):
    assistant, thinker, rows = make_model("llama"), new_thinker(per_path=L), questions()
    thoughts = thinker(Inputs.of_assistant(assistant, *padded(rows)), L)
    for number, row in enumerate(rows):
        for path in range(N):
            expected = plain_thoughts(thinker, assistant, row, path)
            torch.testing.assert_close(thoughts[number, path], expected, atol=1e-4, rtol=0)


def test_token_sets_that_cannot_fill_the_slots_are_refused(make_model):
    with pytest.raises(ValueError, match=f"{L} vectors a path, which cannot fill {L + 1} slots"):
        new_thinker(per_path=L)(Inputs.of_assistant(make_model("llama"), *padded(questions())), L + 1)


@torch.no_grad()
def test_paths_differ_on_every_question(make_model):
    thoughts = new_thinker()(Inputs.of_assistant(make_model("llama"), *padded(questions())), L)
    distances = torch.cdist(thoughts.flatten(2), thoughts.flatten(2))  # [B, N, N]
    assert distances[:, ~torch.eye(N, dtype=torch.bool)].min() > 0.1


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@torch.no_grad()
def test_a_path_does_not_depend_on_how_many_there_are(make_model, family):
    assistant, thinker, batch = make_model(family), new_thinker(num_paths=5), padded(questions())
    all_paths = thinker(Inputs.of_assistant(assistant, *batch), L)
    for count in (1, 3):
        fewer = thinker.first_paths(count)
        assert fewer.num_paths == count
        torch.testing.assert_close(
            fewer(Inputs.of_assistant(assistant, *batch), L), all_paths[:, :count], atol=1e-5, rtol=0
        )


def test_first_paths_keeps_the_plain_form():
    thinker = new_thinker(normalise=False)
    assert thinker.first_paths(2).normalise is False


@torch.no_grad()
def test_a_question_does_not_depend_on_the_batch(make_model):
    assistant, thinker, rows = make_model("qwen3"), new_thinker(), questions()
    together = thinker(Inputs.of_assistant(assistant, *padded(rows)), L)
    for number, row in enumerate(rows):
        alone = thinker(Inputs.of_assistant(assistant, *padded([row])), L)[0]
        torch.testing.assert_close(together[number], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_padding_content_changes_nothing(make_model):
    assistant, thinker, (ids, mask) = make_model("llama"), new_thinker(), padded(questions())
    other = torch.where(mask.bool(), ids, torch.full_like(ids, 55))
    assert not torch.equal(ids, other)
    torch.testing.assert_close(
        thinker(Inputs.of_assistant(assistant, ids, mask), L), thinker(Inputs.of_assistant(assistant, other, mask), L)
    )


@pytest.mark.parametrize("scale", [0.02, 1.5])
@torch.no_grad()
def test_untrained_thoughts_have_the_asked_scale(make_model, scale):
    assistant = make_model("llama")
    rows = assistant.get_input_embeddings().weight.flip(0)
    thinker = AssistantThinker.untrained(rows, num_paths=8, backbone_width=96, scale=scale)
    thoughts = thinker(Inputs.of_assistant(assistant, *padded(questions([9] * 8))), L)
    assert thoughts.square().mean().sqrt().item() == pytest.approx(scale, rel=0.1)


@torch.no_grad()
def test_an_untrained_thinker_is_the_same_every_time_and_leaves_the_global_generator_alone():
    rows = torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    first = AssistantThinker.untrained(rows, num_paths=30, backbone_width=BACKBONE_WIDTH, scale=1.0)
    torch.manual_seed(2)
    second = AssistantThinker.untrained(rows, num_paths=30, backbone_width=BACKBONE_WIDTH, scale=1.0)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("normalise", [True, False])
def test_gradient_reaches_what_is_learned_and_only_that(make_model, family, normalise):
    """Mistake: initial tokens that never receive a gradient because the assistant ran without one."""
    assistant, thinker = frozen(make_model(family)), new_thinker(normalise=normalise)
    target = torch.randn(BACKBONE_WIDTH, generator=torch.Generator().manual_seed(0))
    (thinker(Inputs.of_assistant(assistant, *padded(questions())), L) - target).square().mean().backward()
    assert (thinker.token_sets.vectors.grad.abs().amax(dim=(1, 2)) > 1e-8).all(), "every path's tokens learn"
    assert thinker.projection.weight.grad.abs().min() > 0
    assert thinker.projection.bias.grad.abs().min() > 0
    assert all(parameter.grad is None for parameter in assistant.parameters())


def test_a_training_step_changes_every_learned_tensor(make_model):
    assistant, thinker = frozen(make_model("llama")), new_thinker()
    before = {name: tensor.clone() for name, tensor in thinker.state_dict().items()}
    optimiser = torch.optim.SGD(thinker.parameters(), lr=0.1)
    thinker(Inputs.of_assistant(assistant, *padded(questions())), L).square().mean().backward()
    optimiser.step()
    assert set(before) == {"token_sets.vectors", "projection.weight", "projection.bias"}
    for name, tensor in thinker.state_dict().items():
        assert not torch.equal(tensor, before[name]), name


@torch.no_grad()
def test_a_half_precision_assistant_still_gives_float32_thoughts(make_model):
    thoughts = new_thinker()(Inputs.of_assistant(make_model("llama").bfloat16(), *padded(questions())), L)
    assert thoughts.dtype == torch.float32
    assert thoughts.isfinite().all()
