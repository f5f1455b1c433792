"""Optimises thoughts themselves, without a thinker: one prompt for all questions, or thoughts of each question's own.

The first is prompt tuning, the best that thoughts can do which say nothing of their question. The second shows whether there
is any thought that helps. Both begin at given vectors and use Adam with a falling learning rate. Knows token ids, no texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from contrastive.target_loss import Example, Reader, weighted_tokens, weights_of


def tune_prompt(
    reader: Reader,
    batches: Sequence[Sequence[Example]],
    start: Tensor,
    *,
    lr: float,
    stepped: Callable[[], None] = lambda: None,
) -> Tensor:
    """Learns the same thoughts for all questions, with one step for each batch.

    Args:
        reader: computes losses with the frozen backbone.
        batches: examples to learn from.
        start: [L, D], where to begin.
        lr: how far an entry moves in the first step.
        stepped: is called after each step.

    Returns:
        [L, D] float32.
    """
    if not batches:
        return start.float()

    def loss(thoughts: Tensor, step: int) -> Tensor:
        batch = batches[step]
        losses = reader.losses(batch, thoughts.expand(len(batch), 1, -1, -1))
        return (losses * weights_of(batch, losses.device)).sum() / weighted_tokens(batch)

    return _descended(start, loss, steps=len(batches), lr=lr, stepped=stepped)


def tune_each(
    reader: Reader,
    examples: Sequence[Example],
    start: Tensor,
    *,
    steps: int,
    lr: float,
    stepped: Callable[[], None] = lambda: None,
) -> Tensor:
    """Learns thoughts for each example alone. They go through the backbone together, and do not depend on each other.

    Args:
        reader: computes losses with the frozen backbone.
        examples: B of them.
        start: [L, D], where all begin.
        steps: of each.
        lr: how far an entry moves in the first step.
        stepped: is called after each step.

    Returns:
        [B, 1, L, D] float32, the thoughts of one path.
    """
    before = reader.read_prefixes(examples)

    def loss(thoughts: Tensor, _: int) -> Tensor:
        return reader.losses(examples, thoughts, before=before).sum()

    each = start.expand(len(examples), 1, -1, -1)
    return _descended(each, loss, steps=steps, lr=lr, stepped=stepped)


def _descended(
    start: Tensor, loss: Callable[[Tensor, int], Tensor], *, steps: int, lr: float, stepped: Callable[[], None]
) -> Tensor:
    """Vectors after `steps` of Adam from `start`. loss: of the vectors in a step, by its number."""
    thoughts = start.detach().float().clone().requires_grad_()
    optimiser = torch.optim.Adam([thoughts], lr=lr)  # each entry has steps of its own size: examples stay independent
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 1 / max(1, steps), total_iters=steps)
    for step in range(steps):
        [thoughts.grad] = torch.autograd.grad(loss(thoughts, step), [thoughts])
        optimiser.step()
        schedule.step()
        stepped()
    return thoughts.detach()
