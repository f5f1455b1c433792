"""Shows a training to the user: a progress bar, a line for each validation, and a table at the end."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from contrastive.health import Health, Validation
from contrastive.paired import Estimate
from contrastive.train import Progress as Training
from contrastive.train import Schedule
from scaling.display import RunProgress, bar_on, clock, prose, say
from scaling.notebook_bar import NotebookBar
from scaling.records.errors import counted
from scaling.run import RunObserver
from scaling.training.card import chains_of, cosine, figures_of_stage, rows_of, rows_of_backbone

if TYPE_CHECKING:
    from scaling.training.ccot import CCoTResult
    from scaling.training.check import Check
    from scaling.training.coconut import CoconutResult
    from scaling.training.lora import LoraResult
    from scaling.training.run import Result

_LINE_EVERY = 10.0  # seconds between plain progress lines


class TrainingProgress:
    """Shows how far a training is: a live bar on a terminal, plain lines elsewhere.

    It is a `TrainingObserver`, and a context manager. The tracker of `--log-with` gets the same figures. Only process 0
    shows anything.
    """

    def __init__(self, console: Console, accelerator: Accelerator) -> None:
        """console: where to show it. accelerator: passes figures on to the tracker, if there is one."""
        self._console = console
        self._accelerator = accelerator
        self._silent = not accelerator.is_main_process
        self._progress: Progress | NotebookBar | None = None
        self._runs: list[RunProgress] = []
        self._printed = 0.0
        self._step = self._before = 0  # of this stage so far, and of the stages before it

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """Ends all bars."""
        for run in self._runs:
            run.__exit__(None, None, None)
        self._runs.clear()
        if self._progress:
            self._progress.stop()
            self._progress = None

    def status(self, text: str) -> None:
        """Shows a line about what begins now."""
        if not self._silent:
            say(self._console, text)

    def sampling(self) -> RunObserver:
        """Shows a run that is part of a training: the sampling of targets, or a check."""
        self._stop()
        self._runs.append(RunProgress(Console(quiet=True) if self._silent else self._console, voter="flat"))
        return self._runs[-1]

    def started(self, progress: Training, schedule: Schedule) -> None:
        """Starts the bar of a stage, after the runs and the stage that came before are done."""
        self._stop()
        self._before, self._step = self._before + self._step, progress.step
        self._schedule, self._began, self._first = schedule, time.monotonic(), progress.step
        if progress.step:
            self._print(f"going on from step {progress.step} of {schedule.max_steps}")
        if not self._silent:
            self._progress = bar_on(self._console, "steps", transient=True)
        if self._progress:
            self._task = self._progress.add_task("", total=schedule.max_steps, completed=progress.step, said="")
            self._progress.start()

    def stepped(self, progress: Training, row: dict[str, Any]) -> None:
        """Shows a step's loss and speed. row: its line of metrics.jsonl."""
        self._accelerator.log(
            {f"train/{key}": value for key, value in row.items() if key != "step" and value is not None},
            step=self._before + progress.step,
        )
        self._step = progress.step
        paths = ""
        if "contrastive" in row:
            paths = f"contrast {row['contrastive']:.3f}, cosine {cosine(row['path_cosine'])}, "
        figures = f"loss {row['language']:.4f}, {paths}{row['tokens_per_second']:.0f} tokens/s"
        if self._progress:
            self._progress.update(self._task, completed=progress.step, said=figures)
        elif time.monotonic() - self._printed > _LINE_EVERY:
            self._printed = time.monotonic()
            self._print(f"step {progress.step}/{self._schedule.max_steps}: {figures}, {self._left(progress)} left")

    def answering(self, right: int, done: int, total: int) -> None:
        """Shows how far the sampling of a validation is: right, finished and all chains."""
        share = f", {right / done:.1%} right" if done else ""
        figures = f"validation: {done}/{total} greedy chains{share}"
        if self._progress:
            self._progress.update(self._task, said=figures)
        elif time.monotonic() - self._printed > _LINE_EVERY:
            self._printed = time.monotonic()
            self._print(figures)

    def examined(self, progress: Training, health: Validation) -> None:
        """Shows a line with the figures of a validation."""
        tracked = {f"validation/{key}": value for key, value in health.figures().items()}
        self._accelerator.log(tracked, step=self._before + progress.step)
        best = ", best so far" if progress.best_step == progress.step else ""
        training = "" if health.training is None else f", training {health.training:.4f}"
        answer = "" if health.answer is None else f", answer alone {health.answer:.4f}"
        thoughts = _of_thoughts(health) if isinstance(health, Health) else ""
        right = f"accuracy {health.accuracy.value:.1%} of {chains_of(health.accuracy)}, " if health.accuracy else ""
        memorising = ", memorising" if health.memorises else ""
        figures = f"{right}loss {health.loss:.4f}{best}{answer}{training}{thoughts}{memorising}"
        self._print(f"validation at step {progress.step}: {figures}")
        if progress.stopped_early:
            self._print(f"stopped early: no better validation since step {progress.best_step}")

    def _left(self, progress: Training) -> str:
        """The time left."""
        done = progress.step - self._first
        return clock((time.monotonic() - self._began) / max(1, done) * (self._schedule.max_steps - progress.step))

    def _print(self, text: str) -> None:
        if not self._silent:
            prose(self._console, text)


def show_result(console: Console, result: Result) -> None:
    """Prints the figures of the thinker in the checkpoint, the verdict and warnings, and the command that uses it."""
    health, folder, progress = result.health, result.folder, result.progress
    by = ", chosen by accuracy" if health.accuracy else ""
    rows = (*rows_of(health), ("seconds", f"{progress.seconds:.1f}", ""))
    _table(console, f"thinker of step {progress.best_step}{by}", rows)
    warnings = health.warnings()
    if health.verdict() not in warnings:
        prose(console, health.verdict())
    for warning in warnings:
        prose(console, f"warning: {warning}")
    _use(console, f"checkpoint: {folder}/", result.command)
    if result.last:
        console.print(f"step {progress.step}: {result.last}/", highlight=False, markup=False, soft_wrap=True)


def show_adapter(console: Console, result: LoraResult) -> None:
    """Prints the figures of the adapter, the result of the check, and the command that uses it."""
    figures, progress = result.figures, result.progress
    rows = [
        *_loss("loss", figures.loss, "nats a token, held-out questions"),
        *_loss("loss, answer alone", figures.answer, "its own tokens"),
        *_loss("loss before training", figures.before),
        ("trained parameters", f"{result.parameters:,}", ""),
        ("seconds", f"{progress.seconds:.1f}", ""),
        *_of_check(result.check),
    ]
    _table(console, f"adapter of step {progress.best_step}", rows)
    _use(console, f"adapter: {result.folder}/", result.command)
    if result.merged_command:
        _use(console, f"merged: {result.merged}/", result.merged_command)


def show_contemplation(console: Console, result: CCoTResult) -> None:
    """Prints the figures of contemplation and its decoder, the result of the check, and the command that uses both."""
    figures, progress = result.figures, result.progress
    rows = [
        *_loss("loss", figures.loss, "nats a token of answers, held-out questions"),
        *_loss("loss, answer alone", figures.answer, "its own tokens"),
        *_loss("loss, gold states", figures.gold, "in the place of the tokens"),
        *_loss("loss before training", figures.before),
        *_loss("loss of the stop head", figures.stop, "nats a token"),
        ("parameters", f"{result.parameters:,}", ""),
        ("seconds", f"{progress.seconds:.1f}", "of the decoder's training"),
        *_of_check(result.check),
    ]
    _table(console, f"decoder of step {progress.best_step}", rows)
    _use(console, f"adapters: {result.folder}/", result.command)


def _loss(name: str, value: float | None, note: str = "") -> list[tuple[str, str, str]]:
    """The row of a loss; none where it was not measured."""
    return [] if value is None else [(name, f"{value:.4f}", note)]


def _table(console: Console, title: str, rows: Iterable[tuple[str, str, str]]) -> None:
    """Prints figures, each with its name and what it means."""
    table = Table(title=title, show_header=False, title_justify="left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def _of_check(check: Check | None) -> list[tuple[str, str, str]]:
    """Rows of a table on questions of another task; none without `--check-on`."""
    if check is None:
        return []
    return [
        (
            f"{check.task} before",
            f"{check.before:.1%}",
            f"greedy, {counted(check.questions, 'question')} not trained on",
        ),
        (f"{check.task} after", f"{check.after:.1%}", f"exact McNemar p = {check.p:.3f}"),
        ("right only before", f"{check.only_before}", ""),
        ("right only after", f"{check.only_after}", ""),
    ]


def show_backbone(console: Console, result: CoconutResult) -> None:
    """Prints the stages, the figures of the checkpoint, the result of the check, and the command that uses it."""
    names = figures_of_stage(result.stages[0])
    stages = Table("stage", *names, title="first and last validation of each stage", title_justify="left")
    for stage in result.stages:
        stages.add_row(str(stage["stage"]), *figures_of_stage(stage).values())
    console.print(stages)
    progress = result.progress
    rows = [
        *rows_of_backbone(asdict(result.figures)),
        ("trained parameters", f"{result.parameters:,}", ""),
        ("seconds", f"{progress.seconds:.1f}", "last stage"),
        *_of_check(result.check),
    ]
    _table(console, f"backbone of step {progress.best_step} of the last stage", rows)
    _use(console, f"backbone: {result.folder}/", result.command)


def _use(console: Console, what: str, command: str) -> None:
    """Prints where something is and the command that uses it. what: what it is, and its folder."""
    console.print(f"{what}  use it with: {command}", highlight=False, markup=False, soft_wrap=True)


def _of_thoughts(health: Health) -> str:
    """The part of a validation's line that only a thinker has."""
    over = "constant" if health.compared_with == "constant" else "mean thought"
    return (
        f", without thoughts {health.without:.4f}; useful information {_with_error(health.useful)} over the {over}, another "
        f"question's {_with_error(health.information)}; cosine of paths {cosine(health.path_cosine)}, of questions "
        f"{cosine(health.question_cosine)}, rank {health.effective_rank:.1f}"
    )


def _with_error(estimate: Estimate | None) -> str:
    """An estimate and its standard error, as far as they are known."""
    if estimate is None:
        return "-"
    return f"{estimate.value:+.4f}" + ("" if estimate.error is None else f" +- {estimate.error:.4f}")
