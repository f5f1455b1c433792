"""The training loop: optimiser steps, validation, early stopping, and a state on disk from which a training continues.

Training is deterministic. The order of questions, dropout and the learning rate are functions of seed and step. The state on
disk is therefore small: the learned tensors, the optimiser's moments and a few numbers. A training that was interrupted
continues from it exactly as if it had not been.

`Loop` is what all trainings have in common. `Trainer` trains a thinker. Knows token ids, no texts and no terminal.
"""

from __future__ import annotations

import json
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.nn import Parameter
from transformers import PreTrainedModel

from contrastive.health import Accuracy, Health, Validation, examine
from contrastive.objective import Objective, backward
from contrastive.paired import Estimate, mean_difference
from contrastive.parallel import Processes
from contrastive.prompt_cache import caching
from contrastive.target_loss import Example, Reader
from contrastive.thinker import Thinker

STATE_FILE, METRICS_FILE = "training.safetensors", "metrics.jsonl"
_OPTIMISER = "optimiser."  # begins the names of the optimiser's tensors in the state

Judged = TypeVar("Judged", bound=Validation)


@dataclass(frozen=True)
class _Best:
    """What later validations are compared with: losses of the best one by question, and the loss of training then."""

    own: tuple[float, ...]
    training: float | None


@dataclass(frozen=True)
class Schedule:
    """How long a training takes, and with what steps.

    Attributes:
        max_steps: optimiser steps in all.
        batch_size: examples of an optimiser step.
        lr: the highest learning rate, see `lr_at`.
        weight_decay: of AdamW.
        warmup: steps of rising learning rate.
        clip: largest norm of the gradient; a longer gradient is scaled down to it.
        validate_every: steps between validations.
        patience: validations without a better one after which training stops, 0 for never.
        seed: of the order of examples.
    """

    max_steps: int
    batch_size: int = 8
    lr: float = 2e-3
    weight_decay: float = 0.0
    warmup: int = 0
    clip: float = 1.0
    validate_every: int = 50
    patience: int = 0
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0: a linear warm-up, then a linear decay to zero at max_steps."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * (self.max_steps - step) / max(1, self.max_steps - self.warmup)

    def batch(self, examples: Sequence[Example], step: int) -> list[Example]:
        """The examples of a step, counted from 0. Every epoch takes each example once, in an order of its own."""
        per_epoch = math.ceil(len(examples) / self.batch_size)
        epoch, number = divmod(step, per_epoch)
        order = _order_of(len(examples), self.seed, epoch)
        return [examples[place] for place in order[number * self.batch_size : (number + 1) * self.batch_size]]

    def repeats(self, examples: Sequence[Example]) -> bool:
        """Whether a training takes some of these examples more than once."""
        return self.max_steps > math.ceil(len(examples) / self.batch_size)


@lru_cache(maxsize=1)
def _order_of(number: int, seed: int, epoch: int) -> list[int]:
    """The order of so many examples in an epoch, kept until another one is asked for: shuffling costs as much as a step."""
    order = list(range(number))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        step: optimiser steps taken so far.
        best: loss of the best validation so far, in nats a token. It is the lowest so far, unless accuracy decides.
        best_accuracy: accuracy of the best validation so far; None where the loss decides.
        best_step: the step of that validation.
        waited: validations since then.
        seconds: time spent so far, earlier sessions included.
        stopped_early: whether training has stopped because no validation was better.
    """

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0
    stopped_early: bool = False
    best_accuracy: float | None = None

    def is_beaten_by(self, figures: Validation) -> bool:
        """Whether a validation is better than all before: by its accuracy if it has one, and between equals by its loss."""
        if not math.isfinite(figures.loss):
            return False
        if figures.accuracy is None or self.best_accuracy is None:
            return figures.loss < self.best
        return (figures.accuracy.value, -figures.loss) > (self.best_accuracy, -self.best)


class StepObserver(Protocol):
    """Is called as a training goes on, for example to show a progress bar."""

    def started(self, progress: Progress, schedule: Schedule) -> None:
        """Training begins, or continues from `progress`."""

    def stepped(self, progress: Progress, row: dict[str, Any]) -> None:
        """A step was taken. row: its line of metrics.jsonl."""

    def examined(self, progress: Progress, health: Any) -> None:
        """A validation is done. health: its figures, of the type that the training's `examine` returns."""


@dataclass(eq=False, kw_only=True)
class Loop(ABC, Generic[Judged]):
    """A training without what is trained: that is for subclasses to say.

    Attributes:
        train: the examples to learn from.
        validation: the examples to validate on.
        schedule: steps and optimiser.
        folder: where state and metrics are written; only process 0 writes.
        keep: is called after every validation, to save a checkpoint, with its figures, the step, and whether it is better
            than all before.
        watcher: is told what happens.
        processes: those that train together.
        accuracy: measures the accuracy of what is trained, by which the best validation is then chosen. Every process
            calls it, and has to get the same. None for choosing by the loss.
        start_counts: whether the best validation may be the one before the first step. Otherwise that one is kept until the
            next, however good it was.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    schedule: Schedule
    folder: Path
    keep: Callable[[Judged, int, bool], None]
    watcher: StepObserver
    processes: Processes = field(default_factory=Processes)
    accuracy: Callable[[], Accuracy] | None = None
    start_counts: bool = True

    @abstractmethod
    def trained(self) -> list[Parameter]:
        """The parameters that the optimiser changes, in an order that is always the same."""

    @abstractmethod
    def frozen(self) -> Sequence[tuple[int, ...]]:
        """Digests of the weights that training must not change."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """The tensors, by name, that the state on disk holds besides the optimiser's moments."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Puts back tensors that `learned` has returned."""

    @abstractmethod
    def backward(self, batch: Sequence[Example], *, step: int) -> tuple[dict[str, Any], int]:
        """Computes the gradient of the loss over a batch and adds it to the gradients of the trained parameters.

        Args:
            batch: the examples of this step, those of all processes. Afterwards every process has the whole gradient.
            step: number of the step, from 0.

        Returns:
            The parts of the loss by name, and how many target tokens were scored.
        """

    @abstractmethod
    def examine(self) -> Judged:
        """Computes the figures of the validation examples."""

    def run(self) -> Progress:
        """Trains to the end. Where the folder holds a state, it continues from there.

        Raises:
            DamagedFile: for a state or metrics that were changed since they were written.
            NotFinite: where losses are not finite before anything was learned.
            ModelChanged: where a frozen model has changed, which is a bug.
        """
        self._optimiser = torch.optim.AdamW(
            self.trained(), lr=self.schedule.lr, weight_decay=self.schedule.weight_decay
        )
        frozen = self.frozen()
        self._best: _Best | None = None
        self._recent: list[float] = []  # losses of the steps since the last validation
        progress = self._resumed()
        self.watcher.started(progress, self.schedule)
        if not (self.folder / STATE_FILE).is_file():
            self._examine(progress)
        while progress.step < self.schedule.max_steps and not progress.stopped_early:
            self._step(progress)
            last = progress.step == self.schedule.max_steps
            if last or progress.step % self.schedule.validate_every == 0:
                self._examine(progress)
        if self.frozen() != frozen:
            raise ModelChanged("training has changed a frozen model")
        return progress

    def _step(self, progress: Progress) -> None:
        """Takes one optimiser step and writes its line of metrics."""
        began = time.monotonic()
        batch = self.schedule.batch(self.train, progress.step)
        lr = self.schedule.lr_at(progress.step)
        for group in self._optimiser.param_groups:
            group["lr"] = lr
        self._optimiser.zero_grad()
        parts, tokens = self.backward(batch, step=progress.step)
        norm = torch.nn.utils.clip_grad_norm_(self._optimiser.param_groups[0]["params"], self.schedule.clip)
        self._optimiser.step()
        progress.step += 1
        took = time.monotonic() - began
        progress.seconds += took
        rates = {"lr": lr, "gradient_norm": float(norm), "tokens_per_second": tokens / took}
        row = {"step": progress.step, **parts, **rates, "seconds": progress.seconds}
        self._recent.append(parts["language"])
        self._write(row)
        self.watcher.stepped(progress, row)

    def _examine(self, progress: Progress) -> None:
        """Validates, keeps what was learned, and saves the state."""
        began = time.monotonic()
        health = self._beside_training(self.examine())
        if self.accuracy:
            health = replace(health, accuracy=self.accuracy())
        progress.seconds += time.monotonic() - began
        if math.isinf(progress.best) and not math.isfinite(health.loss):
            when = f"after {progress.step} steps" if progress.step else "before anything was learned"
            raise NotFinite(f"the loss of the validation questions is {health.loss} {when}")
        better = progress.is_beaten_by(health)
        if better:
            counts = self.start_counts or progress.step > 0
            progress.best, progress.best_step, progress.waited = health.loss if counts else math.inf, progress.step, 0
            progress.best_accuracy = health.accuracy.value if health.accuracy and counts else None
            self._best = None
            if health.per_question:
                self._best = _Best(health.per_question.own, health.training)
        else:
            progress.waited += 1
            progress.stopped_early = 0 < self.schedule.patience <= progress.waited
        if self.processes.rank == 0:
            self.keep(health, progress.step, better)
        self._write({"step": progress.step, "validation": asdict(health), "seconds": progress.seconds})
        if self.processes.rank == 0:
            self._save(progress)
        self.watcher.examined(progress, health)

    def _beside_training(self, health: Judged) -> Judged:
        """The figures of a validation with those that compare it with training and with the best validation so far."""
        training = sum(self._recent) / len(self._recent) if self._recent else None
        self._recent.clear()
        rise: Estimate | None = None
        fall: float | None = None
        if self._best and health.per_question and len(self._best.own) == len(health.per_question.own):
            rise = mean_difference(health.per_question.own, self._best.own, health.per_question.tokens)
            fall = None if training is None or self._best.training is None else self._best.training - training
        return replace(health, training=training, rise=rise, training_fall=fall)

    def _write(self, row: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl."""
        if self.processes.rank == 0:
            with (self.folder / METRICS_FILE).open("a") as file:
                file.write(json.dumps(row) + "\n")

    def _save(self, progress: Progress) -> None:
        """Writes the state. The file is replaced in one step, so that a kill leaves either this state or the one before."""
        tensors = dict(self.learned())
        for number, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"{_OPTIMISER}{number}.{name}": tensor for name, tensor in state.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        partial = self.folder / f"{STATE_FILE}.tmp"
        metadata = {"progress": json.dumps(asdict(progress)), "digest": _digest_of(tensors)}
        save_file(tensors, partial, metadata=metadata)
        partial.replace(self.folder / STATE_FILE)

    def _resumed(self) -> Progress:
        """Reads the state in the folder, if there is one, and puts it back. Raises DamagedFile."""
        path = self.folder / STATE_FILE
        if not path.is_file():
            (self.folder / METRICS_FILE).unlink(missing_ok=True)
            return Progress()
        metrics = self._metrics()  # read first: a damaged file is to be reported before anything is changed
        try:
            progress, tensors = self._state(path)
            self.restore({name: tensor for name, tensor in tensors.items() if not name.startswith(_OPTIMISER)})
            self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": self._moments(tensors)})
        except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise DamagedFile(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from None
        self._best = _best_of(metrics or [], progress.best_step)
        if metrics is not None and self.processes.rank == 0:
            # the steps after the saved state are taken again, so that their lines would be there twice
            partial = self.folder / f"{METRICS_FILE}.tmp"
            partial.write_text("".join(f"{line}\n" for step, line in metrics if step <= progress.step))
            partial.replace(self.folder / METRICS_FILE)
        return progress

    def _state(self, path: Path) -> tuple[Progress, dict[str, Tensor]]:
        """Reads what `_save` wrote. Raises ValueError, or whatever reading a damaged file raises."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        progress = Progress(**json.loads(metadata["progress"]))
        if metadata.get("digest", _digest_of(tensors)) != _digest_of(
            tensors
        ):  # states of older versions have no digest
            raise ValueError("it is not what was written")
        types = {name: type(value) for name, value in asdict(Progress()).items()}
        values = {**asdict(progress), "best_accuracy": None}  # which is checked below, as it may be a number too
        if not all(type(value) is types[name] for name, value in values.items()):
            raise ValueError("its progress holds values of other types")
        if progress.best_accuracy is not None and not 0 <= progress.best_accuracy <= 1:
            raise ValueError("its accuracy is no share")
        if math.isnan(progress.best) or not math.isfinite(progress.seconds):
            raise ValueError("its progress is not a number")
        if not 0 <= progress.best_step <= progress.step <= self.schedule.max_steps:
            raise ValueError(f"its step {progress.step} is none of {self.schedule.max_steps}")
        return progress, tensors

    def _moments(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """The optimiser's state, by number of the parameter. Raises ValueError where it does not fit the parameters."""
        trained = self.trained()
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under(_OPTIMISER, tensors).items():
            number, key = name.split(".")
            # a moment has the shape of its parameter; the count of steps is a scalar
            fits = int(number) < len(trained) and tensor.shape in (trained[int(number)].shape, torch.Size())
            if not fits:
                raise ValueError(f"{_OPTIMISER}{name} fits no parameter")
            states.setdefault(int(number), {})[key] = tensor
        return states

    def _metrics(self) -> list[tuple[int, str]] | None:
        """(step, line) of every line of metrics.jsonl; None where there is no such file.

        A last line that is not complete is left out: the process may have been killed while it wrote. Raises DamagedFile
        for a complete line that is no step of a training.
        """
        path = self.folder / METRICS_FILE
        if self.processes.rank or not path.is_file():
            return None
        *lines, torn = path.read_bytes().split(b"\n")
        rows: list[tuple[int, str]] = []
        for number, line in enumerate(lines, start=1):
            try:
                rows.append((int(json.loads(line)["step"]), line.decode("ascii")))
            except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
                raise DamagedFile(f"{path} line {number} is no step of a training") from None
            if number > 1 and rows[-1][0] < rows[-2][0]:
                raise DamagedFile(f"{path} line {number} is of an earlier step than the line before it")
        if b"\r" in torn:
            raise DamagedFile(f"{path} line {len(lines) + 1} has other line ends than it was written with")
        return rows


@dataclass(eq=False, kw_only=True)
class Trainer(Loop[Health]):
    """Trains a thinker before a frozen backbone, and after a frozen assistant where it has one.

    Attributes:
        thinker: what is trained.
        assistant: the frozen model that it reads questions with; None for a thinker that needs none.
        reader: computes losses with the frozen backbone.
        objective: the loss.
        constant: losses of the validation questions with the best constant prompt, see `health.examine`; None if not known.
        prompt_memory: bytes for what the models have read of prompts that come again; how many changes no result. None to
            read them anew each time, with their batch.
    """

    thinker: Thinker
    assistant: PreTrainedModel | None
    reader: Reader
    objective: Objective
    constant: Mapping[str, float] | None = None
    prompt_memory: int | None = None

    def run(self) -> Progress:
        """As in `Loop`. What comes again, in epochs or validations, is read once, as far as `prompt_memory` allows."""
        again = [*self.validation, *(self.train if self.schedule.repeats(self.train) else ())]
        prompts = [(self.reader.backbone, [example.prefix for example in again])]
        if self.assistant is not None:
            prompts.append((self.assistant, [example.assistant for example in again]))
        with caching(() if self.prompt_memory is None else prompts, limit=self.prompt_memory or 0):
            return super().run()

    def trained(self) -> list[Parameter]:
        return [parameter for parameter in self.thinker.parameters() if parameter.requires_grad]

    def frozen(self) -> Sequence[tuple[int, ...]]:
        return [digest(model) for model in (self.assistant, self.reader.backbone) if model is not None]

    def learned(self) -> dict[str, Tensor]:
        return {f"thinker.{name}": tensor for name, tensor in self.thinker.state_dict().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.thinker.load_state_dict(under("thinker.", tensors))

    def backward(self, batch: Sequence[Example], *, step: int) -> tuple[dict[str, Any], int]:
        arguments = (self.thinker, self.assistant, self.reader, batch, self.objective)
        parts = backward(*arguments, step=step, processes=self.processes)
        return asdict(parts), sum(len(example.scored) for example in batch) * self.thinker.num_paths

    def examine(self) -> Health:
        arguments = (self.thinker, self.assistant, self.reader, self.validation, self.objective)
        try:
            return examine(*arguments, processes=self.processes, constant=self.constant)
        except LinAlgError:  # the singular values of thoughts that are not finite
            raise NotFinite("the thoughts of the validation questions are not numbers") from None


class DamagedFile(Exception):
    """A file of a training that was changed since it was written. The message names the file and what is wrong."""


class NotFinite(Exception):
    """Losses or thoughts that are not finite, so that nothing can be learned."""


class ModelChanged(Exception):
    """A frozen model was changed by training, which is a bug."""


def digest(model: PreTrainedModel, *, but: Collection[str] = ()) -> tuple[int, ...]:
    """A hash of each weight and buffer of a model: equal before and after if no bit has changed. but: names to leave out."""
    tensors = (tensor for name, tensor in model.state_dict().items() if name not in but)
    return tuple(int(torch.hash_tensor(tensor).view(torch.int64)) for tensor in tensors)


def _digest_of(tensors: dict[str, Tensor]) -> str:
    """Hashes of the tensors, 16 hex digits each, in the order of their names: equal if no bit has changed."""
    hashes = (torch.hash_tensor(tensor).view(torch.int64) for _, tensor in sorted(tensors.items()))
    return "".join(f"{int(value) % 2**64:016x}" for value in hashes)


def _best_of(metrics: list[tuple[int, str]], best_step: int) -> _Best | None:
    """Reads the best validation from the lines of metrics.jsonl; None where earlier versions wrote it."""
    for step, line in metrics:
        if step != best_step:
            continue
        with suppress(KeyError, TypeError, ValueError):
            validation = json.loads(line)["validation"]
            training = validation["training"]
            own = tuple(map(float, validation["per_question"]["own"]))
            return _Best(own, None if training is None else float(training))
    return None


def under(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with `start`, under the rest of their names."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
