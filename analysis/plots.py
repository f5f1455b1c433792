"""Draws the figures of a report as SVG, and writes the numbers in each as CSV.

All figures have one width and one size of letters, so that they stand beside each other on a page, and can be read on a
telephone. What a line looks like is in `analysis.looks`.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from analysis.compute import AXES
from analysis.laws import PATHS
from analysis.looks import Look, looks
from analysis.results import MethodResults, Results
from analysis.statistics import Interval
from analysis.verdict import amount
from scaling.records.csv_cells import quoted
from scaling.records.errors import counted

INK = "#111113"  # colour of all lines and letters that are not data; the report puts the page's colour in its place
_ENTRY = "legend: "  # prefix of labels, removed from the legend; see `entry`
_WIDTH, _HEIGHT = 4.8, 3.1  # inches, without the legend: on a telephone a figure is as wide as the page
_LEGEND = 54  # characters that a line of the legend holds
_HANDLE = 8  # characters that the line before a name takes
_STYLE: dict[Any, Any] = {
    **{"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10.5, "figure.dpi": 100},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25},
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick", "grid")},
    **{"axes.edgecolor": INK, "axes.labelcolor": INK, "figure.facecolor": "none", "axes.facecolor": "none"},
    **{"legend.frameon": False, "savefig.transparent": True, "text.parse_math": False},  # the $ of a name is a dollar
}


@dataclass(frozen=True)
class Plot:
    """A figure.

    Attributes:
        name: of its files, without an ending.
        title: heading of the figure.
        caption: a sentence on what it shows.
        svg: a complete SVG document.
        data: the numbers that are drawn.
    """

    name: str
    title: str
    caption: str
    svg: str
    data: pd.DataFrame


def plots(results: Results) -> list[Plot]:
    """All figures of a report. Figures on the diversity of paths are only for methods with several paths."""
    of_method = method_looks(results)
    figures = [_accuracy(results, axis, of_method) for axis in results.comparisons]
    figures += [_coverage(results, of_method), *_scaling(results, of_method)]
    figures += [_pareto(results, of_method), _calibration(results, of_method)]
    for number, method in enumerate(results.methods):
        if len(results.settings.voters) > 2:
            figures.append(_votes(method, results.settings.voters, f"{number + 1}"))
        if method.method.num_paths > 1:
            figures += _of_paths(method, results.settings.voter, f"{number + 1}")
    return figures


def method_looks(results: Results) -> dict[str, Look]:
    """What each method of the report looks like, by its name."""
    methods = [one.method for one in results.methods]
    return looks([(method.name, str(method.runs[0].config.get("method"))) for method in methods])


def save(figures: Sequence[Plot], folder: Path) -> None:
    """Writes NAME.svg and NAME.csv of each figure into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for plot in figures:
        light = plot.svg.replace('<style type="text/css">', '<style type="text/css">svg{background:white}', 1)
        (folder / f"{plot.name}.svg").write_text(light, encoding="utf-8")
        plot.data.map(quoted).to_csv(folder / f"{plot.name}.csv", index=False)


def _accuracy(results: Results, axis: str, of_method: dict[str, Look]) -> Plot:
    """Accuracy of the report's first voter against a cost, a line for each method."""
    rows = [
        {
            **{"method": one.method.name, "n": point.n, "m": point.m, axis: point.costs[axis]},
            **{"accuracy": point.accuracy.value, "low": point.accuracy.low, "high": point.accuracy.high},
            "mc_error": point.mc_error,
        }
        for one in results.methods
        for point in one.points
    ]
    data = pd.DataFrame(rows)

    def draw(ax: Axes) -> None:
        for name, line in data.groupby("method", sort=False):
            look = of_method[str(name)]
            low, high = (line[side].astype(float) for side in ("low", "high"))
            ax.fill_between(line[axis], low, high, color=look.colour, alpha=0.15, linewidth=0)
            ax.plot(line[axis], line["accuracy"], label=entry(name), markevery=_doublings(line), **look.line)
        share_axis(ax, AXES[axis], f"accuracy, {results.settings.voter} vote")

    caption = (
        f"Accuracy of the {results.settings.voter} vote against {AXES[axis]}; bands are 95 % intervals over "
        f"{counted(results.num_questions, 'question')}. Each line grows by latent paths first, then by samples of each."
    )
    if axis == "seconds":
        caption += (
            " Seconds are those of the whole run, shared out by FLOPs: only the last point of a line was measured."
        )
    return figure(f"accuracy-{axis}", f"Accuracy against {axis if axis != 'flops' else 'FLOPs'}", caption, data, draw)


def _coverage(results: Results, of_method: dict[str, Look]) -> Plot:
    rows = [
        {"method": one.method.name, "n": point.n, "m": point.m, "chains": point.n * point.m, "coverage": point.coverage}
        for one in results.methods
        for point in one.points
    ]
    data = pd.DataFrame(rows)
    caption = "Share of questions with at least one right chain: what a perfect voter would reach."
    draw = _over_chains(data, ("method", "coverage"), "pass@(n, m)", of_method)
    return figure("coverage-chains", "Coverage against chains", caption, data, draw)


def _scaling(results: Results, of_method: dict[str, Look]) -> list[Plot]:
    """The flat vote and coverage within the grid, and beyond it by the law; none where no method tells anything beyond."""
    rows = [row for one in results.methods for row in _scaling_rows(one)]
    data = pd.DataFrame(rows)
    if not rows or data["within"].all():
        return []

    def draw(ax: Axes) -> None:
        for name, lines in data.groupby("method", sort=False):
            look = of_method[str(name)]
            for figure, line in lines.groupby("figure", sort=False):
                first = figure == "vote"
                style = {**look.line, "linestyle": "-", "alpha": 1.0 if first else 0.45}
                inside = line[line["within"]]
                beyond = pd.concat([inside.tail(1), line[~line["within"]]])
                label = entry(str(name)) if first else "_"
                ax.plot(inside["chains"], inside["value"], label=label, markevery=[-1], **style)
                ax.plot(beyond["chains"], beyond["value"], **{**style, "linestyle": "--", "marker": ""})
                low, high = (beyond[side].astype(float) for side in ("low", "high"))
                ax.fill_between(beyond["chains"], low, high, color=look.colour, alpha=0.12, linewidth=0)
        share_axis(ax, AXES["chains"], "share of questions")

    caption = (
        "Flat vote and coverage (paler), mean over sub-grids up to the marker, which is the whole grid; dashed: beyond it "
        "by the fitted law, with 95 % bootstrap bands over questions. Lines grow by latent paths where a method has "
        "several, else by samples."
    )
    return [figure("scaling", "Beyond the grid", caption, data, draw)]


def _scaling_rows(one: MethodResults) -> list[dict[str, Any]]:
    """The rows of a method in the figure of scaling: sub-grids that grow as the law does, then larger grids."""
    laws, (paths, samples) = one.laws, one.grids["pass"].shape
    grids = (
        [(n, samples) for n in range(1, paths + 1)] if laws.along == PATHS else [(paths, m + 1) for m in range(samples)]
    )
    rows = []
    for name, voter in (("vote", "flat"), ("coverage", "pass")):
        known = one.grids.get(voter)  # the flat vote may be none of the report's
        inside = [] if known is None else [(n, m, Interval(float(known[n - 1, m - 1]), None, None)) for n, m in grids]
        for n, m, share in (*inside, *((size.n, size.m, getattr(size, name)) for size in laws.sizes)):
            numbers = {"n": n, "m": m, "chains": n * m, "within": n <= paths and m <= samples}
            ends = {"value": share.value, "low": share.low, "high": share.high}
            rows.append({"method": one.method.name, "figure": name, **numbers, **ends})
    return rows


def _pareto(results: Results, of_method: dict[str, Look]) -> Plot:
    axis = "flops" if "flops" in results.comparisons else "chains"
    front = set(results.pareto)
    rows = [
        {
            **{"method": one.method.name, "n": n + 1, "m": m + 1, axis: float(one.compute.axes[axis][n, m])},
            **{"accuracy": float(accuracy), "on_front": (one.method.name, n + 1, m + 1) in front},
        }
        for one in results.methods
        for (n, m), accuracy in np.ndenumerate(one.grids[results.settings.voter])
    ]
    data = pd.DataFrame(rows)

    def draw(ax: Axes) -> None:
        for name, points in data.groupby("method", sort=False):
            style = {**of_method[str(name)].line, "linestyle": "", "alpha": 0.35}  # markers without a line
            ax.plot(points[axis], points["accuracy"], label=entry(name), **style)
        best = data[data["on_front"]].sort_values(axis)
        ax.plot(
            best[axis], best["accuracy"], color=INK, linewidth=1, label=entry("Pareto front"), drawstyle="steps-post"
        )
        share_axis(ax, AXES[axis], f"accuracy, {results.settings.voter} vote")

    caption = "Every grid of n paths x m samples of every method; the line joins those that no cheaper one reaches."
    return figure("pareto", "Accuracy and cost of every grid", caption, data, draw)


def _calibration(results: Results, of_method: dict[str, Look]) -> Plot:
    rows = [
        {
            **{
                "method": one.method.name,
                "share_above": part.low,
                "share_to": part.high,
                "mean_share": part.mean_share,
            },
            **{"accuracy": part.accuracy.value, "low": part.accuracy.low, "high": part.accuracy.high},
            "questions": part.num_questions,
        }
        for one in results.methods
        for part in one.calibration
    ]
    data = pd.DataFrame(rows)
    errors = ", ".join(f"{one.method.name} {100 * one.calibration_error:.1f}" for one in results.methods)

    def draw(ax: Axes) -> None:
        ax.plot([0, 1], [0, 1], color=INK, linewidth=0.8, alpha=0.5)
        for name, bins in data.groupby("method", sort=False):
            look = of_method[str(name)]
            ax.plot(bins["mean_share"], bins["accuracy"], label=entry(name), **look.line)
            low, high = (bins[side].astype(float) for side in ("low", "high"))
            ax.vlines(bins["mean_share"], low, high, color=look.colour, alpha=0.4)
        share_axis(ax, "share of chains behind the vote", "share of such votes that are right", log=False)
        ax.xaxis.set_major_formatter(PercentFormatter(1))
        ax.set_ylim(-0.02, 1.02)

    caption = (
        f"How far the share of a vote may be read as its chance to be right; bars are 95 % intervals. "
        f"Expected calibration error in points: {errors}."
    )
    return figure("calibration", "Vote share and correctness", caption, data, draw)


def _votes(one: MethodResults, voters: Sequence[str], number: str) -> Plot:
    rows = [
        {"voter": voter, "n": p.n, "m": p.m, "chains": p.n * p.m, "accuracy": float(one.grids[voter][p.n - 1, p.m - 1])}
        for voter in voters
        for p in one.points
    ]
    data = pd.DataFrame(rows)
    caption = "The same chains, voted on in different ways; lines grow by latent paths first, then by samples of each."
    draw = _over_chains(data, ("voter", "accuracy"), "accuracy", looks([(voter, "") for voter in voters]))
    return figure(f"votes-{number}", f"{one.method.name}: accuracy by vote", caption, data, draw)


def _over_chains(
    data: pd.DataFrame, keys: tuple[str, str], up: str, of_line: dict[str, Look]
) -> Callable[[Axes], None]:
    """A function that draws a share against the number of chains, a line for each group.

    Args:
        data: the numbers.
        keys: the column that groups the rows, and the column with the share.
        up: label of the vertical axis.
        of_line: what the line of each group looks like.
    """

    def draw(ax: Axes) -> None:
        for name, line in data.groupby(keys[0], sort=False):
            style = of_line[str(name)].line
            ax.plot(line["chains"], line[keys[1]], label=entry(name), markevery=_doublings(line), **style)
        share_axis(ax, AXES["chains"], up)

    return draw


def _of_paths(one: MethodResults, voter: str, number: str) -> list[Plot]:
    """The figures of one method that show matrices: accuracy of every grid, agreement, and cosines of thoughts."""
    name, paths = one.method.name, (("path", "other"), ("path", "path"))
    grid = f"Accuracy of the {voter} vote over n paths x m samples, mean over sub-grids of that size, in percent."
    agreement = (
        "Chance that two chains have the same answer, in percent: of one path on the diagonal, of two paths off it."
    )
    cosines = "Cosine of the soft thoughts of two paths, in hundredths, mean over questions: 100 is the same direction."
    axes = (("n", "m"), ("latent paths n", "samples m"))
    figures = [
        _matrix(f"grid-{number}", f"{name}: accuracy of every grid", grid, one.grids[voter], *axes),
        _matrix(f"agreement-{number}", f"{name}: agreement of answers", agreement, one.paths.agreement, *paths),
    ]
    if one.cosines is not None:
        figures.append(_matrix(f"thoughts-{number}", f"{name}: diversity of the paths", cosines, one.cosines, *paths))
    return figures


def _matrix(
    name: str,
    title: str,
    caption: str,
    values: NDArray[np.float64],
    keys: tuple[str, str],
    labels: tuple[str, str],
) -> Plot:
    """A matrix as a heat map, with its numbers in hundredths where there is room for them.

    Args:
        name: of the files.
        title: heading.
        caption: a sentence on what it shows.
        values: the matrix.
        keys: columns of the CSV for the row and the column of a value.
        labels: of the vertical and the horizontal axis.
    """
    rows = [{keys[0]: i + 1, keys[1]: j + 1, "value": float(value)} for (i, j), value in np.ndenumerate(values)]
    down, across = values.shape

    def draw(ax: Axes) -> None:
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        ax.imshow(values, cmap="cividis", vmin=low, vmax=max(high, low + 1e-9), aspect="auto")
        ax.set_box_aspect(min(0.85, max(0.5, down / across)))
        if values.size <= 200:
            for (i, j), value in np.ndenumerate(values):
                ink = "black" if value - low > 0.55 * (high - low) else "white"
                ax.text(
                    j,
                    i,
                    "-" if np.isnan(value) else f"{100 * value:.0f}",
                    ha="center",
                    va="center",
                    color=ink,
                    size=8.5,
                )
        for size, ticks in ((across, ax.set_xticks), (down, ax.set_yticks)):
            ticks(range(0, size, -(-size // 16)), [str(at + 1) for at in range(0, size, -(-size // 16))])
        ax.set_ylabel(labels[0])
        ax.set_xlabel(labels[1])
        ax.grid(False)

    return figure(name, title, caption, pd.DataFrame(rows), draw)


def _doublings(line: pd.DataFrame) -> list[int]:
    """The places of the points with 1, 2, 4 ... chains, and of the last point. Only these get markers."""
    chains = (line["n"] * line["m"]).tolist()
    return [place for place, number in enumerate(chains) if number & (number - 1) == 0 or place == len(chains) - 1]


def share_axis(ax: Axes, across: str, up: str, *, log: bool = True) -> None:
    """Formats axes that show a share of questions against something else.

    Args:
        ax: the axes.
        across: label of the horizontal axis. Numbers of chains get a logarithmic scale to base 2, all others to base 10.
        up: label of the vertical axis, which shows percent.
        log: whether the horizontal axis is logarithmic.
    """
    if log:
        chains = across.startswith("chains")
        ax.set_xscale("log", base=2 if chains else 10)
        ax.xaxis.set_major_locator(LogLocator(2) if chains else LogLocator(10, (1, 2, 5)))
        ax.xaxis.set_major_formatter(lambda value, _: amount(value))
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(across)
    ax.set_ylabel(up)
    ax.yaxis.set_major_formatter(PercentFormatter(1))


def entry(name: object) -> str:
    """The label of a line that the legend shows under `name`.

    It has a prefix because matplotlib leaves labels that begin with _ out of the legend. `_legend` removes the prefix.
    """
    return f"{_ENTRY}{name}"


def figure(name: str, title: str, caption: str, data: pd.DataFrame, draw: Callable[[Axes], None]) -> Plot:
    """Draws a figure with a single panel, and its legend above it, where it hides nothing.

    Args:
        name: of the files.
        title: heading, which is also the picture's title for who cannot see it.
        caption: a sentence on what it shows.
        data: the numbers that are drawn.
        draw: draws them on axes.
    """
    # the salt makes ids in the SVG differ between the figures of a page, and stay the same from run to run
    with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
        canvas = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        ax = canvas.add_subplot()
        draw(ax)
        _legend(canvas, ax)
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Title": title})
    return Plot(name, title, caption, out.getvalue().replace("<svg ", '<svg role="img" ', 1), data)


def _legend(canvas: Figure, ax: Axes) -> None:
    """Writes the legend of lines, if there are any, in as many columns as fit, and makes room for it."""
    handles, labels = ax.get_legend_handles_labels()
    if not labels:
        return
    shown = ["\n".join(textwrap.wrap(label.removeprefix(_ENTRY), _LEGEND - _HANDLE)) for label in labels]
    columns = max(1, _LEGEND // (_HANDLE + max(map(len, shown))))
    legend = canvas.legend(handles, labels, loc="outside upper left", ncols=columns, borderpad=0, columnspacing=1.2)
    for text, name in zip(legend.get_texts(), shown, strict=True):
        text.set_text(name)
    lines = sum(name.count("\n") + 1 for name in shown) if columns == 1 else -(-len(shown) // columns)
    canvas.set_size_inches(_WIDTH, _HEIGHT + 0.21 * lines)
