"""Attention with its log-sum-exp, whichever kernel computes it, against its definition in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.engines.local import kernels
from scaling.engines.local.attention import Levels, additive

SCALE = 0.4


def some(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def by_definition(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    scores = (query.double() @ key.double().transpose(-1, -2) * SCALE).masked_fill(hidden, -torch.inf)
    return scores.softmax(-1) @ value.double(), scores.logsumexp(-1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", ["none", "keys", "queries", "causal"])
@pytest.mark.parametrize("scores", [1, 100, 1 << 25])
def test_blocks_of_queries_give_what_all_at_once_do(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, mask: str, scores: int
) -> None:
    """scores: that are held at once."""
    monkeypatch.setattr(kernels, "_SCORES", scores)
    query, key, value = (some(2, 3, n, 4, dtype=dtype) for n in ((9, 9, 9) if mask == "causal" else (5, 9, 9)))
    shape = {"none": (1, 1, 1, 9), "keys": (2, 1, 1, 9), "queries": (2, 1, 5, 9), "causal": (1, 1, 9, 9)}[mask]
    hidden = some(*shape) > 0.7 if mask in ("keys", "queries") else torch.zeros(shape, dtype=torch.bool)
    hidden = torch.ones(9, 9, dtype=torch.bool).triu(1) if mask == "causal" else hidden
    given = additive(hidden, dtype) if mask in ("keys", "queries") else None
    out, lse = kernels.in_blocks(query, key, value, given, SCALE, mask == "causal")
    assert out.dtype == dtype
    assert lse.dtype == torch.promote_types(dtype, torch.float32)
    expected = by_definition(query, key, value, hidden)
    atol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for found, wanted in zip((out, lse), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, atol=atol, rtol=0)


@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("window", [None, 3, 7, 100])
def test_a_prefill_needs_no_mask_where_no_window_hides_a_key(group: int, window: int | None) -> None:
    """`causal` says what the lengths say, too: each query of X sees the row's keys up to itself."""
    rows, heads, length, width = 2, 2, 7, 8
    query = some(rows, heads * group, length, width)
    key, value = some(rows, heads, length, width), some(rows, heads, length, width) * 2
    starts = torch.tensor([0, 5])
    positions, lengths = starts[:, None] + torch.arange(length), torch.full_like(starts, length)
    found, expected = (
        Levels([], positions, starts, lengths, causal=causal).attend(0, query, key, value, scale=SCALE, window=window)
        for causal in (True, False)
    )
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("keys", [1, 15, 16, 33])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1), (3, 1, 5), (3, 2, 5)])
def test_what_the_efficient_kernel_is_given_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int, int], keys: int
) -> None:
    """A bias of four axes whose rows begin at multiples of 16; the log-sum-exp is as long as there are queries."""
    seen = []
    real = torch.ops.aten._scaled_dot_product_efficient_attention
    monkeypatch.setattr(kernels, "_efficient", lambda *given, **named: seen.append(given[3]) or real(*given, **named))
    query, key = torch.empty(3, 2, 5, 8, device="meta"), torch.empty(3, 2, keys, 8, device="meta")
    mask = torch.empty(*shape, keys, device="meta")
    out, lse = kernels.efficient(query, key, key, mask, SCALE, False)
    assert out.shape == query.shape
    assert lse.shape == (3, 2, 5)
    assert lse.dtype == torch.float32
    (bias,) = seen
    assert bias.shape == (3, 2, 5, keys)
    assert bias.stride(-1) == 1
    assert all(stride % 16 == 0 for stride, size in zip(bias.stride()[:-1], bias.shape, strict=False) if size > 1)
    assert bias.untyped_storage().nbytes() <= 4 * mask[..., 0].numel() * (keys + 15), "repeated axes stay repeated"


def test_an_aligned_bias_holds_what_the_mask_does(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    lse = torch.zeros(2, 3, 32)
    monkeypatch.setattr(kernels, "_efficient", lambda *given, **_: seen.append(given[3]) or (given[0], lse))
    mask = some(2, 1, 5, 9, dtype=torch.float32)
    kernels.efficient(torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 9, 8), torch.zeros(2, 3, 9, 8), mask, SCALE, False)
    assert torch.equal(seen[0], mask.expand(2, 3, 5, 9))


def test_the_flash_kernel_on_a_gpu() -> None:
    query, key = (torch.empty(3, 2, n, 8, device="meta", dtype=torch.bfloat16) for n in (5, 9))
    out, lse = kernels.flash(query, key, key, None, SCALE, False)
    assert (out.shape, out.dtype) == (query.shape, torch.bfloat16)
    assert (lse.shape, lse.dtype) == ((3, 2, 5), torch.float32)
