"""The command `scale-sweep`: plans, runs and reports the runs and trainings of a grid file.

Nothing heavy is imported before work begins, so that `--help` answers at once.
"""

from __future__ import annotations

import json as jsonlib
import sqlite3
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from scaling.cli import Version, examples, guarded
from scaling.records.errors import Interrupted, UsageError, counted, nearest

PLAN, RUN, STATUS, REPORT, RECIPES = (
    ("scale-sweep plan scaling-curve --scale small", "scale-sweep plan grid.yaml --set 'samples=[1, 4]'"),
    ("scale-sweep run scaling-curve --scale small", "scale-sweep run grid.yaml --workers 2 --out runs/grid"),
    ("scale-sweep status scaling-curve --scale small", "scale-sweep status runs/grid --watch"),
    ("scale-sweep report scaling-curve --scale small", "scale-sweep report runs/grid --compute tokens"),
    ("scale-sweep recipes",),
)
EXAMPLES = (*PLAN, *RUN, *STATUS, *REPORT, *RECIPES)

app = typer.Typer(
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Plan, run and report grids of runs, and the trainings that they need.",
    epilog=examples([lines[0] for lines in (RECIPES, PLAN, RUN, STATUS, REPORT)]),
)

File = Annotated[str, typer.Argument(help="Grid file, or the name of a recipe.", show_default=False)]
Begun = Annotated[str, typer.Argument(help="Grid file, recipe, or the folder of a sweep.", show_default=False)]
Scale = Annotated[str | None, typer.Option(help="small: the grid's variant for a laptop. Default: paper.")]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", help="KEY=VALUE: changes a setting; a list makes it an axis; train.KEY is of the training."),
]
Out = Annotated[str | None, typer.Option(help="Folder of the sweep. Default: runs/sweep-NAME.", metavar="<path>")]
Summaries = Annotated[
    str | None,
    typer.Option(
        help="Folder where each finished point is kept as a small file; points that have one are left out.",
        metavar="<path>",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result alone, as JSON.")]


@app.callback()
def _every(version: Version = False) -> None:
    """What belongs to all of the commands."""


@app.command(epilog=examples(PLAN))
def plan(
    file: File,
    scale: Scale = None,
    change: Change = None,
    out: Out = None,
    summaries: Summaries = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Try a few chains or steps of each kind of job, for expected tokens and hours."),
    ] = False,
    json: Json = False,
) -> None:
    """Show points, jobs, dependencies and expected cost. Runs nothing, but for --measure."""

    def work() -> int:
        from sweeps.cost_estimate import measure as probe
        from sweeps.display import plain, show_plan
        from sweeps.sweep import Sweep

        sweep = Sweep.of(
            file, scale=scale, changes=change or [], out=_folder(out), summaries=_folder(summaries, "--summaries")
        )
        if measure:
            sweep.refuse_foreign()
            sweep.root.mkdir(parents=True, exist_ok=True)
            probe(sweep.plan, sweep.root, _teller())
        entries = sweep.entries()
        cost, done = sweep.expected(), sweep.done(entries)
        if not json:
            show_plan(plain(), sweep.plan, cost, len(done), by_task=sweep.expected_by_task(), left_out=sweep.left_out)
            return 0
        points = [
            {"id": p.id, "run": p.run, "train": p.train, "job": sweep.plan.serves[p.id]} for p in sweep.plan.points
        ]
        jobs = [job.to_dict() | {"done": job.id in done} for job in sweep.plan.jobs]
        print(jsonlib.dumps({"name": sweep.plan.file.name, "expected": cost.to_dict(), "points": points, "jobs": jobs}))
        return 0

    _exit(work)


@app.command(epilog=examples(RUN))
def run(
    file: File,
    scale: Scale = None,
    change: Change = None,
    out: Out = None,
    summaries: Summaries = None,
    on: Annotated[str, typer.Option(help="local (processes of this machine) or ray (a cluster).")] = "local",
    workers: Annotated[
        int | None, typer.Option(help="Jobs at once. Default: one a GPU, or one for 8 cores; ray: what fits.", min=1)
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="For ray: HOST:PORT, auto or local. Default: RAY_ADDRESS, or a new cluster here.")
    ] = None,
    cpus_per_worker: Annotated[float | None, typer.Option(help="For ray. Default: 8, or 1 beside a GPU.")] = None,
    gpus_per_worker: Annotated[float | None, typer.Option(help="For ray. Default: 1 where there are GPUs.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed jobs anew.")] = False,
    json: Json = False,
) -> None:
    """Run every point, or go on with it. The same command again continues; a grown grid runs only what is new."""

    def work() -> int:
        from sweeps.display import plain, show_points, state_of
        from sweeps.sweep import Sweep

        ray = {"address": address, "cpus_per_worker": cpus_per_worker, "gpus_per_worker": gpus_per_worker}
        _refuse_unfit(on, **ray)
        sweep = Sweep.of(
            file, scale=scale, changes=change or [], out=_folder(out), summaries=_folder(summaries, "--summaries")
        )
        sweep.begin()
        if retry_failed:
            _retry(sweep.root)
        console = plain(stderr=True)
        points, jobs = counted(len(sweep.plan.points), "point"), counted(len(sweep.plan.jobs), "job")
        console.print(f"{points}, {jobs} in {sweep.root}", soft_wrap=True)
        if sweep.left_out:
            console.print(f"{sweep.left_out} more have a summary in {sweep.summaries} already", soft_wrap=True)
        try:
            _work_off(sweep, console, on=on, workers=workers, ray=ray)
        finally:
            sweep.write_summaries()  # also of what was done before Ctrl-C
        entries = sweep.entries()
        results = sweep.results(entries)
        if json:
            print(jsonlib.dumps(_state_as_json(sweep, entries, results), indent=1))
        else:
            console.print(state_of(entries))
            if gone := {job.id for job in sweep.plan.jobs} - {entry.job.id for entry in entries}:
                console.print(
                    f"{counted(len(gone), 'job')} taken out by another command: give it another `--out`", style="red"
                )
            show_points(plain(), sweep.plan, results)
            print(f"files: {sweep.root}/ (points.csv, runs/, checkpoints/); report: scale-sweep report {sweep.root}")
        return 0 if len(sweep.done(entries)) == len(sweep.plan.jobs) else 1

    _exit(work)


@app.command(epilog=examples(STATUS))
def status(
    file: Begun,
    scale: Scale = None,
    change: Change = None,
    out: Out = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay, and show it live until the sweep ends, or Ctrl-C.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what is done, running, pending and failed, and why; and the points that have a result."""

    def work() -> int:
        from sweeps.display import ProgressView, plain, show_points, state_of
        from sweeps.ledger import Ledger

        sweep = _begun(file, scale, change or [], _folder(out))
        if watch:
            ledger = Ledger(sweep.root)
            with ProgressView(plain(stderr=True)) as show, suppress(KeyboardInterrupt):
                while ledger.unfinished():
                    show.follow(ledger.entries)
                    time.sleep(0.5)
        entries = sweep.entries()
        results = sweep.results(entries)
        if json:
            print(jsonlib.dumps(_state_as_json(sweep, entries, results), indent=1))
        else:
            console = plain()
            console.print(state_of(entries))
            show_points(console, sweep.plan, results)
        return 0

    _exit(work)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, epilog=examples(REPORT))
def report(
    context: typer.Context,
    file: Begun,
    scale: Scale = None,
    change: Change = None,
    out: Out = None,
    by: Annotated[
        list[str] | None, typer.Option(help="A setting of which every value gets its own report. Tasks always do.")
    ] = None,
) -> None:
    """Hand the finished runs to scale-report. Its options may follow, as in --compute tokens --baseline CoT-SC."""

    def work() -> int:
        from sweeps.report import draw_axes, report_options, reports, write_reports

        sweep = _begun(file, scale, change or [], _folder(out))
        entries = sweep.entries()
        groups = reports(sweep.plan, sweep.held(entries), sweep.root, by=by or [])
        # of an option that is given twice the last one counts
        options = [*report_options(sweep.plan.file), *context.args]
        if "--common" not in options and len(sweep.done(entries)) < len(sweep.plan.jobs):
            print(
                "scale-sweep: not every job is done, so runs are compared on the questions that all of a report hold",
                file=sys.stderr,
            )
            options.append("--common")
        pages = write_reports(groups, sweep.root, options)
        sweep.results(entries)
        where = sys.stderr if "--json" in context.args else sys.stdout
        for name, page in pages.items():
            print(f"{name}: {page}", file=where)
        for figure in draw_axes(sweep.plan, sweep.root):
            print(f"figure: {figure}", file=where)
        print(f"points: {sweep.root / 'points.csv'}", file=where)
        return 0

    _exit(work)


@app.command(epilog=examples(RECIPES))
def recipes() -> None:
    """List the recipes, one for each published result."""

    def work() -> int:
        from rich.table import Table

        from sweeps.display import plain
        from sweeps.grid import read_grid
        from sweeps.grid import recipes as known

        table = Table("recipe", "what it reproduces", "--scale small", show_edge=False)
        for name in known():
            file = read_grid(name)
            table.add_row(name, file.title, "yes" if file.small else "no")
        plain().print(table)
        return 0

    _exit(work)


def _folder(given: str | None, option: str = "--out") -> Path | None:
    """The value of an option as a path. Raises UsageError where it is empty, as that would mean the current folder."""
    if given is not None and not given.strip():
        raise UsageError(f"`{option}` is empty: give a folder, or leave it out.")
    return None if given is None else Path(given)


def _begun(file: str, scale: str | None, changes: list[str], out: Path | None) -> Any:
    """Opens a sweep as it was last run.

    Where the grid file, `--scale` and `--set` ask for something else now, a line on stderr says so.
    """
    from sweeps.grid import read_grid
    from sweeps.sweep import Sweep

    sweep = Sweep.begun(file, scale=scale, changes=changes, out=out)
    if Path(file).resolve() != sweep.root.resolve():  # it is a grid file or recipe, and no sweep's folder
        asked = read_grid(file, scale=scale, changes=changes)
        now, then = (
            grid.model_dump(mode="json", exclude={"title", "small", "margin"}) for grid in (asked, sweep.plan.file)
        )
        if now != then:
            asking = f"{file} with these options asks" if scale or changes else f"{file} asks"
            print(
                f"scale-sweep: {sweep.root} is shown as it was last run, and {asking} for something else now; "
                f"`scale-sweep run` with the same brings it there",
                file=sys.stderr,
            )
    return sweep


def _work_off(sweep: Any, console: Any, *, on: str, workers: int | None, ray: dict[str, Any]) -> None:
    """Runs every job that is not done, and shows the progress.

    Args:
        sweep: has begun.
        console: where the progress is shown.
        on: `local` or `ray`.
        workers: how many jobs run at once, None for as many as fit.
        ray: options of `run_ray` alone.

    Raises:
        Interrupted: on Ctrl-C.
    """
    from sweeps.display import ProgressView
    from sweeps.ledger import DONE, Ledger

    ledger = Ledger(sweep.root)
    with ProgressView(console) as show:
        common = {
            "workers": workers,
            "retries": sweep.plan.file.retries,
            "on_poll": lambda: show.follow(ledger.entries),
        }
        try:
            if on == "ray":
                from sweeps.ray_driver import run_ray

                run_ray(sweep.root, **ray, **common)
            else:
                from sweeps.local import run_local

                run_local(sweep.root, **common)
        except KeyboardInterrupt:
            done = sum(entry.state == DONE for entry in ledger.entries())
            raise Interrupted(
                f"stopped: {done} of {len(sweep.plan.jobs)} jobs are done in {sweep.root}, and the others go on where "
                f"they were; the same command continues the sweep."
            ) from None


def _state_as_json(sweep: Any, entries: Any, results: dict[str, Any]) -> dict[str, Any]:
    """What `--json` prints of a sweep: its jobs with their states, and its points with their results.

    Args:
        sweep: the sweep.
        entries: its jobs with their states.
        results: the figures of points, by the point's id.
    """
    jobs = [
        {"id": e.job.id, "state": e.state, "attempts": e.attempts, "reason": e.reason, "blocked_by": e.blocked}
        | {"seconds": e.seconds, "progress": e.progress, "folder": e.job.folder}
        for e in entries
    ]
    points = [{"id": p.id, "run": p.run, "train": p.train, "result": results.get(p.id)} for p in sweep.plan.points]
    return {"name": sweep.plan.file.name, "folder": str(sweep.root), "jobs": jobs, "points": points}


def _retry(root: Path) -> None:
    from sweeps.ledger import Ledger

    ledger = Ledger(root)
    ledger.retry_failed()
    ledger.close()


def _refuse_unfit(on: str, **of_ray: Any) -> None:
    """Raises UsageError for an unknown `--on`, and for options of Ray without `--on ray`."""
    if on not in ("local", "ray"):
        raise UsageError(f"`--on` is {on!r}; choose local or ray.{nearest(on, ('local', 'ray'))}")
    for key, value in of_ray.items():
        if on == "local" and value is not None:
            raise UsageError(f"`--{key.replace('_', '-')}` is for `--on ray`: add it, or leave the option out.")


def _teller() -> Any:
    """A function that shows the user a line of text on stderr."""
    from sweeps.display import plain

    console = plain(stderr=True)
    return lambda text: console.print(f"{text} ...", style="dim", soft_wrap=True)


def _exit(work: Any) -> None:
    """Carries out a command and ends the process with its exit code. work: returns the exit code."""
    codes: list[int] = []

    def with_readable_errors() -> None:
        try:
            codes.append(work())
        except sqlite3.DatabaseError as error:
            raise UsageError(
                f"the sweep's ledger.sqlite cannot be read or written ({error}): where it is damaged, delete it, and "
                f"`scale-sweep run` with the grid file makes it anew and keeps what the runs hold."
            ) from None

    failed = guarded("scale-sweep", with_readable_errors)
    raise typer.Exit(failed or codes[0])


def main() -> None:
    """Entry point of the `scale-sweep` command."""
    app()
