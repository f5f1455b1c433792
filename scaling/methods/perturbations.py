"""Random changes of a thought [L, D], all of one size: the change's root mean square is `noise` times the thought's.

Noise 0 changes nothing, exactly. Every draw comes from the generator it is given. Pure functions on float32 CPU tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEAREST = 32  # embeddings that a thought is mixed with


def gaussian(thought: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Normal noise on every value (SoftCoT-P, arXiv 2505.11484)."""
    return thought + noise * rms(thought) * torch.randn(thought.shape, generator=generator)


def dropout(thought: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Monte Carlo dropout (arXiv 2510.07745): each value is dropped with p, the others are scaled by 1 / (1 - p).

    The relative size of such a change is sqrt(p / (1 - p)) on average, so p = noise^2 / (1 + noise^2).
    """
    drop = noise**2 / (1 + noise**2)
    kept = torch.rand(thought.shape, generator=generator) >= drop
    return thought * kept / (1 - drop)


class Gumbel:
    """Gumbel noise over the vocabulary (arXiv 2508.03440): a thought is moved by what noise does to a mixture of the
    backbone's embeddings near it.

    embeddings: [V, D] float32. The mixture of the 32 nearest has weights softmax(cosine), with Gumbel noise on the logits
    or without; the difference of the two, scaled to the asked size, is the change.
    """

    def __init__(self, embeddings: Tensor):
        self._embeddings = embeddings
        self._unit = torch.nn.functional.normalize(embeddings, dim=-1)

    def __call__(self, thought: Tensor, noise: float, generator: torch.Generator) -> Tensor:
        near = (torch.nn.functional.normalize(thought, dim=-1) @ self._unit.T).topk(min(_NEAREST, len(self._unit)))
        uniform = torch.rand(near.values.shape, generator=generator).clamp(1e-12, 1 - 1e-7)
        gumbel = -(-uniform.log()).log()
        embeddings = self._embeddings[near.indices]  # [L, 32, D]
        change = (near.values + gumbel).softmax(-1) - near.values.softmax(-1)
        moved = (change[:, None] @ embeddings)[:, 0]
        return thought + noise * rms(thought) * moved / rms(moved).clamp(min=1e-12)


def rms(values: Tensor) -> Tensor:
    """Root mean square over all values."""
    return values.pow(2).mean().sqrt()
