"""Where a chain of thought holds the answer, in whatever spelling, and what is left of it before that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.records.records import Question
from scaling.tasks.countdown import Countdown
from scaling.tasks.kinds import KINDS
from scaling.tasks.task import PlainTask, Task
from scaling.training.answer_spans import answer_place, before_answer

OPTIONS = ("Paris", "Saint John's", "1,234", "none of these")
FILLERS = ["We begin.", "Two add up to 17.5 here.", "Then the rest follows.\n", "Let me think."]
# for each kind a canonical gold answer, and steps that hold it in one of its spellings
HOLDING = {
    "number": (
        "1234",
        ["1000 + 234 = 1,234.", "It is $1,234.00.", "Say 1 234 in all.", "So \\boxed{1{,}234}.", "It has **1234** of them."],
    ),
    "choice": (
        "B",
        ["So it is B.", "Thus (B).", "I take b) here.", "B is right.", "It is Saint John's.", "That is option b.", "**B**."],
    ),
    "yes_no": ("yes", ["Yes, it is.", "That is TRUE.", "So the answer: Yes.", "\\boxed{yes}."]),
    "expression": (
        "0.5",
        ["Thus x is \\frac{1}{2}.", "So $x = \\dfrac12$.", "It is 1/2.", "We get 0.50 here.", "Hence $$\\boxed{0.5}$$."],
    ),
    "text": ("st louis", ["It is St. Louis.", "ST LOUIS is old.", "So \\boxed{St. Louis}.", "St. Louis's river."]),
    "set": ("3, red", ["So 3 and red.", "It is red or three.", "Red. Then 3.", "\\boxed{\\{red, 3\\}}."]),
}  # fmt: skip
CASES = [(kind, step) for kind, (_, steps) in HOLDING.items() for step in steps]


def question_of(kind: str, answer: str | None = None) -> Question:
    return Question("q", "Which?", answer or HOLDING[kind][0], choices=OPTIONS if kind == "choice" else ())


def left_of(chain: str, kind: str, answer: str | None = None) -> str:
    return before_answer(chain, question_of(kind, answer), PlainTask(kind))


def stated(kind: str) -> str:
    return f"The answer is {KINDS[kind].written(HOLDING[kind][0])}."


@pytest.mark.parametrize(
    ("chain", "answer", "left"),
    [
        ("2 + 3 = 5. 5 + 4 = 9. The answer is 9.", "9", "2 + 3 = 5. "),
        ("Five.\nThen 9.\nThe answer is 9.", "9", "Five.\n"),
        ("9 eggs. 2 break. 9 - 2 + 2 = 9. It is 9.", "9", "9 eggs. 2 break. "),
        ("It has 3.5 and 1.5. So 5.", "5", "It has 3.5 and 1.5. "),
        ("First. Second. The answer is five.", "5", "First. Second. "),
        ("5 + 4 = 9. The answer is 9.", "9", ""),
        ("The answer is 9.", "9", ""),
        ("Five. The answer is 9. That is right. Really.", "9", "Five. "),
        ("Some. So 9. Let me check. The answer is 9.", "9", "Some. "),
        ("First. Second. I do not know.", "9", ""),
        ("", "9", ""),
        ("A third of it. It is 0.33. The answer is 0.33.", "1/3", "A third of it. "),
    ],
)
def test_what_is_left_of_a_chain_before_its_number(chain, answer, left):
    assert left_of(chain, "number", answer) == left


@pytest.mark.parametrize(("kind", "step"), CASES)
def test_a_step_that_holds_the_answer_in_any_spelling_is_cut(kind, step):
    assert left_of(f"We begin. Then more. {step} {stated(kind)}", kind) == "We begin. Then more. "


@pytest.mark.parametrize("kind", HOLDING)
@given(data=st.data())
def test_no_run_of_such_steps_is_left(kind, data):
    """Fillers, and then steps that hold the answer: just the fillers are left."""
    fillers = data.draw(st.lists(st.sampled_from(FILLERS), min_size=1, max_size=3))
    holding = data.draw(st.lists(st.sampled_from([*HOLDING[kind][1], stated(kind)]), max_size=4))
    before = " ".join([*fillers, ""])
    assert left_of(f"{before}{' '.join([*holding, stated(kind)])}", kind).split() == before.split()


@pytest.mark.parametrize("kind", HOLDING)
@given(data=st.data())
def test_what_is_left_states_no_answer(kind, data):
    """However steps are mixed, the task reads no right answer from what is left, and its last step does not hold it."""
    steps = st.sampled_from([*FILLERS, *HOLDING[kind][1]])
    chain = " ".join([*data.draw(st.lists(steps, max_size=6)), stated(kind)])
    left, task, question = left_of(chain, kind), PlainTask(kind), question_of(kind)
    assert chain.startswith(left)
    reading = task.read(left, question)
    assert question.answer not in (reading.strict, reading.lenient)
    last = left.rstrip().rsplit(". ", 1)[-1]
    assert not task.answers.mentions(last, question.answer, choices=question.choices)


@pytest.mark.parametrize(
    ("kind", "answer", "text"),
    [
        ("number", "7", "It is 1,007 or 7.5, not 77."),
        ("number", "5", "Twenty-five of them."),
        ("choice", "A", "A dog barks."),
        ("choice", "B", "BC, e.g. vitamin B12, or a baby."),
        ("yes_no", "yes", "It was known yesterday, untrue as it is."),
        ("yes_no", "no", "Nobody knows it now."),
        ("expression", "x^2", "Take max^2 or x^20."),
        ("text", "paris", "A comparison."),
        ("set", "3, red", "It is 3, or blue."),
    ],
)
def test_what_only_looks_like_the_answer_is_no_mention(kind, answer, text):
    assert not KINDS[kind].mentions(text, answer, choices=OPTIONS if kind == "choice" else ())


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("\\frac{\\sqrt{3}}{2}", "so it is $\\frac{ \\sqrt{3} }{ 2 }$"),
        ("-1, 2", "x = 2 or x = -1"),
        ("(1, 2)", "the point (1,2)"),
        ("x^2+1", "f is x^2 + 1."),
    ],
)
def test_formulas_are_found_however_they_are_spaced(answer, text):
    assert KINDS["expression"].mentions(text, answer)


def test_an_equal_form_that_the_chain_states_is_cut_too():
    """The chain ends with another form of the gold answer: this form is not left in the step before it."""
    chain = "Take half. It is $\\frac{\\sqrt{12}}{4}$. Let me see. The answer is $\\boxed{\\frac{\\sqrt{12}}{4}}$."
    assert left_of(chain, "expression", "\\frac{\\sqrt{3}}{2}") == "Take half. "


def test_a_calculation_is_cut_however_its_terms_are_ordered():
    task = Countdown()
    question = Question("q", "Use the numbers 2, 4, 22 to make 44.", "22*(4-2)")
    chain = "4 - 2 = 2. So (4-2) * 22. The answer is 22 * (4 - 2)."
    assert before_answer(chain, question, task) == "4 - 2 = 2. "


def test_a_reader_of_a_user_that_fails_on_a_part_of_a_chain_finds_nothing_there():
    class Bracketed(Task):
        kind = "number"

        def read(self, text, question):  # noqa: ARG002
            return text[text.index("[") + 1 : text.index("]")]

    assert before_answer("Some. It is 9. So [9].", Question("q", "?", "9"), Bracketed()) == "Some. "


@pytest.mark.parametrize("kind", HOLDING)
def test_an_answer_stands_where_it_is_stated_without_its_box(kind):
    answer, of_kind = HOLDING[kind][0], KINDS[kind]
    bare = of_kind.in_box(answer)
    for text in (f"It is {of_kind.written(answer)}.", f"It is \\boxed{{{bare}}}.", f"{bare}? It is {bare}."):
        start, end = answer_place(of_kind, answer, text)
        assert text[start:end] == bare
        assert text[:start].rstrip("$\\boxed{").endswith("It is ")
    assert answer_place(of_kind, answer, "Nothing.") is None
