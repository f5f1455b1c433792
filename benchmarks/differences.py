"""How often intervals of differences cover, and tests of difference and equivalence decide. One JSON line a case.

    python benchmarks/differences.py                  # minutes on one core
    python benchmarks/differences.py --only trainings

Cases `interval` and `equal` have questions that differ by -1, 0 or 1. Where few of them differ nothing is drawn: all
outcomes are summed up with their probabilities. Cases `trainings` have two equal methods whose trainings
differ, and cases `clusters` questions of a few templates.
Cases `border` hold interval and test of a difference against each other, `rivals` are intervals that are not used, `means`
those of single methods, and `needed` and `promises` say how true it is what questions and trainings would show. Rates are
shares; `draws` is null where they are exact.
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
from analysis.differences import (
    Difference,
    detectable,
    equivalence,
    interval_of_difference,
    paired_difference,
    questions_in_range,
)
from analysis.path_diversity import mean_squares
from analysis.statistics import Interval, bootstrap, interval_of_ratio, sign_flip, wilson

Floats = NDArray[np.float64]

QUESTIONS = (30, 100, 300, 1000)
DIFFERING = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.4)
MARGINS = (0.01, 0.02, 0.05)
RESAMPLES, DRAWS, BORDER_DRAWS = 1999, 400, 300
RANGE_DRAWS = 4000
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


def border(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """How often interval and sign flips disagree on differences of any size, near the border of 5 %.

    Differences are moved so that their mean is 1 to 3 standard errors away from zero. `even` ones are sixteenths, as likely
    up as down; `skew` ones are a few whole ones, and many sixteenths the other way.
    """
    for shape, values, shares in (
        (
            "even",
            np.array([0, 1, -1, 2, -2, 4, -4, 8, -8, 16, -16]) / 16,
            [0.46, *[0.1] * 2, *[0.06] * 4, *[0.04] * 2, *[0.01] * 2],
        ),
        ("skew", np.array([0, -1, -2, 16]) / 16, [0.4, 0.3, 0.2, 0.1]),
    ):
        for questions in QUESTIONS[:3]:
            test_alone = interval_alone = 0
            for _ in range(BORDER_DRAWS):
                gaps = rng.choice(values, p=shares, size=questions)
                error = gaps.std(ddof=1) / questions**0.5
                gaps = gaps - gaps.mean() + rng.choice([-1, 1]) * rng.uniform(1, 3) * error
                found, shown = interval_of_difference(gaps), sign_flip(gaps) < 0.05
                without_zero = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
                test_alone += shown and not without_zero
                interval_alone += without_zero and not shown
            yield {"case": "border", "shape": shape, "questions": questions, "draws": BORDER_DRAWS} | {
                "test_alone": round(test_alone / BORDER_DRAWS, 4),
                "interval_alone": round(interval_alone / BORDER_DRAWS, 4),
            }


def rivals(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Least and largest coverage of intervals that are not used.

    Of questions 1 to 5 differ on the average, and at least one does: without any these intervals have no width.
    """
    covers: dict[str, list[float]] = {"percentile": [], "BCa": [], "t": []}
    for questions in QUESTIONS[:3]:
        for differing in DIFFERING:
            if 0.9 <= questions * differing <= 5:
                for positive in (0.5, 0.75, 1.0):
                    truth = differing * (2 * positive - 1)
                    outcomes = [one for one in _outcomes(rng, questions, differing, positive) if one[1] + one[2]]
                    whole = sum(one[-1] for one in outcomes)
                    for kind, shares in covers.items():
                        held = sum(chance * _rival_covers(kind, truth, *outcome) for *outcome, chance in outcomes)
                        shares.append(held / whole)
    for kind, shares in covers.items():
        yield {"case": "rivals", "interval": kind, "least": round(min(shares), 4), "most": round(max(shares), 4)}


def means(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Coverage of the interval of a mean, of a share, and of an intraclass correlation that is zero."""
    held = 0
    for _ in range(DRAWS):
        [found] = bootstrap(rng.beta(0.5, 0.5, (80, 1)))
        held += _holds(found, 0.5)
    yield {"case": "means", "of": "a mean", "questions": 80, "covers": round(held / DRAWS, 4), "draws": DRAWS}
    shares = np.linspace(0.05, 0.95, 19)
    each = [
        sum(stats.binom.pmf(right, 60, share) for right in range(61) if _holds(wilson(right, 60), share))
        for share in shares
    ]
    yield {"case": "means", "of": "a share", "questions": 60, "covers": round(float(np.mean(each)), 4), "draws": None}
    for questions in (10, 20, 50):
        held = 0
        for _ in range(DRAWS):
            chance = rng.beta(1, 1, (questions, 1, 1))
            between, within = mean_squares(rng.random((questions, 4, 4)) < chance)  # 4 paths that are mere labels
            ratio = interval_of_ratio(between - within, between + 3 * within)
            held += ratio is not None and _holds(ratio, 0.0)
        yield {"case": "means", "of": "an intraclass correlation of 0", "questions": questions} | {
            "covers": round(held / DRAWS, 4),
            "draws": DRAWS,
        }


def needed(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """On 100 questions, a difference that takes so many: how often it is not decided, and whether its range holds them."""
    deviation = 0.4
    for takes in (100, 200, 400, 1000, 5000):
        one = Difference(Interval(0.0, None, None), None, deviation, 100)
        difference = detectable(one, questions=takes) or 0.0
        found = rng.normal(difference, deviation / 10, RANGE_DRAWS)
        spread = deviation * np.sqrt(rng.chisquare(99, RANGE_DRAWS) / 99)
        undecided = 2 * stats.t.sf(np.abs(found) / spread * 10, 99) >= 0.05  # a t test in place of sign flips
        pairs = zip(found[undecided], spread[undecided], strict=True)
        ranges = [questions_in_range(Difference(Interval(float(a), None, None), None, float(b), 100)) for a, b in pairs]
        given = [pair for pair in ranges if pair]
        yield {"case": "needed", "takes": takes, "undecided": round(float(undecided.mean()), 4)} | {
            "range_given": round(len(given) / max(1, len(ranges)), 4),
            "holds": round(float(np.mean([low <= takes <= high for low, high in given])), 4) if given else None,
            "draws": RANGE_DRAWS,
        }


def promises(rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """How often what several trainings are said to show is shown, on 200 questions."""
    for number in (2, 3, 5):
        for spread in (0.0, 0.02):
            found = [paired_difference(*_two_methods(rng, number, spread, 0.0)) for _ in range(DRAWS)]
            promised = float(np.mean([detectable(one) or 1.0 for one in found]))
            again = [paired_difference(*_two_methods(rng, number, spread, promised)).p_value for _ in range(DRAWS)]
            shown = np.mean([one is not None and one < 0.05 for one in again])
            yield {"case": "promises", "trainings": number, "spread": spread, "promised": round(promised, 4)} | {
                "shown": round(float(shown), 4),
                "draws": DRAWS,
            }


def _two_methods(rng: np.random.Generator, number: int, spread: float, difference: float) -> list[list[Floats]]:
    """Two methods of so many trainings, of which the first is better by `difference`."""
    question = rng.beta(0.5, 0.5, 200)
    return [
        [question + more + rng.normal(0, spread) + rng.normal(0, 0.3, 200) for _ in range(number)]
        for more in (difference, 0.0)
    ]


def _holds(found: Interval, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low - 1e-9 <= truth <= found.high + 1e-9


@cache
def _rival(kind: str, questions: int, ones: int, others: int) -> Interval:
    """An interval of the mean difference by another way; the value alone where all questions have the same difference."""
    gaps = _gaps(questions, ones, others)
    if gaps.std() == 0:
        return Interval(float(gaps.mean()), float(gaps.mean()), float(gaps.mean()))
    if kind == "t":
        low, high = stats.t.interval(0.95, questions - 1, gaps.mean(), stats.sem(gaps))
        return Interval(float(gaps.mean()), float(low), float(high))
    return bootstrap(gaps[:, None], method="BCa" if kind == "BCa" else "percentile")[0]


def _rival_covers(kind: str, truth: float, questions: int, ones: int, others: int) -> bool:
    return _holds(_rival(kind, questions, ones, others), truth)


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


CASES = {"ternary": ternary, "equal": equal, "trainings": trainings, "clusters": clusters, "border": border}
CASES |= {"rivals": rivals, "means": means, "needed": needed, "promises": promises}


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
