"""What a sweep costs beside its runs, and what it saves: whole commands, ours and one `scale-run` for every point.

usage: sweep.py [--questions 4] [--axis 5] [--repeats 3] [--only overhead|grid]

Default model and thinker on the arithmetic task. `overhead`: a sweep of one point against the same `scale-run`, and a sweep
of one point against one of 13 that share no samples, so that the rest is the cost of a further point. `grid`: softcot++ at
N, M = 1 ... axis, as a sweep against a command a point. JSON lines on stdout, one a case, seconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

_TOKENS = 16  # of a completion in `overhead`: there the work itself is not what is measured
_SEEDS = 13


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=4)
    parser.add_argument("--axis", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("overhead", "grid"))
    given = parser.parse_args()
    if given.only != "grid":
        overhead(given.questions, given.repeats)
    if given.only != "overhead":
        grid(given.questions, list(range(1, given.axis + 1)))


def overhead(questions: int, repeats: int) -> None:
    settings = {"method": "cot", "limit": questions, "samples": 1, "max_new_tokens": _TOKENS}
    bare, one, many, inside = [], [], [], []
    for _ in range(repeats):  # in turns, so that a slow minute slows all
        bare.append(run(settings))
        one.append(sweep({"run": settings})[0])
        seconds, own = sweep({"run": settings, "axes": {"seed": list(range(_SEEDS))}})
        many.append(seconds)
        inside.append(own)
    median = {name: statistics.median(times) for name, times in (("bare", bare), ("one", one), ("many", many))}
    further = (median["many"] - median["one"]) / (_SEEDS - 1)
    sampling = statistics.median(inside) / _SEEDS
    line = {
        **{
            "scale_run": median["bare"],
            "sweep_of_one_point": median["one"],
            f"sweep_of_{_SEEDS}_points": median["many"],
        },
        **{"over_a_bare_run": median["one"] - median["bare"], "further_point": further, "of_it_sampling": sampling},
        "further_point_without_sampling": further - sampling,
    }
    tell("overhead", line, questions=questions, repeats=repeats)


def grid(questions: int, axis: Sequence[int]) -> None:
    settings = {"method": "softcot++", "limit": questions}
    ours, _ = sweep({"run": settings, "axes": {"latent_paths": list(axis), "samples": list(axis)}})
    one_by_one = sum(run({**settings, "latent_paths": n, "samples": m}) for n in axis for m in axis)
    line = {"sweep": ours, "a_command_a_point": one_by_one, "times_as_fast": one_by_one / ours}
    tell("grid", line, questions=questions, points=len(axis) ** 2)


def run(settings: dict[str, Any]) -> float:
    """Seconds of one `scale-run`."""
    with tempfile.TemporaryDirectory() as folder:
        options = {**settings, "out": Path(folder) / "run"}
        given = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", str(value))]
        return timed([sys.executable, "-c", "from scaling.cli import main; main()", "--json", *given])


def sweep(parts: dict[str, Any]) -> tuple[float, float]:
    """Seconds of one `scale-sweep run`, and those that its runs spent on sampling."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "grid.yaml"
        file.write_text(yaml.safe_dump({"name": "grid", **parts}))
        out = Path(folder) / "sweep"
        seconds = timed([sys.executable, "-m", "sweeps", "run", str(file), "--out", str(out)])
        summaries = [json.loads(path.read_text()) for path in out.glob("runs/*/summary.json")]
        return seconds, sum(summary["seconds"] for summary in summaries)


def timed(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def tell(case: str, line: dict[str, float], **about: Any) -> None:
    print(json.dumps({"case": case, **about, **{key: round(value, 3) for key, value in line.items()}}), flush=True)


if __name__ == "__main__":
    main()
