"""The positive control of every thinker: thoughts are the only way in which the answer can reach the backbone.

usage: positive_control.py [--only "last;blind"] [--steps 240] [--out FOLDER] OPTIONS OF scale-train

Trains each recipe on the task `hidden-fact`, whose digit only the assistant reads, with new questions in every step, and
prints a JSON line for each: losses and question information (with 95 % intervals) at each validation, on questions about
other people, and seconds a step. Thoughts without the digit cannot go below 1.099 nats a token. `blind` is the twin of
`attention` whose assistant reads no digit either (its held-out questions are about the same people); `prompt-tuning`,
`proposer` and `refiner` have no assistant. All four have to stay where a constant is. The recipes that end in `staged` learn
on top of the constants of `prompt-tuning`. With `--out`, trainings are kept there, and a later call goes on with them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from scaling.tasks.catalogue import load_task

AT_ONCE, STAGED = ["--stage", "at-once"], ["--constant", "CONSTANT"]
SLOTS, ATTENTION = ["--states", "slots"], ["--states", "attention"]
PUBLISHED = [*SLOTS, *AT_ONCE, "--no-standardise", "--no-path-offset", "--no-normalise", "--freeze-token-sets"]
RECIPES: dict[str, list[str]] = {
    "prompt-tuning": ["--method", "prompt-tuning"],
    "slots": [*SLOTS, *AT_ONCE],
    "published": [*PUBLISHED, "--lr", "2e-5"],
    "published, lr 0.002": PUBLISHED,
    "last": ["--states", "last", *AT_ONCE],
    "mean": ["--states", "mean", *AT_ONCE],
    "attention": [*ATTENTION, *AT_ONCE],
    "blind": [*ATTENTION, *AT_ONCE],
    "slots, staged": [*SLOTS, *STAGED],
    "last, staged": ["--states", "last", *STAGED],
    "attention, staged": [*ATTENTION, *STAGED],
    "proposer": ["--method", "proposer"],
    "refiner": ["--method", "refiner"],
}
BATCH, VALIDATION, VALIDATIONS = 8, 48, 6


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="recipes by name, with semicolons between them; default: all")
    parser.add_argument("--steps", type=int, default=240, help="optimiser steps, of 8 questions each")
    parser.add_argument("--out", type=Path, help="folder for the trainings, one folder a recipe")
    asked, options = parser.parse_known_args()
    names = asked.only.split(";") if asked.only else list(RECIPES)
    if unknown := [name for name in names if name not in RECIPES]:
        parser.error(f"--only: {unknown[0]} is none of {'; '.join(RECIPES)}")
    if asked.steps < 2 * VALIDATIONS or asked.steps % VALIDATIONS:
        parser.error(f"--steps must be a multiple of {VALIDATIONS}, from {2 * VALIDATIONS}")
    with TemporaryDirectory() as temporary:
        folder = asked.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            if STAGED[1] in RECIPES[name]:
                trained("prompt-tuning", asked.steps, folder, options)
            print(json.dumps({"recipe": name, **measured(trained(name, asked.steps, folder, options))}), flush=True)


def trained(name: str, steps: int, folder: Path, options: list[str]) -> Path:
    """Trains a recipe, or goes on with it. Returns its folder."""
    print(name, file=sys.stderr, flush=True)
    out = folder / slug(name)
    asked = ["--task", "hidden-fact"] if name != "blind" else ["--data", str(blind_questions(folder, steps))]
    if "--method" in RECIPES[name]:  # has no assistant
        places = [place for place, word in enumerate(options) if word == "--assistant"]
        options = [word for place, word in enumerate(options) if place not in places and place - 1 not in places]
    own = [str(folder / slug("prompt-tuning")) if word == STAGED[1] else word for word in RECIPES[name]]
    size = {
        "latent-paths": 1,
        "batch-size": BATCH,
        "max-steps": steps,
        "limit": steps * BATCH,
        "validation": VALIDATION,
    }
    sizes = [word for key, value in size.items() for word in (f"--{key}", str(value))]
    resume = ["--resume"] if (out / "train.json").is_file() else []
    words = [*asked, *sizes, "--validate-every", str(steps // VALIDATIONS), *own, *options, *resume, "--out", str(out)]
    start = "from scaling.training.cli import main; main()"
    subprocess.run([sys.executable, "-c", start, *words, "--json"], stdout=subprocess.DEVNULL, check=True)
    return out


def slug(name: str) -> str:
    return "-".join(name.replace(",", "").split())


def measured(folder: Path) -> dict[str, Any]:
    """What the validations of a training found, and its seconds a step."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found = [row["validation"] for row in rows if "validation" in row]
    # the seconds of a step are those since the step before it, unless a validation lies between them
    apart = [
        after["seconds"] - before["seconds"]
        for before, after in pairwise(rows)
        if "validation" not in before and "validation" not in after
    ]
    return {
        "steps": [row["step"] for row in rows if "validation" in row],
        **{key: [round(health[key], 4) for health in found] for key in ("loss", "another", "mean")},
        **{key: [estimate(health[key]) for health in found] for key in ("information", "useful")},
        "question_cosine": round(found[-1]["question_cosine"], 4),
        "seconds_a_step": round(median(apart), 2),
        "questions": len(found[-1]["per_question"]["ids"]),
    }


def estimate(value: dict[str, float]) -> list[float]:
    """Value and 95 % interval."""
    return [round(value[key], 4) for key in ("value", "low", "high")]


def blind_questions(folder: Path, steps: int) -> Path:
    """Writes questions of hidden-fact as the backbone reads them, so that the assistant reads no digit either."""
    task = load_task("hidden-fact", split="train", limit=steps * BATCH + VALIDATION)
    rows = [{"question": task.definition.text(one), "answer": one.answer} for one in task.questions]
    path = folder / "blind.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


if __name__ == "__main__":
    main()
