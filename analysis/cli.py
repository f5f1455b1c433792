"""`scale-report`: run directories in, verdict, tables, figures and one HTML page out. Light until it begins."""

from __future__ import annotations

import json as jsonlib
import shlex
import sys
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Annotated, Any

import typer

from scaling.records.errors import UsageError, nearest, of_the_system
from scaling.records.journal import RUN

EXAMPLES = (
    "scale-report runs/a runs/b --out report",
    "scale-report ours=runs/a ours=runs/b cot=runs/c --baseline cot",
    "scale-report runs/a runs/b --compute tokens --voters all",
)

app = typer.Typer(pretty_exceptions_enable=False)

_SHOWN = 8  # run directories in a message
_AXES = ("flops", "tokens", "chains", "seconds")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"softcotpp {package_version('softcotpp')}")
        raise typer.Exit


@app.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="\n\n".join(["Examples:", *EXAMPLES]))
def scale_report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run directories. NAME=FOLDER names one; runs of one name are its seeds.", show_default=False
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
    common: Annotated[bool, typer.Option("--common", help="Compare on the questions that all runs hold.")] = False,
    browse: Annotated[int, typer.Option(help="Questions whose completions the page holds.", min=0)] = 200,
    seed: Annotated[int, typer.Option(help="Start of the random draws of sub-grids and resamples.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print report.json alone.")] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Judge runs from their journals: curves over every smaller grid, intervals, and a verdict at equal compute.

    Needs no models and draws no samples.
    """
    try:
        _refuse_unknown("--compute", compute, _AXES)
        _refuse_empty(runs, out=out, validation=validation)
        settings = {"axis": compute, "baseline": baseline, "seed": seed}
        _report(
            runs,
            Path(out),
            voters=voters,
            validation=[Path(folder) for folder in validation or []],
            scorer=scorer,
            common=common,
            browse=browse,
            as_json=json,
            settings=settings,
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


def _report(
    runs: list[str],
    out: Path,
    *,
    voters: str,
    validation: list[Path],
    scorer: str | None,
    common: bool,
    browse: int,
    as_json: bool,
    settings: dict[str, Any],
) -> None:
    from rich.console import Console

    from analysis.display import show
    from analysis.load import load
    from analysis.methods import group
    from analysis.results import Settings, results
    from analysis.scores import scores
    from analysis.tables import as_json as to_json
    from analysis.voters import Outside, chosen, lacking
    from analysis.write import write

    console = Console(stderr=True)

    def tell(text: str) -> None:
        console.print(f"{text} ...", style="dim", highlight=False, markup=False, soft_wrap=True)

    votes = chosen(voters, validation=bool(validation), scorer=bool(scorer))
    loaded = []
    for run in runs:
        name, folder = named(run)
        tell(f"reading {folder}")
        _refuse_parent(folder)
        loaded.append((name, load(folder)))
    methods = group(loaded, common=common)
    own = [run for method in methods for run in method.runs]
    left_out = lacking(votes, own) if voters == "all" else ()
    outside = Outside(
        validation=[load(folder) for folder in validation],
        scores={str(run.folder): scores(run, scorer) for run in own} if scorer else {},
    )
    kept = tuple(name for name in votes if name not in left_out)
    found = results(methods, Settings(voters=kept, left_out=left_out, **settings), tell, outside)
    write(found, methods, out, browse=browse, tell=tell)
    if as_json:
        print(jsonlib.dumps(to_json(found), indent=2))
    else:
        show(Console(), found, out)


def _refuse_parent(folder: Path) -> None:
    """Raises UsageError, which names the runs inside, for a folder of run directories."""
    if not folder.is_dir() or (folder / RUN).exists():
        return
    inside = sorted(str(file.parent) for file in folder.glob(f"*/{RUN}"))
    if inside:
        shown = " ".join(map(shlex.quote, inside[:_SHOWN]))
        more = f" and {len(inside) - _SHOWN} more" if len(inside) > _SHOWN else ""
        raise UsageError(
            f"{folder} is no run directory, but holds {len(inside)}: give those to compare, as in `scale-report "
            f"{shown}`{more}"
        )


def named(run: str) -> tuple[str | None, Path]:
    """`NAME=FOLDER` or `FOLDER`; a folder that is there is a folder, whatever is in its name."""
    name, equals, folder = run.partition("=")
    if not equals or Path(run).exists():
        return None, Path(run)
    return name, Path(folder)


def _refuse_unknown(option: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        raise UsageError(f"`{option}` is {given!r}; choose one of {', '.join(known)}.{nearest(given, known)}")


def _refuse_empty(runs: list[str], *, out: str, validation: list[str] | None) -> None:
    """An empty path would be the current folder."""
    for what, values in (("a run directory", runs), ("`--out`", [out]), ("`--validation`", validation or [])):
        if not all(value.strip() for value in values):
            raise UsageError(f"{what} is empty: give a folder, or leave it out.")


def main() -> None:
    """Entry point of the `scale-report` command."""
    app()
