"""Makes a report from runs: the story of `scale-report`, top to bottom, for the command line and for Python alike."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from analysis.arguments import RunArgument, parse_run
from analysis.load import Run, load, load_shards
from analysis.methods import group
from analysis.results import Floats, Results, Settings, Tell, results
from analysis.scores import scores
from analysis.voters import Outside, chosen, lacking
from analysis.write import write
from scaling.records.errors import UsageError, nearest
from scaling.records.journal import RUN

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
    validation: Sequence[RunLike] = (),
    scorer: str | None = None,
    common: bool = False,
    browse: int = 200,
    seed: int = 0,
    tell: Tell = lambda _: None,
) -> Results:
    """Writes report.html, report.md, report.json and figures/ into `out`, and returns all figures in them.

    Args:
        runs: runs that are loaded, or where they lie, as `analysis.arguments.parse_run` reads it; a pair names the run. Runs
            of one name are seeds of one method.
        out: a folder, which may hold an older report.
        compute: what is equal in the verdict: flops, tokens, chains or seconds.
        voters: by comma, the first makes curves and verdict; "all" for those that every run has what they need for.
        baseline: name of the method that the others are compared with, None for every pair.
        validation: runs of the methods on other questions, for the vote path-reliability.
        scorer: for the vote best-of-n: `module:function`, or a folder or Hub id of a reward model.
        common: compare on the questions that all runs hold, rather than refuse runs on different ones.
        browse: questions whose completions the page holds.
        seed: start of the random draws of sub-grids and resamples.
        tell: is told what is being worked on.

    Raises:
        UsageError: a run cannot be read, runs cannot be compared, or `out` cannot be written.
    """
    if compute not in _AXES:
        raise UsageError(f"`--compute` is {compute!r}; choose one of {', '.join(_AXES)}.{nearest(compute, _AXES)}")
    wanted = chosen(voters, validation=bool(validation), scorer=bool(scorer))
    methods = group([_named_run(run, tell) for run in runs], common=common)
    own = [run for method in methods for run in method.runs]
    left_out = lacking(wanted, own) if voters == "all" else ()
    outside = Outside(
        validation=[_named_run(run, tell)[1] for run in validation],
        scores={run.label: _scores(run, scorer) for run in own} if scorer else {},
    )
    kept = tuple(name for name in wanted if name not in left_out)
    settings = Settings(voters=kept, left_out=left_out, axis=compute, baseline=baseline, seed=seed)
    figures = results(methods, settings, tell, outside)
    write(figures, methods, out, browse=browse, tell=tell)
    return figures


def _named_run(given: RunLike | tuple[str, RunLike], tell: Tell) -> tuple[str | None, Run]:
    name, run = given if isinstance(given, tuple) else (None, given)
    if isinstance(run, Run):
        return name, run
    argument = parse_run(run) if isinstance(run, str) else RunArgument(None, (run,))
    tell(f"reading {', '.join(map(str, argument.folders))}")
    for folder in argument.folders:
        _refuse_parent(folder)
    if len(argument.folders) > 1:
        return name or argument.name, load_shards(argument.folders, argument.size)
    return name or argument.name, load(argument.folders[0], argument.size)


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


def _scores(run: Run, scorer: str) -> Floats:
    if run.folder is None:
        raise UsageError(f"`--scorer` reads the texts of a run directory, and {run.label} has none; give runs by folder")
    return scores(run, scorer)
