"""What an answer needs is read from the rationales of tasks, each thing once."""

from __future__ import annotations

import operator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.probe.facts import ANSWER, facts_of, steps_of, template_of
from scaling.records.records import Question
from scaling.tasks.catalogue import load_task

COMPUTE = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def asked(task, limit=60, **options):
    return load_task(task, limit=limit, split="train", **options).questions


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4])
def test_the_steps_of_arithmetic_are_true_and_lead_to_the_answer(difficulty):
    for question in asked("arithmetic", difficulty=difficulty):
        steps = steps_of(question)
        assert len(steps) == difficulty
        assert all(COMPUTE[step.operation](step.before, step.operand) == step.after for step in steps)
        assert steps[-1].after == float(question.answer)
        assert all(before.after == after.before for before, after in pairwise(steps))


@pytest.mark.parametrize("text", ["1,200 × 3 = 3,600.", "so 1200*3=3600", "1200 × 3 = 3600 apples"])
def test_a_step_is_known_however_it_is_written(text):
    [step] = steps_of(Question("q", "?", "1", rationale=(text,)))
    assert step == (1200.0, "*", 3.0, 3600.0)


def test_nothing_is_asked_for_twice():
    facts, reasons = facts_of(asked("arithmetic", difficulty=2, limit=200))
    assert [fact.name for fact in facts] == [
        *("answer", "answer, last digit", "step 1, operation", "step 1, first operand", "step 1, second operand"),
        *("step 1, result", "step 2, operation", "step 2, second operand"),
    ]  # the second step begins with the first one's result, and ends in the answer
    assert reasons == []


def test_the_hidden_fact_is_one_of_nine():
    [fact], _ = facts_of(asked("hidden-fact", limit=100))
    assert (fact.kind, sorted(fact.classes)) == (ANSWER, [float(digit) for digit in range(1, 10)])
    assert fact.places == list(range(100))


def test_answers_that_hardly_repeat_are_no_classes():
    facts, reasons = facts_of(asked("countdown"))
    assert "answer" not in [fact.name for fact in facts]
    assert any(reason.startswith("answer: ") and "too many for classes" in reason for reason in reasons)


def test_what_few_questions_tell_is_not_asked_for():
    questions = [Question(str(n), "?", "yes" if n % 2 else "no") for n in range(40)]
    questions[0] = Question("0", "?", "no", rationale=("1 + 2 = 3",))
    facts, reasons = facts_of(questions)
    assert [fact.name for fact in facts] == ["answer"]
    assert "operation: only 1 question to tell it, and 20 are needed" in reasons


def test_what_is_always_the_same_is_not_asked_for():
    assert facts_of([Question(str(n), "?", "yes") for n in range(40)]) == (
        [],
        ["answer: it is the same for all questions"],
    )


@given(st.integers(0, 999), st.integers(0, 999))
def test_a_template_is_the_text_without_numbers(first, second):
    texts = [f"Tom has {number} apples and eats {number + 1}." for number in (first, second)]
    assert len({template_of(Question("q", text, "1")) for text in texts}) == 1
