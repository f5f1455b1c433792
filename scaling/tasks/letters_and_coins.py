"""Two small tasks of the chain-of-thought literature, generated with names and texts of our own: last letters and coin flip.

The splits of both have their own names and their own wording. Those of `last-letters` have no answer in common either. The
flips of `coin-flip` cannot differ between splits, as two people can only flip in four ways. torch is not loaded.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from scaling.records.records import Question
from scaling.tasks.generated import GeneratedTask, listed, people, pick, split_by
from scaling.tasks.kinds import Kind

_MOST_LETTERS = 26
_LETTERS = re.compile(
    r"\W*(?:(?:the|letters?|word|string)\b[\s:\"'*`]+)*(?P<letters>[a-z](?:(?:[\s,.\"'+-]{1,3}|,?\sand\s)[a-z]\b(?!['’]))+|[a-z]+)\b",
    re.IGNORECASE,
)
_CALCULATED = re.compile(r"[a-z](?:\s?\+\s?[a-z]){1,25}\s?=\s?(?=[a-z])", re.IGNORECASE)  # "c + l = cl"
_BETWEEN = re.compile(r"\band\b|[\s,.\"'*_`+-]", re.IGNORECASE)
_ASKED = {
    "train": "Take the last letter of each of the names {names}, and put the letters together.",
    "validation": "Which letters stand at the ends of the names {names}? Write them one after the other.",
    "test": "What do you get by joining the final letters of {names}, in this order?",
}
_COINS = {  # the beginning, who flips, who does not, the end
    "train": ("A coin lies {side} up.", "{name} flips it.", "{name} does not flip it.", "Is it still {side} up?"),
    "validation": (
        "A coin on the table shows {side}.",
        "{name} turns the coin over.",
        "{name} leaves the coin alone.",
        "Does the coin show {side} in the end?",
    ),
    "test": (
        "There is a coin with {side} on top.",
        "{name} reverses the coin.",
        "{name} looks at the coin without a touch.",
        "Is {side} on top now?",
    ),
}
_SIDES = ("heads", "tails")


class Letters(Kind):
    """A few letters in lower case, however they are set apart: "n-s" and "N S" are "ns". Only a stated answer is read."""

    name = "letters"
    ending = '"The answer is" and the letters'
    wanted = "the letters"
    verbatim = True

    def stated(self, said: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        match = _LETTERS.match(_CALCULATED.sub("", said, count=1))
        return self.canonical(match["letters"]) if match else None

    def elsewhere(self, text: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return None

    def canonical(self, answer: str, *, num_choices: int = 0) -> str | None:  # noqa: ARG002
        letters = (_BETWEEN.sub("", answer) or answer).lower()
        return letters if re.fullmatch(f"[a-z]{{1,{_MOST_LETTERS}}}", letters) else None

    def required(self, num_choices: int) -> str:  # noqa: ARG002
        return f"1 to {_MOST_LETTERS} letters"


class LastLetters(GeneratedTask):
    """The task of joining the last letters of two names (difficulty 1) to four."""

    name, kind = "last-letters", Letters()
    levels = 3

    def draw(self, rng: random.Random, split: str, width: int) -> Question | None:
        names = people(rng, split, self.difficulty + 1, width=width)
        answer = "".join(name[-1] for name in names)
        if split_by(f"{self.name}/{answer}") != split or self.answers.read(f"The answer is {answer}.").strict != answer:
            return None  # of another split, or a word that no reader takes for an answer, as in "The answer is in."
        steps = [f"The last letter of {name} is {name[-1]}." for name in names]
        return Question("", _ASKED[split].format(names=listed(names)), answer, rationale=tuple(steps))


class CoinFlip(GeneratedTask):
    """The task of following a coin past two people (difficulty 1) to four, each of whom may flip it."""

    name, kind = "coin-flip", "yes_no"
    templates = True
    levels = 3

    def draw(self, rng: random.Random, split: str, width: int) -> Question:
        beginning, flip, no_flip, end = _COINS[split]
        names = people(rng, split, self.difficulty + 1, width=width)
        flips = [rng.random() < 1 / 2 for _ in names]  # so the number of flips is even in half of the questions
        side = pick(rng, (0, 1))
        acts = [(flip if flipped else no_flip).format(name=name) for name, flipped in zip(names, flips, strict=True)]
        text = " ".join([beginning, *acts, end]).replace("{side}", _SIDES[side])
        rationale, now = [], side
        for act, flipped in zip(acts, flips, strict=True):
            now ^= flipped
            rationale.append(f"{act[:-1]}, so {_SIDES[now]} is up{'' if flipped else ' as before'}.")
        return Question("", text, "yes" if now == side else "no", rationale=tuple(rationale))
