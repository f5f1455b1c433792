"""Random perturbations of a thought, by which one thought becomes several latent paths.

A thought is [L, D] float32 on the CPU. `noise` is the relative size of a perturbation: its root mean square, divided by the
thought's. Noise 0 gives back the thought exactly. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEAREST = 32  # embeddings that a thought is mixed with


def gaussian(thought: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Adds normal noise to every value (SoftCoT-P, arXiv 2505.11484)."""
    return thought + noise * rms(thought) * torch.randn(thought.shape, generator=generator)


def dropout(thought: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Drops values at random (Monte Carlo dropout, arXiv 2510.07745).

    Each value becomes 0 with probability p, and the others are multiplied by 1 / (1 - p).

    The relative size of such a change is sqrt(p / (1 - p)) on average, hence p = noise^2 / (1 + noise^2).
    """
    drop = noise**2 / (1 + noise**2)
    kept = torch.rand(thought.shape, generator=generator) >= drop
    return thought * kept / (1 - drop)


class Gumbel:
    """Moves a thought in a direction that Gumbel noise over the vocabulary gives (arXiv 2508.03440).

    The 32 embeddings nearest to the thought are mixed twice: with weights softmax(cosine), and with weights
    softmax(cosine + Gumbel noise). The difference of the two mixtures, scaled to the asked size, is added to the thought.
    """

    def __init__(self, embeddings: Tensor):
        """embeddings: the backbone's input embeddings, [V, D] float32 on the CPU."""
        self._embeddings = embeddings
        self._unit = torch.nn.functional.normalize(embeddings, dim=-1)

    @property
    def flops_per_slot(self) -> int:
        """FLOPs of one soft token of a draw: its products with all embeddings, and the mixture of the nearest."""
        tokens, width = self._embeddings.shape
        return 2 * width * (tokens + min(_NEAREST, tokens))

    def __call__(self, thought: Tensor, noise: float, generator: torch.Generator) -> Tensor:
        near = (torch.nn.functional.normalize(thought, dim=-1) @ self._unit.T).topk(min(_NEAREST, len(self._unit)))
        # away from 0 and 1, whose logarithms below are infinite
        uniform = torch.rand(near.values.shape, generator=generator).clamp(1e-12, 1 - 1e-7)
        gumbel = -(-uniform.log()).log()
        embeddings = self._embeddings[near.indices]  # [L, 32, D]
        weights = (near.values + gumbel).softmax(-1) - near.values.softmax(-1)  # [L, 32], differences of weights
        change = (weights[:, None] @ embeddings)[:, 0]  # [L, D]
        return thought + noise * rms(thought) * change / rms(change).clamp(min=1e-12)


def rms(values: Tensor) -> Tensor:
    """Root mean square over all values."""
    return values.pow(2).mean().sqrt()
