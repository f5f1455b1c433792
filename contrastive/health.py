"""Measures on held-out questions whether thoughts are useful and different, and warns where they have collapsed.

*Question information* is the loss with another question's thoughts minus the loss with the question's own thoughts. Where
it is zero, the thoughts are no more than a constant prompt, however low the loss is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from contrastive import diversity
from contrastive.objective import Objective, think
from contrastive.parallel import Processes
from contrastive.target_loss import Example, Reader
from contrastive.thinker import Thinker

_LITTLE = 0.002  # less question information than this, in nats a token, is as good as none
_ALIKE = 0.95  # above this mean cosine, all questions have nearly the same thoughts


@dataclass(frozen=True)
class Validation:
    """Figures over held-out questions. loss: of their targets, in nats a token."""

    loss: float


@dataclass(frozen=True)
class Health(Validation):
    """Figures of a thinker over the validation questions. All losses are in nats a token of the targets.

    Attributes:
        loss: with the question's own thoughts, a mean over paths.
        without: of the same prompt without thoughts.
        another: with the thoughts of the next question, a mean over paths.
        per_path: `loss` of each path.
        path_cosine: mean cosine between paths, None for a single path.
        question_cosine: mean cosine between questions, None for a single question.
        effective_rank: of a question's N thoughts, see `diversity.effective_rank`.
        dead: paths whose thoughts repeat those of an earlier path.
    """

    without: float
    another: float
    per_path: tuple[float, ...]
    path_cosine: float | None
    question_cosine: float | None
    effective_rank: float
    dead: tuple[int, ...]

    @property
    def question_information(self) -> float:
        """What the thoughts say about their question, in nats a token; see the top of this module."""
        return self.another - self.loss

    def warnings(self) -> list[str]:
        """Sentences about what a user should worry about; empty where all is well."""
        warnings = []
        if self.question_information < _LITTLE and (self.question_cosine or 0.0) > _ALIKE:
            warnings.append(
                f"thoughts have collapsed: those of different questions are nearly one (cosine {self.question_cosine:.2f}), "
                f"and another question's serve as well. This is a constant prompt, not thinking."
            )
        elif self.question_information < _LITTLE:
            warnings.append(
                "another question's thoughts serve as well as the own ones: they carry nothing of the question."
            )
        if self.dead:
            listed = ", ".join(map(str, self.dead))
            warnings.append(f"paths {listed} say the same as an earlier path: they add samples, not paths.")
        if self.loss > self.without:
            warnings.append("the loss is higher with thoughts than without any.")
        return warnings


@torch.no_grad()
def examine(
    thinker: Thinker,
    assistant: PreTrainedModel | None,
    reader: Reader,
    examples: Sequence[Example],
    objective: Objective,
    *,
    processes: Processes,
) -> Health:
    """Computes the figures of a thinker over the validation questions.

    It takes one example at a time, so that the result depends neither on the batch size nor on the number of processes.

    Args:
        thinker: what is examined.
        assistant: the frozen model that the thinker reads questions with; None for a thinker that needs none.
        reader: computes losses with the frozen backbone.
        examples: the validation questions with their targets.
        objective: says how many soft tokens there are.
        processes: share the work; each of them gets the whole result.

    Raises:
        torch.linalg.LinAlgError: where thoughts are not finite.
    """
    places = list(range(len(examples)))[processes.rank :: processes.count]
    thoughts = processes.collect(
        {n: think(thinker, assistant, reader.backbone, [examples[n]], objective.num_slots).cpu() for n in places}
    )
    all_thoughts = torch.cat(list(thoughts.values()))
    other = _others(examples)
    losses = processes.collect(
        {n: _losses(reader, examples[n], all_thoughts[n], all_thoughts[other[n]]) for n in places}
    )
    sums = torch.stack(list(losses.values())).sum(0) / sum(len(example.target) for example in examples)
    paths = thinker.num_paths
    cosines = diversity.path_cosine(all_thoughts)
    return Health(
        loss=float(sums[:paths].mean()),
        without=float(sums[-1]),
        another=float(sums[paths : 2 * paths].mean()),
        per_path=tuple(sums[:paths].tolist()),
        path_cosine=diversity.mean_off_diagonal(cosines),
        question_cosine=diversity.question_cosine(_one_each(examples, all_thoughts)),
        effective_rank=diversity.effective_rank(all_thoughts),
        dead=tuple(diversity.dead_paths(cosines)),
    )


def _losses(reader: Reader, example: Example, own: Tensor, another: Tensor) -> Tensor:
    """Losses summed over the target's tokens, [2 N + 1] float64: with `own` thoughts, with `another`'s, and without any.

    own, another: [N, L, D].
    """
    device = reader.backbone.device
    with_own, with_another = (reader.losses([example], states[None].to(device))[0] for states in (own, another))
    without = reader.losses([example], own[None, :1, :0].to(device))[0]
    return torch.cat([with_own, with_another, without]).double().cpu()


def _others(examples: Sequence[Example]) -> list[int]:
    """For each example the place of the next one with another question, in a circle; its own where there is none."""
    partners = []
    for number, example in enumerate(examples):
        ahead = [(number + step) % len(examples) for step in range(1, len(examples))]
        partners.append(next((place for place in ahead if examples[place].question != example.question), number))
    return partners


def _one_each(examples: Sequence[Example], thoughts: Tensor) -> Tensor:
    """The thoughts [Q, N, L, D] of the Q different questions: several examples may share a question."""
    first = {example.question: number for number, example in reversed(list(enumerate(examples)))}
    return thoughts[sorted(first.values())]
