"""The records that cross from one room to another, and their JSON form. Standard library only, so anything may read them.

Letters: N latent paths, M samples per path. A *path* is latent, a *sample* is discrete, a *vote* is over a question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from scaling.records.json_lines import Unfit, sealed

Key = tuple[str, int, int]  # (question id, path, sample)
Costs = dict[str, float]  # what a run has cost, by name: seconds, prompt tokens, decode steps, bytes at their peak ...

TIMEOUTS = "timeouts"  # of Costs: comparisons of answers that were not finished, which count as unequal
PEAKS = ("kv_bytes_held", "kv_bytes_avoided", "peak_memory_bytes")  # of Costs: the largest counts, not the sum


@dataclass(frozen=True)
class Question:
    """One question of a task.

    answer: the gold answer in canonical form ("18", "C", "yes"); see `scaling.tasks.kinds`.
    choices: option texts in order A, B, C ... for multiple choice, otherwise empty.
    rationale: the gold reasoning, one step an entry; empty where the task has none.
    """

    id: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    rationale: tuple[str, ...] = ()


@dataclass(frozen=True)
class PromptedQuestion:
    """A question as a run asks it, a line of questions.jsonl: what was read, and how many tokens of it.

    prompt: the backbone's prompt as text, slots included. The assistant reads assistant_tokens, and then soft_tokens slots
    or writes hint_tokens of text; the backbone reads prefix_tokens, soft_tokens thoughts and suffix_tokens. Zero where a
    method has no such part. kind: of its answer, see `scaling.tasks.kinds`; None in runs of version 0.1.

    current: False for a question of an earlier session that is no longer asked; it is kept for the completions that are
    there. judged: False while the gold answer is a new one, by which the completions are not judged yet.
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
    kind: str | None = None
    current: bool = True
    judged: bool = True

    @property
    def prompt_tokens(self) -> int:
        return self.prefix_tokens + self.soft_tokens + self.suffix_tokens


@dataclass(frozen=True)
class PathCosines:
    """How the latent paths of one question differ, a line of thoughts.jsonl.

    cosines: of every two paths' thoughts, each taken as one vector of L x D values; N rows of N.
    """

    question_id: str
    cosines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Completion:
    """One sampled chain and what was read from it: a line of the journal, unique by `key`.

    answer: lenient reading in canonical form, None where none was found (casts no vote, counts as incorrect). A text that
    would be taken for a number stands in quotation marks.
    answer_strict: the same for the strict reading (only an answer stated in the asked-for format).
    num_tokens: generated tokens, the end token included.
    stop_reason: "end" (the model's end token, or a stop string where the model has no chat format; neither is part of the
    text) or "length" (`max_new_tokens` reached).
    seed: start of this completion's own random stream; see `scaling.records.seeds`.
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

    Equal answers are one, written as `scaling.records.answer_classes` shows them. counts: what the votes for each answer
    weigh together. tied: the highest count was shared, so the tie rule of `scaling.records.votes` decided.
    """

    question_id: str
    answer: str | None
    counts: dict[str, float]
    tied: bool


def to_json(
    record: Completion | PromptedQuestion | PathCosines, *, cost: Mapping[str, float] | None = None, start: int = 0
) -> str:
    """One journal line with its checksum, without the newline. ASCII only.

    cost: what the run has cost since the line before, where that is to stand in the line. start: of the checksum, see
    `scaling.records.json_lines.start_of`.
    """
    told = {key: value for key, value in vars(record).items() if not (key in _UNSAID and value == _UNSAID[key])}
    return sealed({**told, "cost": cost} if cost else told, start)


def completion_from(told: dict[str, Any]) -> Completion:
    """A completion from a parsed journal line. Raises Unfit for a missing or unknown field, or a value it cannot have."""
    completion = _record(Completion, told, "completion", _FIT_COMPLETION)
    for answer, correct in (
        (completion.answer, completion.correct),
        (completion.answer_strict, completion.correct_strict),
    ):
        if correct and answer is None:
            raise Unfit("is no completion: it is judged correct and has no answer")
    return completion


def cost_from(told: dict[str, Any]) -> Costs:
    """Takes the costs out of a parsed journal line; empty where it has none. Raises Unfit for what are no costs."""
    cost = told.pop("cost", {})
    if not isinstance(cost, dict) or not all(map(is_amount, cost.values())):
        raise Unfit("is no completion: its cost is not made of numbers from 0")
    return cost


def is_amount(value: object) -> bool:
    """Whether it is a finite number from 0."""
    return type(value) in (int, float) and 0 <= value < math.inf  # type: ignore[operator]


def added(costs: Mapping[str, float], more: Mapping[str, float]) -> Costs:
    """Both costs together: the larger one of peaks, the sum of everything else."""
    together = dict(costs)
    for key, value in more.items():
        known = together.get(key, 0)
        together[key] = max(known, value) if key in PEAKS else known + value
    return together


def prompted_question_from(told: dict[str, Any]) -> PromptedQuestion:
    """A question from a parsed line of questions.jsonl. Raises Unfit, as `completion_from`."""
    asked = _record(PromptedQuestion, told, "question", _FIT_ASKED)
    return PromptedQuestion(**{**vars(asked), "choices": tuple(asked.choices)})


def path_cosines_from(told: dict[str, Any]) -> PathCosines:
    """A line of thoughts.jsonl, parsed. Raises Unfit, as `completion_from`."""
    thoughts = _record(PathCosines, told, "comparison of thoughts", _FIT_THOUGHTS)
    return PathCosines(thoughts.question_id, tuple(tuple(map(float, row)) for row in thoughts.cosines))


Record = TypeVar("Record", Completion, PromptedQuestion, PathCosines)
Fit = Callable[[Any], bool]


def _record(kind: type[Record], told: dict[str, Any], name: str, fit: Mapping[str, Fit]) -> Record:
    try:
        record = kind(**told)
    except TypeError:
        known = {one.name: one.default is MISSING for one in fields(kind)}
        lacking = [key for key, needed in known.items() if needed and key not in told]
        said = f"it lacks {lacking[0]}" if lacking else f"{next(iter(told.keys() - known.keys()))} is no field of it"
        raise Unfit(f"is no {name}: {said}") from None
    for key, fits in fit.items():
        value = getattr(record, key)
        if not fits(value):
            raise Unfit(f"is no {name}: {key} is {json.dumps(value)[:40]}")
    return record


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_text_or_none(value: object) -> bool:
    return value is None or type(value) is str


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_flag(value: object) -> bool:
    return type(value) is bool


def _is_number_or_none(value: object) -> bool:
    return value is None or type(value) is float or type(value) is int


_UNSAID = {
    "unread": None,
    "kind": None,
    "current": True,
    "judged": True,
}  # left out of a line where that is their value
_FIT_COMPLETION: dict[str, Fit] = {
    **dict.fromkeys(("question_id", "text"), _is_text),
    **dict.fromkeys(("path", "sample", "num_tokens", "seed"), _is_count),
    **dict.fromkeys(("answer", "answer_strict", "unread"), _is_text_or_none),
    **dict.fromkeys(("correct", "correct_strict"), _is_flag),
    "stop_reason": lambda value: value in ("end", "length"),
    **dict.fromkeys(("log_prob", "self_certainty"), _is_number_or_none),
}
_FIT_ASKED: dict[str, Fit] = {
    **dict.fromkeys(("id", "text", "answer", "prompt"), _is_text),
    "choices": lambda value: type(value) is list and all(map(_is_text, value)),
    **dict.fromkeys(("prefix_tokens", "soft_tokens", "suffix_tokens", "assistant_tokens", "hint_tokens"), _is_count),
    "kind": _is_text_or_none,
    **dict.fromkeys(("current", "judged"), _is_flag),
}
_FIT_THOUGHTS: dict[str, Fit] = {
    "question_id": _is_text,
    "cosines": lambda rows: (
        type(rows) is list
        and all(type(row) is list and len(row) == len(rows) for row in rows)
        and all(type(one) in (int, float) for row in rows for one in row)
    ),
}
