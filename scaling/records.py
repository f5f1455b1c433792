"""The records that cross from one room to another, and their JSON form. Standard library only, so anything may read them.

Letters: N latent paths, M samples per path. A *path* is latent, a *sample* is discrete, a *vote* is over a question.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

Key = tuple[str, int, int]  # (question id, path, sample)


@dataclass(frozen=True)
class Question:
    """One question of a task.

    answer: the gold answer in canonical form ("18", "C", "yes"); see `scaling.tasks.answers`.
    choices: option texts in order A, B, C ... for multiple choice, otherwise empty.
    rationale: the gold reasoning, one step an entry; empty where the task has none.
    """

    id: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    rationale: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A question as a run asks it, a line of questions.jsonl: what was read, and how many tokens of it.

    prompt: the backbone's prompt as text, slots included. The assistant reads assistant_tokens, and then soft_tokens slots
    or writes hint_tokens of text; the backbone reads prefix_tokens, soft_tokens thoughts and suffix_tokens. Zero where a
    method has no such part.
    """

    id: str
    text: str
    answer: str
    choices: tuple[str, ...]
    prompt: str
    prefix_tokens: int
    soft_tokens: int
    suffix_tokens: int
    assistant_tokens: int
    hint_tokens: int = 0

    @property
    def prompt_tokens(self) -> int:
        return self.prefix_tokens + self.soft_tokens + self.suffix_tokens


@dataclass(frozen=True)
class Thoughts:
    """How the latent paths of one question differ, a line of thoughts.jsonl.

    cosines: of every two paths' thoughts, each taken as one vector of L x D values; N rows of N.
    """

    question_id: str
    cosines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Completion:
    """One sampled chain and what was read from it: a line of the journal, unique by `key`.

    answer: lenient reading in canonical form, None where none was found (casts no vote, counts as incorrect).
    answer_strict: the same for the strict reading (only an answer stated in the asked-for format).
    num_tokens: generated tokens, the end token included.
    stop_reason: "end" (the model's end token) or "length" (`max_new_tokens` reached).
    seed: start of this completion's own random stream; see `scaling.seeds`.
    log_prob: sum over the tokens of their log-probability at temperature 1. self_certainty: mean over the tokens of the
    model's own, in nats. None in older journals. They differ in their last digits between machines and batch sizes, so two
    completions are equal whatever they are.
    unread: why the answer reader failed on this text, which then has no answer; None where it was read.
    """

    question_id: str
    path: int
    sample: int
    text: str
    answer: str | None
    correct: bool
    answer_strict: str | None
    correct_strict: bool
    num_tokens: int
    stop_reason: str
    seed: int
    log_prob: float | None = field(default=None, compare=False)
    self_certainty: float | None = field(default=None, compare=False)
    unread: str | None = None

    @property
    def key(self) -> Key:
        return self.question_id, self.path, self.sample


@dataclass(frozen=True)
class Vote:
    """The outcome of a vote over one question. answer is None when no completion had an answer.

    Equal answers are one, written as `scaling.answer_classes` shows them. counts: votes for each answer. tied: the highest
    count was shared, so the tie rule of `scaling.voter` decided.
    """

    question_id: str
    answer: str | None
    counts: dict[str, int]
    tied: bool


def to_json(record: Completion | Asked | Thoughts) -> str:
    """One journal line, without the newline."""
    return json.dumps(asdict(record), ensure_ascii=True)


def completion_from(fields: dict[str, Any]) -> Completion:
    """A completion from a parsed journal line. Raises TypeError for a missing or an unknown field."""
    return Completion(**fields)


def asked_from(fields: dict[str, Any]) -> Asked:
    """A question from a parsed line of questions.jsonl. Raises TypeError for a missing or an unknown field."""
    return Asked(**{**fields, "choices": tuple(fields["choices"])} if "choices" in fields else fields)


def thoughts_from(fields: dict[str, Any]) -> Thoughts:
    """A line of thoughts.jsonl, parsed. Raises TypeError or KeyError for what is none."""
    return Thoughts(str(fields["question_id"]), tuple(tuple(map(float, row)) for row in fields["cosines"]))
