"""The two trainings of CCoT (arXiv 2412.13171): contemplation tokens by regression, layer by layer, then the decoder.

The first learns to make the gold states: those that the frozen model has at evenly spaced tokens of the gold chain. Layer j
is trained on what the trained layers before it make of the gold inputs, and then left as it is. What a layer gets is kept,
so that a step computes one layer. The second lets the model contemplate and learns to answer; it trains the decoder, the
stop head, and the contemplation's layers after l.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from contrastive.compression import count_of, gold_places
from contrastive.contemplation import (
    CONTEMPLATE,
    DECODE,
    Contemplation,
    Tokens,
    activate,
    as_decoded,
    chain_of,
    gold_tokens,
    joined,
    parameters_of,
    prompt_of,
)
from contrastive.forward import gradient_checkpointing, pad_right
from contrastive.health import PerQuestion, Validation, over_answers, questions_of
from contrastive.layers import LayerCache, calls_after, calls_for_prompts, layers_of
from contrastive.prefix import Prefix
from contrastive.target_loss import Example, Reader
from contrastive.train import Loop, Schedule, digest, under

_TELL_EVERY = 10.0  # seconds between two lines that say how far the making of states is
_TOGETHER = 16  # texts that go through a layer together where states are made
Tell = Callable[[str], None]
Part = TypeVar("Part", bound=Sized)


@dataclass(frozen=True)
class LayerSchedule(Schedule):
    """The schedule of a training in which every layer has steps of its own, with a learning rate that falls to zero.

    Attributes:
        per_layer: optimiser steps of a layer.
    """

    per_layer: int = 1

    def lr_at(self, step: int) -> float:
        place = step % self.per_layer
        if place < self.warmup:
            return self.lr * (place + 1) / self.warmup
        return self.lr * (self.per_layer - place) / max(1, self.per_layer - self.warmup)


@dataclass(frozen=True, eq=False)
class LayerTask:
    """What one layer is trained on, for one question.

    Attributes:
        inputs: what the layer gets at the contemplation tokens, [k, D].
        keys: the layer's keys of the question, by the frozen model, [H, P, d].
        values: the same for values.
        targets: the gold states after the layer, [k, D].
    """

    inputs: Tensor
    keys: Tensor
    values: Tensor
    targets: Tensor


@dataclass(eq=False)
class _Texts:
    """Some questions with their chains, of which the frozen model has read some layers.

    Attributes:
        examples: the questions.
        ids, mask: of the texts, [B, T] int64.
        states: of the frozen model before the next layer, [B, T, D].
        inputs: the contemplation tokens' before the next layer, [k, D] of each question.
    """

    examples: Sequence[Example]
    ids: Tensor
    mask: Tensor
    states: Tensor
    inputs: list[Tensor]

    def __len__(self) -> int:
        return len(self.examples)


class LayerStates:
    """Makes what each layer is trained on, one layer after the other, and keeps no more than one layer's.

    Attributes:
        layer: number of the layer whose tasks are there, from 0; -1 before the first.
        tasks: by example.
    """

    def __init__(self, contemplation: Contemplation, examples: Sequence[Example], ratio: float, tell: Tell) -> None:
        """
        Args:
            contemplation: whose adapter CONTEMPLATE is trained.
            examples: questions with a chain.
            ratio: r.
            tell: is told how far the reading is.
        """
        self.layer, self.tasks = -1, dict[Example, LayerTask]()
        self._contemplation, self._model, self._ratio = contemplation, contemplation.model, ratio
        distinct = list(dict.fromkeys(examples))
        read = f"chains read up to layer {contemplation.layer}"
        self._texts = [self._read(part) for part in _told(_parts(distinct), tell, read)]
        self._tell = tell

    def places(self, example: Example) -> list[int]:
        """Where the gold states of a question are in its text."""
        length = len(chain_of(example))
        start = len(prompt_of(example))
        return [start + place for place in gold_places(length, count_of(length, self._ratio))]

    @torch.no_grad()
    def advance(self) -> None:
        """Goes on to the next layer, with what the layer before it makes now."""
        before, self.tasks = self.tasks, {}
        if self.layer >= 0:
            for texts in self._texts:
                texts.inputs = self._made([before[example] for example in texts.examples])
        del before
        self.layer += 1
        activate(self._model, None)
        for texts in _told(self._texts, self._tell, f"chains read by layer {self.layer + 1}", last=False):
            cache = LayerCache()
            calls = calls_for_prompts(self._model, texts.ids, texts.mask, cache)
            texts.states = calls.run(texts.states, self.layer, self.layer + 1)
            keys, values = cache.own[self.layer]
            for row, example in enumerate(texts.examples):
                length = len(prompt_of(example))
                self.tasks[example] = LayerTask(
                    texts.inputs[row],
                    keys[row, :, :length].clone(),
                    values[row, :, :length].clone(),
                    texts.states[row, self.places(example)],
                )

    def run(self, tasks: Sequence[LayerTask]) -> tuple[Tensor, Tensor]:
        """Runs the layer with the adapter. Returns the states after it [B, K, D], and which are no padding, [B, K] bool."""
        return run_layer(self._model, self.layer, tasks)

    @torch.no_grad()
    def _read(self, examples: Sequence[Example]) -> _Texts:
        """The texts before the first layer, and the inputs of the contemplation tokens: the gold states after layer l."""
        activate(self._model, None)
        rows = [(*prompt_of(example), *chain_of(example)) for example in examples]
        ids, mask = pad_right(rows, self._model.device)
        calls = calls_for_prompts(self._model, ids, mask, LayerCache())
        states = calls.run(calls.inputs, 0, self._contemplation.layer)
        gold = [
            states[row, [len(prompt_of(example)) - 1, *self.places(example)[:-1]]]
            for row, example in enumerate(examples)
        ]
        # what the model does to inputs before its first layer, such as adding positions, is done to these, too
        inputs = [self._before_layers(example, one) for example, one in zip(examples, gold, strict=True)]
        return _Texts(examples, ids, mask, calls.inputs, inputs)

    def _before_layers(self, example: Example, inputs: Tensor) -> Tensor:
        """What the first layer gets for inputs [k, D] after a question."""
        seen = torch.ones(1, len(prompt_of(example)), dtype=torch.bool, device=inputs.device)
        return calls_after(self._model, seen, inputs[None], LayerCache()).inputs[0]

    def _made(self, tasks: Sequence[LayerTask]) -> list[Tensor]:
        """The states after the layer, [k, D] of each task."""
        states, seen = self.run(tasks)
        return [row[real] for row, real in zip(states, seen, strict=True)]


def run_layer(model: Any, layer: int, tasks: Sequence[LayerTask]) -> tuple[Tensor, Tensor]:
    """Runs one layer of a model with the adapter CONTEMPLATE on some tasks.

    Returns:
        The states after it, [B, K, D], and which of them are no padding, [B, K] bool.
    """
    activate(model, CONTEMPLATE)
    lengths = [task.keys.shape[1] for task in tasks]
    longest = max(lengths)
    keys, values = (
        torch.stack([pad(states, (0, 0, 0, longest - states.shape[1])) for states in of_tasks])
        for of_tasks in ([task.keys for task in tasks], [task.values for task in tasks])
    )
    inputs = pad_sequence([task.inputs for task in tasks], batch_first=True)
    seen = torch.arange(longest, device=inputs.device) < torch.tensor(lengths, device=inputs.device)[:, None]
    calls = calls_after(model, seen, inputs, LayerCache({layer: keys}, {layer: values}))
    counts = torch.tensor([len(task.inputs) for task in tasks], device=inputs.device)
    real = torch.arange(inputs.shape[1], device=inputs.device) < counts[:, None]
    return calls.run(inputs, layer, layer + 1), real


def regression_losses(states: Tensor, tasks: Sequence[LayerTask], real: Tensor) -> Tensor:
    """The loss of each task, [B] float32: 1/k sum_i MSE(z_i, made_i) / variance(z_i).

    Args:
        states: made, [B, K, D].
        tasks: B of them, with the gold states z.
        real: [B, K] bool, False for padding.
    """
    targets = pad_sequence([task.targets for task in tasks], batch_first=True).float()
    errors = (states.float() - targets).pow(2).mean(-1) / targets.var(-1, unbiased=False).clamp(min=1e-12)
    return (errors * real).sum(-1) / real.sum(-1)


@dataclass(frozen=True, kw_only=True)
class LayerFigures(Validation):
    """Figures of one layer over the validation questions. `loss` is the regression's, a share of the states' variance.

    Attributes:
        layer: its number, from 1.
        before: the loss before its first step.
    """

    layer: int
    before: float


@dataclass(eq=False, kw_only=True)
class LayerTrainer(Loop[LayerFigures]):
    """Trains the adapter CONTEMPLATE, one layer after the other. Its validation is the end of a layer.

    Attributes:
        contemplation: what is trained.
        ratio: r.
        tell: is told what happens.
    """

    schedule: LayerSchedule
    contemplation: Contemplation
    ratio: float
    tell: Tell
    _states: LayerStates | None = field(default=None, init=False)
    _before: float = field(default=math.nan, init=False)

    def trained(self) -> list[Parameter]:
        return list(self._named().values())

    def _named(self) -> dict[str, Parameter]:
        named = self.contemplation.model.named_parameters()
        return {name: parameter for name, parameter in named if f".{CONTEMPLATE}." in name}

    def frozen(self) -> Sequence[tuple[int, ...]]:
        return [digest(self.contemplation.model, but=self._named())]

    def learned(self) -> dict[str, Tensor]:
        return dict(self._named())

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._named().items():
            parameter.copy_(tensors[name])

    def backward(self, batch: Sequence[Example], *, step: int) -> tuple[dict[str, Any], int]:
        layer, place = divmod(step, self.schedule.per_layer)
        if place == 0:
            self._optimiser.state.clear()  # of the layer before, which is left as it is from now on
            self._before = self._loss_of(layer)
        states, examples = self._at(layer), self.processes.share(batch)
        total = torch.zeros((), device=self.contemplation.model.device)
        own = parameters_of(layers_of(self.contemplation.model)[layer], CONTEMPLATE)
        if examples:
            tasks = [states.tasks[example] for example in examples]
            made, real = states.run(tasks)
            loss = regression_losses(made, tasks, real).sum() / len(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        for parameter in own:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.processes.add_up([*(p.grad for p in own if p.grad is not None), total])
        tokens = sum(len(states.tasks[example].inputs) for example in batch)
        return {"language": float(total), "layer": layer + 1}, tokens

    def examine(self) -> LayerFigures:
        """The loss of the layer that was trained last; before the first step, of the first layer."""
        layer = max(0, self._states.layer) if self._states else 0
        loss = self._loss_of(layer)
        before = loss if math.isnan(self._before) else self._before
        return LayerFigures(loss=loss, layer=layer + 1, before=before)

    @torch.no_grad()
    def _loss_of(self, layer: int) -> float:
        """The mean loss of a layer over the validation questions."""
        states = self._at(layer)
        losses: list[float] = []
        for part in _parts(self.validation):
            tasks = [states.tasks[example] for example in part]
            made, real = states.run(tasks)
            losses += regression_losses(made, tasks, real).tolist()
        return math.fsum(losses) / len(losses)

    def _at(self, layer: int) -> LayerStates:
        """What a layer is trained on."""
        if self._states is None:
            both = [*self.train, *self.validation]
            self._states = LayerStates(self.contemplation, both, self.ratio, self.tell)
        while self._states.layer < layer:
            self._states.advance()
        return self._states


@dataclass(frozen=True, kw_only=True)
class ContemplationFigures(Validation):
    """Figures of a decoder and its contemplation over the validation questions, in nats a token of the answers.

    Attributes:
        before: the loss before the first step, where the decoder changes nothing yet.
        gold: the loss with the gold states in the place of the contemplation tokens; None where there are no such tokens.
        stop: the loss of the stop head, in nats a contemplation token; None where there are none.
    """

    before: float
    gold: float | None = None
    stop: float | None = None


@dataclass(eq=False, kw_only=True)
class DecoderTrainer(Loop[ContemplationFigures]):
    """Trains the adapter DECODE, and with contemplation tokens their layers after l and the stop head.

    Attributes:
        contemplation: makes the tokens.
        reader: computes the losses of answers with the same model.
        ratio: r; 0 for no tokens.
        micro_batch: questions whose activations are in memory at once.
        tell: is told what happens.
        recompute: compute activations of the decoder again in the backward pass instead of keeping them.
        loss_before: the validation loss before the first step, in nats a token; NaN until it is known.
    """

    contemplation: Contemplation
    reader: Reader
    ratio: float
    micro_batch: int
    tell: Tell
    recompute: bool = False
    loss_before: float = math.nan
    _inputs: dict[Example, Tensor] = field(default_factory=dict, init=False)

    def trained(self) -> list[Parameter]:
        return list(self._named().values())

    def _named(self) -> dict[str, Parameter]:
        """What is trained, by name. With pause tokens that is the whole adapter, as nothing has trained it before."""
        contemplation, model = self.contemplation, self.contemplation.model
        named = {name: one for name, one in model.named_parameters() if f".{DECODE}." in name}
        if not self.ratio:
            return named
        first = 0 if contemplation.pause is not None else contemplation.layer
        after = {id(one) for layer in layers_of(model)[first:] for one in parameters_of(layer, CONTEMPLATE)}
        named |= {name: one for name, one in model.named_parameters() if id(one) in after}
        return named | {f"contemplation.{name}": one for name, one in contemplation.named_parameters()}

    def frozen(self) -> Sequence[tuple[int, ...]]:
        return [digest(self.contemplation.model, but=self._named())]

    def learned(self) -> dict[str, Tensor]:
        before = {"before": torch.tensor(self.loss_before, dtype=torch.float64)}
        return before | {f"trained.{name}": tensor for name, tensor in self._named().items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.loss_before = float(tensors["before"])
        saved = under("trained.", tensors)
        for name, parameter in self._named().items():
            parameter.copy_(saved[name])

    def backward(self, batch: Sequence[Example], *, step: int) -> tuple[dict[str, Any], int]:  # noqa: ARG002
        """See `Loop.backward`. The loss is a mean over answers' tokens, and for the stop head over contemplation tokens."""
        examples = self.processes.share(batch)
        answered = sum(len(example.scored) for example in batch)
        contemplated = sum(self._count(example) for example in batch)
        sums = torch.zeros(2, device=self.contemplation.model.device)
        for start in range(0, len(examples), self.micro_batch):
            losses, stops = self._losses(examples[start : start + self.micro_batch])
            parts = torch.stack([losses.sum() / answered, stops.sum() / max(1, contemplated)])
            for parameter in self.trained():  # switching between adapters has switched some off
                parameter.requires_grad_(True)
            parts.sum().backward()  # type: ignore[no-untyped-call]
            sums += parts.detach()
        for parameter in self.trained():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.processes.add_up([*(p.grad for p in self.trained() if p.grad is not None), sums])
        row = {"language": float(sums[0])} | ({"stop": float(sums[1])} if self.ratio else {})
        return row, answered

    @torch.no_grad()
    def examine(self) -> ContemplationFigures:
        """Computes the validation losses, one question at a time: they depend neither on batch size nor on processes."""
        places = self.processes.share(range(len(self.validation)))
        found = self.processes.collect({n: self._figures(self.validation[n]) for n in places})
        own, answers, golds, stops = zip(*(found[n] for n in range(len(found))), strict=True)
        decoded = [as_decoded(example) for example in self.validation]
        groups = questions_of(decoded)
        per_question = PerQuestion(
            ids=tuple(decoded[group[0]].question for group in groups),
            tokens=tuple(sum(len(decoded[n].scored) for n in group) for group in groups),
            own=tuple(math.fsum(own[n] for n in group) for group in groups),
        )
        tokens = sum(per_question.tokens)
        loss = math.fsum(own) / tokens
        if math.isnan(self.loss_before):
            self.loss_before = loss
        contemplated = sum(map(self._count, self.validation))
        return ContemplationFigures(
            loss=loss,
            answer=over_answers(answers, decoded),
            before=self.loss_before,
            gold=math.fsum(golds) / tokens if self._has_gold() else None,
            stop=math.fsum(stops) / contemplated if self.ratio else None,
            per_question=per_question,
        )

    def _count(self, example: Example) -> int:
        """Number of contemplation tokens of a question in training."""
        return count_of(len(chain_of(example)), self.ratio)

    def _has_gold(self) -> bool:
        return bool(self.ratio) and self.contemplation.pause is None

    def _figures(self, example: Example) -> tuple[float, float, float, float]:
        """Sums of one question: loss of the answer, of its own tokens, with gold states, and of the stop head."""
        prefix, tokens = self._contemplated([example])
        losses, of_answer = self._answers([example], prefix, tokens)
        stop = float(self.contemplation.stop_losses(tokens).sum()) if tokens else 0.0
        gold = 0.0
        if self._has_gold():
            read, _ = self.contemplation.read([prompt_of(example)])
            states = gold_states(self.contemplation.model, example, self.ratio)
            gold = float(self._answers([example], read, gold_tokens(self.contemplation.model, read, [states]))[0])
        return float(losses), float(of_answer), gold, stop

    def _losses(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """Loss of each example's answer, [B], and of the stop head at each of its tokens, [B, K]."""
        prefix, tokens = self._contemplated(examples)
        with gradient_checkpointing(self.contemplation.model, active=self.recompute):
            losses, _ = self._answers(examples, prefix, tokens)
        return losses, self.contemplation.stop_losses(tokens) if tokens else losses.new_zeros(len(examples), 1)

    def _contemplated(self, examples: Sequence[Example]) -> tuple[Prefix, Tokens | None]:
        """The questions as the frozen model has read them, and their contemplation tokens; None without any."""
        made = self._rolled_out() if self.ratio else {}
        prefix, _ = self.contemplation.read([prompt_of(example) for example in examples])
        if not made:
            return prefix, None
        inputs = pad_sequence([made[example] for example in examples], batch_first=True)
        counts = torch.tensor([len(made[example]) for example in examples], device=inputs.device)
        seen = torch.arange(inputs.shape[1], device=inputs.device) < counts[:, None]
        return prefix, self.contemplation.tokens(prefix, inputs, seen)

    def _rolled_out(self) -> dict[Example, Tensor]:
        """The inputs of all contemplation tokens, [k, D] of each question.

        They are made once, as the layers that make them stay as they are, and always in the same batches, so that a training
        that goes on gets the very same ones.
        """
        if self._inputs:
            return self._inputs
        distinct = list(dict.fromkeys([*self.train, *self.validation]))
        width = self.contemplation.model.get_input_embeddings().weight.shape[1]
        latent = self.contemplation.pause is None
        made_by = f"questions contemplated on up to layer {self.contemplation.layer}"
        for examples in _told(_parts(distinct), self.tell, made_by, last=latent):
            counts = [self._count(example) for example in examples]
            if latent:
                prefix, first = self.contemplation.read([prompt_of(example) for example in examples])
                made = self.contemplation.inputs(prefix, first, max(counts))
            else:  # are not looked at
                made = torch.zeros(len(examples), max(counts), width, device=self.contemplation.model.device)
            for row, (example, count) in enumerate(zip(examples, counts, strict=True)):
                self._inputs[example] = made[row, :count].clone()
        return self._inputs

    def _answers(self, examples: Sequence[Example], prefix: Prefix, tokens: Tokens | None) -> tuple[Tensor, Tensor]:
        """Loss of each example's answer after the tokens, and of its own tokens alone; both [B]."""
        decoded = [as_decoded(example) for example in examples]
        before = joined(prefix, tokens) if tokens else prefix
        activate(self.contemplation.model, DECODE)
        width = self.contemplation.model.get_input_embeddings().weight.shape[1]
        none = before.keys[0].new_zeros(len(examples), 1, 0, width)
        losses, of_answers = self.reader.losses_and_answers(decoded, none, before=before)
        return losses[:, 0], of_answers[:, 0]


def _told(parts: Sequence[Part], tell: Tell, what: str, *, last: bool = True) -> Iterator[Part]:
    """The parts, one after the other; `tell` is told every few seconds how many of what they are made of are done.

    last: whether it is told at the end in any case.
    """
    sizes = [len(part) for part in parts]
    said, done = time.monotonic(), 0
    for part, size in zip(parts, sizes, strict=True):
        yield part
        done += size
        if (last and done == sum(sizes)) or time.monotonic() - said > _TELL_EVERY:
            said = time.monotonic()
            tell(f"{done:,} of {sum(sizes):,} {what}")


def _parts(examples: Sequence[Example]) -> list[Sequence[Example]]:
    """The examples in their order, some at a time."""
    return [examples[start : start + _TOGETHER] for start in range(0, len(examples), _TOGETHER)]


@torch.no_grad()
def gold_states(model: Any, example: Example, ratio: float) -> Tensor:
    """The frozen model's states at the gold places of a chain: before each layer and after the last, [layers + 1, k, D]."""
    activate(model, None)
    prompt, chain = prompt_of(example), chain_of(example)
    ids, mask = pad_right([(*prompt, *chain)], model.device)
    calls = calls_for_prompts(model, ids, mask, LayerCache())
    places = [len(prompt) + place for place in gold_places(len(chain), count_of(len(chain), ratio))]
    states = calls.inputs
    found = [states[0, places]]
    for number in range(len(layers_of(model))):
        states = calls.run(states, number, number + 1)
        found.append(states[0, places])
    return torch.stack(found)
