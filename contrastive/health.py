"""Whether training makes thoughts that differ and say something: figures over held-out questions, and words for a collapse.

*Question information* is the loss with another question's thoughts less the loss with the own ones. Where it is zero, the
thoughts are a constant prompt, whatever the loss.
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

_LITTLE = 0.002  # nats a token of question information that are as good as none
_ALIKE = 0.95  # mean cosine from which all questions' thoughts are one


@dataclass(frozen=True)
class Validation:
    """What held-out questions say. loss: nats a token of their targets."""

    loss: float


@dataclass(frozen=True)
class Health(Validation):
    """Losses are nats a token over the validation questions.

    loss: with the own thoughts, mean over paths; per_path: of each path; without: the same prompt without thoughts;
    another: with the thoughts of the next question; path_cosine, question_cosine: mean cosine between paths, and between
    questions, None for a single one; effective_rank: of a question's N thoughts; dead: paths that say the same as an
    earlier one.
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
        return self.another - self.loss

    def warnings(self) -> list[str]:
        """What a user should worry about, in plain words."""
        said = []
        if self.question_information < _LITTLE and (self.question_cosine or 0.0) > _ALIKE:
            said.append(
                f"thoughts have collapsed: those of different questions are nearly one (cosine {self.question_cosine:.2f}), "
                f"and another question's serve as well. This is a constant prompt, not thinking."
            )
        elif self.question_information < _LITTLE:
            said.append(
                "another question's thoughts serve as well as the own ones: they carry nothing of the question."
            )
        if self.dead:
            listed = ", ".join(map(str, self.dead))
            said.append(f"paths {listed} say the same as an earlier path: they add samples, not paths.")
        if self.loss > self.without:
            said.append("the loss is higher with thoughts than without any.")
        return said


@torch.no_grad()
def examine(
    thinker: Thinker,
    assistant: PreTrainedModel,
    reader: Reader,
    examples: Sequence[Example],
    objective: Objective,
    *,
    processes: Processes,
) -> Health:
    """Takes one example at a time, so that the result depends neither on batches nor on processes."""
    own = list(range(len(examples)))[processes.rank :: processes.count]
    thoughts = processes.collect({n: think(thinker, assistant, [examples[n]], objective.num_slots).cpu() for n in own})
    every = torch.cat(list(thoughts.values()))
    other = _others(examples)
    losses = processes.collect({n: _losses(reader, examples[n], every[n], every[other[n]]) for n in own})
    sums = torch.stack(list(losses.values())).sum(0) / sum(len(example.target) for example in examples)
    paths = thinker.num_paths
    cosines = diversity.path_cosine(every)
    return Health(
        loss=float(sums[:paths].mean()),
        without=float(sums[-1]),
        another=float(sums[paths : 2 * paths].mean()),
        per_path=tuple(sums[:paths].tolist()),
        path_cosine=diversity.mean_off_diagonal(cosines),
        question_cosine=diversity.question_cosine(_one_each(examples, every)),
        effective_rank=diversity.effective_rank(every),
        dead=tuple(diversity.dead_paths(cosines)),
    )


def _losses(reader: Reader, example: Example, own: Tensor, another: Tensor) -> Tensor:
    """Sums over the target's tokens, [2 N + 1] float64: own thoughts, another question's, none."""
    device = reader.backbone.device
    with_own, with_another = (reader.losses([example], states[None].to(device))[0] for states in (own, another))
    without = reader.losses([example], own[None, :1, :0].to(device))[0]
    return torch.cat([with_own, with_another, without]).double().cpu()


def _others(examples: Sequence[Example]) -> list[int]:
    """For each example the next one of another question, in a circle; itself where there is no other."""
    found = []
    for number, example in enumerate(examples):
        ahead = [(number + step) % len(examples) for step in range(1, len(examples))]
        found.append(next((place for place in ahead if examples[place].question != example.question), number))
    return found


def _one_each(examples: Sequence[Example], thoughts: Tensor) -> Tensor:
    """The thoughts of each question once, though several targets may share it."""
    first = {example.question: number for number, example in reversed(list(enumerate(examples)))}
    return thoughts[sorted(first.values())]
