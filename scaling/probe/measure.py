"""The four measures of a probe: room, what the states hold, the best constant prompt, and the oracle.

All losses are of the backbone, in nats. Intervals are over questions and paired: of the differences within a question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from math import sqrt

import torch
from scipy.stats import t as student
from torch import Tensor

from contrastive.optimised import tune_each, tune_prompt
from contrastive.ridge import cross_validated, folds_of
from contrastive.target_loss import Example, Reader
from scaling.probe.answers import Answered
from scaling.probe.facts import Fact
from scaling.probe.states import PLACES

# what stands before a target
NONE, RATIONALE, CONSTANT, OWN, OTHER = "none", "rationale", "constant", "own", "other"
BATCH = 8  # questions that go through the backbone together
_STEP = 0.1  # how far an entry of a thought moves in the first step, relative to the embeddings' scale
_FOLDS = 5

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Estimate:
    """A mean over questions with its 95 % interval. mean, low, high; questions: how many."""

    mean: float
    low: float
    high: float
    questions: int

    @property
    def positive(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low > 0

    @classmethod
    def of(cls, values: Tensor) -> Estimate:
        """The mean of one value for each question, of at least two. values: [Q]."""
        values = values.double()
        mean, number = float(values.mean()), len(values)
        spread = float(student.ppf(0.975, number - 1)) * float(values.std()) / sqrt(number)
        return cls(mean, mean - spread, mean + spread, number)


@dataclass(frozen=True)
class Losses:
    """Losses of the same targets in two or more ways. sums: by name, [Q], over the target's tokens; tokens: [Q], of each."""

    sums: Mapping[str, Tensor]
    tokens: Tensor

    def per_token(self, name: str) -> float:
        """Mean loss in nats a token."""
        return float(self.sums[name].sum() / self.tokens.sum())

    def per_answer(self, name: str) -> float:
        """Mean loss in nats a target."""
        return float(self.sums[name].mean())

    def gain(self, before: str, after: str, *, per_token: bool = True) -> Estimate:
        """How much lower the loss is in the second way, in nats a token or a target."""
        scale = float(self.tokens.double().mean()) if per_token else 1.0
        return Estimate.of((self.sums[before] - self.sums[after]) / scale)


@dataclass(frozen=True)
class Reading:
    """How well a fact is read from the states of one place.

    Attributes:
        score: of classes the share read rightly; of amounts the share of the variance that is explained (R2).
        gain: `score` beyond what can be said without states, as a share of what there is to gain: 1 is all.
        gains: the gain of each question, [Q]; NaN where it does not tell the fact.
    """

    score: float
    gain: Estimate
    gains: Tensor


@torch.no_grad()
def losses(
    reader: Reader, *targets: Sequence[Example], thoughts: Tensor | None = None, advance: Advance = lambda _: None
) -> list[Tensor]:
    """Losses [Q] float64 on the CPU, summed over each target's tokens.

    Args:
        reader: computes losses with the backbone.
        targets: one or several targets of the same Q questions; a question is read once for all of them.
        thoughts: [L, D], the same for all, or [Q, 1, L, D]; None for the prompt without thoughts.
        advance: is called with the number of questions that are done.

    Returns:
        Losses for each of `targets`.
    """
    number, device = len(targets[0]), reader.backbone.device
    if thoughts is None:
        thoughts = torch.zeros(0, reader.backbone.get_input_embeddings().weight.shape[1])
    each = thoughts.to(device).expand(number, 1, *thoughts.shape[-2:])
    sums: list[list[Tensor]] = [[] for _ in targets]
    for start in range(0, number, BATCH):
        places = slice(start, start + BATCH)
        before = reader.read_prefixes(targets[0][places])
        for found, examples in zip(sums, targets, strict=True):
            found.append(reader.losses(examples[places], each[places], before=before)[:, 0])
        advance(len(targets[0][places]))
    return [torch.cat(found).double().cpu() for found in sums]


def room(reader: Reader, asked: Sequence[Answered], advance: Advance) -> Losses:
    """The loss of the answer's own tokens after the question, and after the question and its first rationale."""
    alone = [each.alone for each in asked]
    informed = [each.informed[0] for each in asked]
    sums = losses(reader, alone, informed, advance=advance)
    return Losses(dict(zip((NONE, RATIONALE), sums, strict=True)), _tokens(alone))


def readings(
    states: Mapping[tuple[str, int], Tensor], facts: Sequence[Fact], groups: Sequence[str], advance: Advance
) -> tuple[dict[str, int], dict[str, dict[str, Reading]]]:
    """How well each fact is read at each place, by ridge regression with cross-validation over questions.

    Args:
        states: by place and layer, [Q, F].
        facts: what is read.
        groups: of each question; those of one group are tested together.
        advance: is called with 1 for each place and layer.

    Returns:
        The layer of each place at which most is gained over all facts, and the readings there by fact and place.
    """
    best: dict[str, tuple[float, int, dict[str, Reading]]] = {}
    for (place, layer), rows in states.items():
        found = {fact.name: _read(rows, fact, groups) for fact in facts}
        gained = sum(reading.gain.mean for reading in found.values())
        if place not in best or gained > best[place][0]:
            best[place] = gained, layer, found
        advance(1)
    layers = {place: best[place][1] for place in PLACES}
    return layers, {fact.name: {place: best[place][2][fact.name] for place in PLACES} for fact in facts}


def chance(fact: Fact) -> float:
    """The score that needs no states: of classes the share of the most frequent one, of amounts 0."""
    told = [fact.values[place] for place in fact.places]
    return max(map(told.count, fact.classes)) / len(told) if fact.classes else 0.0


def _read(states: Tensor, fact: Fact, groups: Sequence[str]) -> Reading:
    places = fact.places
    told = [fact.values[place] for place in places]
    rows, folds = states[places], folds_of([groups[place] for place in places], _FOLDS)
    if fact.classes:
        classes = torch.tensor([fact.classes.index(value) for value in told if value is not None])
        predicted, plain = cross_validated(rows, torch.nn.functional.one_hot(classes, len(fact.classes)), folds)
        right, by_chance = ((one.argmax(1) == classes).double() for one in (predicted, plain))
        score, gains = float(right.mean()), (right - by_chance) / max(1 - float(by_chance.mean()), 1e-9)
    else:
        amounts = torch.tensor(told, dtype=torch.float64)[:, None]
        predicted, plain = cross_validated(rows, amounts, folds)
        errors, without = ((amounts - one).square()[:, 0] for one in (predicted, plain))
        gains = (without - errors) / without.mean().clamp(min=1e-12)
        score = float(gains.mean())
    every = torch.full((len(fact.values),), torch.nan, dtype=torch.float64)
    every[places] = gains
    return Reading(score, Estimate.of(gains), every)


def best_constant(
    reader: Reader, examples: Sequence[Example], start: Tensor, *, steps: int, scale: float, advance: Advance
) -> Tensor:
    """The tuned prompt: thoughts [L, D] that are the same for all questions, learned from other questions.

    Args:
        reader: computes losses with the backbone.
        examples: to learn from, from the first one again after the last.
        start: [L, D].
        steps: of `BATCH` examples.
        scale: root mean square of the backbone's embeddings.
        advance: is called with 1 after each step.
    """
    endless = cycle(examples)
    batches = [list(islice(endless, BATCH)) for _ in range(steps)]
    return tune_prompt(reader, batches, start, lr=_STEP * scale, stepped=lambda: advance(1))


def oracle(
    reader: Reader, asked: Sequence[Answered], start: Tensor, *, steps: int, scale: float, advance: Advance
) -> tuple[Losses, Losses, bool]:
    """Optimises each question's own thoughts on its first chain, and scores them on a target that they have not seen.

    That target is the second chain where all questions have one, else the answer's own tokens without a rationale.

    Args:
        reader: computes losses with the backbone.
        asked: the questions.
        start: [L, D], where all thoughts begin.
        steps: of each question.
        scale: root mean square of the backbone's embeddings.
        advance: is called with 1 for each step of each batch.

    Returns:
        Losses of the first chains, losses of the unseen targets, and whether these are second chains: without thoughts
        (`NONE`), with `start` (`CONSTANT`), with the own thoughts (`OWN`) and with those of the next question (`OTHER`).
    """
    first = [each.chains[0] for each in asked]
    batches = [first[place : place + BATCH] for place in range(0, len(first), BATCH)]
    own = torch.cat(
        [
            tune_each(reader, batch, start, steps=steps, lr=_STEP * scale, stepped=lambda: advance(1))
            for batch in batches
        ]
    )
    another = all(len(each.chains) > 1 for each in asked)
    unseen = [each.chains[1] if another else each.alone for each in asked]
    ways = {NONE: None, CONSTANT: start, OWN: own, OTHER: own.roll(1, 0)}
    sums = {name: losses(reader, first, unseen, thoughts=thoughts) for name, thoughts in ways.items()}
    on_first, on_unseen = (
        Losses({name: both[place] for name, both in sums.items()}, _tokens(targets))
        for place, targets in enumerate((first, unseen))
    )
    return on_first, on_unseen, another


def _tokens(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([len(example.target) for example in examples])
