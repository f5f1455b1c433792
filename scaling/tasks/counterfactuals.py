"""Questions with one number changed, as `--control counterfactual` puts them to the assistant.

A hash of the text decides which number is changed and to what, so a question is changed alike in every run. Numbers are
those in digits; of 3.5 and 1,000 it is the 3 and the 1 that may change. torch is not loaded.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import NamedTuple

_TRIES = 200  # changes that are drawn for one question
# no part of a word, of a decimal's end or of a group of thousands, and short enough to draw another one exactly
_NUMBER = re.compile(r"(?<![\w.,])[1-9][0-9]{0,14}(?!\w)")


class Counterfactual(NamedTuple):
    """A question with something changed.

    Attributes:
        text: the changed text.
        answer: the right answer to it, in canonical form; None where it is not known.
    """

    text: str
    answer: str | None = None


class Change(NamedTuple):
    """One number of a text, changed.

    Attributes:
        place: which number it is, from 0.
        number: the new one. It has as many digits as the old one, and is 2 or larger.
        text: the changed text.
    """

    place: int
    number: int
    text: str


def chance_of(text: str) -> random.Random:
    """The source of chance of a text, the same in every process. Use `random()` alone, as `generated.pick` does."""
    return random.Random(f"counterfactual/{text}".encode("utf-8", "surrogatepass"))


def changes(text: str) -> Iterator[Change]:
    """Changes of one number each, in a random order and with repeats. None if the text has no number."""
    matches = list(_NUMBER.finditer(text))
    rng = chance_of(text)
    for _ in range(_TRIES if matches else 0):
        place = int(rng.random() * len(matches))
        match = matches[place]
        least, end = max(2, 10 ** (len(match[0]) - 1)), 10 ** len(match[0])
        number = least + int(rng.random() * (end - least))
        if number != int(match[0]):
            yield Change(place, number, f"{text[: match.start()]}{number}{text[match.end() :]}")


def with_another_number(text: str) -> Counterfactual | None:
    """The text with one number changed, whose answer is not known. None if it has no number."""
    return next((Counterfactual(change.text) for change in changes(text)), None)
