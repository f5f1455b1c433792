"""A beginning that prompts have in common is read once, and what comes of it is what each prompt by itself gives."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import PreTrainedModel

from contrastive.forward import hidden_states, pad_right
from contrastive.prefix import Prefix, common_beginning, read_prefix

CPU = torch.device("cpu")
FAMILIES = ("llama", "gpt2", "gemma3")  # rotary positions, learned ones, and a sliding window


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, make_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return make_model(request.param).double()


def prompts(rng: random.Random, *, common: int, own: Sequence[int]) -> list[list[int]]:
    """Prompts with `common` first tokens in common and so many of their own, the first of which differ."""
    start = [rng.randrange(10, 90) for _ in range(common)]
    return [[*start, 10 + number, *(rng.randrange(10, 90) for _ in range(more - 1))] for number, more in enumerate(own)]


def alone(model: PreTrainedModel, prompt: list[int]) -> tuple[Prefix, torch.Tensor]:
    return read_prefix(model, *pad_right([prompt], CPU))


@pytest.mark.parametrize("common", [0, 7, 8, 21])
@pytest.mark.parametrize("own", [(1, 1), (4, 13, 1)])
def test_shared_reading_gives_what_each_prompt_alone_gives(model: PreTrainedModel, common: int, own: list[int]) -> None:
    rows = prompts(random.Random(common), common=common, own=own)
    together, states = read_prefix(model, *pad_right(rows, CPU))
    assert together.lengths.tolist() == [common + more for more in own]
    for number, row in enumerate(rows):
        one, expected = alone(model, row)
        torch.testing.assert_close(states[number, : len(row)], expected[0], rtol=0, atol=1e-12)
        for layer in range(len(one.keys)):
            for found, same in ((together.keys, one.keys), (together.values, one.values)):
                torch.testing.assert_close(found[layer][number, :, : len(row)], same[layer][0], rtol=0, atol=1e-12)


def test_a_gradient_flows_through_the_shared_beginning(model: PreTrainedModel) -> None:
    model.requires_grad_(True)
    rows = prompts(random.Random(3), common=11, own=(3, 6))
    weights = torch.randn(2, 17, model.config.hidden_size, dtype=torch.float64)

    def gradient(states: Sequence[torch.Tensor]) -> torch.Tensor:
        total = sum((weight[: len(each)] * each).sum() for weight, each in zip(weights, states, strict=True))
        [found] = torch.autograd.grad(total, [model.get_input_embeddings().weight])
        return found

    _, states = read_prefix(model, *pad_right(rows, CPU))
    expected = gradient([alone(model, row)[1][0] for row in rows])
    found = gradient([each[: len(row)] for each, row in zip(states, rows, strict=True)])
    model.requires_grad_(False)
    largest = float(expected.abs().max())
    assert largest > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * largest)  # the norms of these models are in float32


@pytest.mark.parametrize(
    ("common", "own", "positions"),
    [
        (20, (5, 5), 20 + 2 * 5),
        (3, (5, 5), 2 * 8),
        (20, (5,), 25),
        (9, (0, 4), 8 + 2 * 5),  # a whole row: its last token is read as its own
        (8, (0, 4), 2 * 12),
    ],
)
def test_a_long_common_beginning_is_read_once(
    make_model: Callable[..., PreTrainedModel], common: int, own: Sequence[int], positions: int
) -> None:
    model, read = make_model("llama"), []
    rows = [
        row[: common + more] for row, more in zip(prompts(random.Random(5), common=common, own=own), own, strict=True)
    ]

    def counted(*_: object, **inputs: torch.Tensor) -> torch.Tensor:
        read.append(inputs["inputs_embeds"].shape[:2].numel())
        return hidden_states(model, **inputs)

    read_prefix(model, *pad_right(rows, CPU), output=counted)
    assert sum(read) == positions


def test_the_common_beginning_is_that_of_all_rows() -> None:
    """By definition, on random rows that often agree, of which some are the beginning of others."""
    rng = random.Random(1)
    for _ in range(300):
        rows = [[rng.choice((5, 5, 5, 6)) for _ in range(rng.randint(1, 9))] for _ in range(rng.randint(1, 4))]
        most = min(map(len, rows))
        assert common_beginning(rows) == max(n for n in range(most + 1) if all(row[:n] == rows[0][:n] for row in rows))
