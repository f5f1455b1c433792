"""Which questions two sets share: a short digest of each question, small enough to be kept with what was trained on it.

Texts are compared after white space and case were made equal, never by their ids. Standard library only.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from scaling.records.records import Question

KEY = "question_digests"  # of the digests in what a checkpoint says of itself
_BYTES = 6  # of a digest: a chance match among 100,000 trained and 1,000 asked questions has a probability below 1e-6


@dataclass(frozen=True)
class Learned:
    """Digests of the questions that something was trained on, and of those that its best step was chosen by. name: what
    these questions are called."""

    name: str
    trained: frozenset[str]
    validated: frozenset[str]


@dataclass(frozen=True)
class Overlap:
    """Ids of questions that are asked although they were trained on, or validated on and not trained on."""

    trained: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        return self.trained + self.validated


def question_digest(text: str, choices: Sequence[str] = ()) -> str:
    """8 characters that stand for a question, whatever its white space, its case and the order of its options."""
    said = "\0".join([_normal(text), *sorted(map(_normal, choices))])
    digest = blake2b(said.encode("utf-8", "surrogatepass"), digest_size=_BYTES).digest()
    return base64.urlsafe_b64encode(digest).decode("ascii")


def digest_of(question: Question) -> str:
    return question_digest(question.text, question.choices)


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def digests_of(name: str, trained: Iterable[Question], validated: Iterable[Question]) -> dict[str, dict[str, str]]:
    """What a checkpoint keeps of its questions, to be merged into what it says of itself. name: what they are called."""
    return {KEY: {"of": name, "train": _joined(trained), "validation": _joined(validated)}}


def _joined(questions: Iterable[Question]) -> str:
    return " ".join(dict.fromkeys(map(digest_of, questions)))


def learned_from(about: Mapping[str, Any]) -> Learned | None:
    """What a checkpoint was trained on, None where it does not say. about: what it says of itself."""
    kept = about.get(KEY)
    parts = [kept.get("of"), kept.get("train"), kept.get("validation")] if isinstance(kept, dict) else []
    if not parts or not all(isinstance(part, str) for part in parts):
        return None
    name, trained, validated = map(str, parts)
    return Learned(name, frozenset(trained.split()), frozenset(validated.split()))


def overlap_of(questions: Iterable[Question], learned: Learned) -> Overlap:
    """The questions among those learned from, in their order."""
    digests = [(question.id, digest_of(question)) for question in questions]
    trained = tuple(name for name, digest in digests if digest in learned.trained)
    validated = learned.validated - learned.trained
    return Overlap(trained, tuple(name for name, digest in digests if digest in validated))
