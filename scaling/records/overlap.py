"""Compares questions by their texts: which questions of a run something was trained on, and which share a template.

Digests are small enough to be kept with a checkpoint. Questions are compared by their texts, without regard to white space
and case, and never by their ids. Standard library only.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from scaling.records.records import Question

KEY = "question_digests"  # the key of the digests in a checkpoint's config
_BYTES = (
    6  # length of a digest: a chance match among 100,000 trained and 1,000 asked questions has a probability below 1e-6
)

_VARYING = re.compile(r"[0-9]+(?:[.,:/][0-9]+)*|[^\W\d_]\w*")  # a number, or a word


@dataclass(frozen=True)
class Learned:
    """The questions that something was trained with.

    Attributes:
        name: name of these questions.
        trained: digests of the questions that it learned from.
        validated: digests of the questions that its best step was chosen by.
    """

    name: str
    trained: frozenset[str]
    validated: frozenset[str]


@dataclass(frozen=True)
class Overlap:
    """Questions of a run that something was trained with.

    Attributes:
        trained: ids of those that it learned from.
        validated: ids of those that it was only validated on.
    """

    trained: tuple[str, ...] = ()
    validated: tuple[str, ...] = ()

    @property
    def ids(self) -> tuple[str, ...]:
        """All of them."""
        return self.trained + self.validated


def question_digest(text: str, choices: Sequence[str] = ()) -> str:
    """A digest of a question, 8 characters: the same whatever its white space, its case and the order of its options.

    Args:
        text: the question.
        choices: its options, if it has any.
    """
    content = "\0".join([_normal(text), *sorted(map(_normal, choices))])
    # surrogatepass: a text may hold half of a surrogate pair, and that must not fail
    digest = blake2b(content.encode("utf-8", "surrogatepass"), digest_size=_BYTES).digest()
    return base64.urlsafe_b64encode(digest).decode("ascii")


def digest_of(question: Question) -> str:
    """The digest of a question with its options."""
    return question_digest(question.text, question.choices)


def template_of(question: Question) -> str:
    """The text of a question with its numbers and its words in capitals masked: the same for questions that tell one story.

    Names are such words; so is the first word of a sentence. White space and case do not matter.
    """
    return _normal(_VARYING.sub(lambda found: "#" if not found[0][0].islower() else found[0], question.text))


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def digests_of(name: str, trained: Iterable[Question], validated: Iterable[Question]) -> dict[str, dict[str, str]]:
    """The digests for a checkpoint's config, under `KEY`.

    Args:
        name: name of the questions.
        trained: questions to learn from.
        validated: questions to validate on.
    """
    return {KEY: {"of": name, "train": _joined(trained), "validation": _joined(validated)}}


def digests_with(digests: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The digests of a training that builds on an earlier one: the questions of both, under the name of its own.

    Args:
        digests: those of the training, from `digests_of`.
        earlier: the part of the earlier training's config that holds digests; it may hold none.
    """
    if learned_from(earlier) is None:
        return dict(digests)
    own, others = digests[KEY], earlier[KEY]
    both = {part: " ".join(dict.fromkeys(f"{own[part]} {others[part]}".split())) for part in ("train", "validation")}
    return {KEY: {**own, **both}}


def _joined(questions: Iterable[Question]) -> str:
    return " ".join(dict.fromkeys(map(digest_of, questions)))


def learned_from(about: Mapping[str, Any]) -> Learned | None:
    """Reads the digests in a checkpoint's config; None where it has none. about: the part of the config that holds them."""
    kept = about.get(KEY)
    parts = [kept.get("of"), kept.get("train"), kept.get("validation")] if isinstance(kept, dict) else []
    if not parts or not all(isinstance(part, str) for part in parts):
        return None
    name, trained, validated = map(str, parts)
    return Learned(name, frozenset(trained.split()), frozenset(validated.split()))


def overlap_of(questions: Iterable[Question], learned: Learned) -> Overlap:
    """The questions that something was trained with, in their order."""
    digests = [(question.id, digest_of(question)) for question in questions]
    trained = tuple(name for name, digest in digests if digest in learned.trained)
    validated = learned.validated - learned.trained
    return Overlap(trained, tuple(name for name, digest in digests if digest in validated))
