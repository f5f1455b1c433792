"""`sc.report`: compares runs as `scale-report` does, and returns the verdict, the table and the page."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis.make import make_report
from analysis.results import Results
from scaling.records.errors import UsageError, counted
from softcotpp.options import folder_of, plain, refuse_unknown
from softcotpp.runs import Run, shown

RunLike = Run | str | os.PathLike[str]

_NUMBERS = ("browse", "seed")  # options that are whole numbers
_TEXTS = ("compute", "voters", "scorer", "baseline")
_HEIGHT = 600  # of the page in a notebook, in pixels


def report(
    *runs: RunLike,
    out: str | os.PathLike[str] = "report",
    names: Sequence[str | None] | None = None,
    validation: Sequence[RunLike] = (),
    quiet: bool = False,
    **options: Any,
) -> Report:
    """Compares runs, as `scale-report` does: curves over every smaller grid, intervals, and a verdict at equal compute.

    Args:
        runs: runs from `sc.run` or `sc.load`, or run directories in the form that the command takes.
        out: folder for report.html, report.md, report.json and figures/.
        names: a name for each run, or None for the one that it has. Runs with the same name are the seeds of one method.
        validation: runs of the methods on other questions, for the vote path-reliability.
        quiet: whether to show no progress.
        options: `compute`, `voters`, `scorer`, `baseline`, `margin`, `common`, `browse` and `seed`, as for the command.
            `voters` may also be a function or a list, and `scorer` a function.

    Raises:
        UsageError: where the command would print an error.
    """
    if not runs:
        raise UsageError("`sc.report` needs at least one run, and none was given: give those to compare.")
    if names is not None and len(names) != len(runs):
        raise UsageError(
            f"`names` has {counted(len(names), 'name')} for {counted(len(runs), 'run')}: give one for each."
        )
    console = Console(stderr=True, quiet=quiet)

    def tell(text: str) -> None:
        console.print(f"{text} ...", style="dim", highlight=False, markup=False, soft_wrap=True)

    places = list(map(_place, runs))
    given = [
        (name, place) if name else place for name, place in zip(names or [None] * len(places), places, strict=True)
    ]
    refuse_unknown(options, inspect.signature(make_report).parameters, call="sc.report")
    if not isinstance(validation, list | tuple):
        raise UsageError(f"`validation` is {validation!r:.60}: give a list of runs.")
    checked = {key: _option(key, value) for key, value in options.items() if value is not None}
    folder = folder_of(out, what="`out`")
    results = make_report(given, folder, validation=list(map(_place, validation)), tell=tell, **checked)
    return Report(folder, results)


class Report:
    """A report that was written.

    Attributes:
        folder: where report.html is.
        results: all figures of the report.
    """

    def __init__(self, folder: Path, results: Results) -> None:
        self.folder, self.results = folder, results

    @property
    def verdict(self) -> list[str]:
        """The verdict on each pair of methods, a sentence each."""
        return self.results.sentences

    @property
    def table(self) -> pd.DataFrame:
        """A row for each method: its figures as fractions of 1, and the ends of their 95 % intervals."""
        rows: dict[str, dict[str, Any]] = {}
        for one in self.results.methods:
            row: dict[str, Any] = {"N": one.method.num_paths, "M": one.method.num_samples}
            rows[one.method.name] = row
            for name, interval in one.table.items():
                row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return pd.DataFrame.from_dict(rows, orient="index")

    def __repr__(self) -> str:
        return "\n".join([f"<Report in {self.folder}>", *self.verdict])

    def _repr_html_(self) -> str:
        """The page in a frame, as notebooks show it."""
        page = escape((self.folder / "report.html").read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: {_HEIGHT}px; border: 0"></iframe>'


def _place(one: RunLike) -> Path | str:
    """Where a run is on disk. A text is left as it is, because it may hold more, as in `NAME=FOLDER`."""
    if isinstance(one, list | tuple):
        raise UsageError("`sc.report` takes each run as a value of its own: give `*runs` for the list `runs`.")
    return one if isinstance(one, str) else shown(one.folder) if isinstance(one, Run) else folder_of(one, what="a run")


def _option(key: str, value: Any) -> Any:
    """The option as `make_report` takes it. Raises UsageError for a value of another type."""
    if key == "voters" and isinstance(value, list | tuple):
        return ",".join(_option(key, one) for one in value)
    value = plain(key, value)
    if key in _NUMBERS and not (isinstance(value, int) and value >= 0):
        raise UsageError(f"`{key}` is {value!r:.60}: give a whole number from 0.")
    if key == "margin" and not isinstance(value, int | float):
        raise UsageError(f"`margin` is {value!r:.60}: give points of accuracy, such as 2.")
    if key in _TEXTS and not isinstance(value, str):
        raise UsageError(f"`{key}` is {value!r:.60}: give a text.")
    return value
