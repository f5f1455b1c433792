"""The command `scale-report`: options, and errors as sentences. `analysis.make` does the work, imported when it starts."""

from __future__ import annotations

import json as jsonlib
import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from scaling.records.errors import UsageError, of_the_system

EXAMPLES = (
    "scale-report runs/a runs/b --out report",
    "scale-report ours=runs/a ours=runs/b cot=runs/c --baseline cot",
    "scale-report runs/a runs/b --compute tokens --voters all",
    "scale-report runs/a@8x1 runs/a@1x8",
)

app = typer.Typer(pretty_exceptions_enable=False)


class _WithVersion(TyperCommand):
    """A command that answers `--version`, alone, before it reads its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args == ["--version"]:
            print(f"softcotpp {package_version('softcotpp')}")
            raise typer.Exit
        return list(super().parse_args(ctx, args))


@app.command(
    cls=_WithVersion,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="\n\n".join(["Examples:", *EXAMPLES]),
)
def scale_report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run directories. NAME=FOLDER names one; runs of one name are its seeds. FOLDER@8x4 is the run as if of 8 "
            "paths x 4 samples, FOLDER@8x4@100 on its first 100 questions; FOLDER,FOLDER are shards of one run.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Folder for report.html, report.md, report.json and figures/.", metavar="<path>")
    ] = "report",
    compute: Annotated[
        str, typer.Option(help="What is equal in the verdict: flops, tokens, chains or seconds.")
    ] = "flops",
    voters: Annotated[
        str,
        typer.Option(
            help="Votes to compare, by comma; the first makes curves and verdict. flat, hierarchical, log-prob-mean, "
            "log-prob-sum, self-certainty, path-reliability, best-of-n; all of these; or file.py:function."
        ),
    ] = "flat,hierarchical",
    validation: Annotated[
        list[str] | None,
        typer.Option(
            help="Run directory of a method on other questions, for path-reliability. Once for each method.",
            metavar="<path>",
        ),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(help="For best-of-n: module:function, or folder or Hub id of a reward model."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Name of the method that the others are compared with. Default: every pair.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Points of accuracy: methods that are shown to differ by less are equal.")
    ] = 2.0,
    common: Annotated[bool, typer.Option("--common", help="Compare on the questions that all runs hold.")] = False,
    browse: Annotated[int, typer.Option(help="Questions whose completions the page holds.", min=0)] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Start of the random draws of sub-grids and resamples.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print report.json alone.")] = False,
) -> None:
    """Judge runs from their journals: curves over every smaller grid, intervals, and a verdict at equal compute.

    Needs no models and draws no samples.
    """
    try:
        _refuse_empty(runs, out=out, validation=validation)
        _report(
            runs,
            Path(out),
            compute=compute,
            voters=voters,
            baseline=baseline,
            margin=margin,
            validation=[Path(folder) for folder in validation or []],
            scorer=scorer,
            common=common,
            browse=browse,
            seed=seed,
            as_json=json,
        )
    except UsageError as error:
        print(f"scale-report: {error}", file=sys.stderr)
        raise typer.Exit(2) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"scale-report: {of_the_system(error)}: put that right and try again.", file=sys.stderr)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        print("scale-report: stopped; the runs are as they were.", file=sys.stderr)
        raise typer.Exit(130) from None


def _report(runs: list[str], out: Path, *, as_json: bool, **options: Any) -> None:
    from rich.console import Console

    from analysis.display import show
    from analysis.make import make_report
    from analysis.tables import as_json as to_json

    console = Console(stderr=True)

    def tell(text: str) -> None:
        console.print(f"{text} ...", style="dim", highlight=False, markup=False, soft_wrap=True)

    results = make_report(runs, out, **options, tell=tell)
    if as_json:
        print(jsonlib.dumps(to_json(results), indent=2))
    else:
        show(Console(), results, out)


def _refuse_empty(runs: list[str], *, out: str, validation: list[str] | None) -> None:
    """An empty path would be the current folder."""
    for what, values in (("a run directory", runs), ("`--out`", [out]), ("`--validation`", validation or [])):
        if not all(value.strip() for value in values):
            raise UsageError(f"{what} is empty: give a folder, or leave it out.")


def main() -> None:
    """Entry point of the `scale-report` command."""
    app()
