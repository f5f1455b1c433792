"""What each setting of a training is worth: trains every recipe with the same budget, then samples unseen questions.

usage: recipes.py [--only published,self,...] [--questions 32] [--samples 2] OPTIONS OF scale-train

JSON lines on stdout, one a recipe; progress on stderr. OPTIONS are those that all recipes share: models, data, paths,
steps; models and data go to `scale-run` too. The row `cot` is the backbone alone with as many chains.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

SLOTS = ["--states", "slots", "--stage", "at-once"]
BARE = [*SLOTS, "--no-standardise", "--no-path-offset"]
TOGETHER = [*SLOTS, "--standardise", "--path-offset", "--question-weight", "1"]
RECIPES: dict[str, list[str]] = {
    "published": [*BARE, "--no-normalise", "--freeze-token-sets", "--contrastive-weight", "PUBLISHED"],
    "learned sets": BARE,
    "standardise": [*SLOTS, "--no-path-offset"],
    "path offset": [*SLOTS, "--no-standardise"],
    "question contrast": [*BARE, "--question-weight", "1"],
    "self": [*BARE, "--targets", "self"],
    "uniform": [*BARE, "--contrastive", "uniform"],
    "no contrast": [*BARE, "--contrastive", "none"],
    "together": [*TOGETHER, "--targets", "self"],
    "together on gold": TOGETHER,
    "slots": SLOTS,
}
SHARED = ("--task", "--data", "--backbone", "--assistant", "--difficulty", "--dtype", "--device")
HEALTH = ("loss", "without", "mean", "another", "path_cosine", "question_cosine", "effective_rank")
ESTIMATES = ("useful", "information")
FIGURES = ("accuracy", "accuracy_low", "accuracy_high", "pass_at_1", "coverage", "mean_tokens")


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="recipes by name, with commas; default: all, and cot")
    parser.add_argument("--questions", type=int, default=32, help="unseen questions that are sampled")
    parser.add_argument("--samples", type=int, default=2, help="chains of each path")
    parser.add_argument("--max-new-tokens", default="96")
    asked, options = parser.parse_known_args()
    run = ["--limit", str(asked.questions), "--max-new-tokens", asked.max_new_tokens, *shared(options)]
    names = asked.only.split(",") if asked.only else [*RECIPES, "cot"]
    with TemporaryDirectory() as folder:
        for name in names:
            print(name, file=sys.stderr, flush=True)
            if name == "cot":
                paths = int(options[options.index("--latent-paths") + 1])
                row = cot(run, paths * asked.samples, Path(folder))
            else:
                row = recipe(name, options, run, asked.samples)
            print(json.dumps({"recipe": name, **row, "common": options}), flush=True)


def shared(options: list[str]) -> list[str]:
    """Of scale-train's options, those that scale-run needs too."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [word for pair in pairs if pair[0] in SHARED for word in pair]


def recipe(name: str, options: list[str], run: list[str], samples: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        out = Path(folder) / "thinker"
        trained = called("scale-train", *options, *settings(name, options), "--out", str(out))
        found = called("scale-run", *run, "--thinker", str(out), "--samples", str(samples), "--out", f"{folder}/run")
        first = json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["validation"]
    health = {key: rounded(trained[key]) for key in HEALTH}
    estimates = {key: {part: rounded(trained[key][part]) for part in ("value", "low", "high")} for key in ESTIMATES}
    started = {f"{key}_at_start": rounded(first[key]) for key in ("loss", "question_cosine")}
    return {**health, **estimates, **started, **figures(found)}


def settings(name: str, options: list[str]) -> list[str]:
    """The options of a recipe.

    The published code adds up the language losses of the N paths and divides the contrastive loss by N. Both are means
    here, so that its weight is 1 / N^2.
    """
    paths = int(options[options.index("--latent-paths") + 1]) if "--latent-paths" in options else 8
    return [word.replace("PUBLISHED", f"{1 / paths**2:.4g}") for word in RECIPES[name]]


def cot(run: list[str], samples: int, folder: Path) -> dict[str, Any]:
    without_assistant = [word for at, word in enumerate(run) if "--assistant" not in run[max(0, at - 1) : at + 1]]
    common = [*without_assistant, "--method", "cot", "--samples", str(samples), "--out", str(folder / "cot")]
    return figures(called("scale-run", *common))


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: rounded(summary[key]) for key in (*FIGURES, "num_questions", "num_completions")}


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def called(command: str, *options: str) -> dict[str, Any]:
    """The JSON that one of our commands prints, run with this Python."""
    module = {"scale-train": "scaling.training.cli", "scale-run": "scaling.cli"}[command]
    start = f"from {module} import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", start, *options, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


if __name__ == "__main__":
    main()
