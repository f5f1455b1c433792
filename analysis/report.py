"""One self-contained HTML file: verdict, figures, tables, settings, and a browser of questions. Works offline.

Everything that is shown goes through jinja2's autoescape, or as JSON through its `tojson`, which leaves no character that
could end a script. The page's policy lets no other script run and nothing be fetched.
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
    """The page. questions: as of `analysis.browser`."""
    source = _TEMPLATE.read_text(encoding="utf-8")
    script = _SCRIPT.search(source)
    assert script, "the template has lost its script"
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(source).render(
        title=headline(results),
        script_hash=digest,
        verdicts=[(one.decision, said) for one, said in _verdicts(results)],
        results=results,
        figures=[(figure, _inline(figure.svg)) for figure in figures],
        tables=tables(results),
        settings=settings_table(results),
        questions=questions,
    )


def settings_table(results: Results) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Column heads, one for each run, and rows of settings and environment."""
    runs = [(method.method.name, run) for method in results.methods for run in method.method.runs]
    known: list[dict[str, Any]] = []
    for _, run in runs:
        environment = {key: value for key, value in run.environment.items() if key not in ("costs", "overlap")}
        versions = environment.pop("versions", {})
        named = {f"version of {name}": number for name, number in versions.items()}
        known.append({"directory": run.folder or run.label, **run.config, **environment, **named})
    keys = list(dict.fromkeys(key for one in known for key in one))
    return [name for name, _ in runs], [(key, [_shown(one.get(key)) for one in known]) for key in keys]


def _verdicts(results: Results) -> list[Any]:
    return list(zip(results.comparisons[results.axis], results.sentences, strict=True))


def _shown(value: Any) -> str:
    return "-" if value is None else str(value)


def _inline(svg: str) -> Markup:
    """A figure for the page: without its XML head, and its ink in the colour of the page's text.

    Safe as it is: matplotlib wrote it, and escapes whatever stands in labels.
    """
    return Markup(svg[svg.index("<svg") :].replace(INK, "currentColor"))
