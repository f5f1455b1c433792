"""What a sweep's figures show: every line from the rows that it is made of."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.points import figures

REPOSITORY = Path(__file__).resolve().parents[2]


def row(accuracy, **settings):
    low, high = (None, None) if accuracy is None else (accuracy - 0.1, accuracy + 0.1)
    return {**settings, "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}


@pytest.fixture
def table():
    """N for one method, none for another, at two sizes of M, two seeds."""
    rows = [
        row(0.1 * n + 0.05 * m + 0.01 * seed, method="softcot++", latent_paths=n, samples=m, seed=seed)
        for n in (1, 2, 4)
        for m in (1, 2)
        for seed in (0, 1)
    ]
    rows += [row(0.2 + 0.01 * seed, method="cot", latent_paths=1, samples=2, seed=seed) for seed in (0, 1)]
    rows += [row(None, method="softcot", latent_paths=1, samples=2, seed=0)]
    return pd.DataFrame(rows)


def test_a_figure_shows_the_largest_grid_of_each_line(table):
    (paths,) = figures(table, ["latent_paths"], ["method", "samples"])
    assert set(paths.data["samples"]) == {2}
    drawn = {(r.method, r.latent_paths, round(r.accuracy, 2)) for r in paths.data.itertuples()}
    plus = {("softcot++", n, round(0.1 * n + 0.1 + 0.01 * seed, 2)) for n in (1, 2, 4) for seed in (0, 1)}
    assert drawn == plus | {("cot", 1, 0.2), ("cot", 1, 0.21)}
    assert "dots are seeds" in paths.caption
    assert "Dotted" in paths.caption
    assert {"CoT-SC", "SoftCoT++"} <= set(re.findall(r">([^<]+)</text>", paths.svg)), "as reports call them"


def test_one_seed_has_intervals(table):
    (paths,) = figures(table[table["seed"] == 0], ["latent_paths"], ["method", "samples"])
    assert "95 % intervals" in paths.caption


def test_a_setting_with_one_value_has_no_figure(table):
    assert figures(table[table["latent_paths"] == 1], ["latent_paths"], ["method"]) == []
    assert figures(table[table["accuracy"].isna()], ["latent_paths"], ["method"]) == []


def test_more_lines_than_can_be_told_apart_are_counted(table):
    many = pd.concat([table[table["method"] == "softcot++"].assign(temperature=t) for t in range(11)])
    (paths,) = figures(many, ["latent_paths"], ["temperature", "samples"])
    assert "3 more lines" in paths.caption


def test_more_lines_than_there_is_room_for_leave_none_for_level_ones(table):
    """Ten lines of which eight are drawn, and five methods without the setting, which would be drawn dotted."""
    many = [table[table["method"] == "softcot++"].assign(temperature=t) for t in range(10)]
    level = [table[table["method"] == "cot"].assign(method=f"level-{k}", temperature=0) for k in range(5)]
    (paths,) = figures(pd.concat(many + level), ["latent_paths"], ["method", "temperature", "samples"])
    assert "7 more lines" in paths.caption
    assert "Dotted" not in paths.caption
    assert "level-" not in paths.svg


def test_the_command_writes_figures_with_their_numbers(table, tmp_path):
    table.to_csv(tmp_path / "points.csv", index=False)
    asked = ["--across", "latent_paths", "--across", "samples", "--apart", "method", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "analysis.points", str(tmp_path / "points.csv"), *asked]
    subprocess.run(command, check=True, cwd=REPOSITORY)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"accuracy-{key}.{end}" for key in ("latent_paths", "samples") for end in ("svg", "csv")}
