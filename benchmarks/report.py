"""Seconds and peak memory of `scale-report` on a million completions, beside what one would write in pandas.

usage: report.py [--questions 10000] [--latent-paths 10] [--samples 10] [--methods 1] [--repeats 3]

JSON lines on stdout, one a case; progress on stderr. The journals are made up: a share of right answers that differs by
question and path, else one of five others or none, and a text of 40 words. Every case runs in a process of its own, so
that its peak memory is its own; seconds are of the whole process, its start included, each repetition and their median.

scale-report: everything it does, from journals to the page.
pandas: what it takes to read the same journal with `pandas.read_json` and work out accuracy by `groupby` and the most
frequent answer, for the whole grid alone: no sub-grids, intervals, comparison, figures or page.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from scaling.records.costs import ModelCosts, RunCosts
from scaling.records.journal import ID, RUN, Journal
from scaling.records.json_lines import start_of
from scaling.records.records import Completion, PromptedQuestion, to_json
from scaling.records.seeds import stream_seed

_COSTS = RunCosts(
    ModelCosts(2_000_000, 500_000, 4_000, (0,) * 30, 46_080), ModelCosts(2_000_000, 0, 4_000, (0,) * 30, 0), 1
)
_SEED = 0
_TEXT = "She adds the eggs of the morning to those of the day before and gets the sum of them. " * 2
_PANDAS = """
import sys, pandas
table = pandas.read_json(sys.argv[1], lines=True, dtype={"answer": str})
given = table.dropna(subset=["answer"])
votes = given.groupby("question_id")["answer"].agg(lambda own: own.mode().iloc[0])
right = given.drop_duplicates(["question_id", "answer"]).set_index(["question_id", "answer"])["correct"]
print(right.reindex(list(zip(votes.index, votes))).sum() / table["question_id"].nunique())
"""


def main() -> None:
    arguments = parse()
    with TemporaryDirectory() as folder:
        runs = [make_run(Path(folder) / f"run{number}", arguments, number) for number in range(arguments.methods)]
        size = arguments.questions * arguments.latent_paths * arguments.samples * arguments.methods
        cases = {
            "scale-report": ["-m", "analysis", *map(str, runs), "--out", str(Path(folder) / "report")],
            "pandas": ["-c", _PANDAS, str(runs[0] / "samples.jsonl")],
        }
        for name, command in cases.items():
            seconds, peak = measured([sys.executable, *command], arguments.repeats)
            said: dict[str, Any] = {"case": name, "completions": size if name == "scale-report" else size // len(runs)}
            said |= {"seconds": seconds, "median_seconds": statistics.median(seconds), "peak_memory_mb": peak}
            print(json.dumps(said), flush=True)


def measured(command: list[str], repeats: int) -> tuple[list[float], int]:
    """Seconds of each repetition, and the largest peak memory of any, in MB."""
    seconds, peak = [], 0
    for number in range(repeats):
        print(f"{' '.join(command[1:3])[:40]!r} ... {number + 1}/{repeats}", file=sys.stderr)
        started = time.perf_counter()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)  # the child's own peak, not that of all children so far
        if status:
            sys.exit(f"case failed with status {status}")
        seconds.append(round(time.perf_counter() - started, 2))
        peak = max(peak, usage.ru_maxrss // 1000)
    return seconds, peak


def make_run(folder: Path, arguments: argparse.Namespace, number: int) -> Path:
    """A run directory with every completion."""
    print(f"making {folder.name}", file=sys.stderr)
    rng = np.random.default_rng(number)
    shape = (arguments.questions, arguments.latent_paths, arguments.samples)
    asked = [
        PromptedQuestion(f"q{i}", f"What is {i}?", str(i), (), f"Say {i}.", 60, 4, 8, 50)
        for i in range(arguments.questions)
    ]
    config: dict[str, Any] = {
        "method": "softcot++",
        "task": "made up",
        "seed": 0,
        "temperature": number,
        "adaptive": None,
    }
    config |= {"latent_paths": arguments.latent_paths, "samples": arguments.samples}
    chances = np.clip(rng.beta(1, 1, shape[:1])[:, None] + rng.normal(0, 0.15, shape[:2]), 0, 1)
    right = rng.random(shape) < chances[..., None]
    wrong = rng.integers(-1, 5, shape)
    tokens = rng.integers(20, 120, shape)
    with Journal.open(folder, config=config, environment={"costs": asdict(_COSTS)}, questions=asked) as journal:
        journal.write_summary({"seconds": 1000.0, "tokens": {"generated": int(tokens.sum())}})
    start = start_of(json.loads((folder / RUN).read_text())[ID])  # checksums of lines begin with the run's id
    with (folder / "samples.jsonl").open("w", encoding="ascii") as handle:
        for (q, p, s), hit in np.ndenumerate(right):
            answer = str(q) if hit else None if wrong[q, p, s] < 0 else f"-{wrong[q, p, s] + 1}"
            length = int(tokens[q, p, s])
            seed = stream_seed(_SEED, f"q{q}", p, s)
            one = Completion(f"q{q}", p, s, _TEXT, answer, bool(hit), answer, bool(hit), length, "end", seed)
            handle.write(f"{to_json(one, start=start)}\n")
    return folder


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("questions", 10_000), ("latent-paths", 10), ("samples", 10), ("methods", 1), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


if __name__ == "__main__":
    main()
