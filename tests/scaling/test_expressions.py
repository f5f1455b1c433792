"""The kinds `expression`, `text` and `set`: a table of equal and unequal answers, then properties."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scaling.records.answer_classes import as_text, classes_of, from_text
from scaling.records.errors import UsageError
from scaling.tasks.answers import Reading
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.files import question_from
from scaling.tasks.kinds import KINDS
from scaling.tasks.numbers import written

TABLE = yaml.load(
    Path(__file__).with_name("expressions_table.yaml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader
)
ROWS = [
    (gold, answer.replace("⏎", "\n"), is_equal, notes)
    for is_equal in ("equal", "unequal")
    for gold, answer, *notes in TABLE[is_equal]
]
EXPRESSION, TEXT, SET = KINDS["expression"], KINDS["text"], KINDS["set"]

few = settings(max_examples=40, deadline=None)
NUMBERS = st.fractions(max_denominator=60).map(written)
LEAVES = NUMBERS | st.sampled_from(["\\sqrt{2}", "2x+1", "\\frac{\\pi}{2}", "x", "-\\infty", "\\infty", "x=2y"])
TUPLES = st.builds(
    lambda first, parts, last: f"{first}{', '.join(parts)}{last}",
    st.sampled_from("(["),
    st.lists(LEAVES, min_size=2, max_size=3),
    st.sampled_from(")]"),
)
MATRICES = st.lists(LEAVES, min_size=4, max_size=4).map(
    lambda cells: "\\begin{{pmatrix}}{} & {} \\\\ {} & {}\\end{{pmatrix}}".format(*cells)
)
PARTS = LEAVES | TUPLES | MATRICES
WORDS = st.text(alphabet="bcdfgh", min_size=3, max_size=6)
# words that are no answers of the other kinds, or mark the end of one
SMALL_WORDS = st.sampled_from(
    [
        *(
            "not",
            "never",
            "neither",
            "maybe",
            "likely",
            "mostly",
            "so",
            "then",
            "now",
            "I",
            "think",
            "just",
            "always",
            "in",
        ),
        *("total", "either", "or", "and", "of", "course", "correct", "wrong", "valid", "right", "clear", "given", "no"),
        *(
            "wait",
            "true",
            "unless",
            "if",
            "whether",
            "answer",
            "is",
            "because",
            "doubt",
            "the",
            "a",
            "A.I.",
            "#1",
            "1/2",
        ),
    ]
)
TEXTS = st.lists(WORDS | SMALL_WORDS, min_size=1, max_size=4).map(" ".join)
LISTED = st.lists(TEXTS | NUMBERS | TUPLES, min_size=1, max_size=4).map(", ".join)
GOLDS = (
    st.tuples(st.just("text"), TEXTS | st.text(max_size=12))
    | st.tuples(st.just("set"), LISTED | st.text(max_size=12))
    | st.tuples(st.just("expression"), LISTED | MATRICES | NUMBERS.map("{}!".format) | st.text(max_size=12))
)


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len({row[:2] for row in ROWS}) == len(ROWS) >= 100


@pytest.mark.parametrize(("gold", "answer", "is_equal", "notes"), ROWS, ids=[f"{row[0]} : {row[1]}" for row in ROWS])
def test_row(gold: str, answer: str, is_equal: str, notes: list[str], checker: AnswerChecker) -> None:
    forms = EXPRESSION.gold(gold), EXPRESSION.canonical(answer)
    assert forms[0] is not None
    assert forms[1] is not None
    assert EXPRESSION.equal(forms[0], forms[1], checker) is (is_equal == "equal")
    assert EXPRESSION.equal(forms[1], forms[0], checker) is (is_equal == "equal")
    together = len({own.key for own in classes_of(forms).values()}) == 1
    assert together is (notes == ["together"] or (is_equal == "equal" and not notes))


@pytest.mark.parametrize(("text", "gold"), TABLE["completions"])
def test_completions_that_state_the_gold_answer(text: str, gold: str, checker: AnswerChecker) -> None:
    reading, expected = EXPRESSION.read(text.replace("⏎", "\n")), EXPRESSION.gold(gold)
    assert reading.strict is not None
    assert expected is not None
    assert EXPRESSION.equal(expected, reading.strict, checker)


@pytest.mark.parametrize(
    "answer",
    ["", " ", "$", "\\boxed{}", "(1, )", "[1]]", "\\{1, , 2\\}x,", "(" * 30 + "1" + ")" * 30, "1, " * 200, "...", "()"],
)
def test_what_is_no_expression_raises_nothing(answer: str) -> None:
    found = EXPRESSION.canonical(answer)
    assert found is None or EXPRESSION.canonical(found) == found


@few
@given(
    WORDS
    | PARTS
    | st.lists(PARTS, min_size=2, max_size=4).map(", ".join)
    | st.lists(TUPLES, min_size=2).map("\\cup".join)
)
def test_a_canonical_expression_is_its_own_and_reads_back(text: str) -> None:
    once = EXPRESSION.canonical(text)
    if once is not None:
        assert EXPRESSION.canonical(once) == once
        assert EXPRESSION.gold(once) == once
        assert EXPRESSION.equal(once, once, AnswerChecker())
        assert EXPRESSION.read(f"So $2 + 2 = 4$. The answer is {EXPRESSION.written(once)}.").strict == once


@few
@example(("text", "just because of you"))
@example(("text", "a</b"))
@example(("set", "no, wait"))
@example(("set", "one two three four five six seven, b"))
@example(("expression", "5!"))
@example(("expression", "\\text{the set of all odd numbers}"))
@given(GOLDS)
def test_what_a_solution_states_is_its_gold_answer(case: tuple[str, str]) -> None:
    kind, gold = KINDS[case[0]], KINDS[case[0]].gold(case[1])
    if gold is not None:
        assert kind.read(f"The answer is {kind.written(gold)}.") == Reading(gold, gold)
        assert kind.read(f"The answer is \\boxed{{{kind.in_box(gold)}}}.") == Reading(gold, gold)
        assert "\\boxed{" not in kind.in_box(gold)


@few
@given(
    TEXTS.filter(lambda text: not {"because", "answer"} & set(text.split())), st.sampled_from(["is", "is:", "is **"])
)
def test_no_word_of_a_text_is_cut_off(text: str, verb: str) -> None:
    marks = "**" if "*" in verb else ""
    assert TEXT.read(f"As said, the answer {verb} {text}{marks}.").strict == TEXT.canonical(text)


def test_what_no_completion_can_state_is_no_gold_answer() -> None:
    assert TEXT.gold("a \\") is None  # its box would never be closed
    assert TEXT.gold("{a}") == "a"


@few
@given(st.lists(PARTS, min_size=1, max_size=4), st.randoms())
def test_the_order_of_a_list_does_not_matter(parts: list[str], random: object) -> None:
    turned = random.sample(parts, len(parts)) + parts[:1]  # type: ignore[attr-defined]
    listed = EXPRESSION.canonical(", ".join(parts))
    assert EXPRESSION.canonical(" and ".join(turned)) == listed
    if len(parts) > 1:
        assert EXPRESSION.canonical(f"\\{{{', '.join(turned)}\\}}") == listed


@few
@given(st.lists(st.fractions(max_denominator=20), min_size=2, max_size=4))
def test_the_order_of_a_tuple_matters(parts: list[Fraction]) -> None:
    one, other = (f"({', '.join(map(written, each))})" for each in (parts, parts[::-1]))
    forms = EXPRESSION.canonical(one), EXPRESSION.canonical(other)
    assert forms[0] is not None
    assert forms[1] is not None
    assert EXPRESSION.equal(forms[0], forms[1], AnswerChecker()) is (parts == parts[::-1])


@few
@given(st.fractions(max_denominator=1000))
def test_each_way_to_write_a_number_is_the_same_expression(number: Fraction) -> None:
    top, bottom = number.numerator, number.denominator
    ways = [f"{top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"$\\dfrac{{{top}}}{{{bottom}}}$", f"x = {top}/{bottom}"]
    assert {EXPRESSION.canonical(way) for way in ways} == {written(number)}


@few
@given(st.lists(WORDS, min_size=1, max_size=3))
def test_what_does_not_count_in_a_text(words: list[str]) -> None:
    plain = TEXT.canonical(" ".join(words))
    assert plain == " ".join(words)
    for way in (
        " ".join(words).upper(),
        "  ".join(words) + ".",
        f"the {' '.join(words)}",
        f"“{' '.join(words)}”",
        f"**{' '.join(words)}**",
        ", ".join(words),
        "-".join(words),
        f"\\text{{{' '.join(words)}}}",
    ):
        assert TEXT.canonical(way) == plain, way


@few
@given(st.lists(WORDS | st.integers(-50, 999).map(str), min_size=1, max_size=5), st.randoms())
def test_neither_order_nor_repetition_counts_in_a_set(values: list[str], random: object) -> None:
    turned = random.sample(values, len(values)) + values[:1]  # type: ignore[attr-defined]
    plain = SET.canonical(", ".join(values))
    for way in ("; ".join(turned), f"{{{', '.join(turned)}}}", " and ".join(turned), ", ".join(turned).upper()):
        assert SET.canonical(way) == plain, way
    assert plain is not None
    assert plain.split(", ") == sorted(set(values))
    assert from_text(as_text(plain)) == plain
    assert SET.read(f"The answer is {SET.written(plain)}.") == Reading(plain, plain)


def test_a_gold_set_may_be_a_list_in_the_data() -> None:
    def gold(answer: object) -> str:
        return question_from({"id": "1", "question": "Which?", "answer": answer}, kind="set", where="line 1").answer

    assert gold([7, 3.5, "3"]) == gold("3, 7 and 3.5") == "3, 3.5, 7"
    assert gold(["Red", "blue"]) == "blue, red"
    assert gold(5) == "5"
    for wrong in ([], [None], None, {"a": 1}):
        with pytest.raises(UsageError, match="a list of values"):
            gold(wrong)
    with pytest.raises(UsageError, match="a mathematical answer"):
        question_from({"id": "1", "question": "?", "answer": ["3"]}, kind="expression", where="line 1")
