"""The losses that training minimises: the language loss, and contrastive losses that drive thoughts apart.

All functions are pure and compute in float32 or wider. Every contrastive loss is a mean, so that its size depends neither
on the number of questions nor on the number of paths. The letters of the shapes are explained in `contrastive.thinker`.
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
    """Negative log-likelihood of each target token, [T] float32 or wider, in nats.

    The gradient with respect to the states is computed in the forward pass, chunk by chunk. So the logits of no more than
    one chunk are in memory at once, where those of all tokens would take T x V values. Where the output layer is trained,
    too, they all are.

    Args:
        states: [T, D] last hidden states of a model.
        head: [V, D] weight of its output layer.
        bias: [V] bias of its output layer, None where it has none.
        targets: [T] int64, the token that follows each state.
        cap: soft limit of the logits where the model has one: they become cap * tanh(logits / cap).
    """
    if torch.is_grad_enabled() and (head.requires_grad or (bias is not None and bias.requires_grad)):
        return cross_entropy(_logits(states, head, bias, cap), targets, reduction="none")
    losses: Tensor = _TokenLosses.apply(states, head, bias, targets, cap)  # type: ignore[no-untyped-call]
    return losses


class _OfStates(torch.autograd.Function):
    """A value of each token whose forward pass saves its gradient by the states, the first of five arguments."""

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * loss_gradient[:, None].to(gradient.dtype), None, None, None, None


class _TokenLosses(_OfStates):
    """`token_losses` for autograd. Only the states get a gradient: the model is frozen."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, cap: float | None
    ) -> Tensor:
        losses, gradient = _wide(states.new_empty(len(states))), torch.empty_like(states)
        for part in range(0, len(states), _CHUNK):
            at = slice(part, part + _CHUNK)
            logits = _logits(states[at], head, bias, cap)
            log_probs = logits.log_softmax(-1)
            losses[at] = -log_probs.gather(1, targets[at, None])[:, 0]
            if ctx.needs_input_grad[0]:
                # the derivative by the logits is softmax(logits) less the one-hot target; in place, to save memory
                logit_gradient = log_probs.exp_()
                logit_gradient.scatter_add_(
                    1, targets[at, None], logit_gradient.new_full((1, 1), -1.0).expand(len(logits), 1)
                )
                if cap:  # the derivative of cap * tanh(x / cap) is 1 - tanh(x / cap) ** 2
                    logit_gradient *= 1 - (logits / cap).square()
                gradient[at] = logit_gradient.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return losses


def token_divergences(
    states: Tensor, teachers: Tensor, head: Tensor, bias: Tensor | None, *, cap: float | None = None
) -> Tensor:
    """Kullback-Leibler divergence KL(teacher || student) of the next token at each position, [T] float32 or wider, in nats.

    sum_v p_teacher(v) (log p_teacher(v) - log p_student(v)), with both distributions at temperature 1. As in `token_losses`,
    the gradient is computed in the forward pass, chunk by chunk. Only the student's states get one.

    Args:
        states: [T, D] last hidden states of a frozen model, the student's.
        teachers: [T, D] those of the teacher, which has the same output layer.
        head: as of `token_losses`, and so the next two.
        bias: see there.
        cap: see there.
    """
    divergences: Tensor = _TokenDivergences.apply(states, teachers, head, bias, cap)  # type: ignore[no-untyped-call]
    return divergences


class _TokenDivergences(_OfStates):
    """`token_divergences` for autograd."""

    @staticmethod
    def forward(
        ctx: Any, states: Tensor, teachers: Tensor, head: Tensor, bias: Tensor | None, cap: float | None
    ) -> Tensor:
        divergences, gradient = _wide(states.new_empty(len(states))), torch.empty_like(states)
        for part in range(0, len(states), _CHUNK):
            at = slice(part, part + _CHUNK)
            student, teacher = (_logits(each[at], head, bias, cap) for each in (states, teachers))
            log_probs, log_targets = student.log_softmax(-1), teacher.log_softmax(-1)
            targets = log_targets.exp()
            divergences[at] = (targets * (log_targets - log_probs)).sum(-1)
            if ctx.needs_input_grad[0]:
                # the derivative by the student's logits is softmax(logits) less the teacher's probabilities
                logit_gradient = log_probs.exp_() - targets
                if cap:
                    logit_gradient *= 1 - (student / cap).square()
                gradient[at] = logit_gradient.to(head.dtype) @ head
        ctx.save_for_backward(gradient)
        return divergences


def _logits(states: Tensor, head: Tensor, bias: Tensor | None, cap: float | None) -> Tensor:
    """Logits in float32 or wider, with the soft limit of a model that has one."""
    logits = _wide(linear(states, head, bias))
    return cap * torch.tanh(logits / cap) if cap else logits


def _wide(values: Tensor) -> Tensor:
    return values.float() if values.dtype.itemsize < 4 else values


def paper_loss(thoughts: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The contrastive loss of SoftCoT++ for each question, [B] (arXiv 2505.11484, section 3).

    - mean_k log( exp(T^k . T^k / t) / sum_j exp(T^k . T^j / t) )

    The loss of a single path is zero.

    Args:
        thoughts: [B, N, L, D]; a path's L x D values are one vector T^k.
        temperature: t.
    """
    flat = thoughts.float().flatten(2)
    logits = flat @ flat.transpose(1, 2) / temperature
    return _against_the_diagonal(logits)


def view_loss(thoughts: Tensor, kept: Tensor, *, temperature: float = 0.05) -> Tensor:
    """A contrastive loss with dropout views for each question, [B], in the form of SimCSE (arXiv 2104.08821).

    A *view* of a thought is the thought with some of its values set to zero. Each thought is to be more similar, by cosine,
    to its own view than to the views of the other paths. Its cosine with its own view is about the square root of the
    share of values that dropout keeps. The loss is therefore near zero once the other cosines are well below that root,
    and does not go on pushing the paths apart.

    Args:
        thoughts: [B, N, L, D]; a path's L x D values are one vector.
        kept: [B, N, L, D] bool, the values that dropout keeps.
        temperature: divides the cosines.
    """
    flat, views = thoughts.float().flatten(2), (thoughts * kept).float().flatten(2)
    logits = cosine_similarity(flat[:, :, None], views[:, None], dim=-1) / temperature
    return _against_the_diagonal(logits)


def uniform_loss(thoughts: Tensor, *, temperature: float = 0.5) -> Tensor:
    """The uniformity of the paths of each question, [B] (arXiv 2005.10242, on the unit sphere).

    log mean_{j != k} exp( cos(T^k, T^j) / t )

    It is smallest where the paths' directions are as far apart as N directions can be. That of a single path is zero.

    Args:
        thoughts: [B, N, L, D]; a path's L x D values are one vector T^k.
        temperature: t.
    """
    return _uniformity(thoughts.float().flatten(2), temperature)


def question_loss(thoughts: Tensor, *, temperature: float = 0.5) -> Tensor:
    """The uniformity of the questions on each path, [N]: `uniform_loss` with questions in the place of paths.

    log mean_{b != c} exp( cos(T_b, T_c) / t )

    That of a single question is zero.

    Args:
        thoughts: [B, N, L, D]; a path's L x D values are one vector.
        temperature: t.
    """
    return _uniformity(thoughts.float().flatten(2).transpose(0, 1), temperature)


def _against_the_diagonal(logits: Tensor) -> Tensor:
    """Cross-entropy of logits [B, N, N] where the right class of row k is column k; a mean over the rows, [B]."""
    batch, paths, _ = logits.shape
    diagonal = torch.arange(paths, device=logits.device).repeat(batch)
    return cross_entropy(logits.flatten(0, 1), diagonal, reduction="none").view(batch, paths).mean(1)


def _uniformity(flat: Tensor, temperature: float) -> Tensor:
    """Uniformity of the n vectors of each group, [G]. flat: [G, n, d]."""
    number = flat.shape[1]
    if number < 2:
        return flat.sum(dim=(1, 2)) * 0.0  # zero, and still connected to the thoughts for autograd
    cosines = cosine_similarity(flat[:, :, None], flat[:, None], dim=-1)
    others = ~torch.eye(number, dtype=torch.bool, device=flat.device)
    pairs = torch.tensor(float(number * (number - 1)), device=flat.device)
    return (cosines[:, others] / temperature).logsumexp(-1) - pairs.log()
