"""The curriculum of Coconut (arXiv 2412.06769): stages in which ever more steps of a chain are left out for thoughts.

Stage 0 has whole chains. Stage k leaves out the first k steps and has c thoughts for each of them, also where a question has
fewer steps. Where questions have more steps than there are stages, a last stage leaves out the others, too. The loss is that
of what remains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from contrastive.target_loss import Example
from scaling.models.loading import LanguageModel
from scaling.records.records import Question
from scaling.training.config import LATENT, NONE, PAUSE, TrainConfig
from scaling.training.targets import ExampleBuilder, steps_of

BEGIN, END, PAUSED = "<|start-latent|>", "<|end-latent|>", "<|latent|>"  # tokens that are added to the vocabulary


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
        steps = f"the first {self.removed} steps left out" if self.removed else "whole chains"
        return f"stage {self.number}: {steps}, {self.thoughts} thoughts"


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
    tokens = {} if thought == NONE else {"latent_tokens": " ".join(_names(thought))}
    return {"thought": thought, "latent_steps": (config.latent_stages or 0) * (config.thoughts_per_step or 0), **tokens}


def _names(thought: str) -> tuple[str, ...]:
    return (BEGIN, END, PAUSED) if thought == PAUSE else () if thought == NONE else (BEGIN, END)


def add_tokens(tokenizer: PreTrainedTokenizerBase, thought: str) -> list[int]:
    """Adds the tokens around thoughts to a vocabulary that lacks them. Returns the ids of all of them, BEGIN first."""
    known = tokenizer.get_vocab()
    new = [AddedToken(name, special=True, normalized=False) for name in _names(thought) if name not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    return [int(tokenizer.convert_tokens_to_ids(name)) for name in _names(thought)]


@torch.no_grad()
def prepare_tokens(backbone: LanguageModel, thought: str, *, seed: int) -> list[int]:
    """Gives a backbone the tokens around thoughts. Its tokenizer and its model are changed in place.

    A new token's embedding is drawn around the mean of all embeddings, with their deviation, so that it differs from the
    others' as theirs do.

    Args:
        backbone: the backbone.
        thought: what stands in the place of steps.
        seed: of the new embeddings.

    Returns:
        The ids of the tokens.
    """
    known, before = set(backbone.tokenizer.get_vocab().values()), backbone.rows
    ids = add_tokens(backbone.tokenizer, thought)
    if max(ids, default=0) >= before:
        backbone.model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    new = sorted({*range(before, backbone.rows), *set(ids).difference(known)})
    layers = (backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings())
    weights: dict[int, Tensor] = {id(layer.weight): layer.weight for layer in layers if layer is not None}
    generator = torch.Generator().manual_seed(seed)
    for weight in weights.values() if new else ():
        old = weight[:before].float().cpu()
        drawn = torch.randn(len(new), weight.shape[1], generator=generator)
        weight[new] = (old.mean(0) + old.std(0) * drawn).to(weight)
    return ids


class Curriculum:
    """Makes the examples of each stage."""

    def __init__(self, build: ExampleBuilder, questions: Sequence[Question], *, thought: str, tokens: Sequence[int]):
        """
        Args:
            build: turns questions and targets into token ids.
            questions: in the order of the examples.
            thought: what stands in the place of steps.
            tokens: from `prepare_tokens`.
        """
        self._build, self._questions, self._thought, self._tokens = build, questions, thought, tokens
        self._whole = [build(question, build.solution(question)) for question in questions]

    def examples(self, stage: Stage) -> list[Example]:
        """The examples of a stage. Raises UsageError where one is longer than the backbone's context."""
        return [
            self._without(example, question, stage) if stage.removed else example
            for example, question in zip(self._whole, self._questions, strict=True)
        ]

    def _without(self, whole: Example, question: Question, stage: Stage) -> Example:
        example = self._build.without_steps(whole, question, stage.removed)
        if self._thought != NONE:
            example = self.framed(example, stage.thoughts)
        self._build.refuse_long(question, example)
        return example

    def framed(self, example: Example, thoughts: int) -> Example:
        """The example with so many thoughts after its prompt."""
        begin, end, *pause = self._tokens
        read = (*example.prefix, *example.suffix, begin, *(pause * thoughts))
        return replace(example, prefix=read, suffix=(end,), latent=thoughts if self._thought == LATENT else 0)

    def padded(self, stages: int) -> int:
        """How many questions have fewer steps than there are stages."""
        return sum(len(steps_of(question)) < stages for question in self._questions)
