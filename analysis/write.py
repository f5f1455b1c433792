"""The files of a report: report.html, report.md, report.json and figures/, each replaced in one step."""

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
    results: Results, methods: Sequence[Method], folder: Path, *, browse: int, tell: Callable[[str], None]
) -> None:
    """Everything into `folder`, which may hold an older report. Raises UsageError where it cannot be written."""
    tell("drawing figures")
    figures = plots(results)
    tell("writing the page")
    page = html(results, figures, browser(methods, limit=browse))
    try:
        save(figures, folder / "figures")
        _replace(folder / "report.json", json.dumps(as_json(results), indent=2, default=str) + "\n")
        _replace(folder / "report.md", markdown(results))
        _replace(folder / "report.html", page)
    except OSError as error:
        raise UsageError(f"`--out` {folder} cannot be written ({error.strerror}); choose another folder") from error


def _replace(path: Path, text: str) -> None:
    write_whole(
        path, text, errors="backslashreplace"
    )  # half of a surrogate pair, as a model may write it, stops no report
