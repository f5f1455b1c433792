"""Columns become fields: whatever a data set calls and writes them, the questions are the same."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.records.errors import UsageError
from scaling.tasks.columns import FIELDS, mapped, parse, typed

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0+"), min_size=1).filter(str.strip)
OPTIONS = ["ant", "bee", "cow", "dog"]


def fields(*rows: dict[str, Any], columns: str | None = None) -> list[dict[str, Any]]:
    converted, _ = mapped([(f"here line {n}", row) for n, row in enumerate(rows, 1)], parse(columns))
    return [row for _, row in converted]


def refusal(*rows: dict[str, Any], columns: str | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        fields(*rows, columns=columns)
    return str(caught.value)


@given(st.dictionaries(st.sampled_from(FIELDS), NAMES, min_size=1))
def test_what_is_typed_is_read_back(columns: dict[str, str]) -> None:
    assert parse(typed(columns)) == columns
    assert parse(columns) == columns
    assert parse(parse(typed(columns))) == columns


@given(
    st.lists(st.integers(0, 3), min_size=1),
    st.sampled_from(["letter", "text", "0", "1"]),
    st.sampled_from(["list", "letters", "labels", "objects", "object", "columns", "text"]),
)
def test_the_right_option_is_the_same_however_it_is_told(right: list[int], told: str, shape: str) -> None:
    shapes: dict[str, dict[str, Any]] = {
        "list": {"options": OPTIONS},
        "letters": {"options": [f"({letter}) {text}" for letter, text in zip(ascii_uppercase, OPTIONS, strict=False)]},
        "labels": {"options": {"label": list("ABCD"), "text": OPTIONS}},
        "objects": {"options": [{"label": letter, "text": text} for letter, text in zip("ABCD", OPTIONS, strict=True)]},
        "object": {"options": dict(zip("ABCD", OPTIONS, strict=True))},
        "columns": dict(zip("ABCD", OPTIONS, strict=True)),
        "text": {"options": str(OPTIONS)},
    }
    ways: dict[str, Any] = {"letter": "ABCD", "text": OPTIONS, "0": range(4), "1": range(1, 5)}
    columns = f"question=q answer=key choices={'A+B+C+D' if shape == 'columns' else 'options'} answer_is={told}"
    rows = [shapes[shape] | {"q": f"{n}?", "key": ways[told][place]} for n, place in enumerate(right)]
    assert [row["answer"] for row in fields(*rows, columns=columns)] == ["ABCD"[place] for place in right]
    assert all(row["choices"] == OPTIONS for row in fields(*rows, columns=columns))


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_made_ids_are_unique_and_do_not_depend_on_other_questions(texts: list[str]) -> None:
    made = [row["id"] for row in fields(*({"prompt": text, "target": "1"} for text in texts))]
    assert len(set(made)) == len(texts)
    alone = {text: fields({"prompt": text, "target": "1"})[0]["id"] for text in texts}
    seen = dict.fromkeys(texts, 0)
    for text, name in zip(texts, made, strict=True):
        seen[text] += 1
        assert name == (alone[text] if seen[text] == 1 else f"{alone[text]}-{seen[text]}")


def test_our_own_fields_are_taken_whatever_else_is_there() -> None:
    row = {
        "id": "a",
        "question": "?",
        "answer": "1",
        "passage": "Long.",
        "prompt": "!",
        "solution": "None.",
        "label": 3,
    }
    assert fields(row) == [row]


@pytest.mark.parametrize(
    ("answer", "gold", "steps"),
    [
        ("Two and two.\n#### 4", "4", "Two and two.\n"),
        ("Two and two is $\\boxed{\\frac{8}{2}}$.", "\\frac{8}{2}", "Two and two is $\\boxed{\\frac{8}{2}}$."),
        ("$\\boxed{4}$", "4", None),
        ("4", "4", None),
        (["4"], "4", None),
        (["4", "4"], "4", None),
    ],
)
def test_an_answer_is_found_in_its_solution(answer: object, gold: str, steps: str | None) -> None:
    (row,) = fields({"question": "2 + 2?", "answer": answer})
    assert row["answer"] == gold
    assert row.get("rationale") == steps


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("Ann has 2 pens.", "How many?"), "Ann has 2 pens. How many?"),
        (("", "How many?"), "How many?"),
        ((None, "How many?"), "How many?"),
        (("One.\nTwo.", "How many?"), "One.\nTwo.\n\nHow many?"),
        (("x" * 301, "How many?"), "x" * 301 + "\n\nHow many?"),
    ],
)
def test_joined_columns(parts: tuple[str | None, str], joined: str) -> None:
    (row,) = fields({"a": parts[0], "b": parts[1], "c": 1}, columns="question=a+b answer=c")
    assert row["question"] == joined


def test_a_column_whose_name_has_a_plus_is_that_column() -> None:
    assert fields({"a+b": "?", "c": 1}, columns="question=a+b answer=c")[0]["question"] == "?"


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([{"question": "?", "answer": 1}, {"question": "?"}], None, "line 2 must have the column `answer`"),
        (
            [{"question": "?", "answer": 1}],
            "question=q answer=answer",
            "must have the column `q`, which `--columns` names",
        ),
        (
            [
                {"question": "?", "options": OPTIONS, "answer": "ant"},
                {"question": "?", "options": OPTIONS, "answer": "elk"},
            ],
            "question=question answer=answer choices=options answer_is=text",
            "line 2, field `answer` must be one of the texts of options",
        ),
        ([{"question": "?", "answer": 1, "solution": "a", "steps": "b"}], None, "rationale in `solution` or `steps`"),
    ],
)
def test_what_is_missing_or_not_clear_is_told(rows: list[dict[str, Any]], columns: str | None, said: str) -> None:
    assert said in refusal(*rows, columns=columns)
