"""How often the intervals of test-time scaling laws hold the truth, on simulated grids of which the truth is known.

usage: laws.py [--seconds 1200] [--seed 0] [--cases A,B,...]

Paths are clusters within a question. Cases differ in the number of questions, in the shape of the grid, and in whether the
law is true: in one, a fifth of the questions are never right, which no beta distribution says. One JSON line a case: the
share of grids whose interval holds the truth, the mean error, and the mean width, of figures at 2 and 8 times the grid.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.differences import mean_share
from analysis.laws import Law, laws
from analysis.load import Ballots
from analysis.statistics import Interval

_ANSWERS = 20  # wrong answers of a question


@dataclass(frozen=True)
class Case:
    """What is drawn: `questions` x `paths` x `samples` of a law, of which a share `never` can not be answered."""

    questions: int
    paths: int
    samples: int
    never: float = 0.0
    mean: float = 0.4
    between: float = 0.4
    path: float = 0.1

    def law(self) -> Law:
        return Law(self.mean, self.between, self.path, concentration=1.5, silent=0.1)


CASES = {
    "A": Case(100, 4, 4),
    "B": Case(100, 1, 16),
    "C": Case(300, 8, 1),
    "D": Case(30, 4, 4),
    "E": Case(100, 4, 4, never=0.2),
    "F": Case(100, 8, 4, mean=0.1, between=0.3),
}


def grid(case: Case, rng: np.random.Generator, questions: int) -> Ballots:
    """Answers of so many questions of a case."""
    shape = (questions, case.paths, case.samples)
    chance = rng.beta(*_beta(np.array(case.mean), case.between), questions)
    chance[rng.random(questions) < case.never] = 1e-12
    paths = rng.beta(*_beta(chance[:, None], case.path), shape[:2])
    broken = rng.beta(1, 1.5, (questions, _ANSWERS))
    bounds = 1 - np.cumprod(1 - broken, axis=1)
    wrong = 1 + (rng.random(shape)[..., None] > bounds[:, None, None]).sum(axis=-1)
    codes = np.where(rng.random(shape) < paths[..., None], 0, np.where(rng.random(shape) < 0.1, -1, wrong))
    names = rng.permuted(np.tile(np.arange(_ANSWERS + 2), (questions, 1)), axis=1)  # ties go to the lowest number
    named = np.take_along_axis(names, codes.clip(0).reshape(questions, -1), axis=1).reshape(shape)
    verdicts = np.arange(_ANSWERS + 2) == names[:, :1]
    return Ballots(np.where(codes < 0, -1, named).astype(np.int32), verdicts, np.full(questions, _ANSWERS + 2))


def _beta(mean: NDArray[np.float64], correlation: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return mean * (1 / correlation - 1), (1 - mean) * (1 / correlation - 1)


def truth(case: Case, rng: np.random.Generator) -> dict[str, float]:
    """The figures at 2 and 8 times the grid, of very many questions."""
    found = {}
    for times in (2, 8):
        n, m = (case.paths * times, case.samples) if case.paths > 1 else (1, case.samples * times)
        found[f"coverage x {times}"] = (1 - case.never) * (1 - case.law().none(n, m))
        found[f"all right x {times}"] = (1 - case.never) * case.law().every(n, m)
        larger = Case(0, n, m, case.never, case.mean, case.between, case.path)
        found[f"vote x {times}"] = float(np.mean([_voted(grid(larger, rng, 1000)) for _ in range(20)]))
    return found


def _voted(ballots: Ballots) -> float:
    counts = ballots.counts().sum(axis=1)
    most = counts.max(axis=1)
    return float((ballots.verdicts & (counts == most[:, None])).any(axis=1)[most > 0].sum() / len(most))


def intervals(case: Case, rng: np.random.Generator) -> dict[str, Interval]:
    """The same figures by the law of one grid."""
    ballots = grid(case, rng, case.questions)
    sizes = laws([ballots], mean=mean_share, seed=int(rng.integers(1 << 30))).sizes
    names = {"coverage": "coverage", "all right": "every", "vote": "vote"}
    return {
        f"{name} x {times}": getattr(sizes[place], field)
        for place, times in ((0, 2), (2, 8))
        for name, field in names.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1200, help="for all cases together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default=",".join(CASES))
    given = parser.parse_args()
    names = given.cases.split(",")
    for name in names:
        rng = np.random.default_rng([given.seed, *name.encode()])
        true = truth(CASES[name], rng)
        held: dict[str, list[tuple[bool, float, float]]] = {figure: [] for figure in true}
        until = time.monotonic() + given.seconds / len(names)
        while time.monotonic() < until:
            for figure, interval in intervals(CASES[name], rng).items():
                low = interval.value if interval.low is None else interval.low
                high = interval.value if interval.high is None else interval.high
                held[figure].append((low <= true[figure] <= high, interval.value - true[figure], high - low))
        line: dict[str, Any] = {"case": name, **vars(CASES[name]), "grids": len(held["vote x 2"])}
        for figure, rows in held.items():
            share, error, width = np.mean(np.array(rows, dtype=float), axis=0).round(4).tolist()
            line[figure] = {"truth": round(true[figure], 4), "holds": share, "error": error, "width": width}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
