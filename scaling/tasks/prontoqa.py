"""ProntoQA-like questions: a chain of "every X is a Y" to a property, after the description in arXiv 2210.01240.

Ontologies are fictional: concepts are invented words in "-pus". Those of a question form two chains of the same length, in
which each is a kind of the next, and some have a property, as "every X is bright" or "every X is not cold". The person in
question is of the first kind of one chain. The property that is asked about is five rules away. The other chain is a
distractor: its concept at the same place has the opposite property. Rules stand in random order.

So the label cannot be told from what stands in the text: "is bright" and "is not bright" are both said of some concept,
either of the two is asked about, and the chains differ in nothing but the person. Splits share neither names nor concepts;
properties are English words, and the same in all. torch is not loaded.
"""

from __future__ import annotations

import random
from itertools import pairwise

from scaling.records.records import Question
from scaling.tasks.generated import GeneratedTask, people, pick, shuffled
from scaling.tasks.kinds import YesNo
from scaling.tasks.prosqa import words_of

HOPS = 5  # rules from the person to the property in question: one less between concepts, and the property's own

_LENGTH = HOPS + 1  # concepts of a chain, which goes on beyond the one whose property is asked about
_PROPERTIES = (
    *("bright", "cold", "wooden", "shy", "fruity", "loud", "happy", "sour", "large", "red"),
    *("nervous", "feisty", "opaque", "slow", "kind", "luminous", "bitter", "spicy", "earthy", "floral"),
)
_OTHERS = 1 / 2  # share of the other concepts that have a property, too
_RULES = ("Every {one} is {rest}.", "Each {one} is {rest}.", "{ones} are {rests}.")


class TrueOrFalse(YesNo):
    """As `YesNo`, where "true" is yes and "false" is no, and solutions say so."""

    ending = '"The answer is true" or "The answer is false"'
    wanted = "true or false"
    hint_first = False

    def written(self, answer: str) -> str:
        return "true" if answer == "yes" else "false"


class ProntoQA(GeneratedTask):
    """The task of ProntoQA, with five hops, rules in random order and a distractor."""

    name, kind = "prontoqa", TrueOrFalse()
    max_new_tokens = 192

    def draw(self, rng: random.Random, split: str, width: int) -> Question:  # noqa: ARG002
        (person,) = people(rng, split, 1)
        words, properties = shuffled(rng, words_of(split)), shuffled(rng, _PROPERTIES)
        asked, holds, wanted = properties.pop(), rng.random() < 1 / 2, rng.random() < 1 / 2
        rules: list[str] = []
        chain, other = ([words.pop() for _ in range(_LENGTH)] for _ in range(2))
        for concepts, sign in ((chain, holds), (other, not holds)):
            rules += [_kind_of(rng, *pair) for pair in pairwise(concepts)]
            rules.append(_has(rng, concepts[HOPS - 1], _property(asked, sign)))
            for concept in concepts:
                if concept != concepts[HOPS - 1] and rng.random() < _OTHERS:
                    rules.append(_has(rng, concept, _property(properties.pop(), rng.random() < 1 / 2)))
        said = f"{person} is a {chain[0]}. True or false: {person} is {_property(asked, wanted)}."
        steps = [*(f"a {concept}" for concept in chain[1:HOPS]), _property(asked, holds)]
        rationale = [f"Every {one} is {is_}, so {person} is {is_}." for one, is_ in zip(chain, steps, strict=False)]
        text = " ".join([*shuffled(rng, rules), said])
        return Question("", text, "yes" if holds == wanted else "no", rationale=tuple(rationale))


def _property(word: str, holds: bool) -> str:
    return word if holds else f"not {word}"


def _kind_of(rng: random.Random, one: str, other: str) -> str:
    """A rule that says that every concept of one kind is of another."""
    return _rule(rng, one, f"a {other}", f"{other}es")


def _has(rng: random.Random, one: str, of: str) -> str:
    """A rule that says which property every concept of a kind has."""
    return _rule(rng, one, of, of)


def _rule(rng: random.Random, one: str, rest: str, rests: str) -> str:
    return pick(rng, _RULES).format(one=one, ones=f"{one}es".capitalize(), rest=rest, rests=rests)
