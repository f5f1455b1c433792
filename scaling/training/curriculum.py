"""The curriculum of Coconut (arXiv 2412.06769): stages in which ever more steps of a chain are left out for thoughts.

Stage 0 has whole chains. Stage k leaves out the first k steps and has c thoughts for each of them, also where a question has
fewer steps. Where questions have more steps than there are stages, a last stage leaves out the others, too. The loss is that
of what remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from contrastive.target_loss import Example
from scaling.models.latent_tokens import BEGIN, END, PAUSED
from scaling.records.errors import counted
from scaling.records.names import LATENT, NONE, PAUSE
from scaling.records.records import Question
from scaling.training.config import TrainConfig
from scaling.training.targets import ExampleBuilder, steps_of


@dataclass(frozen=True)
class Stage:
    """A part of a training.

    Attributes:
        number: from 0, which has whole chains.
        removed: how many steps are left out, or all if a question has fewer.
        thoughts: in their place.
    """

    number: int
    removed: int
    thoughts: int

    @property
    def folder(self) -> str:
        """Its name in the folder of the training."""
        return f"stage-{self.number}"

    def __str__(self) -> str:
        steps = f"the first {counted(self.removed, 'step')} left out" if self.removed else "whole chains"
        return f"stage {self.number}: {steps}, {counted(self.thoughts, 'thought')}"


def stages_of(config: TrainConfig, most_steps: int) -> list[Stage]:
    """The stages of a training in their order. config: its resolved settings; most_steps: that a question has."""
    last, per_step = config.latent_stages or 0, config.thoughts_per_step or 0
    stages = [Stage(number, number, number * per_step) for number in range(last + 1)]
    if last and most_steps > last:
        stages.append(Stage(last + 1, most_steps, last * per_step))
    return stages if config.curriculum else stages[-1:]


def thoughts_of(config: TrainConfig) -> dict[str, int | str]:
    """What a run has to know of the thoughts that a backbone was trained with. config: the resolved settings."""
    thought = config.thought or NONE
    tokens = {} if thought == NONE else {"latent_tokens": " ".join(token_names(thought))}
    return {"thought": thought, "latent_steps": (config.latent_stages or 0) * (config.thoughts_per_step or 0), **tokens}


def token_names(thought: str) -> tuple[str, ...]:
    """The tokens around thoughts, BEGIN first, and the one to pause with. thought: what stands in the place of steps."""
    return (BEGIN, END, PAUSED) if thought == PAUSE else () if thought == NONE else (BEGIN, END)


class Curriculum:
    """Makes the examples of each stage."""

    def __init__(self, build: ExampleBuilder, questions: Sequence[Question], *, thought: str, tokens: Sequence[int]):
        """
        Args:
            build: turns questions and targets into token ids.
            questions: in the order of the examples.
            thought: what stands in the place of steps.
            tokens: ids of `token_names`.
        """
        self._build, self._questions, self._thought, self._tokens = build, questions, thought, tokens
        self._whole = [build(question, build.solution(question)) for question in questions]

    def examples(self, stage: Stage) -> list[Example]:
        """The examples of a stage. Raises UsageError where one is longer than the backbone's context."""
        return [
            self._without(example, question, stage) if stage.removed else example
            for example, question in zip(self._whole, self._questions, strict=True)
        ]

    def refuse_long(self, stage: Stage) -> None:
        """Raises UsageError as `examples` would, and makes only those that may be too long.

        None is longer than the whole one with the stage's thoughts and the tokens around them.
        """
        for example, question in zip(self._whole, self._questions, strict=True):
            if stage.removed and not self._build.fits(example, more=stage.thoughts + len(self._tokens)):
                self._without(example, question, stage)

    def _without(self, whole: Example, question: Question, stage: Stage) -> Example:
        example = self._build.without_steps(whole, question, stage.removed)
        if self._thought != NONE:
            example = self.framed(example, stage.thoughts)
        self._build.refuse_long(question, example, thoughts=stage.thoughts)
        return example

    def framed(self, example: Example, thoughts: int) -> Example:
        """The example with so many thoughts after its prompt."""
        begin, end, *pause = self._tokens
        read = (*example.prefix, *example.suffix, begin, *(pause * thoughts))
        return replace(example, prefix=read, suffix=(end,), latent=thoughts if self._thought == LATENT else 0)

    def padded(self, stages: int) -> int:
        """How many questions have fewer steps than there are stages."""
        return sum(len(steps_of(question)) < stages for question in self._questions)
