"""The training loop: steps, validation, early stopping, and a state on disk from which the very same training goes on.

Deterministic: the order of questions, dropout and learning rate are functions of seed and step, so what is kept is what
was learned, the optimiser's moments and a few numbers. `Loop` knows no more than that; `Trainer` trains a thinker with it.
Knows token ids, no texts, no terminal.
"""

from __future__ import annotations

import json
import math
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.linalg import LinAlgError  # type: ignore[attr-defined]
from torch.nn import Parameter
from transformers import PreTrainedModel

from contrastive.health import Health, Validation, examine
from contrastive.objective import Objective, backward
from contrastive.parallel import Processes
from contrastive.target_loss import Example, Reader
from contrastive.thinker import Thinker

STATE_FILE, METRICS_FILE = "training.safetensors", "metrics.jsonl"
_OPTIMISER = "optimiser."

Judged = TypeVar("Judged", bound=Validation)


@dataclass(frozen=True)
class Schedule:
    """batch_size: questions of an optimiser step. warmup: steps. clip: largest norm of the gradient. validate_every: steps.

    patience: validations without a better loss after which training stops, 0 for never.
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
        """Linear warm-up, then linear decay to zero after the last step; step counts from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * (self.max_steps - step) / max(1, self.max_steps - self.warmup)

    def batch(self, examples: Sequence[Example], step: int) -> list[Example]:
        """The questions of a step: every epoch has each example once, in an order of its own."""
        per_epoch = math.ceil(len(examples) / self.batch_size)
        epoch, number = divmod(step, per_epoch)
        order = list(range(len(examples)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return [examples[place] for place in order[number * self.batch_size : (number + 1) * self.batch_size]]


@dataclass
class Progress:
    """How far training is. best: lowest validation loss so far, at step best_step; waited: validations since."""

    step: int = 0
    best: float = math.inf
    best_step: int = 0
    waited: int = 0
    seconds: float = 0.0
    stopped_early: bool = False


class StepObserver(Protocol):
    """Is told what happens."""

    def started(self, progress: Progress, schedule: Schedule) -> None: ...
    def stepped(self, progress: Progress, row: dict[str, Any]) -> None: ...
    def examined(self, progress: Progress, health: Any) -> None: ...


@dataclass(eq=False, kw_only=True)
class Loop(ABC, Generic[Judged]):
    """What every training has. keep: called with what validation said whenever it is better than before.

    folder: where state and metrics go; only process 0 writes.
    """

    train: Sequence[Example]
    validation: Sequence[Example]
    schedule: Schedule
    folder: Path
    keep: Callable[[Judged], None]
    watcher: StepObserver
    processes: Processes = field(default_factory=Processes)

    @abstractmethod
    def trained(self) -> list[Parameter]:
        """The parameters that the optimiser changes, in an order that is always the same."""

    @abstractmethod
    def frozen(self) -> Sequence[tuple[int, ...]]:
        """Digests of what a training must not change."""

    @abstractmethod
    def learned(self) -> dict[str, Tensor]:
        """What the state on disk holds besides the optimiser's moments, by name."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Takes back what `learned` gave."""

    @abstractmethod
    def backward(self, batch: Sequence[Example], *, step: int) -> tuple[dict[str, Any], int]:
        """Adds the gradient over `batch`, the questions of all processes, so that every process has the whole of it.

        Returns what the loss was made of, and how many target tokens were predicted.
        """

    @abstractmethod
    def examine(self) -> Judged:
        """What the validation questions say now."""

    def run(self) -> Progress:
        """Trains to the end, from the state in the folder where there is one.

        Raises DamagedFile, NotFinite and ModelChanged.
        """
        self._optimiser = torch.optim.AdamW(
            self.trained(), lr=self.schedule.lr, weight_decay=self.schedule.weight_decay
        )
        frozen = self.frozen()
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
        told = {"lr": lr, "gradient_norm": float(norm), "tokens_per_second": tokens / took}
        row = {"step": progress.step, **parts, **told, "seconds": progress.seconds}
        self._write(row)
        self.watcher.stepped(progress, row)

    def _examine(self, progress: Progress) -> None:
        began = time.monotonic()
        health = self.examine()
        progress.seconds += time.monotonic() - began
        if math.isinf(progress.best) and not math.isfinite(health.loss):
            raise NotFinite(f"the loss of the validation questions is {health.loss} before anything was learned")
        if health.loss < progress.best:
            progress.best, progress.best_step, progress.waited = health.loss, progress.step, 0
            if self.processes.rank == 0:
                self.keep(health)
        else:
            progress.waited += 1
            progress.stopped_early = 0 < self.schedule.patience <= progress.waited
        self._write({"step": progress.step, "validation": asdict(health), "seconds": progress.seconds})
        if self.processes.rank == 0:
            self._save(progress)
        self.watcher.examined(progress, health)

    def _write(self, row: dict[str, Any]) -> None:
        if self.processes.rank == 0:
            with (self.folder / METRICS_FILE).open("a") as file:
                file.write(json.dumps(row) + "\n")

    def _save(self, progress: Progress) -> None:
        """One file, replaced in one step: a kill at any moment leaves this state or the one before."""
        tensors = dict(self.learned())
        for number, state in self._optimiser.state_dict()["state"].items():
            tensors |= {f"{_OPTIMISER}{number}.{name}": tensor for name, tensor in state.items()}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        partial = self.folder / f"{STATE_FILE}.tmp"
        told = {"progress": json.dumps(asdict(progress)), "digest": _digest_of(tensors)}
        save_file(tensors, partial, metadata=told)
        partial.replace(self.folder / STATE_FILE)

    def _resumed(self) -> Progress:
        path = self.folder / STATE_FILE
        if not path.is_file():
            (self.folder / METRICS_FILE).unlink(missing_ok=True)
            return Progress()
        metrics = self._metrics()  # read first, so that a damaged file is named before anything is taken over
        try:
            progress, tensors = self._state(path)
            self.restore({name: tensor for name, tensor in tensors.items() if not name.startswith(_OPTIMISER)})
            self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": self._moments(tensors)})
        except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
            raise DamagedFile(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from None
        if metrics is not None and self.processes.rank == 0:
            # steps after the saved state are taken again, so their rows would stand twice
            partial = self.folder / f"{METRICS_FILE}.tmp"
            partial.write_text("".join(f"{line}\n" for step, line in metrics if step <= progress.step))
            partial.replace(self.folder / METRICS_FILE)
        return progress

    def _state(self, path: Path) -> tuple[Progress, dict[str, Tensor]]:
        """What `_save` wrote. Raises ValueError, or what reading a damaged file raises."""
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        progress = Progress(**json.loads(told["progress"]))
        if told.get("digest", _digest_of(tensors)) != _digest_of(tensors):  # states of older versions have none
            raise ValueError("it is not what was written")
        kinds = {name: type(value) for name, value in asdict(Progress()).items()}
        if not all(type(value) is kinds[name] for name, value in asdict(progress).items()):
            raise ValueError("its progress holds values of other types")
        if math.isnan(progress.best) or not math.isfinite(progress.seconds):
            raise ValueError("its progress is not a number")
        if not 0 <= progress.best_step <= progress.step <= self.schedule.max_steps:
            raise ValueError(f"its step {progress.step} is none of {self.schedule.max_steps}")
        return progress, tensors

    def _moments(self, tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """The optimiser's state by number of the parameter. Raises ValueError where it is not that of these parameters."""
        trained = self.trained()
        states: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under(_OPTIMISER, tensors).items():
            number, key = name.split(".")
            fits = int(number) < len(trained) and tensor.shape in (trained[int(number)].shape, torch.Size())
            if not fits:
                raise ValueError(f"{_OPTIMISER}{name} fits no parameter")
            states.setdefault(int(number), {})[key] = tensor
        return states

    def _metrics(self) -> list[tuple[int, str]] | None:
        """(step, line) of every row of metrics.jsonl but a torn last one; None where there is no such file.

        Raises DamagedFile for a line in the middle that is none.
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
    """Trains a thinker between two frozen models."""

    thinker: Thinker
    assistant: PreTrainedModel
    reader: Reader
    objective: Objective

    def trained(self) -> list[Parameter]:
        return [parameter for parameter in self.thinker.parameters() if parameter.requires_grad]

    def frozen(self) -> Sequence[tuple[int, ...]]:
        return [digest(model) for model in (self.assistant, self.reader.backbone)]

    def learned(self) -> dict[str, Tensor]:
        return {f"thinker.{name}": tensor for name, tensor in self.thinker.state_dict().items()}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.thinker.load_state_dict(under("thinker.", tensors))

    def backward(self, batch: Sequence[Example], *, step: int) -> tuple[dict[str, Any], int]:
        given = (self.thinker, self.assistant, self.reader, batch, self.objective)
        parts = backward(*given, step=step, processes=self.processes)
        return asdict(parts), sum(len(example.target) for example in batch) * self.thinker.num_paths

    def examine(self) -> Health:
        given = (self.thinker, self.assistant, self.reader, self.validation, self.objective)
        try:
            return examine(*given, processes=self.processes)
        except LinAlgError:  # of the thoughts' rank
            raise NotFinite("the thoughts of the validation questions are not numbers") from None


class DamagedFile(Exception):
    """A file of a training that was changed since it was written; the message names it and says how it shows."""


class NotFinite(Exception):
    """Losses that are no numbers, so that nothing can be learned from them."""


class ModelChanged(Exception):
    """A frozen model is not what it was before: a bug."""


def digest(model: PreTrainedModel, *, but: Collection[str] = ()) -> tuple[int, ...]:
    """Tells whether any bit of any weight or buffer has changed. but: names of tensors that may."""
    held = (tensor for name, tensor in model.state_dict().items() if name not in but)
    return tuple(int(torch.hash_tensor(tensor).view(torch.int64)) for tensor in held)


def _digest_of(tensors: dict[str, Tensor]) -> str:
    """16 hex digits for each tensor, in the order of their names: tells whether any bit is another one."""
    hashes = (torch.hash_tensor(tensor).view(torch.int64) for _, tensor in sorted(tensors.items()))
    return "".join(f"{int(value) % 2**64:016x}" for value in hashes)


def under(start: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins so, without that beginning."""
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
