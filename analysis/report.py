"""Writes the report as one HTML file that works offline: verdict, figures, tables, settings, and a browser of questions.

Names and texts in a report may hold anything, also HTML. So everything goes through jinja2's autoescape, or as JSON through
its `tojson`, which escapes every character that could end a script. The page's content security policy lets no other script
run and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from analysis.plots import INK, Plot
from analysis.results import Results
from analysis.tables import headline, tables

_TEMPLATE = Path(__file__).with_name("report.html")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def html(results: Results, figures: Sequence[Plot], questions: dict[str, Any]) -> str:
    """The page as a text.

    Args:
        results: all figures of the report.
        figures: as `analysis.plots` draws them.
        questions: as `analysis.browser` collects them.
    """
    source = _TEMPLATE.read_text(encoding="utf-8")
    script = _SCRIPT.search(source)
    assert script, "the template has lost its script"
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(source).render(
        title=headline(results),
        script_hash=digest,
        verdicts=_verdicts(results),
        results=results,
        figures=[(figure, _inline(figure.svg)) for figure in figures],
        tables=tables(results),
        settings=settings_table(results),
        questions=questions,
    )


def settings_table(results: Results) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The heads of the columns, one for each run, and the rows: a setting, and its value in each run."""
    runs = [(method.method.name, run) for method in results.methods for run in method.method.runs]
    known: list[dict[str, Any]] = []
    for _, run in runs:
        environment = {key: value for key, value in run.environment.items() if key not in ("costs", "overlap")}
        versions = environment.get("versions")
        numbers = {}
        if isinstance(versions, dict):  # run.json may have been edited
            numbers = {f"version of {name}": number for name, number in environment.pop("versions").items()}
        known.append({"directory": run.folder or run.label, **run.config, **environment, **numbers})
    keys = list(dict.fromkeys(key for one in known for key in one))
    return [name for name, _ in runs], [(key, [_shown(one.get(key)) for one in known]) for key in keys]


def _verdicts(results: Results) -> list[tuple[str, str]]:
    """Each verdict of the report: the decision in a word, and the sentence."""
    decided = [comparison.decision for comparison in results.comparisons[results.axis]]
    decided += [one.decision for one in results.followed]
    return list(zip(decided, results.sentences, strict=True))


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _inline(svg: str) -> Markup:
    """A figure to be put into the page: without its XML head, and with lines and letters in the colour of the page's text.

    It needs no further escaping: matplotlib wrote it and escapes whatever stands in labels.
    """
    return Markup(svg[svg.index("<svg") :].replace(INK, "currentColor"))
