"""Draws the accuracy of every method with every prompt, from the points of a sweep of the recipe `prompts`.

scale-sweep run prompts --scale small --out SWEEP
python benchmarks/prompts_figure.py SWEEP/points.csv docs/figures/prompts.svg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("svg")
from matplotlib import pyplot as plt

_NAMES = {"cot": "CoT-SC", "softcot": "SoftCoT-SC", "softcot++": "SoftCoT++"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("points", type=Path, help="points.csv of the sweep")
    parser.add_argument("figure", type=Path, help="the SVG file to write")
    asked = parser.parse_args()
    points = pd.read_csv(asked.points)
    prompts, methods = list(points["prompt"].unique()), list(points["method"].unique())
    matplotlib.rcParams.update({"svg.hashsalt": "prompts", "font.size": 11})
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for number, method in enumerate(methods):
        rows = points[points["method"] == method].set_index("prompt").loc[prompts]
        at = [place + 0.18 * (number - (len(methods) - 1) / 2) for place in range(len(prompts))]
        middle, low, high = (100 * rows[key] for key in ("accuracy", "accuracy_low", "accuracy_high"))
        axes.errorbar(
            at, middle, yerr=[middle - low, high - middle], fmt="o", capsize=3, label=_NAMES.get(method, method)
        )
    axes.set_xticks(range(len(prompts)), prompts)
    axes.set(xlabel="prompt", ylabel="accuracy of the flat vote, %", ylim=(0, None))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(asked.figure, metadata={"Date": None})


if __name__ == "__main__":
    main()
