"""What generated tasks share: streams of questions without end, the same in every process, and names of people.

A stream draws questions from a generator that is seeded by the task, the split and the difficulty, and leaves out repeats.
It widens its numbers and names once most questions have been asked. Splits share nothing by construction: what a question is
made of (its numbers, its graph, its letters) is hashed, and belongs to the split that the hash names; and each split has
names of its own. torch is not loaded.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from typing import TypeVar

from scaling.records.overlap import template_of
from scaling.records.records import Question
from scaling.tasks.arithmetic_stories import NAMES
from scaling.tasks.task import Task

SPLITS = ("train", "validation", "test")

_REPEATS_BEFORE_WIDENING = 40  # repeated questions in a row
# invented names are made of these; all are of three letters and in one split only, and so are the names
_SYLLABLES = {
    "train": "bal dor fen gal hov jun kel lim mor nev pel rov sul tev vin wes zan cor",
    "validation": "ber dal gor hel jov kan lor mel nar pav ril sen",
    "test": "bor dun fal gil hem jas kor lun mer nel pol ras tam vel wil zen",
}

T = TypeVar("T")


class GeneratedTask(Task):
    """A task that draws its questions."""

    splits = SPLITS
    limit, max_new_tokens = 20, 96
    generated = True
    templates = False  # whether questions that differ in numbers and names alone are clusters

    def draw(self, rng: random.Random, split: str, width: int) -> Question | None:
        """Draws a question; None if it is of another split, or cannot be asked.

        Args:
            rng: the only source of chance.
            split: the split that it is for.
            width: from how wide a range: 1 at first, and twice as much each time that most questions have been asked.

        Returns:
            The question, with an empty id.
        """
        raise NotImplementedError

    def same(self, question: Question) -> Hashable:
        """What two questions have in common that are the same for the stream. By default, their text."""
        return question.text

    def questions(self, split: str, limit: int | None) -> Iterator[Question]:
        level = f"-d{self.difficulty}" if self.levels > 1 else ""
        stream = distinct(
            lambda rng, width: self.draw(rng, split, width), self.same, seed=f"{self.name}/{split}/{self.difficulty}"
        )
        for number, question in enumerate(islice(stream, limit)):
            cluster = template_of(question) if self.templates else None
            yield replace(question, id=f"{self.name}-{split}{level}-{number:05d}", cluster=cluster)


def distinct(
    draw: Callable[[random.Random, int], T | None], same: Callable[[T], Hashable], *, seed: str
) -> Iterator[T]:
    """An endless stream of what is drawn, without repeats.

    Args:
        draw: draws one, from a generator and a width; None to draw again. The width doubles after many repeats in a row.
        same: what two have in common where one repeats the other.
        seed: the same seed gives the same stream in every process.
    """
    rng = random.Random(stable_hash(seed))
    seen: set[Hashable] = set()
    width, repeats = 1, 0
    while True:
        drawn = draw(rng, width)
        if drawn is None:
            continue
        if same(drawn) not in seen:
            seen.add(same(drawn))
            repeats = 0
            yield drawn
            continue
        repeats += 1
        if repeats == _REPEATS_BEFORE_WIDENING:
            width, repeats = 2 * width, 0


def people(rng: random.Random, split: str, number: int, *, width: int = 1) -> list[str]:
    """Draws different names of people, which no other split has.

    Args:
        rng: the source of chance.
        split: whose names.
        number: how many.
        width: 1 for real names only. A larger one adds invented names, which are longer the larger it is.
    """
    known = " ".join(NAMES[split]).split()
    names: dict[str, None] = {}
    while len(names) < number:
        invented = width > 1 and rng.random() < 1 - 1 / width
        names[_invented(rng, split, width.bit_length()) if invented else pick(rng, known)] = None
    return list(names)


def _invented(rng: random.Random, split: str, syllables: int) -> str:
    return "".join(pick(rng, _SYLLABLES[split].split()) for _ in range(syllables)).capitalize()


def split_by(structure: str) -> str:
    """The only split that may have questions of this structure."""
    return SPLITS[stable_hash(structure) % len(SPLITS)]


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """A uniform choice. It uses only `random()`, whose sequence Python guarantees to be the same in all versions."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """The items in a random order, with the same guarantee as `pick`."""
    left = list(items)
    return [left.pop(int(rng.random() * len(left))) for _ in items]


def stable_hash(text: str) -> int:
    """A hash of 64 bits that is the same in every process, unlike Python's own."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def listed(words: Sequence[str]) -> str:
    """Words as a text lists them: "3, 25 and 2"."""
    return f"{', '.join(words[:-1])} and {words[-1]}"
