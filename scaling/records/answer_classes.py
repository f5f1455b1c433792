"""Which answers to a question are equal, so that a vote counts them together. Standard library only.

A class depends on the set of different answers to the question and on nothing else: not on how often or in which order
they came, nor on which of them is right. It is made in four steps:

1. *Numbers of one exact value* are one class: `12`, `12.0`, `24/2`, `5 + 7`. So are *formulas of one form* (see
   `scaling.tasks.formula_forms`; only for these is the checker's process started), which is a number where the formula is
   rational: `2\\sqrt{2}` and `\\sqrt{8}`. Any other answer, as a letter or "yes", is equal to nothing but itself; so is one
   in quotation marks, see `as_text`.
2. *Printed floating-point numbers*, as the checker knows them, are the number whose printing they are: 17.999999999999996 is
   18 and 0.30000000000000004 is 0.3. Of several such numbers it is the closest, and none where two are equally close. Where
   there is none, they join the closest of the shorter ones among themselves that has joined none.
3. *Rounded decimals* join the number that they are a rounding of: 0.33 and 0.333 are 1/3. A decimal with at least two
   places and two digits, as the checker wants them (at least six places of an irrational number, again as the checker),
   may join a number that is no integer, has more places, and differs by at most half a unit of the decimal's last place.
   Rounding is not transitive, so the decimals are looked at from the most to the least precise, and each joins a number
   that has itself joined none: the only such fraction or irrational number, or where there is none of these the only such
   decimal. Where two could claim it, it stays alone.
4. Integers never join, and of decimals only printed ones join an integer.

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

_ANSWERS_HELD = 2**15
_SETS_HELD = 2**8  # sets of answers to one question, of which a run and a summary ask several times in a row
_PLACES_OF_IRRATIONAL = 6
_PLACES_OF_FRACTION = 1000
_IRRATIONAL = "~"  # begins the form of an irrational number

_checker = AnswerChecker()  # its process starts with the first formula, and ends with this one


class AnswerClass(NamedTuple):
    """Equal answers to one question.

    shown: how the class is written: its number in canonical form, else its shortest spelling. key: what ties are broken
    by; the same whichever spellings are there.
    """

    shown: str
    key: str


class _Number(NamedTuple):
    """A number and its canonical form. places: behind the point, of a fraction more than any decimal has. rounded:
    whether it may be the rounding of another one. printed: whether it may be printed with rounding errors."""

    value: Fraction
    text: str
    places: int
    rounded: bool
    printed: bool


class _Read(NamedTuple):
    """One answer by itself: a number, or a formula that the checker would have to look at, or a mere text."""

    number: _Number | None = None
    formula: str | None = None


def classes_of(answers: Iterable[str | None]) -> Mapping[str, AnswerClass]:
    """The class of every answer to one question; None, which is no answer, is left out.

    Raises UsageError where there are formulas and the checker cannot start.
    """
    return _classes(frozenset(answer for answer in answers if answer is not None))


def as_text(answer: str) -> str:
    """The answer as a mere text: in quotation marks where it would otherwise be taken for a number, as version "1.10"."""
    return f'"{answer}"' if number_or_formula(answer) is not None else answer


def from_text(answer: str) -> str:
    """What `as_text` was given."""
    inside = answer[1:-1]
    return inside if len(answer) > 2 and as_text(inside) == answer else answer


def close() -> None:
    """Ends the checker's process, if there is one, before this process ends. A later formula would start another."""
    _checker.close()


def may_be_rounded(answer: str) -> bool:
    """Whether it is a decimal that further answers could draw into another class."""
    number = _read(answer).number
    return number is not None and (number.rounded or number.printed)


@lru_cache(_SETS_HELD)
def _classes(answers: frozenset[str]) -> dict[str, AnswerClass]:
    numbers: dict[str, _Number] = {}
    found: dict[str, AnswerClass] = {}
    said: dict[str, str] = {}  # the canonical form of every answer that is a number
    shortest: dict[str, str] = {}  # the spelling of every form that is none
    irrational: dict[str, AnswerClass] = {}
    for answer in sorted(answers, key=lambda one: (len(one), one)):
        number, formula = _read(answer)
        form = _checker.form(formula) if formula and len(answers) > 1 else None
        number = _number(form) if form else number
        if number is None:
            key = form or formula or answer
            found[answer] = AnswerClass(shortest.setdefault(key, answer), key)
            if form and form.startswith(_IRRATIONAL):
                irrational[form] = found[answer]
        else:
            said[answer] = number.text
            numbers[number.text] = number
    roots = _roots(numbers.values(), irrational)
    return found | {answer: roots[text] for answer, text in said.items()}


@lru_cache(_ANSWERS_HELD)
def _read(answer: str) -> _Read:
    if answer.startswith('"'):
        return _Read()
    number = _number(answer)
    if number is None:
        form = number_or_formula(answer)  # older journals hold sums and brackets as they were written
        number = _number(form) if form else None
        return _Read(number) if number else _Read(formula=form)
    return _Read(number)


def _number(text: str) -> _Number | None:
    exact = value(text)
    if exact is None:
        return None
    form = written(exact)
    places = _PLACES_OF_FRACTION if "/" in form else len(form.partition(".")[2])
    rounded = "/" not in form and places >= 2 and len(form.strip("-0.").replace(".", "")) >= 2
    return _Number(exact, form, places, rounded, is_printed_float(form))


def _roots(numbers: Iterable[_Number], irrational: Mapping[str, AnswerClass]) -> dict[str, AnswerClass]:
    """The class of every number, by its canonical form. irrational: the classes of irrational numbers, by their form."""
    found = {number.text: AnswerClass(number.text, number.text) for number in numbers}
    if not any(number.rounded or number.printed for number in numbers):
        return found
    fractions: list[Fraction] = []
    decimals: list[Fraction] = []
    beyond = {Fraction(form.removeprefix(_IRRATIONAL)): own for form, own in irrational.items()}
    printed = _printed(numbers, beyond)
    for number in sorted(numbers, key=lambda one: -one.places):  # fractions, then the longest decimals
        if number.text in printed:
            continue
        if number.rounded:
            exact = _near(fractions, number)
            exact += _near(sorted(beyond), number) if number.places >= _PLACES_OF_IRRATIONAL else []
            near = exact or _near(decimals, number)
            if len(near) == 1:
                found[number.text] = beyond[near[0]] if near[0] in beyond else found[written(near[0])]
                continue
        if number.places:
            insort(fractions if number.places == _PLACES_OF_FRACTION else decimals, number.value)
    for text, own in printed.items():
        found[text] = beyond[own] if own in beyond else found[written(own)]
    return found


def _printed(numbers: Iterable[_Number], beyond: Iterable[Fraction]) -> dict[str, Fraction]:
    """Of printed floating-point numbers the number whose printing they are, where there is one.

    beyond: the irrational numbers, to 20 digits.
    """
    found: dict[str, Fraction] = {}
    exact = sorted(number.value for number in numbers if not number.printed)
    with_irrational, floats = sorted([*exact, *beyond]), list[Fraction]()
    for number in sorted((one for one in numbers if one.printed), key=lambda one: (len(one.text), one.text)):
        roots = with_irrational if number.places >= _PLACES_OF_IRRATIONAL else exact
        own = _closest(roots, number.value) or _closest(floats, number.value)
        if own:
            found[number.text] = own
        else:
            insort(floats, number.value)
    return found


def _closest(roots: list[Fraction], number: Fraction) -> Fraction | None:
    """Of sorted numbers the closest to a printed one, None where it is no printing of it, or two are equally close."""
    place = bisect_left(roots, number)
    near = sorted(roots[max(0, place - 1) : place + 1], key=lambda one: abs(one - number))
    if not near or (len(near) == 2 and abs(near[0] - number) == abs(near[1] - number)):
        return None
    return near[0] if differ_by_printing(near[0], number) else None


def _near(roots: list[Fraction], number: _Number) -> list[Fraction]:
    """Of sorted numbers those that differ by at most half a unit of the last place."""
    half = Fraction(1, 2 * 10**number.places)
    return roots[bisect_left(roots, number.value - half) : bisect_right(roots, number.value + half)]
