"""The command `scale-report`: options, and errors as sentences. `analysis.make` does the work, imported when it starts."""

from __future__ import annotations

import inspect
import json as jsonlib
import sys
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from analysis.arguments import parse_run
from scaling.records.errors import UsageError, of_the_system

if TYPE_CHECKING:
    from analysis.results import Results

EXAMPLES = (
    "scale-report runs/a runs/b --out report",
    "scale-report ours=runs/a ours=runs/b cot=runs/c --baseline cot",
    "scale-report runs/a runs/b --compute tokens --voters all",
    "scale-report runs/a@8x1 runs/a@1x8",
    "scale-report runs/a --watch",
    "scale-report ls runs",
)

app = typer.Typer(pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"softcotpp {package_version('softcotpp')}")
        raise typer.Exit


def _voting(
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
) -> None:
    """The options of the votes that are compared."""


def _and(declaring: Callable[..., None], *, after: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command the parameters of another function as well. They arrive in its `**options`.

    Args:
        declaring: the other function.
        after: the command's own parameter that they follow in its help.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "options"]
        place = 1 + [one.name for one in own].index(after)
        own[place:place] = inspect.signature(declaring, eval_str=True).parameters.values()
        declared = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
        described: Any = command  # typer reads the options from the signature and the annotations
        described.__signature__ = inspect.Signature(declared, return_annotation=None)
        described.__annotations__ = {one.name: one.annotation for one in declared} | {"return": None}
        return command

    return decorate


@app.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog="\n\n".join(["Examples:", *EXAMPLES]))
@_and(_voting, after="compute")
def scale_report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Run directories, or summaries. NAME=FOLDER names one; runs of one name are its seeds. FOLDER@8x4 is "
            "the run as if of 8 paths x 4 samples, FOLDER@8x4@100 on its first 100 questions; FOLDER,FOLDER are shards of "
            "one run.",
            show_default=False,
        ),
    ],
    out: Annotated[
        str, typer.Option(help="Folder for report.html, report.md, report.json and figures/.", metavar="<path>")
    ] = "report",
    compute: Annotated[
        str, typer.Option(help="What is equal in the verdict: flops, tokens, chains or seconds.")
    ] = "flops",
    baseline: Annotated[
        str | None, typer.Option(help="Name of the method that the others are compared with. Default: every pair.")
    ] = None,
    margin: Annotated[
        float, typer.Option(help="Points of accuracy: methods that are shown to differ by less are equal.")
    ] = 2.0,
    common: Annotated[bool, typer.Option("--common", help="Compare on the questions that all runs hold.")] = False,
    browse: Annotated[int, typer.Option(help="Questions whose completions the page holds.", min=0)] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Start of the random draws of sub-grids and resamples.")] = 0,
    watch: Annotated[
        bool, typer.Option("--watch", help="Make the report anew while the runs go on, of what is complete.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print report.json alone; with --watch once, when the runs are complete.")
    ] = False,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
    ] = False,
    **options: Any,
) -> None:
    """Judge runs from their journals: curves over every smaller grid, intervals, and a verdict at equal compute.

    Needs no models and draws no samples.
    """
    try:
        validation = options.pop("validation") or []
        _refuse_empty(runs, out=out, validation=validation)
        options |= {"compute": compute, "baseline": baseline, "margin": margin, "common": common, "browse": browse}
        _report(runs, Path(out), as_json=json, live=watch, validation=[*map(Path, validation)], seed=seed, **options)
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


def _report(runs: list[str], out: Path, *, as_json: bool, live: bool, **options: Any) -> None:
    """Makes the report and prints it. live: whether again and again, until the runs are complete."""
    from rich.console import Console

    from analysis.display import prose, show
    from analysis.make import make_live_report, make_report
    from analysis.tables import as_json as to_json
    from analysis.watch import watch
    from analysis.write import end_reloading

    console = Console(stderr=True)

    def tell(text: str) -> None:
        prose(console, f"{text} ...", style="dim")

    if live:
        folders = [folder for run in runs for folder in parse_run(run).folders]
        quietly = {**options, "tell": lambda _: None}

        def make() -> Results:
            return make_live_report(runs, out, **quietly)

        prose(
            console, f"watching; open {out / 'report.html'}, which loads itself again. Ctrl-C ends this.", style="dim"
        )

        def say(text: str) -> None:
            prose(console, f"{datetime.now():%H:%M:%S} {text}")

        results = watch(make, folders, say, leave=lambda: end_reloading(out))
    else:
        results = make_report(runs, out, **options, tell=tell)
    if as_json:
        print(jsonlib.dumps(to_json(results), indent=2))
    else:
        show(Console(), results, out)


def _refuse_empty(runs: list[str], *, out: str, validation: list[str]) -> None:
    """An empty path would be the current folder."""
    for what, values in (("a run directory", runs), ("`--out`", [out]), ("`--validation`", validation)):
        if not all(value.strip() for value in values):
            raise UsageError(f"{what} is empty: give a folder, or leave it out.")


def main() -> None:
    """Entry point of the `scale-report` command. A run directory that is called ls is reported on as ./ls."""
    if sys.argv[1:2] == ["ls"]:
        from analysis.listing import app as listing

        listing(args=sys.argv[2:], prog_name="scale-report ls")
    else:
        app()
