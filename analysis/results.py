"""All figures of a report as plain records: what its tables, plots, JSON and page show.

`results` asks `estimators`, `compute`, `statistics` and `verdict` for each figure and puts them together. How they are shown
is decided elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.compute import AXES, Compute, compute
from analysis.estimators import VoteEstimate, pass_at, vote, whole_vote
from analysis.load import Run
from analysis.methods import Method, controls, trained_questions, unlike_settings
from analysis.path_diversity import CalibrationBin, PathFigures, calibration, path_figures
from analysis.statistics import Difference, Interval, bootstrap, bootstrap_shares, holm, paired_difference, seeded_mean
from analysis.verdict import Comparison, Curve, compare_all, control_sentence, paths_first, sentence
from analysis.voters import Outside, rule
from scaling.records.errors import UsageError, listed, nearest
from scaling.records.names import UNKNOWN, without_training

Floats = NDArray[np.float64]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What a report is asked for.

    voters: votes to compare, of which the first makes the curves and the verdict. left_out: votes that were asked for by
    "all" and that some run lacks the signals for. axis: what is equal in the verdict. baseline: name of the method that all
    others are compared with, None for every pair. seed: of the random draws of sub-grids and resamples.
    """

    voters: tuple[str, ...] = ("flat", "hierarchical")
    left_out: tuple[str, ...] = ()
    axis: str = "flops"
    baseline: str | None = None
    seed: int = 0

    @property
    def voter(self) -> str:
        return self.voters[0]


@dataclass(frozen=True)
class Point:
    """A grid of n x m on a method's curve. costs: of a question, on each axis. mc_error: of the random sub-grids."""

    n: int
    m: int
    accuracy: Interval
    coverage: float
    mc_error: float
    costs: dict[str, float]


@dataclass(frozen=True)
class Voted:
    """One vote over a method's whole grid. difference: to the report's first voter on the same chains, None where both are
    one vote. p_holm: adjusted for all such differences of the report."""

    voter: str
    accuracy: Interval
    difference: Difference | None
    p_holm: float | None


@dataclass(frozen=True, eq=False)
class MethodResults:
    """One method. table: the whole grid's figures. votes: one for each voter. grids: [N, M] means over questions (and seeds)
    of "pass" and of every voter, and VOTER_error, the standard error from random sub-grids."""

    method: Method
    table: dict[str, Interval]
    votes: list[Voted]
    grids: dict[str, Floats]
    points: list[Point]
    compute: Compute
    paths: PathFigures
    calibration: list[CalibrationBin]
    calibration_error: float
    cosines: Floats | None


@dataclass(frozen=True, eq=False)
class Results:
    """All figures of a report.

    comparisons: of methods, on every axis that all of them have. controls: the kind of control, by (method, control).
    pareto: (method, n, m) of each grid that no other one beats in both cost and accuracy. notes: what a reader must know
    before believing a figure.
    """

    settings: Settings
    task: str
    num_questions: int
    methods: list[MethodResults]
    comparisons: dict[str, list[Comparison]]
    controls: dict[tuple[str, str], str]
    pareto: list[tuple[str, int, int]]
    notes: list[str]
    version: str

    @property
    def axis(self) -> str:
        """The axis of the verdict: the one asked for, or chains where it is unknown."""
        return self.settings.axis if self.settings.axis in self.comparisons else "chains"

    @property
    def sentences(self) -> list[str]:
        """The verdicts, in the order of the comparisons."""
        sentences = []
        for one in self.comparisons[self.axis]:
            control = self.controls.get((one.first, one.second))
            sentences.append(control_sentence(one, control) if control else sentence(one))
        return sentences


def results(methods: Sequence[Method], settings: Settings, tell: Tell, outside: Outside | None = None) -> Results:
    """All figures of these methods.

    Args:
        tell: is told what is being worked on.
        outside: what votes know beyond the runs themselves.

    Raises:
        UsageError: the baseline is none of the methods, or a run lacks what a vote needs.
    """
    of_controls = controls(methods)
    settings = replace(settings, baseline=_baseline(settings.baseline, [method.name for method in methods]))
    against = _pairs([method.name for method in methods], of_controls, settings.baseline)
    found, curves = [], {}
    for method in methods:
        tell(f"{method.name}: votes over all sub-grids of {method.num_paths} x {method.num_samples}")
        one, own = _method(method, settings, outside or Outside())
        found.append(one)
        curves[method.name] = own
    axes = [axis for axis in AXES if all(axis in one.compute.axes for one in found)]
    if len(methods) > 1:
        tell("comparing methods at equal compute")
    first = methods[0].runs[0]
    return Results(
        settings=settings,
        task=_questions_name(first.config),
        num_questions=len(first.questions),
        methods=_with_holm(found),
        comparisons={axis: compare_all(curves, axis, pairs=against, seed=settings.seed) for axis in axes},
        controls=of_controls,
        pareto=pareto(found, "flops" if "flops" in axes else "chains", settings.voter),
        notes=_notes(methods, found, settings, axes),
        version=version("softcotpp"),
    )


def _baseline(given: str | None, names: Sequence[str]) -> str | None:
    """The baseline's full name: it may be given without the part that says how the thinker was trained."""
    plain = [name for name in names if without_training(name) == given]
    return plain[0] if given not in names and len(plain) == 1 else given


def _questions_name(config: Mapping[str, Any]) -> str:
    """What titles call the questions: the task, or the name of the file or folder that they came from."""
    data = str(config.get("data") or "")
    return str(config.get("task") or Path(data).name or data or "questions")


def _pairs(names: Sequence[str], against: Collection[tuple[str, str]], baseline: str | None) -> list[tuple[str, str]]:
    """All pairs, a method always before its control; or those with the baseline and those of controls."""
    if baseline is not None and baseline not in names:
        raise UsageError(
            f"`--baseline` {baseline!r} is none of the methods ({', '.join(names)}).{nearest(baseline, names)}"
        )
    pairs = []
    for first, second in combinations(names, 2):
        own = next((pair for pair in against if set(pair) == {first, second}), None)
        if own is None and baseline is not None:
            own = (first, second) if second == baseline else (second, first) if first == baseline else None
        if own or baseline is None:
            pairs.append(own or (first, second))
    return pairs


def _with_holm(found: Sequence[MethodResults]) -> list[MethodResults]:
    """Adds the p-values of the votes' differences that are adjusted for all such differences of the report."""
    p_values = [v.difference.p_value if v.difference else None for one in found for v in one.votes]
    adjusted = iter(holm(p_values))
    return [replace(one, votes=[replace(v, p_holm=next(adjusted)) for v in one.votes]) for one in found]


def _method(method: Method, settings: Settings, outside: Outside) -> tuple[MethodResults, list[Curve]]:
    grids = [_grids(run, settings, outside) for run in method.runs]
    costs = [compute(run) for run in method.runs]
    shape = paths_first(method.num_paths, method.num_samples)
    at = (np.array([n - 1 for n, _ in shape]), np.array([m - 1 for _, m in shape]))
    curves = [
        Curve(shape, own[settings.voter].values[:, *at], {axis: its.axes[axis][at] for axis in its.axes})
        for own, its in zip(grids, costs, strict=True)
    ]
    means = {name: np.mean([own[name].values.mean(axis=0) for own in grids], axis=0) for name in grids[0]}
    errors = {
        f"{name}_error": np.sqrt(sum(own[name].error ** 2 for own in grids)) / len(grids) for name in settings.voters
    }
    shared = _mean_costs(costs)
    ballots = [run.lenient for run in method.runs]
    votes = _votes(method, grids, settings)
    bins, error = calibration(ballots, [whole_vote(own) for own in ballots])
    figures = MethodResults(
        method=method,
        table={"accuracy": votes[0].accuracy, **_table(method, grids, settings)},
        votes=votes,
        grids={**means, **errors},
        points=_points(curves, means["pass"][at], errors[f"{settings.voter}_error"][at], shared, settings),
        compute=shared,
        paths=path_figures(ballots, seed=settings.seed),
        calibration=bins,
        calibration_error=error,
        cosines=_mean_cosines(method.runs),
    )
    return figures, curves


def _grids(run: Run, settings: Settings, outside: Outside) -> dict[str, VoteEstimate]:
    values = pass_at(run.lenient)
    none = np.zeros(values.shape[1:])
    votes = {name: vote(run.lenient, rule(name, run, outside), seed=settings.seed) for name in settings.voters}
    return {"pass": VoteEstimate(values, none, none == 0), **votes}


def _votes(method: Method, grids: Sequence[dict[str, VoteEstimate]], settings: Settings) -> list[Voted]:
    whole = {name: [own[name].values[:, -1, -1] for own in grids] for name in settings.voters}
    first = whole[settings.voter]

    def to_first(values: Sequence[Floats]) -> Difference:
        # in each seed on the same chains, so what moves both votes of a seed is no difference between them
        gaps = [own - its for own, its in zip(values, first, strict=True)]
        return paired_difference(gaps, [np.zeros_like(first[0])], seed=settings.seed)

    return [
        Voted(
            name,
            seeded_mean(values, seed=settings.seed),
            None if _the_same(name, settings.voter, method) else to_first(values),
            None,
        )
        for name, values in whole.items()
    ]


def _the_same(voter: str, other: str, method: Method) -> bool:
    """Whether two votes are one on such a grid, whatever the chains say: no difference to test."""
    plain = {"flat"}
    plain |= {"hierarchical"} if 1 in (method.num_paths, method.num_samples) else set()
    plain |= {"path-reliability"} if method.num_paths == 1 else set()
    return voter == other or {voter, other} <= plain


def _table(method: Method, grids: Sequence[dict[str, VoteEstimate]], settings: Settings) -> dict[str, Interval]:
    """Figures of the whole grid besides the accuracy of its votes."""

    def mean(values: Sequence[Floats]) -> Interval:
        return seeded_mean(values, seed=settings.seed)

    runs = method.runs
    return {
        "strict": mean([whole_vote(run.strict) for run in runs]),
        "pass_at_1": mean([own["pass"].values[:, 0, 0] for own in grids]),
        "coverage": mean([own["pass"].values[:, -1, -1] for own in grids]),
        "no_answer": mean([(run.lenient.codes < 0).mean(axis=(1, 2)) for run in runs]),
        "truncated": mean([run.truncated.mean(axis=(1, 2)) for run in runs]),
        "mean_tokens": bootstrap(np.mean([run.tokens.mean(axis=(1, 2)) for run in runs], axis=0)[:, None])[0],
    }


def _points(
    curves: Sequence[Curve], coverage: Floats, errors: Floats, costs: Compute, settings: Settings
) -> list[Point]:
    columns = [curve.values for curve in curves]
    if len(curves) == 1:
        intervals = bootstrap_shares(columns[0], seed=settings.seed)
    else:
        intervals = [seeded_mean([own[:, place] for own in columns]) for place in range(columns[0].shape[1])]
    return [
        Point(
            n,
            m,
            interval,
            float(covered),
            float(error),
            {axis: float(of[n - 1, m - 1]) for axis, of in costs.axes.items()},
        )
        for (n, m), interval, covered, error in zip(curves[0].grids, intervals, coverage, errors, strict=True)
    ]


def _mean_costs(costs: Sequence[Compute]) -> Compute:
    """Of a method's seeds; an axis that one of them lacks is left out."""
    known = [axis for axis in costs[0].axes if all(axis in one.axes for one in costs)]

    def mean(values: list[float | None]) -> float | None:
        given = [value for value in values if value is not None]
        return float(np.mean(given)) if len(given) == len(values) else None

    peaks = [one.peak_bytes for one in costs if one.peak_bytes is not None]
    return Compute(
        axes={axis: np.mean([one.axes[axis] for one in costs], axis=0) for axis in known},
        unshared=mean([one.unshared for one in costs]),
        kv_bytes=mean([one.kv_bytes for one in costs]),
        peak_bytes=max(peaks) if peaks else None,
    )


def _mean_cosines(runs: Sequence[Run]) -> Floats | None:
    """Of the seeds that noted them."""
    known = [run.cosines for run in runs if run.cosines is not None]
    return np.mean(known, axis=0) if known else None


def pareto(found: Sequence[MethodResults], axis: str, voter: str) -> list[tuple[str, int, int]]:
    """Grids of all methods, every n x m, that no other one beats: cheaper ones are all less accurate. By rising cost."""
    cells = [
        (float(one.compute.axes[axis][n, m]), -float(one.grids[voter][n, m]), one.method.name, n + 1, m + 1)
        for one in found
        for n, m in np.ndindex(one.grids[voter].shape)
    ]
    front, best = [], math.inf
    for _, missed, name, n, m in sorted(cells):
        if missed < best - 1e-12:
            best = missed
            front.append((name, n, m))
    return front


def _notes(methods: Sequence[Method], found: Sequence[MethodResults], settings: Settings, axes: list[str]) -> list[str]:
    """What a reader must know before believing a figure."""
    notes = [_incomplete(run) for method in methods for run in method.runs if run.incomplete]
    notes += list(
        dict.fromkeys(said for method in methods for run in method.runs for said in _of_training(method, run))
    )
    for key, values in unlike_settings(methods).items():
        notes.append(f"The runs differ in {key} ({', '.join(values)}): their difference may come from that alone.")
    devices = {str(run.environment.get("device")) for method in methods for run in method.runs}
    if len(devices) > 1:
        notes.append(f"Seconds were measured on different devices: {', '.join(sorted(devices))}.")
    if settings.axis not in axes:
        notes.append(f"The verdict is on chains, as {settings.axis} are not known for every run.")
    if len(methods[0].runs[0].questions) == 1:
        notes.append("One question gives no interval and no verdict.")
    if settings.left_out:
        notes.append(
            f"Without the votes {', '.join(settings.left_out)}: not every run holds what chains weigh in them."
        )
    notes += [
        f"{run.label}: the answer reader failed on {run.unread} completions, which count as having no answer."
        for method in methods
        for run in method.runs
        if run.unread
    ]
    notes += [
        f"{run.label}: {run.data.strays} completions of questions that it does not ask are passed over."
        for method in methods
        for run in method.runs
        if run.data.strays
    ]
    notes += [
        f"{run.label}: {run.summary['timeouts']} comparisons with gold answers ran out of time and count as wrong."
        for method in methods
        for run in method.runs
        if run.summary.get("timeouts")
    ]
    single = [method.name for method in methods if len(method.runs) == 1]
    if single and len(single) < len(methods):
        notes.append(f"Only one seed of {', '.join(single)}: what another seed would give is not in its intervals.")
    worst = max(float(one.grids[f"{settings.voter}_error"].max()) for one in found)
    if worst > 0:
        notes.append(
            f"Accuracies of grids with too many sub-grids to count come from random ones; that adds a standard error of at "
            f"most {100 * worst:.2f} points."
        )
    return notes


def _of_training(method: Method, run: Run) -> list[str]:
    """What a run knows of its thinker's or adapter's training that puts its figures in doubt."""
    trained, validated, left_out = trained_questions(run)
    notes = []
    for ids, verb in ((trained, "trained"), (validated, "validated")):
        if ids and left_out:
            notes.append(
                f"{method.name}: {len(ids)} questions that it was {verb} on are left out ({listed(ids, shown=3)})."
            )
        elif ids:
            of = f"{len(ids)} of its {len(run.questions)} questions ({listed(ids, shown=3)})"
            notes.append(f"{method.name} was {verb} on {of}: right answers to these are no test.")
    if imported := run.environment.get("thinker_imported_from"):
        notes.append(
            f"{method.name}: the wording of the prompts is ours, not the one that the published {imported} was trained with."
        )
    if UNKNOWN in (run.environment.get(f"{part}_trained_on") for part in ("thinker", "adapter")):
        notes.append(f"{method.name}: what it was trained on is not known.")
    return notes


def _incomplete(run: Run) -> str:
    number = len(run.incomplete)
    return f"{run.label}: {number} question{'s' * (number > 1)} not complete and left out; the same run again completes it."
