"""Which answers to a question are equal, so that a vote counts them together. Standard library only.

A class depends on the set of different answers to the question and on nothing else: not on how often or in which order
they came, nor on which of them is right. It is made in three steps:

1. *Numbers of one exact value* are one class: `12`, `12.0`, `24/2`, `5 + 7`. So are *formulas of one form* (see
   `scaling.tasks.formula_forms`; only for these is the checker's process started), which is a number where the formula is
   rational: `2\\sqrt{2}` and `\\sqrt{8}`. Any other answer, as a letter or "yes", is equal to nothing but itself.
2. *Rounded decimals* join the number that they are a rounding of: 0.33 and 0.333 are 1/3. A decimal with at least two
   places and two digits, as the checker wants them (at least six places of an irrational number, again as the checker),
   may join a number that is no integer, has more places, and differs by at most half a unit of the decimal's last place.
   Rounding is not transitive, so the decimals are looked at from the most to the least precise, and each joins a number
   that has itself joined none: the only such fraction or irrational number, or where there is none of these the only such
   decimal. Where two could claim it, it stays alone.
3. Integers never join, and nothing joins an integer.

It follows that another spelling of a number that is there, or another rounding that joins a number that is there, changes
no class of the others.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from scaling.tasks.equality import AnswerChecker
from scaling.tasks.numbers import number_or_formula, value, written

_ANSWERS_HELD = 2**17
_SETS_HELD = 2**12
_PLACES_OF_IRRATIONAL = 6
_PLACES_OF_FRACTION = 1000

_checker = AnswerChecker()  # its process starts with the first formula, and ends with this one


class AnswerClass(NamedTuple):
    """Equal answers to one question.

    shown: how the class is written: its number in canonical form, else its shortest spelling. key: what ties are broken
    by; the same whichever spellings are there.
    """

    shown: str
    key: str


class _Read(NamedTuple):
    """One answer by itself. number: its exact value. formula: what the checker would have to look at. Else a mere text."""

    number: Fraction | None = None
    formula: str | None = None


def classes_of(answers: Iterable[str | None]) -> Mapping[str, AnswerClass]:
    """The class of every answer to one question; None, which is no answer, is left out.

    Raises UsageError where there are formulas and the checker cannot start.
    """
    return _classes(frozenset(answer for answer in answers if answer is not None))


def may_be_rounded(answer: str) -> bool:
    """Whether it is a decimal that further answers could draw into another class."""
    number = _read(answer).number
    return number is not None and _is_rounding(written(number))


@lru_cache(_SETS_HELD)
def _classes(answers: frozenset[str]) -> dict[str, AnswerClass]:
    numbers: dict[Fraction, list[str]] = {}
    irrational: dict[str, list[str]] = {}
    found: dict[str, AnswerClass] = {}
    forms: dict[str, list[str]] = {}
    for answer in sorted(answers, key=lambda one: (len(one), one)):
        read = _read(answer)
        form = _checker.form(read.formula) if read.formula and len(answers) > 1 else None
        number = value(form) if form else read.number
        if number is not None:
            numbers.setdefault(number, []).append(answer)
        elif form and form.startswith("~"):
            irrational.setdefault(form, []).append(answer)
        else:
            forms.setdefault(form or read.formula or answer, []).append(answer)
    for form, spellings in (irrational | forms).items():
        found |= dict.fromkeys(spellings, AnswerClass(spellings[0], form))
    roots = _roots(numbers, {Fraction(form[1:]): found[spellings[0]] for form, spellings in irrational.items()})
    for number, spellings in numbers.items():
        found |= dict.fromkeys(spellings, roots[number])
    return found


@lru_cache(_ANSWERS_HELD)
def _read(answer: str) -> _Read:
    number = value(answer)
    if number is not None:
        return _Read(number)
    form = number_or_formula(answer)  # older journals hold sums and brackets as they were written
    if form is None:
        return _Read()
    number = value(form)
    return _Read(formula=form) if number is None else _Read(number)


def _roots(numbers: Iterable[Fraction], irrational: Mapping[Fraction, AnswerClass]) -> dict[Fraction, AnswerClass]:
    """The class of every number. irrational: the classes of irrational ones, by their value to 20 digits."""
    found: dict[Fraction, AnswerClass] = {}
    texts = {number: written(number) for number in numbers}
    fractions: list[Fraction] = []
    decimals: list[Fraction] = []
    beyond = sorted(irrational)
    for number in sorted(texts, key=lambda one: (-_places(texts[one]), one)):  # fractions, then the longest decimals
        text, places = texts[number], _places(texts[number])
        root = None
        if _is_rounding(text):
            exact = _near(fractions, number, places)
            exact += _near(beyond, number, places) if places >= _PLACES_OF_IRRATIONAL else []
            near = exact or _near(decimals, number, places)
            root = near[0] if len(near) == 1 else None
        if root is not None:
            found[number] = irrational[root] if root in irrational else found[root]
            continue
        found[number] = AnswerClass(text, text)
        if number.denominator > 1:
            insort(fractions if "/" in text else decimals, number)
    return found


def _near(roots: list[Fraction], number: Fraction, places: int) -> list[Fraction]:
    """Of sorted numbers those that differ by at most half a unit of the last place."""
    half = Fraction(1, 2 * 10**places)
    return roots[bisect_left(roots, number - half) : bisect_right(roots, number + half)]


def _is_rounding(text: str) -> bool:
    """Whether a number in canonical form has the places and digits of a rounded one."""
    return "/" not in text and _places(text) >= 2 and len(text.strip("-0.").replace(".", "")) >= 2


def _places(text: str) -> int:
    """Behind the decimal point of a number in canonical form; of a fraction more than any decimal has."""
    return _PLACES_OF_FRACTION if "/" in text else len(text.partition(".")[2])
