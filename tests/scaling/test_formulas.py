"""Sums of plain numbers are their exact value, and no formula takes long."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.tasks.formulas import evaluate
from scaling.tasks.kinds import KINDS
from scaling.tasks.numbers import written

Sum = tuple[str, Fraction]  # a formula in brackets or a number, and its value

leaves = st.integers(0, 99).map(lambda number: (str(number), Fraction(number)))


def joined(parts: tuple[Sum, str, Sum]) -> Sum:
    (left, first), sign, (right, second) = parts
    if sign == "-":
        return f"({left} - {right})", first - second
    if sign == "+":
        return f"[{left}+{right}]", first + second
    if sign == "*":
        return f"{{{left} \\times {right}}}", first * second
    return (f"\\frac{{{left}}}{{{right}}}", first / second) if second else (left, first)


sums = st.recursive(leaves, lambda parts: st.tuples(parts, st.sampled_from("+-*/"), parts).map(joined), max_leaves=6)


@given(sums)
def test_a_sum_is_its_value(formula: Sum) -> None:
    text, number = formula
    assert evaluate(text) == number
    if not re.fullmatch(r"\W*\d+ - \d+\W*", text):  # a lone difference may be a range
        assert KINDS["number"].canonical(text) == written(number)


@pytest.mark.parametrize(
    "spelling", ["5 + 7", "{12}", "[12]", "((12))", "2*6", "\\frac{24}{2}", "2^2 \\cdot 3", "4(3)", "\\sqrt{144}"]
)
def test_spellings_of_twelve_have_one_canonical_form(spelling: str) -> None:
    assert KINDS["number"].canonical(spelling) == "12"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 3 * 4", 14),
        ("-2^2", -4),
        ("2^3^2", 512),
        ("2**-1", Fraction(1, 2)),
        ("8/4/2", 1),
        ("--3", 3),
        ("1^999999999999", 1),
    ],
)
def test_the_usual_precedence(text: str, number: Fraction) -> None:
    assert evaluate(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "2x",
        "2 3",
        "(2",
        "2)",
        "(2]",
        "2 +",
        "* 2",
        "1/2(3)",
        "\\sqrt{2}",
        "4^{1/2}",
        "(1,200)",
        "(1, 2)",
        "\\frac 1 2",
        "2 ^",
    ],
)
def test_no_sum_of_plain_numbers(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        evaluate(text)


@pytest.mark.parametrize("text", ["1/0", "1/(2-2)", "0^-1", "9**9**9**9", "10^101", "99999^99", "(10^60)^2", "2^-999"])
def test_a_sum_without_a_usable_value_is_no_answer(text: str) -> None:
    with pytest.raises(ArithmeticError):
        evaluate(text)
    assert KINDS["number"].canonical(text) is None


def test_deep_brackets_are_left_alone() -> None:
    with pytest.raises(ValueError, match="deep"):
        evaluate("(" * 90 + "5" + ")" * 90)
    assert KINDS["number"].canonical("(" * 10_000 + "5" + ")" * 10_000) is None
