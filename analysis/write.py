"""Writes the files of a report: report.html, report.md, report.json and figures/.

A file that is already there is replaced in one step, so nobody reads half a file. report.json lists the figures, so that the
next report in the same folder removes those that it does not write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.browser import browser
from analysis.methods import Method
from analysis.plots import plots, save
from analysis.report import html
from analysis.results import Results
from analysis.tables import as_json, markdown
from scaling.records.errors import UsageError
from scaling.records.files import write_whole

PAGE, DATA, FIGURES = "report.html", "report.json", "figures"
_ENDINGS = (".svg", ".csv")  # of the files of a figure
_REFRESH = re.compile(r'<meta http-equiv="refresh"[^>]*>\n?')
_GOES_ON = re.compile(r"The runs go on: this is what is complete, and the page loads itself again every \d+ seconds\.")
_WENT_ON = "The runs were going on when this was made: it is what was complete."


def write(
    results: Results,
    methods: Sequence[Method],
    folder: Path,
    *,
    browse: int,
    tell: Callable[[str], None],
    reload: int | None = None,
) -> None:
    """Writes all files of the report.

    Args:
        results: all figures.
        methods: the runs, for the question browser.
        folder: where to write; it may contain an older report.
        browse: number of questions whose completions the page shows.
        tell: is called with a short text whenever a new step begins.
        reload: seconds after which an open page loads itself again, because its runs go on; None for never.

    Raises:
        UsageError: the folder cannot be written.
    """
    tell("drawing figures")
    figures = plots(results)
    tell("writing the page")
    page = html(results, figures, browser(methods, limit=browse), reload=reload)
    try:
        save(figures, folder / FIGURES)
        written = [f"{plot.name}{ending}" for plot in figures for ending in _ENDINGS]
        _remove_older(folder, written)
        data = {**as_json(results), "figure_files": written}
        _replace(folder / DATA, json.dumps(data, indent=2, default=str) + "\n")
        _replace(folder / "report.md", markdown(results))
        _replace(folder / PAGE, page)
    except OSError as error:
        raise UsageError(f"`--out` {folder} cannot be written ({error.strerror}); choose another folder") from error


def end_reloading(folder: Path) -> None:
    """Lets the page of a report load itself no more, where it does: nobody makes it anew any longer."""
    page = folder / PAGE
    if not page.is_file():
        return
    text = page.read_text(encoding="utf-8")
    if (settled := _REFRESH.sub("", text, count=1)) != text:
        _replace(page, _GOES_ON.sub(_WENT_ON, settled, count=1))


def _remove_older(folder: Path, written: Sequence[str]) -> None:
    """Removes the figures that the report of before lists as its own and this one does not write."""
    try:
        listed = json.loads((folder / DATA).read_text(encoding="utf-8"))["figure_files"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # no report, one of an older version, or no file of a report
    for name in listed if isinstance(listed, list) else ():
        # a name with a folder in it is none that a report writes
        if isinstance(name, str) and name not in written and Path(name).name == name and name.endswith(_ENDINGS):
            (folder / FIGURES / name).unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    # models may write half of a surrogate pair, which is no valid Unicode and must not stop the report
    write_whole(path, text, errors="backslashreplace")
