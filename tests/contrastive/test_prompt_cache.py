"""Prompts that come again are read once, and what the cache gives is what each prompt by itself gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from contrastive.forward import hidden_states, pad_right
from contrastive.prefix import Prefix, read_prefix
from contrastive.prompt_cache import caching, prefill, read_states
from contrastive.target_loss import Example, Reader

CPU = torch.device("cpu")
START = tuple(range(20, 31))  # longer than the sliding window of 8
BEGUN = [(*START, *own) for own in ((41, 42), (51,), (61, 62, 63, 64))]
APART = [own + START for own in ((41, 42), (51,), (61, 62, 63, 64))]
UNKNOWN = (*START, 71)
MUCH = 1 << 30


@pytest.fixture(params=["llama", "gpt2", "gemma3"])
def model(request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_model(request.param).double()


@pytest.fixture
def positions(model: PreTrainedModel) -> list[int]:
    """How many positions, with padding, each forward pass of the model reads."""
    read: list[int] = []

    def count(_: object, __: object, given: dict[str, torch.Tensor]) -> None:
        read.append(given["inputs_embeds"].shape[:2].numel())

    model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    return read


def read(model: PreTrainedModel, rows: Sequence[tuple[int, ...]]) -> Prefix:
    return prefill(model, *pad_right(rows, CPU))


def states(model: PreTrainedModel, rows: Sequence[tuple[int, ...]]) -> torch.Tensor:
    return read_states(model, *pad_right(rows, CPU), output=hidden_states)


def same(found: Prefix, expected: Prefix) -> bool:
    return all(map(torch.equal, [*found.keys, *found.values], [*expected.keys, *expected.values]))


@pytest.mark.parametrize("prompts", [BEGUN, APART, BEGUN[:1]])
@pytest.mark.parametrize("limit", [0, MUCH])
def test_it_gives_what_each_prompt_alone_gives(
    model: PreTrainedModel, prompts: list[tuple[int, ...]], limit: int
) -> None:
    with caching([(model, prompts)], limit=limit):
        for rows in (prompts[:1], prompts[::-1], prompts):  # when it comes again, too, and in other batches
            keys, found = read(model, rows), states(model, rows)
            assert keys.lengths.tolist() == [*map(len, rows)]
            for number, row in enumerate(rows):
                alone, expected = read_prefix(model, *pad_right([row], CPU))
                torch.testing.assert_close(found[number, : len(row)], expected[0], rtol=0, atol=1e-12)
                for ours, theirs in ((keys.keys, alone.keys), (keys.values, alone.values)):
                    for one, other in zip(ours, theirs, strict=True):
                        torch.testing.assert_close(one[number, :, : len(row)], other[0], rtol=0, atol=1e-12)


def test_a_prompt_and_the_common_beginning_are_read_once(model: PreTrainedModel, positions: list[int]) -> None:
    with caching([(model, BEGUN)], limit=MUCH):
        read(model, BEGUN[:2])
        assert positions == [len(START), 2, 1]
        read(model, BEGUN)
        assert positions == [len(START), 2, 1, 4]
        states(model, BEGUN[:1])
        states(model, BEGUN)
        assert positions[4:] == [len(prompt) for prompt in BEGUN]
    del positions[:]
    read(model, BEGUN[:1])
    assert sum(positions) == len(BEGUN[0]), "nothing is kept behind"


def test_what_it_gives_depends_neither_on_the_limit_nor_on_the_batch(model: PreTrainedModel) -> None:
    given = []
    for limit, order in ((MUCH, BEGUN), (0, BEGUN), (MUCH, BEGUN[::-1])):
        with caching([(model, BEGUN)], limit=limit):
            for prompt in order:
                read(model, [prompt])
            given.append((read(model, BEGUN), states(model, BEGUN)))
    assert all(same(keys, given[0][0]) and torch.equal(found, given[0][1]) for keys, found in given)


def test_no_more_is_kept_than_the_limit_allows(model: PreTrainedModel, positions: list[int]) -> None:
    size = [sum(tensor.nbytes for tensor in (*each.keys, *each.values)) for each in (read(model, [p]) for p in APART)]
    with caching([(model, APART), (model, [UNKNOWN])], limit=size[0] + size[1]):
        for prompt in APART:
            read(model, [prompt])
        read(model, [UNKNOWN])
        del positions[:]
        for prompt in (*APART, UNKNOWN):
            read(model, [prompt])
    assert positions == [len(APART[2]), len(UNKNOWN)]


def test_other_prompts_are_read_as_without_it(model: PreTrainedModel, positions: list[int]) -> None:
    expected = read(model, [UNKNOWN, BEGUN[0]])
    with caching([(model, BEGUN)], limit=MUCH):
        del positions[:]
        assert all(same(read(model, [UNKNOWN, BEGUN[0]]), expected) for _ in range(2))
    assert sum(positions) == 2 * (len(START) + 2 * 2)


def test_what_inference_mode_read_may_be_in_a_backward_pass(model: PreTrainedModel) -> None:
    with caching([(model, BEGUN)], limit=MUCH):
        with torch.inference_mode():
            states(model, BEGUN[:1])
        weights = torch.ones(model.config.hidden_size, dtype=torch.float64, requires_grad=True)
        (states(model, BEGUN[:1]) * weights).sum().backward()
    assert weights.grad is not None


def test_what_is_read_of_the_positions_is_kept_apart(model: PreTrainedModel) -> None:
    twice = partial(lambda *given, **named: 2 * hidden_states(*given, **named))
    with caching([(model, BEGUN)], limit=MUCH):
        once = states(model, BEGUN)
        assert torch.equal(read_states(model, *pad_right(BEGUN, CPU), output=twice), 2 * once)


@pytest.mark.parametrize("family", ["gpt2", "phi"])  # whose norms are in float64 where the model is
def test_losses_and_gradients_are_those_of_whole_sequences(
    make_model: Callable[..., PreTrainedModel], some_examples: Callable[..., list[Example]], family: str
) -> None:
    backbone, examples = make_model(family, seed=1).double().requires_grad_(False), some_examples()
    reader, embed = Reader(backbone), backbone.get_input_embeddings()
    start = torch.randn(len(examples), 3, 2, 32, generator=torch.Generator().manual_seed(3)).double() * 0.3
    expected, thoughts = [], start.clone().requires_grad_()
    for example, own in zip(examples, thoughts, strict=True):
        before, after = (embed(torch.tensor(ids)) for ids in (example.prefix, (*example.suffix, *example.target)))
        for thought in own:
            logits = backbone(inputs_embeds=torch.cat([before, thought, after])[None], use_cache=False).logits[0]
            predicted = logits[-len(example.target) - 1 : -1]
            expected.append(cross_entropy(predicted, torch.tensor(example.target), reduction="sum"))
    (gradient,) = torch.autograd.grad(torch.stack(expected).sum(), thoughts)
    with caching([(backbone, [example.prefix for example in examples])], limit=MUCH):
        for _ in range(2):
            losses = reader.losses(examples, thoughts)
            torch.testing.assert_close(losses.flatten(), torch.stack(expected), rtol=0, atol=1e-9)
            (found,) = torch.autograd.grad(losses.sum(), thoughts)
            torch.testing.assert_close(found, gradient, rtol=0, atol=1e-9)
