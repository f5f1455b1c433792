"""The records that the parts of the project exchange, and their form as lines of JSON. Only the standard library is used.

A run thinks about a question along N latent paths, which are continuous vectors. From each path it draws M samples, which
are texts. So a question has N x M completions, and a vote over them decides its answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from scaling.records.json_lines import Unfit, sealed

Key = tuple[str, int, int]  # (question id, path, sample)
Costs = dict[str, float]  # what a run has cost, by name: seconds, prompt tokens, decode steps, peak bytes of memory ...

TIMEOUTS = "timeouts"  # key of Costs: comparisons of answers that ran out of time, which count as unequal
LATENT_STEPS = "latent_steps"  # key of Costs: states of the backbone that it was given as inputs, of all paths
PEAKS = ("kv_bytes_held", "kv_bytes_avoided", "peak_memory_bytes")  # keys of Costs whose maximum counts, not their sum


@dataclass(frozen=True)
class Question:
    """One question of a task.

    Attributes:
        id: unique among the questions of the task.
        text: the question, without the options of a multiple choice.
        answer: the gold answer in canonical form ("18", "C", "yes"); see `scaling.tasks.kinds`.
        choices: the texts of options A, B, C ... in this order; empty unless the question is a multiple choice.
        rationale: the gold reasoning, one step per entry; empty if the task has none.
        cluster: what questions share that are no independent draws, such as a template or a source file; None if it is not
            known, or the question is on its own. Reports take clusters as units.
    """

    id: str
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    rationale: tuple[str, ...] = ()
    cluster: str | None = None


@dataclass(frozen=True)
class PromptedQuestion:
    """A question as a run asks it, with the lengths of its prompts: a line of questions.jsonl.

    The assistant reads its prompt and then either L slots, or writes notes as text. The backbone reads the prefix, L
    thoughts and the suffix. A count is 0 if the method has no such part.

    Attributes:
        id, text, answer, choices: those of the `Question`.
        prompt: the backbone's prompt as text, with its slots.
        prefix_tokens: tokens of the backbone's prompt before the thoughts.
        soft_tokens: the number of thoughts, L.
        suffix_tokens: tokens of the backbone's prompt after the thoughts.
        assistant_tokens: tokens of the assistant's prompt.
        hint_tokens: tokens of the notes that the assistant writes.
        kind: of its answer, see `scaling.tasks.kinds`; None in runs of version 0.1.
        current: False for a question of an earlier session that is no longer asked. It is kept because it has completions.
        judged: False while the gold answer is a new one by which the completions are not judged yet.
        counterfactual: the text that the assistant read in place of `text`, with one number changed (`--control
            counterfactual`); None if it read the question itself.
        counterfactual_answer: the right answer to that text; None where it is not known.
        cluster: that of the `Question`.
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
    counterfactual: str | None = None
    counterfactual_answer: str | None = None
    cluster: str | None = None

    @property
    def prompt_tokens(self) -> int:
        return self.prefix_tokens + self.soft_tokens + self.suffix_tokens


@dataclass(frozen=True)
class PathCosines:
    """How much the latent paths of one question differ: a line of thoughts.jsonl.

    Attributes:
        question_id: the question's id.
        cosines: cosine similarities of every two paths, [N, N]. The thoughts of a path are taken as one vector of L x D
            values.
    """

    question_id: str
    cosines: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Completion:
    """One sampled chain of thought and the answers read from it: a line of samples.jsonl, unique by its `key`.

    `log_prob` and `self_certainty` differ in their last digits between machines and batch sizes. So they do not count when
    two completions are compared.

    Attributes:
        question_id: the id of its question.
        path: number of the latent path, from 0.
        sample: number of the sample within the path, from 0.
        text: what the model wrote.
        answer: the answer of the lenient reading in canonical form. None if none was found; it then casts no vote and
            counts as incorrect. A text answer that could be taken for a number is in quotation marks.
        correct: whether `answer` is the gold answer.
        answer_strict: the answer of the strict reading, which takes only an answer stated in the format asked for.
        correct_strict: whether `answer_strict` is the gold answer.
        num_tokens: number of generated tokens, with the end token.
        stop_reason: "end" (the model's end token, or a stop string if the model has no chat format; neither is part of the
            text) or "length" (`max_new_tokens` was reached).
        seed: start of this completion's own random stream; see `scaling.records.seeds`.
        log_prob: sum over the tokens of their log-probabilities at temperature 1, in nats; None in older journals.
        self_certainty: mean over the tokens of the model's self-certainty, in nats; None in older journals.
        unread: why the answer reader failed on this text, which then has no answer; None if it did not fail.
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
    """The outcome of a vote over one question.

    Equal answers count as one, which is written as `scaling.records.answer_classes` shows it.

    Attributes:
        question_id: the question's id.
        answer: the answer that won; None if no completion has an answer.
        counts: for each answer the sum of the weights of its votes.
        tied: whether several answers shared the highest count, so that the tie rule of `scaling.records.votes` decided.
    """

    question_id: str
    answer: str | None
    counts: dict[str, float]
    tied: bool


def to_json(
    record: Completion | PromptedQuestion | PathCosines, *, cost: Mapping[str, float] | None = None, start: int = 0
) -> str:
    """Writes a record as one line of JSON with its checksum, ASCII only and without a newline.

    Args:
        record: what to write.
        cost: what the run has cost since the line before; it becomes part of the line unless it is empty.
        start: the checksum's start value, see `scaling.records.json_lines.start_of`.
    """
    line = {key: value for key, value in vars(record).items() if not (key in _UNSAID and value == _UNSAID[key])}
    return sealed({**line, "cost": cost} if cost else line, start)


def completion_from(told: dict[str, Any]) -> Completion:
    """Makes a completion of the fields of a line. Raises Unfit if one is missing, unknown or has an impossible value."""
    completion = _record(Completion, told, "completion", _FIT_COMPLETION)
    for answer, correct in (
        (completion.answer, completion.correct),
        (completion.answer_strict, completion.correct_strict),
    ):
        if correct and answer is None:
            raise Unfit("is no completion: it is judged correct and has no answer")
    return completion


def cost_from(told: dict[str, Any]) -> Costs:
    """Removes the costs from the fields of a line and returns them, empty if there are none. Raises Unfit for others."""
    cost = told.pop("cost", {})
    if not isinstance(cost, dict) or not all(map(is_amount, cost.values())):
        raise Unfit("is no completion: its cost is not made of numbers from 0")
    return cost


def is_amount(value: object) -> bool:
    """Whether the value is a number from 0 to 1e30, which no cost exceeds, and of which sums and milliseconds are finite."""
    return type(value) in (int, float) and 0 <= value <= 1e30  # type: ignore[operator]


def added(costs: Mapping[str, float], more: Mapping[str, float]) -> Costs:
    """Adds two costs. Of peaks (see `PEAKS`) the larger one counts, of everything else the sum."""
    together = dict(costs)
    for key, value in more.items():
        known = together.get(key, 0)
        together[key] = max(known, value) if key in PEAKS else known + value
    return together


def prompted_question_from(told: dict[str, Any]) -> PromptedQuestion:
    """Makes a question of the fields of a line of questions.jsonl. Raises Unfit, as `completion_from` does."""
    asked = _record(PromptedQuestion, told, "question", _FIT_ASKED)
    return PromptedQuestion(**{**vars(asked), "choices": tuple(asked.choices)})


def path_cosines_from(told: dict[str, Any]) -> PathCosines:
    """Makes a record of the fields of a line of thoughts.jsonl. Raises Unfit, as `completion_from` does."""
    thoughts = _record(PathCosines, told, "comparison of thoughts", _FIT_THOUGHTS)
    return PathCosines(thoughts.question_id, tuple(tuple(map(float, row)) for row in thoughts.cosines))


Record = TypeVar("Record", Completion, PromptedQuestion, PathCosines)
Fit = Callable[[Any], bool]


def _record(kind: type[Record], values: dict[str, Any], name: str, fit: Mapping[str, Fit]) -> Record:
    """Makes a record of the fields of a line, and checks them.

    Args:
        kind: the record's class.
        values: the values of its fields by name.
        name: what messages call such a record.
        fit: for each field, whether a value is possible.

    Raises:
        Unfit: a field is missing, unknown or has an impossible value.
    """
    try:
        record = kind(**values)
    except TypeError:
        known = {entry.name: entry.default is MISSING for entry in fields(kind)}
        lacking = [key for key, needed in known.items() if needed and key not in values]
        problem = (
            f"it lacks {lacking[0]}" if lacking else f"{next(iter(values.keys() - known.keys()))} is no field of it"
        )
        raise Unfit(f"is no {name}: {problem}") from None
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
    "counterfactual": None,
    "counterfactual_answer": None,
    "cluster": None,
}  # a field with this value is left out of its line
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
    **dict.fromkeys(("kind", "counterfactual", "counterfactual_answer", "cluster"), _is_text_or_none),
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
