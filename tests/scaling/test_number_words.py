"""Numbers in English words, spelled here in a second way and read back."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.tasks.number_words import leading_words

SMALL = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]


def spelled(number: int, *, link: str) -> str:
    """A number in words. link: "-" or a space within "fifty-two", and "and" after hundreds with the first."""
    for size, name in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand"), (100, "hundred")):
        if number >= size:
            rest = spelled(number % size, link=link)
            joint = " and " if link == "-" and number % size < 100 else " "
            return f"{spelled(number // size, link=link)} {name}" + (joint + rest if number % size else "")
    if number < 20:
        return SMALL[number]
    return TENS[number // 10 - 2] + (link + SMALL[number % 10] if number % 10 else "")


@given(
    st.integers(0, 10**12 - 1), st.sampled_from("- "), st.booleans(), st.sampled_from(["", " apples", ".", ", as said"])
)
def test_every_whole_number_reads_back(number: int, link: str, negative: bool, after: str) -> None:
    words = ("negative " if negative else "") + spelled(number, link=link)
    assert leading_words(words + after) == (Fraction(-number if negative else number), len(words))
    assert leading_words(words.upper() + after) == leading_words(words + after)


@given(st.integers(0, 999), st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_every_decimal_reads_back(whole: int, digits: list[int]) -> None:
    words = f"{spelled(whole, link='-')} point {' '.join(SMALL[digit] for digit in digits)}"
    found = leading_words(words)
    assert found is not None
    assert found[0] == Fraction(f"{whole}.{''.join(map(str, digits))}")


@pytest.mark.parametrize(
    "text",
    [
        "one of them",
        "two more than",
        "nineteen eighty-four",
        "twenty twenty",
        "two three",
        "a",
        "and",
        "point five of",
        "third",
        "one hundred hundred",
        "million million",
        "the two",
        "five or six",
        "two-way",
        "half of it",
        "one's",
        "zero hundred",
    ],
)
def test_words_that_are_no_complete_number(text: str) -> None:
    assert leading_words(text) is None
