"""Prompts as embeddings: the rows that the in-process engine computes from, shared bit for bit, and nothing unfit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scaling.engines.base import SoftPrompt
from scaling.engines.embedded import EmbeddedPrompts
from scaling.errors import UsageError

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
