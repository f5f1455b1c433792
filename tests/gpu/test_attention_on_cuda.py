"""torch's CUDA kernels that return the log-sum-exp, against softmax attention in float64 on the CPU."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scaling.engines.local import kernels
from scaling.engines.local.attention import additive, merge, partial_attention

SCALE = 0.3
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def some(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mask_of(kind: str, queries: int, keys: int) -> Tensor:
    """Which keys are hidden, never the first."""
    if kind == "causal":
        return torch.ones(1, 1, queries, keys, dtype=torch.bool).triu(1)
    shape = {"none": (1, 1, 1, keys), "keys": (3, 1, 1, keys), "queries": (3, 1, queries, keys)}[kind]
    hidden = torch.rand(shape, generator=torch.Generator().manual_seed(3)) < 0.4
    hidden[..., 0] = False
    return torch.zeros_like(hidden) if kind == "none" else hidden


@DTYPES
@pytest.mark.parametrize("width", [8, 20, 64, 128])
@pytest.mark.parametrize("sizes", [(1, 1), (1, 33), (5, 15), (33, 16), (100, 300)])
@pytest.mark.parametrize("kind", ["none", "keys", "queries", "causal"])
def test_attention_and_its_log_sum_exp(kind: str, sizes: tuple[int, int], width: int, dtype: torch.dtype) -> None:
    queries, keys = (sizes[1], sizes[1]) if kind == "causal" else sizes
    query = some(3, 2, queries, width, seed=0, dtype=dtype)
    key, value = (some(3, 2, keys, width, seed=seed, dtype=dtype) for seed in (1, 2))
    hidden = mask_of(kind, queries, keys)
    mask = additive(hidden, dtype).cuda() if kind in ("keys", "queries") else None
    out, lse = kernels.attend(query.cuda(), key.cuda(), value.cuda(), mask, SCALE, kind == "causal")
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    scores = (query.double() @ key.double().transpose(-1, -2) * SCALE).masked_fill(hidden, -torch.inf)
    expected = (scores.softmax(-1) @ value.double(), scores.logsumexp(-1))
    for found, wanted in zip((out, lse), expected, strict=True):
        torch.testing.assert_close(found.cpu().double(), wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@DTYPES
@pytest.mark.parametrize("masked", [False, True])
def test_usual_sizes_have_a_kernel(masked: bool, dtype: torch.dtype) -> None:
    """Flash without a mask in half precision (from compute capability 8.0 on), else memory-efficient attention."""
    states = some(3, 2, 40, 64, seed=0, dtype=dtype).cuda()
    mask = additive(mask_of("keys", 40, 40), dtype).cuda() if masked else None
    modern = torch.cuda.get_device_capability() >= (8, 0)
    expected = kernels.flash if not masked and dtype != torch.float32 and modern else kernels.efficient
    assert kernels.kernel_for(states, states, states, mask, False) is expected


@DTYPES
def test_a_query_that_sees_nothing_gets_finite_numbers_and_no_weight(dtype: torch.dtype) -> None:
    query = some(3, 2, 1, 8, seed=0, dtype=dtype).cuda()
    parts = []
    for seed, hides in ((1, True), (2, False)):
        key, value = (some(3, 2, 4, 8, seed=seed + shift, dtype=dtype).cuda() for shift in (0, 10))
        mask = additive(torch.full((3, 1, 1, 4), hides), dtype).cuda()
        parts.append(partial_attention(query, key, value, mask, SCALE))
    assert all(states.isfinite().all() for part in parts for states in part)
    assert torch.equal(merge(parts), parts[1][0])
    assert torch.equal(merge(parts[::-1]), parts[1][0])
    assert merge([parts[0], parts[0]]).isfinite().all()
