"""One probe from its settings to its report: questions, room, states, best constant prompt, oracle.

This is the story of `scale-probe`, to be read from top to bottom. It knows no terminal: an observer is told what happens.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from contrastive.target_loss import Example, Reader
from scaling.models import hardware, loading, model_files
from scaling.models.loading import LanguageModel
from scaling.models.quantised import refuse_untrainable
from scaling.probe import measure
from scaling.probe.answers import Answered, alone, answered, gold_chain
from scaling.probe.config import ProbeConfig
from scaling.probe.facts import facts_of, template_of
from scaling.probe.measure import CONSTANT, Advance
from scaling.probe.report import Oracle, Preferred, ProbedFact, Report, Room
from scaling.probe.states import PLACES, read_states
from scaling.records.errors import UsageError
from scaling.records.records import Question
from scaling.run import RunObserver
from scaling.tasks.catalogue import definition_of, load_task
from scaling.training.config import TrainConfig
from scaling.training.run import reader_of
from scaling.training.targets import ExampleBuilder, Split, own_chains, split_of
from scaling.wording import wording_of

_FEWEST = 10  # questions that can be measured

Begin = Callable[[str, int], Advance]


class ProbeObserver(Protocol):
    """Is called as a probe goes on, for example to show a progress bar."""

    def status(self, text: str) -> None:
        """Something begins that takes time."""

    def sampling(self) -> RunObserver:
        """The sampling of chains begins. Returns the observer of that run."""
        ...

    def begin(self, what: str, total: int) -> Advance:
        """A measure begins, of `total` units of work. Returns the function that is called with units that are done."""
        ...


def probe(config: ProbeConfig, watcher: ProbeObserver) -> Report:
    """Measures whether thoughts can help a backbone on a task.

    Args:
        config: the settings.
        watcher: is told what happens.

    Raises:
        UsageError: where settings, data or models cannot be used.
    """
    began = time.monotonic()
    config, dtype = hardware.placed(config.resolved())
    settings = _training(config)
    split = split_of(settings)
    for line in model_files.before_loading(config.backbone, config.assistant):
        watcher.status(line)
    backbone, assistant = loading.load_pair(config.backbone, config.assistant, device=config.device, dtype=dtype)
    for model in (backbone, assistant):
        refuse_untrainable(model.model, name=model.name)
    layers = config.layer_numbers(last=int(assistant.model.config.get_text_config().num_hidden_layers))
    build = ExampleBuilder(
        backbone,
        assistant,
        task=split.task.definition,
        num_slots=config.soft_tokens,
        wording=wording_of(config),
    )
    chains = _chains(config, settings, split, build, backbone, watcher)
    asked = answered(build, split.task.definition, split.validation, chains)
    if len(asked) < _FEWEST:
        raise UsageError(_too_few(config, len(asked), len(split.validation)))
    reader = reader_of(backbone)

    begin = watcher.begin
    seen = measure.room(reader, asked, begin("room", len(asked)))
    best_layers, facts, not_probed, readings = _probed(config, assistant, asked, layers, watcher)
    start, scale = _mean_embedding(backbone, config.soft_tokens), backbone.embedding_scale()
    learned = [alone(build, split.task.definition, question) for question in split.train]
    constant, with_it = _constant(config, reader, learned, asked, start, scale, begin)
    found = _oracle(config, reader, asked, constant, scale, begin)
    return Report(
        task=split.task.name,
        backbone=backbone.name,
        assistant=assistant.name,
        settings=config.model_dump(mode="json"),
        questions=len(asked),
        room=Room.of(replace(seen, sums={**seen.sums, **with_it})),
        layers=best_layers,
        facts=facts,
        not_probed=not_probed,
        preferred=_preferred(readings),
        oracle=found,
        seconds=time.monotonic() - began,
    )


def _training(config: ProbeConfig) -> TrainConfig:
    """The settings of a training on the same questions, whose validation questions are those that are measured."""
    shared = config.model_dump(include={*TrainConfig.model_fields} & {*ProbeConfig.model_fields})
    held, learned = config.limit, max(2, config.constant_steps * measure.BATCH)
    if not definition_of(config.task, config.data, columns=config.columns, kind=config.answer_kind).generated:
        whole = load_task(config.task, data=config.data, columns=config.columns, kind=config.answer_kind, split="train")
        held = min(held, len(whole.questions) // 2)
        if held < _FEWEST:
            raise UsageError(
                f"a probe needs at least {2 * _FEWEST} questions of the train split, half of them for the best constant "
                f"prompt, and there are {len(whole.questions)}: give more with `--data`."
            )
    return TrainConfig(**{**shared, "limit": learned, "validation": held}).resolved()


def _chains(
    config: ProbeConfig,
    settings: TrainConfig,
    split: Split,
    build: ExampleBuilder,
    backbone: LanguageModel,
    watcher: ProbeObserver,
) -> Callable[[Question], Sequence[str]]:
    """The right chains of a question: its gold rationale, or those that the backbone samples."""
    if config.targets == "gold":
        return lambda question: [chain] if (chain := gold_chain(build, question)) else []
    watcher.status("sampling the backbone's own chains")
    own = own_chains(replace(split, train=()), settings, backbone, watcher.sampling())
    return lambda question: own[question.id]


def _too_few(config: ProbeConfig, usable: int, asked: int) -> str:
    if config.targets == "gold":
        return (
            f"{usable} of {asked} questions have a gold rationale that ends in their answer, and a probe needs {_FEWEST}: "
            f"add `--targets self`, which takes the backbone's own right chains."
        )
    return (
        f"the backbone answered {usable} of {asked} questions rightly, and a probe needs {_FEWEST}: raise `--limit` or "
        f"`--chains`, or use `--targets gold`."
    )


def _probed(
    config: ProbeConfig,
    assistant: LanguageModel,
    asked: Sequence[Answered],
    layers: Sequence[int],
    watcher: ProbeObserver,
) -> tuple[dict[str, int], tuple[ProbedFact, ...], tuple[str, ...], dict[str, dict[str, measure.Reading]]]:
    """What the assistant's states hold: the layer of each place, the facts, why others were not probed, and all readings."""
    questions = [each.question for each in asked]
    facts, reasons = facts_of(questions)
    if not facts:
        return {}, (), tuple(reasons), {}
    states = read_states(
        assistant,
        [each.alone.assistant for each in asked],
        num_slots=config.soft_tokens,
        layers=layers,
        advance=watcher.begin("states", len(asked)),
    )
    best, readings = measure.readings(
        states, facts, [template_of(question) for question in questions], watcher.begin("probes", len(states))
    )
    probed = tuple(
        ProbedFact(
            name=fact.name,
            kind=fact.kind,
            classes=len(fact.classes),
            chance=measure.chance(fact),
            questions=len(fact.places),
            scores={place: reading.score for place, reading in readings[fact.name].items()},
            gains={place: reading.gain for place, reading in readings[fact.name].items()},
        )
        for fact in facts
    )
    return best, probed, tuple(reasons), readings


def _preferred(readings: dict[str, dict[str, measure.Reading]]) -> Preferred | None:
    """The place that tells most over all facts, and how much more than the slots; None if that is not certain."""
    if not readings:
        return None
    means = {place: torch.stack([own[place].gains for own in readings.values()]).nanmean(0) for place in PLACES}
    slots, *others = PLACES
    best = max(others, key=lambda place: float(means[place].nanmean()))
    gaps = means[best] - means[slots]
    more = measure.Estimate.of(gaps[~gaps.isnan()])
    return Preferred(best, more) if more.positive else None


def _mean_embedding(backbone: LanguageModel, num_slots: int) -> Tensor:
    """The mean input embedding of the backbone in every slot, [L, D] float32."""
    return backbone.embeddings().mean(0).expand(num_slots, -1).to(backbone.model.device)


def _constant(
    config: ProbeConfig,
    reader: Reader,
    learned: Sequence[Example],
    asked: Sequence[Answered],
    start: Tensor,
    scale: float,
    begin: Begin,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The best constant prompt, and the losses with it by their name; `start` and no losses where it takes no steps."""
    steps = config.constant_steps
    if not steps:
        return start, {}
    done = begin("best constant prompt", steps)
    thoughts = measure.best_constant(reader, learned, start, steps=steps, scale=scale, advance=done)
    targets = [each.alone for each in asked]
    [sums] = measure.losses(reader, targets, thoughts=thoughts, advance=begin("its loss", len(asked)))
    return thoughts, {CONSTANT: sums}


def _oracle(
    config: ProbeConfig, reader: Reader, asked: Sequence[Answered], start: Tensor, scale: float, begin: Begin
) -> Oracle | None:
    """What thoughts of a question's own can do at best; None where no question is to be tried."""
    if not config.oracle_questions:
        return None
    several = [each for each in asked if len(each.chains) > 1]
    tried = (several if len(several) >= config.oracle_questions else asked)[: config.oracle_questions]
    units = config.oracle_steps * math.ceil(len(tried) / measure.BATCH)
    done = begin("oracle", units)
    own, unseen, another = measure.oracle(reader, tried, start, steps=config.oracle_steps, scale=scale, advance=done)
    return Oracle.of(own, unseen, another=another)
