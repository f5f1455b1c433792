"""Hidden fact, the positive control of thoughts: only the assistant reads the fact that the question asks for.

The assistant reads "Tom has 7 apples. How many apples does Tom have?", the backbone "Tom has some apples. How many apples
does Tom have?". So thoughts are the only way in which the digit can reach the backbone, and a method whose thoughts carry
nothing of their question stays at chance, 1 in 9. The digit is uniform over `DIGITS`, and a target is the digit and the end
token. So the loss of thoughts without the digit cannot go below ln 9 = 2.197 nats a target, or `CHANCE_LOSS` = 1.099 nats a
token: a lower loss in training proves that the thoughts carry it. Chain of thought alone cannot know the answer either;
`assist-cot` may, as its assistant writes what it has read.

`Question.text` holds the fact, so that questions differ in it. torch is not loaded.
"""

from __future__ import annotations

import math
import random
import re

from scaling.records.records import Question
from scaling.tasks.answers import Reading
from scaling.tasks.counterfactuals import Counterfactual, chance_of
from scaling.tasks.generated import GeneratedTask, people, pick
from scaling.tasks.numbers import leading_number

DIGITS = range(1, 10)
CHANCE_LOSS = math.log(len(DIGITS)) / 2  # nats a token of a target: the digit and the end token

_THINGS = (
    *("apples", "books", "buttons", "cards", "candles", "coins", "cups", "eggs", "keys"),
    *("lemons", "marbles", "nuts", "pencils", "plums", "ribbons", "shells", "stamps", "stones"),
)
_FACT = re.compile(r"has [0-9] \w+\. How many (\w+)")


_ASKED = re.compile(r"How many (\w+) does (\w+) have")


class HiddenFact(GeneratedTask):
    """The task of naming a digit that only the assistant has read."""

    name, kind = "hidden-fact", "number"
    wanted, request = "the number", "Answer with the number alone."
    max_new_tokens = 16
    templates = True

    def draw(self, rng: random.Random, split: str, width: int) -> Question:
        [name] = people(rng, split, 1, width=width)
        digit, things = pick(rng, DIGITS), pick(rng, _THINGS)
        fact = _fact(name, digit, things)
        return Question("", f"{fact} How many {things} does {name} have?", str(digit), rationale=(fact,))

    def text(self, question: Question) -> str:
        return _FACT.sub(r"has some \1. How many \1", question.text)

    def assistant_text(self, question: Question) -> str:
        return question.text

    def counterfactual(self, question: Question) -> Counterfactual:
        other = pick(chance_of(question.text), [digit for digit in DIGITS if str(digit) != question.answer])
        things, name = _ASKED.findall(question.text)[-1]
        asked = question.text[question.text.index("How many") :]
        return Counterfactual(f"{_fact(name, other, things)} {asked}", str(other))

    def solution(self, question: Question) -> str:
        return question.answer

    def read(self, text: str, question: Question) -> Reading:
        """The stated number, or else the one that the text begins with. The lenient answer may be the first one in it."""
        stated = self.answers.read(text, question=question.text).strict or leading_number(text.strip())
        return Reading(stated, stated or next(iter(re.findall("[0-9]+", text)), None))


def _fact(name: str, digit: int, things: str) -> str:
    return f"{name} has {digit} {things if digit > 1 else things[:-1]}."
