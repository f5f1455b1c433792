"""Trains a backbone, or what was put into it: the gradient of a step, and the validation.

What is trained are the parameters of the backbone that require a gradient. Knows examples as token ids, no questions and no
tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from contrastive.forward import gradient_checkpointing
from contrastive.health import PerQuestion, Validation, over_answers, questions_of
from contrastive.target_loss import Example, Reader, weighted_tokens, weights_of
from contrastive.train import Loop, digest, under

_TRAINED = "adapter."  # begins the names of the trained tensors in the state of a training


@dataclass(frozen=True, kw_only=True)
class Figures(Validation):
    """Figures of a trained backbone over the validation examples.

    Attributes:
        before: the loss before the first step, in nats a token.
    """

    before: float


@dataclass(eq=False, kw_only=True)
class BackboneTrainer(Loop[Figures]):
    """Trains what requires a gradient in a backbone.

    Attributes:
        reader: computes losses with the backbone.
        micro_batch: targets whose activations are in memory at once.
        recompute: compute activations again in the backward pass instead of keeping them (gradient checkpointing).
        loss_before: the validation loss before the first step, in nats a token; NaN until it is known.
    """

    reader: Reader
    micro_batch: int
    recompute: bool = False
    loss_before: float = math.nan

    def trained(self) -> list[Parameter]:
        return list(self._named().values())

    def _named(self) -> dict[str, Parameter]:
        """The trained parameters, by their names in the backbone."""
        named = self.reader.backbone.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def frozen(self) -> Sequence[tuple[int, ...]]:
        named = self.reader.backbone.named_parameters(remove_duplicate=False)  # tied weights have several names
        return [digest(self.reader.backbone, but=[name for name, parameter in named if parameter.requires_grad])]

    def learned(self) -> dict[str, Tensor]:
        before = {"before": torch.tensor(self.loss_before, dtype=torch.float64)}
        return before | {f"{_TRAINED}{name}": tensor for name, tensor in self._named().items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.loss_before = float(tensors["before"])
        saved = under(_TRAINED, tensors)
        for name, parameter in self._named().items():
            parameter.copy_(saved[name])

    def backward(self, batch: Sequence[Example], *, step: int) -> tuple[dict[str, Any], int]:  # noqa: ARG002
        """See `Loop.backward`. The loss is a weighted mean over the scored tokens of the batch, however it is split."""
        examples, tokens = self.processes.share(batch), weighted_tokens(batch)
        total = torch.zeros((), device=self.reader.backbone.device)
        for start in range(0, len(examples), self.micro_batch):
            with gradient_checkpointing(self.reader.backbone, active=self.recompute):
                part = examples[start : start + self.micro_batch]
                losses = self.reader.whole(part)
                loss = (losses * weights_of(part, losses.device)[:, 0]).sum() / tokens
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        for parameter in self.trained():  # a process without examples has no gradient, and yet takes part in the sum
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.processes.add_up([*(p.grad for p in self.trained() if p.grad is not None), total])
        return {"language": float(total)}, sum(len(example.scored) for example in batch)

    @torch.no_grad()
    def examine(self) -> Figures:
        """Computes the validation loss, one example at a time: it depends neither on batch size nor on processes."""
        places = self.processes.share(range(len(self.validation)))
        found = self.processes.collect({n: self._losses(self.validation[n]) for n in places})
        sums = {n: self.validation[n].weight * loss for n, (loss, _) in found.items()}
        groups = questions_of(self.validation)
        per_question = PerQuestion(
            ids=tuple(self.validation[group[0]].question for group in groups),
            tokens=tuple(weighted_tokens([self.validation[n] for n in group]) for group in groups),
            own=tuple(math.fsum(sums[n] for n in group) for group in groups),
        )
        loss = math.fsum(sums.values()) / sum(per_question.tokens)
        if math.isnan(self.loss_before):
            self.loss_before = loss
        answer = over_answers([found[n][1] for n in range(len(self.validation))], self.validation)
        return Figures(loss=loss, answer=answer, before=self.loss_before, per_question=per_question)

    def _losses(self, example: Example) -> tuple[float, float]:
        """Losses summed over the target's scored tokens, and over the answer's own ones."""
        loss, of_answer = self.reader.whole_and_answers([example])
        return float(loss), float(of_answer)
