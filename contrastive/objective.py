"""One optimiser step's loss and gradients, for any split of its questions over micro-batches and processes.

Thoughts of all questions come first; the backbone's share of their gradient is worked out a few questions at a time; then
one backward pass goes through projection, token sets and assistant (the gradient cache of arXiv 2101.06983). So contrasts
over the whole batch are exact, and the backbone's activations take the memory of a micro-batch.
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
from contrastive.forward import gradient_checkpointing, pad_right
from contrastive.parallel import Processes
from contrastive.target_loss import Example, Reader
from contrastive.thinker import Thinker

Form = Literal["paper", "view", "uniform", "none"]
TEMPERATURES: dict[str, float] = {"paper": 1.0, "view": 0.05, "uniform": 0.5, "none": 1.0}
_DROPOUT = 0.5  # of the view form


@dataclass(frozen=True)
class Objective:
    """Language loss + weight * contrast of paths + question_weight * contrast of questions, each of them a mean.

    num_slots: L. contrastive: form of the contrast of paths; temperature: its temperature, None for the form's own.
    micro_batch: questions whose activations in the backbone are kept at once. recompute: layers' activations are computed
    twice and not kept. seed: of the view form's dropout.
    """

    num_slots: int
    contrastive: Form = "view"
    weight: float = 1.0
    temperature: float | None = None
    question_weight: float = 0.0
    micro_batch: int = 1
    recompute: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Parts:
    """What a step's loss was made of: language in nats a token, both contrasts without their weights, and the mean cosine
    between paths, None for a single one."""

    language: float
    contrastive: float
    questions: float
    path_cosine: float | None


def think(thinker: Thinker, assistant: PreTrainedModel, examples: Sequence[Example], num_slots: int) -> Tensor:
    """Thoughts [B, N, L, D] of the examples' questions."""
    ids, mask = pad_right([example.assistant for example in examples], assistant.device)
    thoughts: Tensor = thinker(assistant, ids, mask, num_slots)
    return thoughts


def backward(
    thinker: Thinker,
    assistant: PreTrainedModel,
    reader: Reader,
    batch: Sequence[Example],
    objective: Objective,
    *,
    step: int,
    processes: Processes,
) -> Parts:
    """Adds the gradient of the loss over `batch`, the questions of all processes together, to the thinker's parameters.

    Afterwards every process has the whole gradient. step: tells this step's dropout from that of others.
    """
    own = processes.share(batch)
    with gradient_checkpointing(assistant, active=objective.recompute):
        thoughts = think(thinker, assistant, own, objective.num_slots) if own else _nothing(thinker, objective)
    everyone = processes.gather(thoughts, len(batch)).requires_grad_()
    between_paths, between_questions = _contrasts(everyone, batch, objective, step)
    weighted = objective.weight * between_paths + objective.question_weight * between_questions
    (by_contrasts,) = torch.autograd.grad(weighted, everyone)
    language, by_language = _language(reader, own, thoughts.detach(), batch, objective)
    if own:
        thoughts.backward(processes.share(by_contrasts) + by_language)  # type: ignore[no-untyped-call]
    trained = [parameter for parameter in thinker.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    processes.add_up([parameter.grad for parameter in trained if parameter.grad is not None] + [language])
    cosine = mean_off_diagonal(path_cosine(everyone.detach()))
    return Parts(float(language), float(between_paths.detach()), float(between_questions.detach()), cosine)


def _nothing(thinker: Thinker, objective: Objective) -> Tensor:
    """The thoughts of no question, [0, N, L, D]."""
    weight = thinker.projection.weight
    return weight.new_zeros(0, thinker.num_paths, objective.num_slots, len(weight))


def _language(
    reader: Reader, own: Sequence[Example], thoughts: Tensor, batch: Sequence[Example], objective: Objective
) -> tuple[Tensor, Tensor]:
    """This process's share of the mean over all paths and tokens of the batch, and its gradient by its thoughts."""
    tokens = sum(len(example.target) for example in batch) * thoughts.shape[1]
    total, gradient = thoughts.new_zeros(()), torch.zeros_like(thoughts)
    for start in range(0, len(own), objective.micro_batch):
        at = slice(start, start + objective.micro_batch)
        rows = thoughts[at].clone().requires_grad_()
        with gradient_checkpointing(reader.backbone, active=objective.recompute):
            loss = reader.losses(own[at], rows).sum() / tokens
            (gradient[at],) = torch.autograd.grad(loss, rows)
        total += loss.detach()
    return total, gradient


def _contrasts(thoughts: Tensor, batch: Sequence[Example], objective: Objective, step: int) -> tuple[Tensor, Tensor]:
    """Between paths, mean over questions, and between questions, mean over paths; both without their weights."""
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
        paths = thoughts.flatten(1).sum(1) * 0.0
    return paths.mean(), losses.question_loss(thoughts).mean()


def _kept(name: str, shape: torch.Size) -> Tensor:
    """What dropout leaves of one question's thoughts, the same in every process and for every split of the batch."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.rand(shape, generator=generator) >= _DROPOUT
