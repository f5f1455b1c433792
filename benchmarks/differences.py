"""How often intervals of differences cover, and tests of difference and equivalence decide. One JSON line a case.

    python benchmarks/differences.py                  # minutes on one core
    python benchmarks/differences.py --only trainings

Cases `interval` and `equal` have questions that differ by -1, 0 or 1. Where few of them differ nothing is drawn: all
outcomes are summed up with their probabilities. Cases `trainings` have two equal methods whose trainings
differ, and cases `clusters` questions of a few templates. Rates are shares; `draws` is null where they are exact.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis import statistics
from analysis.clusters import Clusters
from analysis.differences import equivalence, interval_of_difference, paired_difference
from analysis.statistics import sign_flip

Floats = NDArray[np.float64]

QUESTIONS = (30, 100, 300, 1000)
DIFFERING = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4)
MARGINS = (0.01, 0.02, 0.05)
RESAMPLES, DRAWS = 1999, 400
RARE = 1e-5  # outcomes with a smaller chance are left out


def ternary(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Coverage of intervals, by the number of questions, the share that differs and which way."""
    for questions in QUESTIONS:
        for differing in DIFFERING:
            for positive in (0.5, 0.75, 1.0):
                truth = differing * (2 * positive - 1)
                outcomes = list(_outcomes(rng, questions, differing, positive))
                covered = sum(chance * _covers(*outcome, truth) for *outcome, chance in outcomes)
                yield {
                    "case": "interval",
                    "questions": questions,
                    "differing": differing,
                    "positive": positive,
                    "covers": round(covered / sum(one[-1] for one in outcomes), 4),
                    "draws": None if _is_exact(questions, differing) else DRAWS,
                }


def equal(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """How often equality is claimed: where the difference is the margin (at most 5 %), and where there is none (power)."""
    for questions in QUESTIONS:
        for margin in MARGINS:
            for differing in sorted({margin, 1.5 * margin, 0.02, 0.05, 0.1, 0.2}):
                if differing < margin:
                    continue
                rates = {}
                for name, positive in (("size", 0.5 + margin / differing / 2), ("power", 0.5)):
                    outcomes = list(_outcomes(rng, questions, differing, positive))
                    claimed = sum(chance * (_p_equal(*outcome, margin) < 0.05) for *outcome, chance in outcomes)
                    rates[name] = round(claimed / sum(one[-1] for one in outcomes), 4)
                draws = None if _is_exact(questions, differing) else DRAWS
                yield {"case": "equal", "questions": questions, "margin": margin, "differing": differing, **rates} | {
                    "draws": draws
                }


def trainings(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Two equal methods on 300 questions: how often they are called different, with 1, 3 or 5 trainings each."""
    for accuracy in (0.3, 0.7):
        for spread in (0.0, 0.02, 0.034):  # so that two trainings differ by 2.8 and 4.8 points
            for number in (1, 3, 5):
                found = [_of_trainings(rng, accuracy, spread, number) for _ in range(DRAWS)]
                yield {"case": "trainings", "accuracy": accuracy, "spread": spread, "trainings": number} | {
                    "called_different": round(float(np.mean([one < 0.05 for one in found])), 4),
                    "draws": DRAWS,
                }


def clusters(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Equal methods on questions of templates, whose questions differ together: rejections with and without clusters."""
    for number, each in ((8, 12), (20, 5), (60, 5)):
        by = Clusters(np.repeat(np.arange(number), each))
        rejected = {"by_question": 0, "by_cluster": 0, "covers": 0}
        for _ in range(DRAWS):
            lean = np.repeat(rng.normal(0, 0.3, number), each)
            gaps = np.sign(lean + rng.normal(0, 0.4, len(lean))) * (rng.random(len(lean)) < 0.4)
            found = interval_of_difference(gaps, clusters=by)
            rejected["by_question"] += sign_flip(gaps) < 0.05
            rejected["by_cluster"] += sign_flip(by.sums(gaps)) < 0.05
            rejected["covers"] += found.low is not None and found.high is not None and found.low <= 0 <= found.high
        rates = {name: round(count / DRAWS, 4) for name, count in rejected.items()}
        yield {"case": "clusters", "clusters": number, "questions": number * each, **rates, "draws": DRAWS}


def _of_trainings(rng: np.random.Generator, accuracy: float, spread: float, number: int) -> float:
    """The p-value of two equal methods, whose trainings' accuracies have this standard deviation."""
    hard = rng.normal(0, 1, 300)
    threshold = stats.norm.isf(accuracy) * 2**0.5
    slope = stats.norm.pdf(stats.norm.isf(accuracy)) / 2**0.5

    def method() -> list[Floats]:
        shifts = rng.normal(0, spread / slope, number)
        return [(hard + rng.normal(0, 1, 300) + shift > threshold).astype(float) for shift in shifts]

    return paired_difference(method(), method()).p_value or 0.0


def _is_exact(questions: int, differing: float) -> bool:
    return questions * differing <= 15


def _outcomes(
    rng: np.random.Generator, questions: int, differing: float, positive: float
) -> Iterator[tuple[int, int, int, float]]:
    """The number of questions, how many differ each way, and the chance of that."""
    if not _is_exact(questions, differing):
        shares = [differing * positive, differing * (1 - positive), 1 - differing]
        yield from ((questions, int(a), int(b), 1.0) for a, b, _ in rng.multinomial(questions, shares, DRAWS))
        return
    for number in range(questions + 1):
        of_number = stats.binom.pmf(number, questions, differing)
        for ones, chance in enumerate(of_number * stats.binom.pmf(np.arange(number + 1), number, positive)):
            if chance > RARE:
                yield questions, ones, number - ones, float(chance)


@cache
def _covers(questions: int, ones: int, others: int, truth: float) -> bool:
    found = interval_of_difference(_gaps(questions, ones, others))
    return found.low is not None and found.high is not None and found.low - 1e-9 <= truth <= found.high + 1e-9


@cache
def _p_equal(questions: int, ones: int, others: int, margin: float) -> float:
    return equivalence(_gaps(questions, ones, others), margin)


def _gaps(questions: int, ones: int, others: int) -> Floats:
    return np.repeat([1.0, -1.0, 0.0], [ones, others, questions - ones - others])


CASES = {"ternary": ternary, "equal": equal, "trainings": trainings, "clusters": clusters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="one kind of cases")
    wanted = parser.parse_args().only
    statistics._MOST = RESAMPLES  # enough for rates, and five times as fast
    for name, case in CASES.items():
        if wanted in (None, name):
            for line in case(np.random.default_rng(0)):
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
