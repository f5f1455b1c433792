"""What the user sees: progress while a run goes on, and the table at its end. Knows the records, no models."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from scaling.notebook_bar import NotebookBar
from scaling.records.adaptive import leading
from scaling.records.errors import WARNING
from scaling.records.names import UNKNOWN
from scaling.records.records import Completion, Key
from scaling.records.summary import right_answers
from scaling.records.voters import voter_of
from scaling.sampler import Grid

_TELLING = 16  # completions before a time left means anything: the first ones include the prompts
_LINE_EVERY = 10.0  # seconds between plain progress lines


class RunProgress:
    """Follows a run: a live bar on a terminal, a plain line every ten seconds elsewhere. Use as a context manager."""

    def __init__(self, console: Console, *, voter: str):
        self._console = console
        self._voter = voter_of(voter)
        self._progress: Progress | NotebookBar | None = None
        self._finished: dict[str, dict[Key, Completion]] = defaultdict(dict)  # of questions that are not decided
        self._decided: set[str] = set()
        self._tokens = self._right = self._done = 0
        self._printed = 0.0

    def __enter__(self) -> RunProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def status(self, text: str) -> None:
        say(self._console, text)

    def start(self, grid: Grid, done: dict[Key, Completion], folder: Path) -> None:
        self._grid, self._started = grid, time.monotonic()
        self._printed = self._started
        self._wanted = len(grid.questions) * grid.num_paths * grid.num_samples
        self._questions = {question.id: question for question in grid.questions}
        for completion in done.values():
            inside = completion.path < grid.num_paths and completion.sample < grid.num_samples
            if inside and completion.question_id in self._questions:
                self._count(completion)
        self._held = self._done
        self._console.print(self._opening(folder), highlight=False, markup=False, soft_wrap=True)
        if self._done < self._wanted:
            self._progress = self._bar()

    def completion(self, completion: Completion) -> None:
        if completion.unread:
            self._console.print(unread(completion), highlight=False, markup=False, soft_wrap=True)
        self._count(completion)
        self._tokens += completion.num_tokens
        if self._progress:
            self._progress.update(self._task, total=self._wanted, completed=self._done, said=self._said())
        elif time.monotonic() - self._printed > _LINE_EVERY:
            self._printed = time.monotonic()
            self._console.print(
                f"{self._done}/{self._wanted} samples, {self._said()}, {self._left()} left",
                highlight=False,
                soft_wrap=True,
            )

    def _count(self, completion: Completion) -> None:
        self._done += 1
        question_id = completion.question_id
        if question_id in self._decided:
            self._wanted += 1  # drawn although it was given up: it had finished by then
            return
        found = self._finished[question_id]
        found[completion.key] = completion
        size = {"num_paths": self._grid.num_paths, "num_samples": self._grid.num_samples}
        counted = leading(question_id, found, **size, confidence=self._grid.adaptive)
        if counted is None:
            return
        vote = self._voter.vote(self._questions[question_id], counted)
        self._decided.add(question_id)
        self._right += vote.answer in right_answers(counted)
        self._wanted -= self._grid.num_paths * self._grid.num_samples - len(found)
        del self._finished[question_id]

    def _opening(self, folder: Path) -> str:
        grid = self._grid
        size = f"{len(grid.questions)} questions x {grid.num_paths} paths x {grid.num_samples} samples"
        whole = len(grid.questions) * grid.num_paths * grid.num_samples
        most = "at most " if grid.adaptive is not None else ""
        held = f", {self._done} of {most}{self._wanted} already there" if self._done else ""
        return f"{size} = {most}{whole} completions in {folder}{held}"

    def _said(self) -> str:
        """Questions, speed and running accuracy."""
        speed = self._tokens / max(1e-9, time.monotonic() - self._started)
        accuracy = f"{self._right / len(self._decided):.1%}" if self._decided else "-"
        return f"{len(self._decided)}/{len(self._grid.questions)} questions, {speed:.0f} tokens/s, accuracy {accuracy}"

    def _left(self) -> str:
        spent, new = time.monotonic() - self._started, self._done - self._held
        if new < _TELLING:
            return "-"
        seconds = int(spent / new * (self._wanted - self._done))
        return f"{seconds // 60}:{seconds % 60:02d}"

    def _bar(self) -> Progress | NotebookBar | None:
        columns = (BarColumn(20), MofNCompleteColumn(), TextColumn("samples, {task.fields[said]}"))
        progress = bar_on(self._console, *columns, TimeElapsedColumn(), TimeRemainingColumn())
        if progress:
            self._task = progress.add_task("", total=self._wanted, completed=self._done, said=self._said())
            progress.start()
        return progress


def bar_on(console: Console, *columns: ProgressColumn, transient: bool = False) -> Progress | NotebookBar | None:
    """A bar for a terminal or a notebook; None elsewhere, where lines must do."""
    if console.is_jupyter:
        return None if console.quiet else NotebookBar(transient=transient)
    return Progress(*columns, console=console, transient=transient) if console.is_terminal else None


def say(console: Console, text: str) -> None:
    """What goes on, as a dim line; a warning stands out."""
    if text.startswith(WARNING):
        console.print(f"{text}.", style="bold", highlight=False, markup=False, soft_wrap=True)
    else:
        console.print(f"{text} ...", style="dim", highlight=False, markup=False, soft_wrap=True)


def show_summary(console: Console, summary: dict[str, Any]) -> None:
    """The table at the end of a run."""
    table = Table(title=escape(f"{summary['method']} on {summary['task']}"), title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows(summary):
        table.add_row(*map(escape, row))
    console.print(table, highlight=False)
    console.print(
        f"files: {summary['run']}/ (run.json, questions.jsonl, samples.jsonl, summary.json)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def rows(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, value, remark) of each line; a rate that cannot be computed shows as a dash."""
    tokens, engine, seconds = summary["tokens"], summary["engine"], summary["seconds"]
    flat = ("accuracy, flat vote", _percent(summary["accuracy"]), _interval(summary))
    hierarchical = (
        "accuracy, hierarchical vote",
        _percent(summary["accuracy_hierarchical"]),
        "paths vote, then questions",
    )
    votes = [hierarchical, flat] if summary["voter"] == "hierarchical" else [flat, hierarchical]
    if summary["voter"] not in ("flat", "hierarchical"):
        votes.insert(0, (f"accuracy, {summary['voter']}", _percent(summary["accuracy_voted"]), "the vote of `--voter`"))
    return [
        *votes,
        ("pass@1", _percent(summary["pass_at_1"]), "a single sample is correct"),
        ("coverage", _percent(summary["coverage"]), "at least one sample is correct"),
        (
            "answers not found",
            _percent(summary["no_answer"]),
            f"cut off at the token limit: {_percent(summary['truncated'])}",
        ),
        *_doubtful(summary),
        ("strict reading", _percent(summary["accuracy_strict"]), "only answers in the asked-for form"),
        ("questions", f"{summary['num_questions']}", f"{summary['num_completions']} completions"),
        *_training(summary.get("training") or {}),
        *_saved(summary),
        ("generated tokens", f"{tokens['generated']:,}", f"{_number(summary['mean_tokens'])} a completion"),
        (
            "prompt tokens computed",
            f"{tokens['prefill_computed']:,}",
            f"{tokens['prefill_avoided']:,} more were shared",
        ),
        *_decoded(engine),
        ("seconds", f"{seconds:.1f}", f"{tokens['generated'] / max(seconds, 1e-9):.0f} tokens/s"),
    ]


def unread(completion: Completion) -> str:
    """Says which completion could not be read, and why."""
    where = f"question {completion.question_id}, path {completion.path}, sample {completion.sample}"
    return f"{where} could not be read and has no answer ({completion.unread})"


def _doubtful(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Texts and comparisons that the answer reader gave up, where there are any."""
    found = []
    if summary.get("unread"):
        found.append(("texts not readable", f"{summary['unread']:,}", "the reader failed on them: no answer"))
    if summary.get("timeouts"):
        found.append(("comparisons timed out", f"{summary['timeouts']:,}", "with the gold answer: counted as wrong"))
    return found


def _decoded(engine: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What only the in-process engine can tell."""
    if not engine["decode_steps"]:
        return []
    shared = f"{_bytes(engine['kv_bytes_avoided'])} more were shared, at the peak"
    return [
        ("keys and values held", _bytes(engine["kv_bytes_held"]), shared),
        ("decode steps", f"{engine['decode_steps']:,}", f"rows in use: {_percent(engine['slot_occupancy'])}"),
    ]


def _training(told: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What a reader must know of the thinker or adapter; nothing where it was trained on other questions of this task."""
    found = []
    for role in ("thinker", "adapter"):
        trained_on = told.get(f"{role}_trained_on", told["task"]) if told else None
        if f"{role}_trained_on" in told and trained_on is None:
            found.append((role, "untrained", "its thoughts mean nothing to the backbone"))
        elif told and trained_on == UNKNOWN:
            found.append((role, "not known", "it does not say what it was trained on"))
        elif told and trained_on != told["task"]:
            found.append((f"{role} trained on", str(trained_on), f"these questions are of {told['task']}"))
    if told.get("thinker_imported_from"):
        found.append(("prompts", "ours", "not worded as those the thinker was trained with"))
    if overlap := told.get("overlap"):
        for key in ("trained", "validated"):
            if overlap[key]:
                label = f"left out, {key} on" if overlap["left_out"] else f"questions {key} on"
                found.append((label, f"{overlap[key]} of {overlap['of']}", overlap[f"first_{key}"]))
    return found


def _saved(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    if "adaptive" not in summary:
        return []
    adaptive = summary["adaptive"]
    value = f"{adaptive['samples_saved']:,} ({_percent(adaptive['samples_saved_share'])})"
    return [("samples saved", value, f"{adaptive['questions_stopped']} questions were decided early")]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _bytes(value: int) -> str:
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.1f} MB"


def _interval(summary: dict[str, Any]) -> str:
    if summary["accuracy_low"] is None:
        return "no interval below 2 questions"
    return f"95 % interval {summary['accuracy_low']:.1%} to {summary['accuracy_high']:.1%}"
