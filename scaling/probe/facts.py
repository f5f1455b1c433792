"""What the answer of a question needs, as far as a task tells: the answer itself, and the steps in its rationale.

A step is a text such as "17 - 2 = 15". Knows questions, no models and no tensors.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scaling.records.errors import counted
from scaling.records.records import Question

ANSWER, OPERATION, OPERAND, RESULT = "answer", "operations", "operands", "intermediate results"
_FEW = 12  # different numbers are classes up to here, and amounts beyond
_EACH = 5  # questions that a class needs on average, else it cannot be learned
_KNOWN = 20  # questions that must tell a fact
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?"
_STEP = re.compile(rf"({_NUMBER})\s*([-+*/×÷])\s*({_NUMBER})\s*=\s*({_NUMBER})")
_OPERATORS = str.maketrans("×÷", "*/")


class Step(NamedTuple):
    """One step of a rationale: `before` operation `operand` = `after`."""

    before: float
    operation: str
    operand: float
    after: float


@dataclass(frozen=True)
class Fact:
    """Something that the answer needs, of every question that tells it.

    Attributes:
        kind: `ANSWER`, `OPERATION`, `OPERAND` or `RESULT`.
        name: what it is, in words.
        values: of each question; None where it does not tell the fact.
        classes: the different values, if a value is one of a few; empty if it is an amount.
    """

    kind: str
    name: str
    values: tuple[float | str | None, ...]
    classes: tuple[float | str, ...] = ()

    @property
    def places(self) -> list[int]:
        """The questions that tell it."""
        return [place for place, value in enumerate(self.values) if value is not None]


def steps_of(question: Question) -> list[Step]:
    """The steps that a question's rationale writes as equations."""
    found = _STEP.findall("\n".join(question.rationale))
    return [
        Step(_amount(before), operator.translate(_OPERATORS), _amount(operand), _amount(after))
        for before, operator, operand, after in found
    ]


def template_of(question: Question) -> str:
    """The text of a question without its numbers: questions that share it differ in their numbers alone."""
    return re.sub(r"\d+", "#", question.text)


def facts_of(questions: Sequence[Question]) -> tuple[list[Fact], list[str]]:
    """What the answers need.

    Returns:
        The facts that a probe can be asked for, and sentences about those that it cannot.
    """
    steps = [steps_of(question) for question in questions]
    answers = [question.answer for question in questions]
    amounts = [_amount(answer) if re.fullmatch(_NUMBER, answer) else None for answer in answers]
    told: list[tuple[str, str, Sequence[float | str | None]]] = []
    if None in amounts:
        told.append((ANSWER, "answer", answers))
    else:
        told.append((ANSWER, "answer", amounts))
        if len(set(amounts)) > _FEW:
            told.append((ANSWER, "answer, last digit", [answer[-1] for answer in answers]))
    for number in range(max(map(len, steps), default=0)):
        own = [each[number] if len(each) > number else None for each in steps]
        where = f"step {number + 1}, " if max(map(len, steps)) > 1 else ""
        told += [
            (OPERATION, f"{where}operation", [step and step.operation for step in own]),
            (OPERAND, f"{where}first operand", [step and step.before for step in own]),
            (OPERAND, f"{where}second operand", [step and step.operand for step in own]),
            (RESULT, f"{where}result", [step and step.after for step in own]),
        ]
    facts: list[Fact] = []
    reasons: list[str] = []
    for kind, name, values in told:
        if any(_same(values, fact.values) for fact in facts):
            continue  # the last result is the answer, and an operand is the result of the step before
        fact, reason = _fact(kind, name, tuple(values))
        facts += [fact] if fact else []
        reasons += [f"{name}: {reason}"] if reason else []
    return facts, reasons


def _fact(kind: str, name: str, values: tuple[float | str | None, ...]) -> tuple[Fact | None, str]:
    """A fact, or None and the reason why a probe cannot be asked for it."""
    counts = Counter(value for value in values if value is not None)
    if counts.total() < _KNOWN:
        return None, f"only {counted(counts.total(), 'question')} to tell it, and {_KNOWN} are needed"
    if len(counts) == 1:
        return None, "it is the same for all questions"
    is_class = len(counts) <= _FEW or any(isinstance(value, str) for value in counts)
    if is_class and len(counts) * _EACH > counts.total():
        return None, f"{len(counts)} different ones in {counts.total()} questions are too many for classes"
    return Fact(kind, name, values, tuple(counts) if is_class else ()), ""


def _same(values: Sequence[float | str | None], others: Sequence[float | str | None]) -> bool:
    """Whether values say nothing that the others do not say of the same questions."""
    return all(value is None or value == other for value, other in zip(values, others, strict=True))


def _amount(text: str) -> float:
    return float(text.replace(",", ""))
