"""The line above all verdicts: it says what the decisions on the pairs say, and nothing else."""

from __future__ import annotations

from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from analysis.lead import lead
from analysis.verdict import Curve, compare_all

ABC = ("A", "B", "C")


def compared(decisions: dict[tuple[str, str], str]) -> list[Any]:
    """Comparisons of pairs, as far as the line looks at them."""
    return [SimpleNamespace(first=first, second=second, decision=one) for (first, second), one in decisions.items()]


def line(names, **decisions):
    """`line("ABC", AB="better")`: the line for these names and the decisions on their pairs; others were not compared."""
    return lead(list(names), compared({(pair[0], pair[1]): one for pair, one in decisions.items()}), 200)


@pytest.mark.parametrize(
    ("names", "decisions", "said"),
    [
        ("AB", {"AB": "better"}, "A is better than B on 200 questions."),
        ("AB", {"AB": "worse"}, "B is better than A on 200 questions."),
        ("AB", {"AB": "not decided"}, "Nothing is decided between A and B on 200 questions."),
        ("AB", {"AB": "equal within the margin"}, "A and B are equal within the margin on 200 questions."),
        ("AB", {"AB": "equal"}, "A and B are equal within the margin on 200 questions."),
        (
            "AB",
            {"AB": "no common budget"},
            "Nothing can be compared at equal compute on 200 questions: extend the smaller runs.",
        ),
        ("A", {}, ""),
        (
            "ABC",
            {"AB": "better", "AC": "no common budget", "BC": "no common budget"},
            "A is better than B on 200 questions; 2 of 3 pairs have no common budget and stay out of this.",
        ),
        (
            "ABC",
            {"AB": "no common budget", "AC": "better", "BC": "not decided"},
            "Against C, on 200 questions: A better; B not decided; 1 of 3 pairs has no common budget and stays out of this.",
        ),
        (
            "ABC",
            {"AB": "not decided", "AC": "better", "BC": "better"},
            "Nothing is decided between A and B on 200 questions; C is worst.",
        ),
        (
            "ABC",
            {"AB": "equal within the margin", "AC": "better", "BC": "better"},
            "A and B are equal within the margin on 200 questions; C is worst.",
        ),
        (
            "ABC",
            {"AB": "better", "AC": "better", "BC": "better"},
            "A is best of 3 methods on 200 questions; C is worst.",
        ),
        ("ABC", {"AB": "worse", "AC": "not decided", "BC": "better"}, "B is best of 3 methods on 200 questions."),
        (
            "ABC",
            {"AB": "not decided", "AC": "better", "BC": "not decided"},
            "Nothing is decided between A and B on 200 questions; C is worse than at least one of them.",
        ),
        (
            "ABC",
            {"AB": "not decided", "AC": "equal", "BC": "not decided"},
            "No difference is shown between A, B and C on 200 questions (1 of 3 pairs are equal).",
        ),
        (
            "ABC",
            {"AB": "better", "BC": "better", "AC": "worse"},
            "Each of A, B and C is worse than another on 200 questions.",
        ),
        ("ABC", {"AC": "better", "BC": "not decided"}, "Against C, on 200 questions: A better; B not decided."),
        (
            "ABCD",
            {"AC": "better", "BD": "equal", "AD": "better"},
            "Of 3 pairs, on 200 questions: 2 better, 1 equal within the margin.",
        ),
    ],
)
def test_the_line_is_made_of_the_decisions(names, decisions, said):
    assert line(names, **decisions) == said


def test_many_methods_are_counted_and_not_named():
    names = [f"method {number}" for number in range(5)]
    undecided = compared(dict.fromkeys(combinations(names, 2), "not decided"))
    assert lead(names, undecided, 1) == "Nothing is decided between 5 methods on 1 question."


def test_best_and_worst_are_said_of_methods_that_are_that_alone():
    """Every outcome of three pairs."""
    for decided in product(("better", "worse", "not decided", "equal within the margin"), repeat=3):
        outcome = dict(zip(("AB", "AC", "BC"), decided, strict=True))
        said = line("ABC", **outcome)
        winners = [pair[decision == "worse"] for pair, decision in outcome.items() if decision in ("better", "worse")]
        losers = [pair[decision == "better"] for pair, decision in outcome.items() if decision in ("better", "worse")]
        for name in ABC:
            assert (f"{name} is best" in said) == (winners.count(name) == 2), (outcome, said)
            assert f"{name} is worst" not in said or losers.count(name) == 2, (outcome, said)


def test_the_line_follows_the_comparisons_of_a_report():
    """A is right where B is not on 40 of 60 questions; C is right where A is."""
    right = np.arange(60) < 50
    values = {"A": right, "B": np.arange(60) < 10, "C": right}
    curves = {
        name: [Curve(((1, 1),), own[:, None].astype(float), {"chains": np.ones(1)})] for name, own in values.items()
    }
    found = {pair: lead(pair, compare_all({one: curves[one] for one in pair}, "chains"), 60) for pair in ("AB", "BC")}
    assert found == {"AB": "A is better than B on 60 questions.", "BC": "C is better than B on 60 questions."}
    undecided = compare_all({one: curves[one] for one in "AC"}, "chains")
    assert undecided[0].decision in lead("AC", undecided, 60) or "Nothing is decided" in lead("AC", undecided, 60)
    assert lead("ABC", compare_all(curves, "chains"), 60).endswith("; B is worst.")


def test_with_a_baseline_all_decisions_are_about_the_others():
    """A control is compared with its method in that order, whichever of the two the baseline is."""
    assert line("ABC", AB="better", CA="not decided") == ("Against A, on 200 questions: C not decided; B worse.")
