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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from analysis.looks import COLOURS, ON_DARK
from analysis.plots import INK, Plot, method_looks
from analysis.results import MethodResults, Results
from analysis.tables import headline, tables

_TEMPLATE = Path(__file__).with_name("report.html")
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def html(results: Results, figures: Sequence[Plot], questions: dict[str, Any], *, reload: int | None = None) -> str:
    """The page as a text.

    Args:
        results: all figures of the report.
        figures: as `analysis.plots` draws them.
        questions: as `analysis.browser` collects them.
        reload: seconds after which an open page loads itself again, because its runs go on; None for never.
    """
    number = {name: look.number for name, look in method_looks(results).items()}
    source = _TEMPLATE.read_text(encoding="utf-8")
    script = _SCRIPT.search(source)
    assert script, "the template has lost its script"
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(source).render(
        title=headline(results),
        script_hash=digest,
        reload=reload,
        colours=list(enumerate(zip(COLOURS, ON_DARK, strict=True))),
        number=number,
        glance=[(one.method.name, number[one.method.name], _share(one)) for one in results.methods],
        verdicts=_verdicts(results),
        results=results,
        figures=[(figure, _inline(figure.svg)) for figure in figures],
        tables=tables(results),
        settings=settings_table(results),
        questions={**questions, "colours": [number[one["name"]] for one in questions["methods"]]},
    )


@dataclass(frozen=True)
class SettingsTable:
    """What the runs were asked for, and where they ran.

    Attributes:
        names: a column for each run: the name of its method.
        differing: the settings in which runs differ, each with its value in every run.
        same: the other settings, each with its value.
    """

    names: list[str]
    differing: list[tuple[str, list[str]]]
    same: list[tuple[str, str]]


def settings_table(results: Results) -> SettingsTable:
    """The settings of all runs of the report. Of a single run none differ."""
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
    rows = [(key, [_shown(one.get(key)) for one in known]) for key in keys]
    return SettingsTable(
        names=[name for name, _ in runs],
        differing=[(key, values) for key, values in rows if len(set(values)) > 1],
        same=[(key, values[0]) for key, values in rows if len(set(values)) == 1],
    )


def _share(one: MethodResults) -> dict[str, Any]:
    """The accuracy of a method in percent, as the picture at the top of the page draws it."""
    accuracy = one.table["accuracy"]
    low, high = (accuracy.value if side is None else side for side in (accuracy.low, accuracy.high))
    return {"value": 100 * accuracy.value, "low": 100 * low, "high": 100 * high, "known": accuracy.low is not None}


def _verdicts(results: Results) -> list[tuple[str, str]]:
    """Each verdict of the report: the decision in a word, and the sentence."""
    decided = [comparison.decision for comparison in results.comparisons[results.axis]]
    decided += [one.decision for one in results.followed]
    return list(zip(decided, results.sentences, strict=True))


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _inline(svg: str) -> Markup:
    """A figure to be put into the page: without its XML head, and with colours that follow the page into the dark.

    It needs no further escaping: matplotlib wrote it and escapes whatever stands in labels.
    """
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(colour, f"var(--c{number})")
    return Markup(svg)
