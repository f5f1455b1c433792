"""Generates simple word problems with gold rationales: an endless stream for every split and difficulty.

The stories are data in `arithmetic_stories`. Here numbers are drawn, steps are computed and texts are put together. Two
splits have no story in common, and no question with the same numbers. How a question is put to a model, and how an answer
is read, follows from the kind of the answers. torch is not loaded.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from scaling.records.overlap import template_of
from scaling.records.records import Question
from scaling.tasks.arithmetic_stories import NAMES, STORIES
from scaling.tasks.counterfactuals import Counterfactual, changes
from scaling.tasks.generated import SPLITS, distinct, pick, split_by
from scaling.tasks.task import Task

DIFFICULTIES = (1, 2, 3, 4)

_FACTORS = (2, 3, 4, 5)  # operands of multiplications and divisions
_LARGEST_TERM = 20  # before the stream widens
_EQUATION = re.compile(r"so ([0-9]+) ([-+*/]) ([0-9]+) = ")  # of a step, as `_rationale` writes it


@dataclass(frozen=True)
class _Story:
    """One story, as templates; see `arithmetic_stories`.

    Attributes:
        things: the noun that is counted.
        opening: the clause with the start number.
        steps: pairs (operation, clause).
        question: the question at the end.
    """

    things: str
    opening: str
    steps: tuple[tuple[str, str], ...]
    question: str


@dataclass(frozen=True)
class _Limits:
    """The range of numbers at present.

    Attributes:
        term: the largest start number, and the largest term of a sum or difference.
        result: the largest result of a step.
    """

    term: int
    result: int

    def times(self, width: int) -> _Limits:
        return _Limits(term=width * self.term, result=width * self.result)


@dataclass(frozen=True)
class _Step:
    """One step of a chain: `before` operation `operand` = `after`."""

    operation: str
    clause: str
    before: int
    operand: int
    after: int


class Arithmetic(Task):
    """The task of generated word problems."""

    name, kind = "arithmetic", "number"
    splits = SPLITS
    limit, max_new_tokens = 20, 96
    generated = True
    levels = len(DIFFICULTIES)

    def questions(self, split: str, limit: int | None) -> Iterator[Question]:
        return islice(generate(split, difficulty=self.difficulty), limit)

    def counterfactual(self, question: Question) -> Counterfactual | None:
        """The question with another start number or operand. Every step still has a positive whole result."""
        steps = _EQUATION.findall(" ".join(question.rationale))
        if not steps:
            return super().counterfactual(question)
        values = [int(steps[0][0]), *(int(operand) for _, _, operand in steps)]
        in_digits = [0, *(step for step, text in enumerate(question.rationale, 1) if " twice" not in text)]
        largest = max(_LARGEST_TERM, *values)
        # larger ones, which thinkers have not seen in training, come last
        for change in sorted(changes(question.text), key=lambda change: change.number > largest):
            changed = values.copy()
            changed[in_digits[change.place]] = change.number
            answer = _result(changed[0], list(zip([sign for _, sign, _ in steps], changed[1:], strict=True)))
            if answer is not None and str(answer) != question.answer:
                return Counterfactual(change.text, str(answer))
        return None


def generate(split: str, *, difficulty: int = 1) -> Iterator[Question]:
    """An endless stream of distinct questions. Question i of a split and difficulty is the same in every process.

    Args:
        split: "train", "validation" or "test".
        difficulty: the number of arithmetic steps, 1 to 4. With 1 there are only sums and differences, at first of terms up
            to 10.

    Raises:
        ValueError: the split or difficulty is unknown. Raised at the call, not at the first question.
    """
    if split not in SPLITS:
        raise ValueError(f"`split` must be one of {SPLITS}, got {split!r}")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"`difficulty` must be one of {DIFFICULTIES}, got {difficulty!r}")
    return _stream(split, difficulty)


def split_of(operands: Sequence[int]) -> str:
    """The only split that may use these numbers, in any order, in one question."""
    return split_by("numbers/" + ",".join(map(str, sorted(operands))))


def _stream(split: str, difficulty: int) -> Iterator[Question]:
    texts = _distinct_questions(split, difficulty)
    for i, (text, steps, rationale) in enumerate(texts):
        identity = f"arithmetic-{split}-d{difficulty}-{i:05d}"
        question = Question(id=identity, text=text, answer=str(steps[-1].after), rationale=rationale)
        yield replace(question, cluster=template_of(question))


def _distinct_questions(split: str, difficulty: int) -> Iterator[tuple[str, list[_Step], tuple[str, ...]]]:
    """The text, the steps and the rationale of each question. Once most texts were used, larger numbers are allowed."""
    stories, persons = _stories(split), _people(split)
    limits = _Limits(term=10, result=20) if difficulty == 1 else _Limits(term=_LARGEST_TERM, result=99)

    def draw(rng: random.Random, width: int) -> tuple[str, list[_Step], tuple[str, ...]]:
        story, person = pick(rng, stories), pick(rng, persons)
        start, steps = _chain(rng, split, _plan(rng, story, difficulty), limits.times(width))
        fields = {**person, "things": story.things}
        return _text(story, fields, start, steps), steps, _rationale(story, fields, start, steps)

    return distinct(draw, lambda drawn: drawn[0], seed=f"stream/{split}/{difficulty}")


def _plan(rng: random.Random, story: _Story, difficulty: int) -> list[tuple[str, str]]:
    """Draws one (operation, clause) pair for each step, no clause twice."""
    left = [step for step in story.steps if difficulty > 1 or step[0] in "+-"]
    return [left.pop(int(rng.random() * len(left))) for _ in range(difficulty)]


def _chain(rng: random.Random, split: str, plan: list[tuple[str, str]], limits: _Limits) -> tuple[int, list[_Step]]:
    """Draws a start number and operands for a plan, again and again until the numbers belong to the split."""
    while True:
        start = pick(rng, range(2, limits.term + 1))
        steps = _work_out(rng, start, plan, limits)
        if steps is not None and split_of([start, *(step.operand for step in steps)]) == split:
            return start, steps


def _work_out(rng: random.Random, start: int, plan: list[tuple[str, str]], limits: _Limits) -> list[_Step] | None:
    """The steps of a plan with drawn operands; None if a result is not a whole number from 1 to the largest result."""
    value, steps = start, []
    for operation, clause in plan:
        allowed = _operands(operation, value, limits)
        if not allowed:
            return None
        operand = pick(rng, allowed)
        after = _apply(operation, value, operand)
        if not 1 <= after <= limits.result:
            return None
        steps.append(_Step(operation, clause, value, operand, after))
        value = after
    return steps


def _operands(operation: str, value: int, limits: _Limits) -> Sequence[int]:
    """The operands to draw from, all at least 2.

    A term is drawn from the whole range, even if the result may be out of range and is then rejected. If only fitting terms
    were drawn, small numbers would often force the same step, and answers such as 1 would be too frequent.
    """
    if operation in "+-":
        return range(2, limits.term + 1)
    if operation == "*":
        return [factor for factor in _FACTORS if value * factor <= limits.result]
    return [factor for factor in _FACTORS if value % factor == 0]


def _apply(operation: str, value: int, operand: int) -> int:
    if operation == "+":
        return value + operand
    if operation == "-":
        return value - operand
    return value * operand if operation == "*" else value // operand


def _result(start: int, steps: Sequence[tuple[str, int]]) -> int | None:
    """The result of steps, each an operation with its operand. None if that of a step is no whole number from 1."""
    value = start
    for operation, operand in steps:
        if operation == "/" and value % operand:
            return None
        value = _apply(operation, value, operand)
        if value < 1:
            return None
    return value


def _text(story: _Story, fields: dict[str, str], start: int, steps: list[_Step]) -> str:
    """The text of a question: the opening, one sentence for each step, and the question."""
    clauses = [_fill(story.opening, fields, start), *(_fill(step.clause, fields, step.operand) for step in steps)]
    sentences = [clause[0].upper() + clause[1:] + "." for clause in clauses]
    return " ".join([*sentences, _fill(story.question, fields, start)])


def _rationale(story: _Story, fields: dict[str, str], start: int, steps: list[_Step]) -> tuple[str, ...]:
    """One sentence for each step. The first also repeats the opening, so that the start number is named, too."""
    opening = _fill(story.opening, fields, start)
    sentences = []
    for i, step in enumerate(steps):
        lead = f"{opening[0].upper()}{opening[1:]} and" if i == 0 else "Then"
        equation = f"{step.before} {step.operation} {step.operand} = {step.after}"
        sentences.append(f"{lead} {_fill(step.clause, fields, step.operand)}, so {equation}.")
    return tuple(sentences)


def _fill(template: str, fields: dict[str, str], n: int) -> str:
    return template.format(**fields, n=n, times="twice" if n == 2 else f"{n} times")


def _stories(split: str) -> list[_Story]:
    return [_parse(block.splitlines()) for block in STORIES[split].strip().split("\n\n")]


def _parse(lines: list[str]) -> _Story:
    things, opening = lines[0].split(": ")
    steps = tuple((line[0], line[2:]) for line in lines[1:-1])
    return _Story(things=things, opening=opening, steps=steps, question=lines[-1][2:])


def _people(split: str) -> list[dict[str, str]]:
    he, she = NAMES[split]
    return [{"name": name, "he": "he", "his": "his", "him": "him"} for name in he.split()] + [
        {"name": name, "he": "she", "his": "her", "him": "her"} for name in she.split()
    ]
