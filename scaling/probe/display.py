"""Shows a probe to the user: a bar for each measure, the tables, and the verdict."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from scaling.display import RunProgress, bar_on, prose, say
from scaling.notebook_bar import NotebookBar
from scaling.probe.measure import CONSTANT, NONE, OTHER, OWN, RATIONALE, Advance, Estimate
from scaling.probe.report import ProbedFact, Report
from scaling.probe.states import PLACES
from scaling.run import RunObserver

_LINE_EVERY = 10.0  # seconds between plain progress lines
_NAMES = {
    NONE: "question alone",
    CONSTANT: "best constant prompt",
    RATIONALE: "own rationale",
    OWN: "own thoughts (oracle)",
    OTHER: "another's thoughts",
}


class ProbeProgress:
    """Shows how far a probe is: a live bar on a terminal, plain lines elsewhere. It is a `ProbeObserver`."""

    def __init__(self, console: Console) -> None:
        """console: where to show it."""
        self._console = console
        self._bar: Progress | NotebookBar | None = None
        self._run: RunProgress | None = None

    def __enter__(self) -> ProbeProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        """Ends what is shown at present."""
        if self._run:
            self._run.__exit__(None, None, None)
        if self._bar:
            self._bar.stop()
        self._run = self._bar = None

    def status(self, text: str) -> None:
        """Shows a line about what begins now."""
        say(self._console, text)

    def sampling(self) -> RunObserver:
        """Shows the sampling of chains."""
        self._stop()
        self._run = RunProgress(self._console, voter="flat")
        return self._run

    def begin(self, what: str, total: int) -> Advance:
        """Starts the bar of a measure."""
        self._stop()
        self.status(what)
        bar = self._bar = bar_on(self._console, "done", transient=True)
        done, printed = 0, time.monotonic()
        if bar:
            task = bar.add_task("", total=total, completed=0, said=what)
            bar.start()

        def advance(number: int) -> None:
            nonlocal done, printed
            done += number
            if bar:
                bar.update(task, completed=done)
            elif time.monotonic() - printed > _LINE_EVERY:
                printed = time.monotonic()
                prose(self._console, f"{what}: {done}/{total}")

        return advance


def show_report(console: Console, report: Report) -> None:
    """Prints the tables of a probe, and its verdict."""
    console.print(_losses(report))
    if report.facts:
        console.print(_facts(report))
    for reason in report.not_probed:
        prose(console, f"not probed: {reason}", style="dim")
    for sentence in report.verdict():
        prose(console, sentence)
    console.print(f"{report.seconds:.0f} seconds", style="dim", highlight=False)


def _losses(report: Report) -> Table:
    room, oracle = report.room, report.oracle
    table = Table(title=f"loss: {report.task}, {report.questions} questions", title_justify="left")
    table.add_column("")
    for heading in ("nats a token", "nats an answer", "gain a token, 95 %"):
        table.add_column(heading, justify="right")
    gains = {RATIONALE: room.room, CONSTANT: room.constant}
    for name in filter(room.per_token.__contains__, _NAMES):
        figures = (f"{room.per_token[name]:.3f}", f"{room.per_answer[name]:.3f}", _interval(gains.get(name)))
        table.add_row(_NAMES[name], *figures)
    if oracle:
        table.add_section()
        for name, loss in oracle.unseen.items():
            gain = f"{_interval(oracle.gain)} *" if name == OWN else ""
            table.add_row(f"{_NAMES[name]}, {oracle.gain.questions} questions", f"{loss:.3f}", "", gain)
        table.caption = f"last rows: on {oracle.scored_on}; * over the constant prompt"
        table.caption_justify = "left"
    return table


def _facts(report: Report) -> Table:
    title = "what the assistant's states hold: share read rightly, or R2 of an amount"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("chance", justify="right")
    for place in PLACES:
        table.add_column(f"{place}, layer {report.layers[place]}", justify="right")
    for fact in report.facts:
        cells = [_score(fact, place) for place in PLACES]
        table.add_row(fact.name if fact.classes else f"{fact.name} (R2)", f"{fact.chance:.2f}", *cells)
    table.caption, table.caption_justify = "+- half of the 95 % interval of the gain over chance", "left"
    return table


def _score(fact: ProbedFact, place: str) -> str:
    """A score with half of its gain's interval, in the score's own unit."""
    gain = fact.gains[place]
    return f"{fact.scores[place]:.2f} +- {(gain.high - gain.low) / 2 * (1 - fact.chance):.2f}"


def _interval(value: Estimate | None) -> str:
    return "" if value is None else f"{value.mean:+.3f} ({value.low:.3f} to {value.high:.3f})"
