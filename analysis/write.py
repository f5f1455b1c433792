"""Writes the files of a report: report.html, report.md, report.json and figures/.

A file that is already there is replaced in one step, so nobody reads half a file.
"""

from __future__ import annotations

import json
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
        save(figures, folder / "figures")
        _replace(folder / "report.json", json.dumps(as_json(results), indent=2, default=str) + "\n")
        _replace(folder / "report.md", markdown(results))
        _replace(folder / "report.html", page)
    except OSError as error:
        raise UsageError(f"`--out` {folder} cannot be written ({error.strerror}); choose another folder") from error


def _replace(path: Path, text: str) -> None:
    # models may write half of a surrogate pair, which is no valid Unicode and must not stop the report
    write_whole(path, text, errors="backslashreplace")
