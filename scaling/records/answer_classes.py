"""Finds out which answers to a question are equal, so that a vote counts them together. Standard library only.

A *class* is a set of equal answers. The classes depend on the set of different answers to the question and on nothing else:
not on how often or in which order the answers came, nor on which of them is right. These are the rules:

1. *Numbers of the same exact value* are equal: `12`, `12.0`, `24/2` and `5 + 7`. So are *formulas of the same form*, such as
   `2\\sqrt{2}` and `\\sqrt{8}`; the form of a rational formula is a number (see `scaling.tasks.formula_forms`; the checker's
   process is only started for formulas). Any other answer, such as a letter or "yes", is only equal to itself. The same
   holds for an answer in quotation marks, see `as_text`.
2. *Printed floating-point numbers*, which show the rounding errors of binary arithmetic, are equal to the number that was
   meant: 17.999999999999996 to 18, and 0.30000000000000004 to 0.3. The checker says what they look like. If they fit several
   numbers, they join the closest one, and none if two are equally close. If they fit none, they join the closest of the
   shorter printed numbers that has not joined another number itself.
3. *Rounded decimals* join the number that they are a rounding of: 0.33 and 0.333 join 1/3. To join, a decimal must have at
   least two places and two digits, and at least six places where the other number is irrational; these are the checker's
   limits. The other number must not be an integer, must have more places, and may differ by at most half a unit of the
   decimal's last place.
   Rounding is not transitive. Therefore the decimals are treated from the most to the least precise, and each may only join
   a number that has not joined another one itself. If exactly one fraction or irrational number fits, the decimal joins it.
   If none of these fits and exactly one decimal does, it joins that one. If several fit, it stays alone.
4. Integers never join a number, and of decimals only printed ones join an integer.

It follows that another spelling or printing of a number that is there changes no class of the others. Nor does another
rounding that joins a number that is there, except that its own printings follow it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from scaling.tasks.equality import AnswerChecker, differ_by_printing, is_printed_float
from scaling.tasks.numbers import number_or_formula, value, written

_ANSWERS_HELD = 2**15  # answers whose reading is kept in memory
_SETS_HELD = 2**8  # sets of answers whose classes are kept: a run and its summary ask for the same ones several times
_PLACES_OF_IRRATIONAL = 6  # places that a decimal needs to join an irrational number
_PLACES_OF_FRACTION = 1000  # more than any decimal has: a fraction is more precise than all of them
_IRRATIONAL = "~"  # begins the form of an irrational number

_checker = AnswerChecker()  # its process starts with the first formula, and ends when this process does


class AnswerClass(NamedTuple):
    """A class of equal answers to one question.

    Attributes:
        shown: how the class is written: its number in canonical form, or else its shortest spelling.
        key: what ties are broken by. It does not depend on which spellings there are.
    """

    shown: str
    key: str


class _Number(NamedTuple):
    """A number.

    Attributes:
        value: its exact value.
        text: its canonical form.
        places: digits behind the point; of a fraction `_PLACES_OF_FRACTION`.
        rounded: whether it may be a rounding of another number.
        printed: whether it may be a floating-point number printed with rounding errors.
    """

    value: Fraction
    text: str
    places: int
    rounded: bool
    printed: bool


class _Read(NamedTuple):
    """How one answer is read: as a number, as a formula whose form only the checker can tell, or as a text (neither)."""

    number: _Number | None = None
    formula: str | None = None


def classes_of(answers: Iterable[str | None]) -> Mapping[str, AnswerClass]:
    """Finds the class of every answer to one question.

    Args:
        answers: the answers; None, which is no answer, is left out.

    Returns:
        The class of each answer, by the answer.

    Raises:
        UsageError: where there are formulas and the checker cannot start.
    """
    return _classes(frozenset(answer for answer in answers if answer is not None))


def as_text(answer: str) -> str:
    """Marks an answer as a text: it gets quotation marks if it would be read as a number, such as the version 1.10."""
    return f'"{answer}"' if number_or_formula(answer) is not None or _is_latex(answer) else answer


def from_text(answer: str) -> str:
    """The reverse of `as_text`."""
    inside = answer[1:-1]
    return inside if len(answer) > 2 and as_text(inside) == answer else answer


def _is_latex(answer: str) -> bool:
    return "\\" in answer or "|" in answer


def close() -> None:
    """Ends the checker's process, if there is one. A later formula would start another."""
    _checker.close()


def may_be_rounded(answer: str) -> bool:
    """Whether the answer is a decimal that may join another number, and so may change its class with further answers."""
    number = _read(answer).number
    return number is not None and (number.rounded or number.printed)


@lru_cache(_SETS_HELD)
def _classes(answers: frozenset[str]) -> dict[str, AnswerClass]:
    """The class of each answer, by the answer."""
    numbers: dict[str, _Number] = {}  # by canonical form
    classes: dict[str, AnswerClass] = {}  # of answers that are not rational numbers
    canonical: dict[str, str] = {}  # canonical form of each answer that is a rational number
    shortest: dict[str, str] = {}  # shortest spelling of each form that is not a rational number
    irrational: dict[str, AnswerClass] = {}  # classes of irrational numbers, by form
    for answer in sorted(answers, key=lambda one: (len(one), one)):
        number, formula = _read(answer)
        # a single answer needs no comparison, and so no checker
        form = _checker.form(formula) if formula and len(answers) > 1 else None
        number = _number(form) if form else number
        if number is None:
            key = form or formula or answer
            classes[answer] = AnswerClass(shortest.setdefault(key, answer), key)
            if form and form.startswith(_IRRATIONAL):
                irrational[form] = classes[answer]
        else:
            canonical[answer] = number.text
            numbers[number.text] = number
    roots = _roots(numbers.values(), irrational)
    return classes | {answer: roots[text] for answer, text in canonical.items()}


@lru_cache(_ANSWERS_HELD)
def _read(answer: str) -> _Read:
    """Reads one answer by itself."""
    if answer.startswith('"'):
        return _Read()
    number = _number(answer)
    if number is None:
        form = number_or_formula(answer)  # journals of earlier versions hold sums and brackets as the model wrote them
        number = _number(form) if form else None
        # as it is, where it has LaTeX: in plain text the half of \\frac{1}{2}x would be 1/2x
        return _Read(number) if number else _Read(formula=answer if _is_latex(answer) else form)
    return _Read(number)


def _number(text: str) -> _Number | None:
    """The number that a text writes, None where it writes none."""
    exact = value(text)
    if exact is None:
        return None
    form = written(exact)
    places = _PLACES_OF_FRACTION if "/" in form else len(form.partition(".")[2])
    rounded = "/" not in form and places >= 2 and len(form.strip("-0.").replace(".", "")) >= 2
    return _Number(exact, form, places, rounded, is_printed_float(form))


def _roots(numbers: Iterable[_Number], irrational: Mapping[str, AnswerClass]) -> dict[str, AnswerClass]:
    """Lets printed and rounded decimals join other numbers: rules 2 and 3 of this module.

    Args:
        numbers: the rational numbers among the answers.
        irrational: the classes of irrational numbers, by their form.

    Returns:
        The class of each rational number, by its canonical form.
    """
    classes = {number.text: AnswerClass(number.text, number.text) for number in numbers}
    if not any(number.rounded or number.printed for number in numbers):
        return classes
    fractions: list[Fraction] = []  # sorted, as are the decimals: numbers that have not joined another one
    decimals: list[Fraction] = []
    irrationals = {Fraction(form.removeprefix(_IRRATIONAL)): answer_class for form, answer_class in irrational.items()}
    printed = _printed(numbers, irrationals)
    for number in sorted(numbers, key=lambda number: -number.places):  # fractions, then the longest decimals
        if number.text in printed:
            continue
        if number.rounded:
            precise = _near(fractions, number)
            precise += _near(sorted(irrationals), number) if number.places >= _PLACES_OF_IRRATIONAL else []
            near = precise or _near(decimals, number)
            if len(near) == 1:
                classes[number.text] = irrationals[near[0]] if near[0] in irrationals else classes[written(near[0])]
                continue
        if number.places:
            insort(fractions if number.places == _PLACES_OF_FRACTION else decimals, number.value)
    # after the loop: a number that a printed one stands for may have joined another one itself
    for text, meant in printed.items():
        classes[text] = irrationals[meant] if meant in irrationals else classes[written(meant)]
    return classes


def _printed(numbers: Iterable[_Number], irrationals: Iterable[Fraction]) -> dict[str, Fraction]:
    """The numbers that printed floating-point numbers stand for, by canonical form of those that stand for one: rule 2.

    Args:
        numbers: the rational numbers among the answers.
        irrationals: the irrational numbers, to 20 digits.
    """
    meant: dict[str, Fraction] = {}
    exact = sorted(number.value for number in numbers if not number.printed)
    with_irrational, floats = sorted([*exact, *irrationals]), list[Fraction]()
    printed = [number for number in numbers if number.printed]
    for number in sorted(printed, key=lambda number: (len(number.text), number.text)):
        roots = with_irrational if number.places >= _PLACES_OF_IRRATIONAL else exact
        closest = _closest(roots, number.value) or _closest(floats, number.value)
        if closest:
            meant[number.text] = closest
        else:
            insort(floats, number.value)
    return meant


def _closest(roots: list[Fraction], number: Fraction) -> Fraction | None:
    """The closest of the sorted `roots` if a number is a printing of it; None if it is not, or two are equally close."""
    place = bisect_left(roots, number)
    near = sorted(roots[max(0, place - 1) : place + 1], key=lambda root: abs(root - number))
    if not near or (len(near) == 2 and abs(near[0] - number) == abs(near[1] - number)):
        return None
    return near[0] if differ_by_printing(near[0], number) else None


def _near(roots: list[Fraction], number: _Number) -> list[Fraction]:
    """Those of the sorted `roots` that differ from a number by at most half a unit of its last place."""
    half = Fraction(1, 2 * 10**number.places)
    return roots[bisect_left(roots, number.value - half) : bisect_right(roots, number.value + half)]
