"""Prompts as embeddings: the rows that the in-process engine computes from, shared bit for bit, and nothing unfit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaling.engines.base import SoftPrompt
from scaling.engines.embedded import PROMPT_BYTES, EmbeddedPrompts, Recent
from scaling.records.errors import UsageError

WIDTH = 8


@pytest.fixture
def embedding():
    module = torch.nn.Embedding(50, WIDTH)
    with torch.no_grad():
        module.weight.copy_(torch.randn(50, WIDTH, generator=torch.Generator().manual_seed(0)))
    return module


@pytest.fixture
def prompts(embedding):
    return EmbeddedPrompts(embedding, width=WIDTH, context=20, dtype=torch.bfloat16)


def a_prompt(*, path=0, prefix=(1, 2, 3), length=2, suffix=(4, 5), seed=0, **changes):
    thoughts = torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed))
    return replace(SoftPrompt("q7", path, prefix, thoughts, suffix), **changes)


def test_rows_are_those_of_the_tokens_and_the_thoughts(prompts, embedding):
    prompt = a_prompt()
    rows = prompts.embed(prompt)
    assert (rows.dtype, rows.shape) == (torch.bfloat16, (7, WIDTH))
    assert torch.equal(rows[:3], embedding.weight[[1, 2, 3]].bfloat16())
    assert torch.equal(rows[3:5], prompt.thoughts.bfloat16())
    assert torch.equal(rows[5:], embedding.weight[[4, 5]].bfloat16())


def test_paths_differ_in_their_thoughts_alone(prompts):
    one, other = prompts.embed(a_prompt(seed=1)), prompts.embed(a_prompt(path=1, seed=2))
    different = (one != other).any(dim=1)
    assert different.tolist() == [False] * 3 + [True] * 2 + [False] * 2


def test_samples_of_a_path_share_one_tensor(prompts):
    prompt = a_prompt()
    assert prompts.embed(prompt) is prompts.embed(prompt)


@given(asked=st.lists(st.integers(0, 9), max_size=60), limit=st.integers(1, 30))
def test_what_was_made_lately_is_kept_within_its_bytes(asked, limit):
    """Against the plainest model: the most recently asked distinct values, from the last, as long as they fit."""
    made = []

    def make(number):
        made.append(number)
        return "x" * number

    recent, order = Recent(make, size=len, limit=limit), []
    for number in asked:
        kept, known = list(recent._held), number in order
        before = len(made)
        assert recent(number) == "x" * number
        assert (len(made) == before) == known == (number in kept)
        order = [*(one for one in order if one != number), number]
        while sum(order) > limit and len(order) > 1:
            order.pop(0)
        assert list(recent._held) == order
        assert recent.bytes == sum(order) <= max(limit, number)


def test_prompts_of_a_wide_backbone_stay_far_below_a_gigabyte():
    width, tokens = 4096, 500
    wide = EmbeddedPrompts(torch.nn.Embedding(8, width), width=width, context=1000, dtype=torch.bfloat16)
    for path in range(40):
        prefix = tuple((path + place) % 8 for place in range(tokens - 4))
        wide.embed(SoftPrompt("q", path, prefix, torch.zeros(4, width), ()))
    one = tokens * width * 2
    assert one * 8 < wide.embed.bytes <= PROMPT_BYTES, "enough for the paths of a question"
    assert 3 * wide.embed.bytes + wide._rows.bytes < 1 << 29, (
        "also where a server's copies, a third longer, come to them"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"thoughts": torch.zeros(2, WIDTH + 1)}, r"shape \[2, 9\].* takes \[L, 8\]"),
        ({"thoughts": torch.zeros(WIDTH)}, "shape"),
        ({"thoughts": torch.zeros(1, 2, WIDTH)}, "shape"),
        ({"thoughts": torch.zeros(2, WIDTH, dtype=torch.bfloat16)}, "bfloat16, and must be float32"),
        ({"thoughts": torch.zeros(2, WIDTH, dtype=torch.long)}, "int64, and must be float32"),
        ({"thoughts": torch.full((2, WIDTH), torch.nan)}, "not numbers"),
        ({"thoughts": torch.full((2, WIDTH), -torch.inf)}, "not numbers"),
        ({"prefix": tuple(range(16))}, "has 20 tokens, and the engine takes 1 to 19"),
        ({"prefix": (), "suffix": (), "thoughts": torch.zeros(0, WIDTH)}, "has 0 tokens"),
    ],
)
def test_what_an_engine_would_choke_on_is_refused_by_name(prompts, changes, said):
    with pytest.raises(UsageError, match=said) as error:
        prompts.embed(a_prompt(**changes))
    assert "q7" in str(error.value)
    assert "path 0" in str(error.value)


def test_thoughts_beyond_the_engines_range_are_refused(embedding):
    half = EmbeddedPrompts(embedding, width=WIDTH, context=20, dtype=torch.float16)
    with pytest.raises(UsageError, match="too large for float16"):
        half.embed(a_prompt(thoughts=torch.full((2, WIDTH), 1e6)))
