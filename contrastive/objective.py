"""The loss of one optimiser step and its gradients, the same for every split over micro-batches and processes.

A step has three stages (the gradient cache of arXiv 2101.06983):

1. The thoughts of all questions of the batch are computed.
2. The gradient of the loss with respect to these thoughts is computed; the backbone's part of it a few questions at a time.
3. One backward pass takes it through the projection, the assistant and the token sets.

The contrastive losses are thus exact over the whole batch, while the backbone's activations only take the memory of one
micro-batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from contrastive import losses
from contrastive.diversity import mean_off_diagonal, path_cosine
from contrastive.forward import gradient_checkpointing
from contrastive.parallel import Processes
from contrastive.target_loss import Example, Reader, weighted_tokens, weights_of
from contrastive.thinker import Thinker, Thoughts, read

Form = Literal["paper", "view", "uniform", "none"]
TEMPERATURES: dict[str, float] = {"paper": 1.0, "view": 0.05, "uniform": 0.5, "none": 1.0}
_DROPOUT = 0.5  # share of the values that the view form sets to zero


@dataclass(frozen=True)
class Objective:
    """What training minimises, and how it is computed.

    loss = language loss + weight * contrastive loss of paths + question_weight * contrastive loss of questions + penalty

    The language loss is sum(weight * loss) / sum(weight * scored tokens) over the targets of the batch, a mean over paths.
    A thinker says which part of its thoughts the contrasts compare, and whether it has a penalty.

    Attributes:
        num_slots: L, soft tokens of each path.
        contrastive: which contrastive loss drives the paths apart, see `contrastive.losses`; "none" for no such loss.
        weight: of the contrastive loss of paths.
        temperature: of the contrastive loss of paths; None for the default of its form.
        question_weight: of the contrastive loss of questions.
        micro_batch: questions whose activations in the backbone are in memory at once.
        recompute: compute activations again in the backward pass instead of keeping them (gradient checkpointing).
        seed: of the view form's dropout.
        used_slots: soft tokens that runs will use, the first ones of each path; None for all. Validation is with these.
    """

    num_slots: int
    contrastive: Form = "view"
    weight: float = 1.0
    temperature: float | None = None
    question_weight: float = 0.0
    micro_batch: int = 1
    recompute: bool = False
    seed: int = 0
    used_slots: int | None = None


@dataclass(frozen=True)
class Parts:
    """The parts of a step's loss.

    Attributes:
        language: the language loss, in nats a token: a negative log-likelihood, the divergence from a teacher where that is
            the target, or the weighted mean of both over a mixture of targets.
        contrastive: the contrastive loss of paths, without its weight.
        questions: the contrastive loss of questions, without its weight.
        path_cosine: mean cosine between paths, None for a single path.
        penalty: the thinker's own; 0 for a thinker without.
    """

    language: float
    contrastive: float
    questions: float
    path_cosine: float | None
    penalty: float = 0.0


def think(
    thinker: Thinker,
    assistant: PreTrainedModel | None,
    backbone: PreTrainedModel,
    examples: Sequence[Example],
    num_slots: int,
) -> Tensor:
    """Computes the thoughts [B, N, L, D] of the examples' questions.

    Args:
        thinker: makes them.
        assistant: the frozen model that it reads questions with; None for a thinker that needs none.
        backbone: the frozen model whose prompts it may read.
        examples: B of them.
        num_slots: L.
    """
    return _compute(thinker, assistant, backbone, examples, num_slots).thoughts


def _compute(
    thinker: Thinker,
    assistant: PreTrainedModel | None,
    backbone: PreTrainedModel,
    examples: Sequence[Example],
    num_slots: int,
) -> Thoughts:
    questions, prompts = [example.assistant for example in examples], [example.prefix for example in examples]
    return thinker.compute(read(thinker, assistant, backbone, questions=questions, prompts=prompts), num_slots)


def backward(
    thinker: Thinker,
    assistant: PreTrainedModel | None,
    reader: Reader,
    batch: Sequence[Example],
    objective: Objective,
    *,
    step: int,
    processes: Processes,
) -> Parts:
    """Computes the gradient of a step's loss and adds it to the gradients of the thinker's parameters.

    Every process calls this with the same batch and takes its share of it. Afterwards each has the whole gradient.

    Args:
        thinker: what is trained.
        assistant: the frozen model that the thinker reads questions with; None for a thinker that needs none.
        reader: computes the language loss with the frozen backbone.
        batch: the examples of this step, those of all processes.
        objective: the loss.
        step: number of the step; every step has a dropout mask of its own.
        processes: those that train together.

    Returns:
        The parts of the loss over the whole batch.
    """
    share = processes.share(batch)
    with gradient_checkpointing(assistant, active=objective.recompute):
        own = (
            _compute(thinker, assistant, reader.backbone, share, objective.num_slots)
            if share
            else _nothing(thinker, objective)
        )
    compared = processes.gather(own.contrasted, len(batch)).requires_grad_()
    between_paths, between_questions = _contrasts(compared, batch, objective, step)
    # every process computes the contrastive losses over the thoughts of all, and keeps the gradient of its own thoughts
    weighted = objective.weight * between_paths + objective.question_weight * between_questions
    (contrast_gradient,) = torch.autograd.grad(weighted, compared)
    language, language_gradient = _language(reader, share, own.thoughts.detach(), batch, objective)
    penalty = language.new_zeros(()) if own.penalty is None else own.penalty.sum() / len(batch)
    if share:
        _through(own, processes.share(contrast_gradient), language_gradient, penalty)
    trained = [parameter for parameter in thinker.parameters() if parameter.requires_grad]
    for parameter in trained:  # a process without questions has no gradient, and yet takes part in the sum
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    added = penalty.detach().clone()
    processes.add_up([parameter.grad for parameter in trained if parameter.grad is not None] + [language, added])
    cosine = mean_off_diagonal(path_cosine(compared.detach()))
    return Parts(
        float(language), float(between_paths.detach()), float(between_questions.detach()), cosine, float(added)
    )


def _through(own: Thoughts, contrast_gradient: Tensor, language_gradient: Tensor, penalty: Tensor) -> None:
    """Takes the gradients with respect to thoughts, and that of the penalty, through the thinker."""
    if own.contrasted is own.thoughts:
        roots, gradients = [own.thoughts], [contrast_gradient + language_gradient]
    else:
        roots, gradients = [own.thoughts, own.contrasted], [language_gradient, contrast_gradient]
    if own.penalty is not None:
        roots, gradients = [*roots, penalty], [*gradients, torch.ones_like(penalty)]
    torch.autograd.backward(roots, gradients)


def _nothing(thinker: Thinker, objective: Objective) -> Thoughts:
    """The thoughts of a process that has no question of this batch: empty tensors [0, N, L, D]."""
    parameter = next(thinker.parameters())
    empty = parameter.new_zeros(0, thinker.num_paths, objective.num_slots, thinker.width)
    return Thoughts(empty, empty)


def _language(
    reader: Reader, share: Sequence[Example], thoughts: Tensor, batch: Sequence[Example], objective: Objective
) -> tuple[Tensor, Tensor]:
    """The language loss of this process's examples, and its gradient with respect to their thoughts.

    Args:
        reader: computes losses with the frozen backbone.
        share: this process's examples.
        thoughts: [B, N, L, D] of these examples.
        batch: the examples of all processes. The loss is a weighted mean over the paths and scored tokens of all of them.
        objective: says how many questions are in the backbone at once.

    Returns:
        This process's part of the mean, a scalar, and the gradient [B, N, L, D].
    """
    tokens = weighted_tokens(batch) * thoughts.shape[1]
    total, gradient = thoughts.new_zeros(()), torch.zeros_like(thoughts)
    for start in range(0, len(share), objective.micro_batch):
        at = slice(start, start + objective.micro_batch)
        rows = thoughts[at].clone().requires_grad_()
        with gradient_checkpointing(reader.backbone, active=objective.recompute):
            losses = reader.losses(share[at], rows)
            loss = (losses * weights_of(share[at], losses.device)).sum() / tokens
            (gradient[at],) = torch.autograd.grad(loss, rows)
        total += loss.detach()
    return total, gradient


def _contrasts(thoughts: Tensor, batch: Sequence[Example], objective: Objective, step: int) -> tuple[Tensor, Tensor]:
    """The contrastive losses of paths and of questions, two scalars without their weights. thoughts: [B, N, L, D]."""
    form = objective.contrastive
    temperature = TEMPERATURES[form] if objective.temperature is None else objective.temperature
    if form == "paper":
        paths = losses.paper_loss(thoughts, temperature=temperature)
    elif form == "view":
        names = [f"{objective.seed}\x1f{step}\x1f{example.question}" for example in batch]
        kept = torch.stack([_kept(name, thoughts.shape[1:]) for name in names]).to(thoughts.device)
        paths = losses.view_loss(thoughts, kept, temperature=temperature)
    elif form == "uniform":
        paths = losses.uniform_loss(thoughts, temperature=temperature)
    else:
        paths = thoughts.flatten(1).sum(1) * 0.0  # zero, and still connected to the thoughts for autograd
    return paths.mean(), losses.question_loss(thoughts).mean()


def _kept(name: str, shape: torch.Size) -> Tensor:
    """A dropout mask for one question's thoughts, bool, True for the values that are kept.

    It is drawn from a hash of `name`, so that it is the same in every process and for every split of the batch.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(shape, generator=generator) >= _DROPOUT
