"""Draws the figures of a sweep from its points.csv: accuracy against every numeric setting that the sweep varies.

`python -m analysis.points TABLE --across KEY ... --apart KEY ... --out FOLDER` is started by `scale-sweep report`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from analysis.looks import Look, looks
from analysis.plots import Plot, entry, figure, save, share_axis
from scaling.records.csv_cells import unquoted
from scaling.records.errors import counted
from scaling.records.names import called
from scaling.records.settings import Effect, run_names, run_settings

_SIZES = sorted(run_names(Effect.SIZE), key="limit".__eq__)  # N and M before the number of questions
_LINES = 8  # most lines in a figure; readers cannot distinguish more


def figures(table: pd.DataFrame, across: Sequence[str], apart: Sequence[str]) -> list[Plot]:
    """A figure for each numeric setting, with accuracy against it.

    Each combination of the other settings is a line, at the largest grid that it has. Points without a result are left out,
    and so are figures without a line.

    Args:
        table: the content of points.csv.
        across: the numeric settings.
        apart: the other settings that are varied, without the seed.
    """
    known = table[table["accuracy"].notna()]
    plots = [_against(known, key, [other for other in (*apart, *across) if other != key]) for key in across]
    return [plot for plot in plots if plot is not None]


def _against(table: pd.DataFrame, key: str, others: Sequence[str]) -> Plot | None:
    """The figure of accuracy against one setting.

    Args:
        table: the points with a result.
        key: the setting.
        others: all other settings that are varied.

    Returns:
        None where no line has two values of the setting.
    """
    drawn = table
    for size in _SIZES:
        if size in others:
            drawn = _largest(drawn, size, [one for one in (*others, key) if one not in _SIZES or one == key])
    apart = [one for one in others if one not in _SIZES]
    groups = [(name, rows.sort_values(key)) for name, rows in _lines(drawn, apart) if rows[key].nunique() > 1]
    level = [(name, rows) for name, rows in _lines(drawn, apart) if rows[key].nunique() <= 1]
    if not groups:
        return None
    left_out = max(0, len(groups) + len(level) - _LINES)
    level = level[: max(0, _LINES - len(groups))]

    of_line = looks([(name, _method(rows)) for name, rows in (*groups, *level)])

    def draw(ax: Axes) -> None:
        for name, rows in groups[:_LINES]:
            _line(ax, rows, key, name, of_line[name])
        for name, rows in level:
            style: dict[str, Any] = {"color": of_line[name].colour, "linestyle": ":", "linewidth": 1.4}
            ax.axhline(rows["accuracy"].mean(), label=entry(name), **style)
        ax.set_xticks(sorted({value for _, rows in groups for value in rows[key]}))
        share_axis(ax, _title(key), "accuracy, flat vote", log=False)

    several = "seed" in drawn and drawn["seed"].nunique() > 1
    caption = f"Accuracy of the flat vote against {_title(key)}, each line at its largest grid."
    caption += " Lines are means over seeds, dots are seeds." if several else " Bars are 95 % intervals over questions."
    caption += " Dotted: methods without this setting." if level else ""
    caption += f" In the table alone: {counted(left_out, 'more line')}." if left_out else ""
    columns = [*apart, key, *(size for size in _SIZES if size in drawn and size != key), "accuracy", "accuracy_low"]
    data = drawn[[*columns, "accuracy_high", *(["seed"] if "seed" in drawn else [])]]
    return figure(f"accuracy-{key}", f"Accuracy against {_title(key)}", caption, data, draw)


def _title(key: str) -> str:
    """What a figure calls a setting."""
    setting = run_settings().get(key)
    return f"{key.replace('_', ' ')} {setting.symbol}" if setting and setting.symbol else key


def _largest(table: pd.DataFrame, size: str, keys: Sequence[str]) -> pd.DataFrame:
    """Of all rows with the same values of `keys`, those with the largest value of `size`."""
    most = table.groupby(list(keys), dropna=False)[size].transform("max") if keys else table[size].max()
    return table.loc[(table[size] == most) | table[size].isna()]


def _lines(table: pd.DataFrame, apart: Sequence[str]) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each combination of the settings `apart`, with a name for the combination."""
    if not apart:
        return [("all points", table)]
    lines = []
    values: tuple[object, ...]
    for values, rows in table.groupby(list(apart), dropna=False, sort=False):
        parts = [
            _called(rows) if key == "method" else f"{key.removeprefix('train.')} {_short(value)}"
            for key, value in zip(apart, values, strict=True)
            if value == value  # a point that has no use for a setting has no number there
        ]
        lines.append((", ".join(parts), rows))
    return lines


def _method(rows: pd.DataFrame) -> str:
    """The key of the method that all of these rows have; empty where they have several, or the table does not say."""
    methods = set(rows["method"]) if "method" in rows else set()
    return str(*methods) if len(methods) == 1 else ""


def _called(rows: pd.DataFrame) -> str:
    """The name of the rows' method, as a report writes it for the largest grid among them."""
    sizes = {size: rows[size].max() for size in _SIZES if size in rows}
    return called({"method": _method(rows)} | {size: most for size, most in sizes.items() if most == most})


def _short(value: object) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text.rstrip("/").rsplit("/", 1)[-1]


def _line(ax: Axes, rows: pd.DataFrame, key: str, name: str, look: Look) -> None:
    means = rows.groupby(key)["accuracy"].mean()
    ax.plot(means.index, means, label=entry(name), **look.line)
    if rows[key].is_unique:
        bars = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
        style: dict[str, Any] = {"fmt": "none", "ecolor": look.colour, "alpha": 0.5, "capsize": 2}
        ax.errorbar(rows[key], rows["accuracy"], yerr=bars, **style)
    else:
        ax.plot(rows[key], rows["accuracy"], ".", color=look.colour, alpha=0.5)


def main() -> None:
    """Draws what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--across", action="append", default=[])
    parser.add_argument("--apart", action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    save(figures(pd.read_csv(given.table).map(unquoted), given.across, given.apart), given.out)


if __name__ == "__main__":
    main()
