"""`sc.report`: what `scale-report` makes of runs, with its verdict, tables and page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis.load import Run as Figures
from analysis.load import load as read_figures
from analysis.methods import group
from analysis.results import Results, Settings, results
from analysis.scores import scores
from analysis.voters import Outside, chosen, lacking
from analysis.write import write
from scaling.records.errors import UsageError, nearest
from softcotpp.runs import Run

_AXES = ("flops", "tokens", "chains", "seconds")
_HEIGHT = 600  # of the page in a notebook, in pixels


def report(
    *runs: Run | str | os.PathLike[str],
    out: str | os.PathLike[str] = "report",
    names: Sequence[str | None] | None = None,
    compute: str = "flops",
    voters: str | Sequence[str] = "flat,hierarchical",
    validation: Sequence[Run | str | os.PathLike[str]] = (),
    scorer: str | None = None,
    baseline: str | None = None,
    common: bool = False,
    browse: int = 200,
    seed: int = 0,
    quiet: bool = False,
) -> Report:
    """Compares runs, as `scale-report` does: curves over every smaller grid, intervals, and a verdict at equal compute.

    Args:
        runs: of `sc.run` or `sc.load`, or run directories.
        out: folder for report.html, report.md, report.json and figures/.
        names: one for each run, None for its method's; runs of one name are its seeds.
        voters: votes to compare; the first makes curves and verdict.
        quiet: show no progress.

    The others are the options of `scale-report`. Raises UsageError.
    """
    _refuse_unfit(runs, names, compute)
    console = Console(stderr=True, quiet=quiet)

    def tell(text: str) -> None:
        console.print(f"{text} ...", style="dim", highlight=False, markup=False, soft_wrap=True)

    told = voters if isinstance(voters, str) else ",".join(voters)
    votes = chosen(told, validation=bool(validation), scorer=bool(scorer))
    methods = group(list(zip(names or [None] * len(runs), map(_figures, runs), strict=True)), common=common)
    own = [one for method in methods for one in method.runs]
    left_out = lacking(votes, own) if told == "all" else ()
    outside = Outside(
        validation=[_figures(one) for one in validation],
        scores={str(one.folder): scores(one, scorer) for one in own} if scorer else {},
    )
    kept = tuple(name for name in votes if name not in left_out)
    found = results(methods, Settings(kept, left_out, compute, baseline, seed), tell, outside)
    write(found, methods, Path(out), browse=browse, tell=tell)
    return Report(Path(out), found)


class Report:
    """A report that was written. folder: where report.html lies. results: all its figures."""

    def __init__(self, folder: Path, results: Results) -> None:
        self.folder, self.results = folder, results

    @property
    def verdict(self) -> list[str]:
        """What can be said of each pair of methods, in sentences."""
        return self.results.sentences

    @property
    def table(self) -> pd.DataFrame:
        """One method a row: its figures in per cent of 1, and the ends of their 95 % intervals."""
        rows: dict[str, dict[str, Any]] = {}
        for one in self.results.methods:
            rows[one.method.name] = row = {"N": one.method.num_paths, "M": one.method.num_samples}
            for name, interval in one.table.items():
                row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return pd.DataFrame.from_dict(rows, orient="index")

    def __repr__(self) -> str:
        return "\n".join([f"<Report in {self.folder}>", *self.verdict])

    def _repr_html_(self) -> str:
        """The page, inside a notebook."""
        page = escape((self.folder / "report.html").read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: {_HEIGHT}px; border: 0"></iframe>'


def _figures(one: Run | str | os.PathLike[str]) -> Figures:
    return read_figures(one.folder if isinstance(one, Run) else Path(one))


def _refuse_unfit(runs: Sequence[Any], names: Sequence[str | None] | None, compute: str) -> None:
    if not runs:
        raise UsageError("`sc.report` needs at least one run, and none was given: give those to compare.")
    if names is not None and len(names) != len(runs):
        raise UsageError(f"`names` has {len(names)} names for {len(runs)} runs: give one for each, None for its method's.")
    if compute not in _AXES:
        raise UsageError(f"`compute` is {compute!r}; choose one of {', '.join(_AXES)}.{nearest(compute, _AXES)}")
