"""Makes a report from runs, step by step. The command `scale-report` and `softcotpp.report` both call it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.arguments import WHOLE, RunArgument, parse_run
from analysis.load import Run, load, load_shards
from analysis.methods import group
from analysis.results import Floats, Results, Settings, Tell, results
from analysis.scores import scores
from analysis.summaries import read, summaries_in
from analysis.verdict import MARGIN
from analysis.voters import Outside, chosen, lacking
from analysis.watch import EVERY
from analysis.write import write
from scaling.records.errors import UsageError, nearest
from scaling.records.journal import RUN
from scaling.records.names import SUMMARY_ENDING

RunLike = Run | Path | str
_AXES = ("flops", "tokens", "chains", "seconds")
_SHOWN = 8  # run directories in a message


def make_report(
    runs: Sequence[RunLike | tuple[str, RunLike]],
    out: Path,
    *,
    compute: str = "flops",
    voters: str = "flat,hierarchical",
    baseline: str | None = None,
    margin: float = MARGIN,
    validation: Sequence[RunLike] = (),
    scorer: str | None = None,
    common: bool = False,
    browse: int = 200,
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> Results:
    """Writes report.html, report.md, report.json and figures/ into `out`, and returns all figures in them.

    Args:
        runs: loaded runs, or where they are in the form that `analysis.arguments.parse_run` reads. A pair gives the run a
            name. Runs with the same name are the seeds of one method.
        out: a folder, which may contain an older report.
        compute: the cost that is equal in the verdict: flops, tokens, chains or seconds.
        voters: names by comma, of which the first makes curves and verdict. "all" stands for every voter that all runs can
            use.
        baseline: name of the method that the others are compared with; None for every pair.
        margin: points of accuracy; methods that are shown to differ by less are called equal.
        validation: runs of the methods on other questions, for the vote path-reliability.
        scorer: for the vote best-of-n: `module:function`, or a folder or Hub id of a reward model.
        common: whether to compare on the questions that all runs have, instead of refusing runs with different questions.
        browse: number of questions whose completions the page shows.
        seed: of the random sub-grids and the resamples.
        tell: is called with a short text whenever a new step begins.

    Raises:
        UsageError: a run cannot be read, runs cannot be compared, or `out` cannot be written.
    """
    choices: dict[str, Any] = {
        "compute": compute,
        "voters": voters,
        "baseline": baseline,
        "margin": margin,
        "seed": seed,
    }
    return _made(
        runs, out, **choices, validation=validation, scorer=scorer, common=common, browse=browse, tell=tell, live=False
    )


def make_live_report(
    runs: Sequence[RunLike | tuple[str, RunLike]], out: Path, *, common: bool, tell: Tell, **options: Any
) -> Results:
    """As `make_report`, of runs that may go on.

    As long as one of them has questions that are not complete, the report is on what all runs hold, and its page loads
    itself again.

    Args:
        runs, out, common, tell: as for `make_report`.
        options: all the others of `make_report`.

    Raises:
        Unfinished: nothing is complete yet.
        UsageError: as from `make_report`.
    """
    return _made(runs, out, common=common, tell=tell, live=True, **options)


def _made(
    runs: Sequence[RunLike | tuple[str, RunLike]],
    out: Path,
    *,
    validation: Sequence[RunLike],
    scorer: str | None,
    common: bool,
    browse: int,
    tell: Tell,
    live: bool,
    compute: str,
    voters: str,
    **choices: Any,
) -> Results:
    """Makes the report. live: whether runs may go on. choices: baseline, margin and seed, as `Settings` holds them."""
    if compute not in _AXES:
        raise UsageError(f"`--compute` is {compute!r}; choose one of {', '.join(_AXES)}.{nearest(compute, _AXES)}")
    if not 0 < choices["margin"] < 100:
        raise UsageError(
            f"`--margin` is {choices['margin']:g}; give points of accuracy, above 0 and below 100, such as {MARGIN:g}"
        )
    wanted = chosen(voters, validation=bool(validation), scorer=bool(scorer))
    named = [named for run in runs for named in _named_runs(run, tell)]
    go_on = live and any(run.incomplete for _, run in named)
    methods = group(named, common=common or go_on)
    cut_runs = [run for method in methods for run in method.runs]  # on the questions that are compared
    left_out = lacking(wanted, cut_runs) if voters == "all" else ()
    outside = Outside(
        validation=[_named_run(run, tell)[1] for run in validation],
        scores={run.label: _scores(run, scorer) for run in cut_runs} if scorer else {},
    )
    kept = tuple(name for name in wanted if name not in left_out)
    settings = Settings(voters=kept, left_out=left_out, axis=compute, **choices)
    figures = results(methods, settings, tell, outside)
    write(figures, methods, out, browse=browse, tell=tell, reload=EVERY if go_on else None)
    return figures


def _named_runs(given: RunLike | tuple[str, RunLike], tell: Tell) -> list[tuple[str | None, Run]]:
    """The run with its name; all summaries of a folder of summaries, each with its own name."""
    place = given if isinstance(given, Path) else Path(given) if isinstance(given, str) else None
    if place and place.is_dir() and not (place / RUN).exists() and (found := summaries_in(place)):
        return [_named_run(path, tell) for path in found]
    return [_named_run(given, tell)]


def _named_run(given: RunLike | tuple[str, RunLike], tell: Tell) -> tuple[str | None, Run]:
    """The run, loaded where it is not yet, and the name that the user gave it, if any."""
    name, run = given if isinstance(given, tuple) else (None, given)
    if isinstance(run, Run):
        return name, run
    argument = parse_run(run) if isinstance(run, str) else RunArgument(None, (run,))
    tell(f"reading {', '.join(map(str, argument.folders))}")
    if len(argument.folders) == 1 and argument.folders[0].name.endswith(SUMMARY_ENDING):
        summary = read(argument.folders[0])
        run = summary.run if argument.size == WHOLE else summary.run.cut()
        return name or argument.name or summary.name, run
    for folder in argument.folders:
        _refuse_parent(folder)
    if len(argument.folders) > 1:
        return name or argument.name, load_shards(argument.folders, argument.size)
    return name or argument.name, load(argument.folders[0], argument.size)


def _refuse_parent(folder: Path) -> None:
    """Raises UsageError for a folder that contains run directories but is none. The message names them."""
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


def _scores(run: Run, scorer: str) -> Floats:
    """The scores of the run's chains, [Q, N, M]. Raises UsageError where their texts are not on disk."""
    if run.folder is None:
        raise UsageError(
            f"`--scorer` reads the texts of a run directory, and {run.label} has none; give runs by folder"
        )
    return scores(run, scorer)
