"""Equations in rationales, as the calculator annotations of GSM8K write them: `<<16-3-4=9>>`.

A rationale is text without them, or with `--rationale equations` nothing else: one step an equation. torch is not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from scaling.records.records import Question
from scaling.tasks import numbers

TEXT, EQUATIONS = "text", "equations"  # the values of `--rationale`

_ANNOTATION = re.compile(r"<<[^<>]*>>")


def without_equations(step: str) -> str:
    """A step of a rationale without its annotations, which are no part of the text."""
    return _ANNOTATION.sub("", step).strip()


def equations_in(steps: Iterable[str]) -> tuple[str, ...]:
    """The annotations in a rationale, each as it is written."""
    return tuple(found for step in steps for found in _ANNOTATION.findall(step) if found.strip("<> "))


def lead_to_answer(question: Question) -> bool:
    """Whether a question's rationale, which is equations, gives its answer at last. An answer that is no number is given."""
    if not question.rationale:
        return False
    answer = numbers.value(question.answer)
    result = numbers.number_or_formula(question.rationale[-1].strip("<> ").rpartition("=")[2])
    return answer is None or (result is not None and numbers.value(result) == answer)
