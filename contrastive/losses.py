"""What training minimises: the language loss, and losses that drive thoughts apart. Pure functions, float32 or wider.

Every loss is a mean, so that its size depends neither on the number of questions nor on the number of paths. Letters as in
`contrastive.thinker`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy, linear

_CHUNK = 512  # tokens whose logits are in memory at once


def token_losses(
    states: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, *, cap: float | None = None
) -> Tensor:
    """Negative log-likelihood of each target token, [T] float32, in nats.

    states: [T, D] last hidden states of a frozen model; head: [V, D], bias: [V], its output layer; targets: [T] int64;
    cap: soft limit of the logits, cap * tanh(logits / cap), where the model has one. The gradient by the states is worked
    out chunk by chunk in the forward pass, so that no more than a chunk's logits ever exist.
    """
    losses: Tensor = _TokenLosses.apply(states, head, bias, targets, cap)  # type: ignore[no-untyped-call]
    return losses


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None
    ) -> Tensor:
        losses, gradient = states.new_empty(len(states), dtype=torch.float32), torch.empty_like(states)
        for part in range(0, len(states), _CHUNK):
            at = slice(part, part + _CHUNK)
            logits = linear(states[at], head, bias).float()
            if cap:
                logits = cap * torch.tanh(logits / cap)
            log_probs = logits.log_softmax(-1)
            losses[at] = -log_probs.gather(1, targets[at, None])[:, 0]
            if ctx.needs_input_grad[0]:
                by_logits = log_probs.exp_()
                by_logits.scatter_add_(1, targets[at, None], by_logits.new_full((1, 1), -1.0).expand(len(logits), 1))
                if cap:
                    by_logits *= 1 - (logits / cap).square()
                gradient[at] = by_logits.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, by_losses: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * by_losses[:, None].to(gradient.dtype), None, None, None, None


def paper_loss(thoughts: Tensor, *, temperature: float = 1.0) -> Tensor:
    """- mean_k log( exp(T^k . T^k / t) / sum_j exp(T^k . T^j / t) ), arXiv 2505.11484, section 3; [B].

    thoughts: [B, N, L, D], of which a path's L x D values are one vector. One path has nothing to differ from: zero.
    """
    flat = thoughts.float().flatten(2)
    logits = flat @ flat.transpose(1, 2) / temperature
    return _against_the_diagonal(logits)


def view_loss(thoughts: Tensor, kept: Tensor, *, temperature: float = 0.05) -> Tensor:
    """Each path's thought against its own view under dropout and those of the other paths, by cosine; [B].

    The form of SimCSE (arXiv 2104.08821). thoughts: [B, N, L, D]; kept: [B, N, L, D] bool, what dropout leaves. A cosine to
    the own view is about the root of the kept share, so the loss ends once the others' cosines are well below it.
    """
    flat, views = thoughts.float().flatten(2), (thoughts * kept).float().flatten(2)
    logits = cosine_similarity(flat[:, :, None], views[:, None], dim=-1) / temperature
    return _against_the_diagonal(logits)


def uniform_loss(thoughts: Tensor, *, temperature: float = 0.5) -> Tensor:
    """log mean_{j != k} exp(cos(T^k, T^j) / t), the uniformity of arXiv 2005.10242 on the sphere; [B].

    thoughts: [B, N, L, D]. Falls until the paths point in directions that lie as far apart as N can. One path: zero.
    """
    return _uniformity(thoughts.float().flatten(2), temperature)


def question_loss(thoughts: Tensor, *, temperature: float = 0.5) -> Tensor:
    """The same across questions: log mean_{b != c} exp(cos(T_b, T_c) / t) for each path; [N].

    thoughts: [B, N, L, D]. One question: zero.
    """
    return _uniformity(thoughts.float().flatten(2).transpose(0, 1), temperature)


def _against_the_diagonal(logits: Tensor) -> Tensor:
    """Cross-entropy of each row of [B, N, N] against its own column, mean over the rows."""
    batch, paths, _ = logits.shape
    own = torch.arange(paths, device=logits.device).repeat(batch)
    return cross_entropy(logits.flatten(0, 1), own, reduction="none").view(batch, paths).mean(1)


def _uniformity(flat: Tensor, temperature: float) -> Tensor:
    """flat: [G, n, d]; over the pairs of n, for each group."""
    number = flat.shape[1]
    if number < 2:
        return flat.sum(dim=(1, 2)) * 0.0
    cosines = cosine_similarity(flat[:, :, None], flat[:, None], dim=-1)
    others = ~torch.eye(number, dtype=torch.bool, device=flat.device)
    pairs = torch.tensor(float(number * (number - 1)), device=flat.device)
    return (cosines[:, others] / temperature).logsumexp(-1) - pairs.log()
