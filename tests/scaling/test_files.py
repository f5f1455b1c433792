"""Files of questions: what is read, and that a message names the file, the line and the field that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.records.errors import UsageError
from scaling.records.records import Question
from scaling.tasks.files import infer_kind, question_from, read_questions

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

GOOD: dict[str, Any] = {"id": "a", "question": "What is 1 + 1?", "answer": "2"}


def write(path: Path, *rows: object) -> Path:
    """One line a row; a string stands for itself."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def refusal(path: Path, *, kind: str | None = None, split: str = "test", limit: int | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        read_questions(path, kind=kind, split=split, limit=limit)
    return str(caught.value)


def test_every_field_is_read_and_the_users_own_fields_are_left_alone(tmp_path: Path) -> None:
    row = {
        "id": 7,
        "question": " Which is largest? ",
        "answer": "b",
        "rationale": "1 < 2\n\n2 < <<1+1=2>>3\n",
        "choices": ["1", "3"],
        "source": {"page": 4},
    }
    kind, questions, *_ = read_questions(write(tmp_path / "quiz.jsonl", row), kind=None, split="test")
    assert kind == "choice"
    assert questions == [Question("7", "Which is largest?", "B", ("1", "3"), ("1 < 2", "2 < 3"))]


@pytest.mark.parametrize(
    ("kind", "answer", "canonical"),
    [
        ("number", "1,000", "1000"),
        ("number", 18.0, "18"),
        ("number", 1e-05, "0.00001"),
        ("number", -3, "-3"),
        ("number", 0.6666666666666666, "0.6666666666666666"),
        ("number", "5,5", "5.5"),
        ("number", "5,500", "5500"),
        ("number", "1 000", "1000"),
        ("number", "1\u202f000,50", "1000.5"),
        ("number", "1.5 million", "1500000"),
        ("number", "twelve", "12"),
        ("number", "5 + 7", "12"),
        ("number", "\\frac{24}{2}", "12"),
        ("number", "-3", "-3"),
        ("number", "2\\sqrt{3}", "2\\sqrt{3}"),
        ("number", "١٢", "12"),
        ("yes_no", True, "yes"),
        ("yes_no", "False", "no"),
    ],
)
def test_the_gold_answer_is_stored_in_canonical_form(tmp_path: Path, kind: str, answer: object, canonical: str) -> None:
    file = write(tmp_path / "q.jsonl", GOOD | {"answer": answer})
    assert read_questions(file, kind=None, split="test")[0] == kind
    assert read_questions(file, kind=kind, split="test")[1][0].answer == canonical


def test_one_plain_number_among_yes_and_no_makes_a_number_task() -> None:
    assert infer_kind([{"answer": "Yes"}, {"answer": False}, {"answer": "TRUE"}]) == "yes_no"
    assert infer_kind([{"answer": "Yes"}, {"answer": 1}]) == "number"


@pytest.mark.parametrize(
    ("numbers", "words", "kind"), [(9, 1, "number"), (1, 1, "number"), (1, 2, "text"), (0, 1, "text")]
)
def test_fewer_numbers_than_words_make_a_text_task(numbers: int, words: int, kind: str) -> None:
    rows = [{"answer": str(n)} for n in range(numbers)] + [{"answer": "twelve-ish"}] * words
    assert infer_kind(rows) == kind
    assert infer_kind([*rows, {"answer": "x" * 101}]) == "number", "a long text is no answer but a mistake"


def test_a_unit_in_brackets_is_no_part_of_a_number() -> None:
    assert infer_kind([{"answer": "9 (apples)"}, {"answer": "1/2 (cup)"}, {"answer": "Ann"}]) == "number"


def test_one_slip_among_numbers_is_named(tmp_path: Path) -> None:
    rows = [GOOD | {"id": n, "answer": n} for n in range(30)]
    message = refusal(write(tmp_path / "q.jsonl", *rows, GOOD | {"id": "z", "answer": "twelve-ish"}))
    assert "line 31, field `answer` must be one number" in message
    assert "`--answer-kind`" in message


def test_blank_lines_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    second = GOOD | {"id": "b", "question": "A line separator\u2028inside"}
    text = json.dumps(GOOD) + "\r\n\r\n" + json.dumps(second, ensure_ascii=False)
    file.write_bytes(b"\xef\xbb\xbf" + text.encode())
    questions = read_questions(file, kind="number", split="test")[1]
    assert [question.text for question in questions] == ["What is 1 + 1?", "A line separator\u2028inside"]


@pytest.mark.parametrize(
    ("kind", "row", "expected"),
    [
        ("number", "{oops", ["one JSON object", "not JSON"]),
        ("number", "[" * 100_000, ["one JSON object"]),
        ("number", "[1, 2]", ["one JSON object", "[1, 2]"]),
        ("number", {"id": "b", "question": "?", "anwser": "1"}, ["`answer`", "missing", "Did you mean `anwser`?"]),
        ("number", {"question": "?", "answer": "1"}, ["`id`", "missing"]),
        ("number", {"id": "b", "answer": "1"}, ["`question`", "missing"]),
        ("number", GOOD | {"id": True}, ["`id`", "true"]),
        ("number", GOOD | {"id": ""}, ["`id`", '""']),
        ("number", GOOD | {"question": "  "}, ["`question`", "non-empty"]),
        ("number", GOOD | {"question": ["What?"]}, ["`question`", '["What?"]']),
        ("number", '{"id": "b", "question": "\\ud800", "answer": "1"}', ["UTF-8"]),
        ("number", GOOD | {"answer": "many"}, ["`answer`", "one number", '"many"']),
        ("number", GOOD | {"answer": "2024-01-05"}, ["`answer`", "no date", '"2024-01-05"', "correct that row"]),
        ("number", GOOD | {"answer": "10-12"}, ["`answer`", "range", '"10-12"']),
        ("number", GOOD | {"answer": "10 \u2013 12"}, ["`answer`", "range"]),
        ("number", GOOD | {"answer": "3 - 1"}, ["`answer`", "one number", '"3 - 1"']),  # may be a score
        ("number", GOOD | {"answer": "7 p.m."}, ["`answer`", "no date, time", '"7 p.m."']),
        ("number", GOOD | {"answer": "01/05"}, ["`answer`", "no date"]),
        ("number", GOOD | {"answer": "5.1.2024"}, ["`answer`", "no date"]),
        ("number", GOOD | {"answer": "5 January 2024"}, ["`answer`", "no date"]),
        ("number", GOOD | {"answer": "10:30"}, ["`answer`", "no date"]),
        ("number", GOOD | {"answer": "5 or 6"}, ["`answer`", "one number", '"5 or 6"']),
        ("number", GOOD | {"answer": "10 to 12"}, ["`answer`", "range"]),
        ("number", GOOD | {"answer": "1/2/3/4/0"}, ["`answer`", "one number"]),
        ("number", GOOD | {"answer": "9**9**9**9"}, ["`answer`", "one number"]),
        ("number", GOOD | {"answer": True}, ["`answer`", "one number", "true"]),
        ("number", GOOD | {"answer": float("nan")}, ["`answer`", "one number", "NaN"]),
        ("number", GOOD | {"answer": None}, ["`answer`", "one number", "null"]),
        (
            "number",
            GOOD | {"answer": ["2", "3"]},
            ["`answer`", "one right answer", '["2", "3"]', "`--answer-kind set`"],
        ),
        ("number", GOOD | {"choices": ["1", "2"]}, ["`choices`", "absent or null", "`number`"]),
        ("yes_no", GOOD | {"answer": "2"}, ["`answer`", "yes or no", '"2"']),
        ("choice", GOOD | {"answer": "C", "choices": ["1", "2"]}, ["`answer`", "A to B", '"C"']),
        ("choice", GOOD | {"answer": "A"}, ["`choices`", "2 to 26", "null"]),
        ("choice", GOOD | {"answer": "A", "choices": ["1"]}, ["`choices`", "2 to 26"]),
        ("choice", GOOD | {"answer": "A", "choices": [1, None]}, ["`choices`", "strings", "[1, null]"]),
        ("number", GOOD | {"rationale": 3}, ["`rationale`", "3"]),
        ("number", GOOD | {"rationale": ["a", 3]}, ["`rationale`", "list of strings"]),
        ("number", GOOD | {"cluster": ["a"]}, ["`cluster`", "string or an integer"]),
    ],
)
def test_a_wrong_line_is_named_with_its_field(tmp_path: Path, kind: str, row: object, expected: list[str]) -> None:
    good = GOOD | {"id": "first", **({"choices": ["1", "2"], "answer": "A"} if kind == "choice" else {})}
    good |= {"answer": "yes"} if kind == "yes_no" else {}
    message = refusal(write(tmp_path / "q.jsonl", good, "", row), kind=kind)
    for part in ["`--data`", f"{tmp_path / 'q.jsonl'} line 3", *expected]:
        assert part in message
    assert len(message) < 400 + len(str(tmp_path))


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + '{"id": "é"}'.encode("latin-1"))
    assert "q.jsonl line 2 must be valid UTF-8" in refusal(file)


def test_a_limit_cuts_after_everything_is_checked(tmp_path: Path) -> None:
    rows = [GOOD | {"id": i} for i in range(5)]
    file = write(tmp_path / "q.jsonl", *rows)
    questions = read_questions(file, kind="number", split="test", limit=2)[1]
    assert [question.id for question in questions] == ["0", "1"]
    write(file, *rows, GOOD | {"id": "3"})
    message = refusal(file, limit=1)
    assert "line 6, field `id`" in message
    assert "line 4 has the same" in message


def test_a_folder_holds_one_file_a_split(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD | {"id": "t"})
    write(tmp_path / "dev.jsonl", GOOD | {"id": "d"})
    ids = {split: read_questions(tmp_path, kind=None, split=split)[1][0].id for split in ("train", "validation", "dev")}
    assert ids == {"train": "t", "validation": "d", "dev": "d"}
    message = refusal(tmp_path, split="test")
    assert message.startswith("`--split`")
    assert "`train`, `validation`" in message


def test_an_empty_folder_and_a_missing_path_are_explained(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert "no file of rows" in refusal(tmp_path / "folder")
    write(tmp_path / "questions.jsonl", GOOD)
    assert "Did you mean `questions.jsonl`?" in refusal(tmp_path / "question.jsonl")
    assert "does not exist" in refusal(tmp_path / "nowhere" / "question.jsonl")


def test_questions_of_one_cluster_are_named(tmp_path: Path) -> None:
    """In files of ours, and in others by the column of that name or the one that `--columns` names."""
    ours = [
        GOOD | {"id": name, "cluster": cluster} for name, cluster in (("a", 3), ("b", "3"), ("c", None), ("d", " "))
    ]
    _, questions, *_ = read_questions(write(tmp_path / "ours.jsonl", *ours), kind=None, split="test")
    assert [one.cluster for one in questions] == ["3", "3", None, None]
    others = [{"prompt": f"{number}?", "target": 1, "source": f"s{number % 2}", "cluster": "x"} for number in range(4)]
    place = write(tmp_path / "others.jsonl", *others)
    _, questions, taken = read_questions(place, kind=None, split="test")
    assert {one.cluster for one in questions} == {"x"}
    assert "cluster=cluster" in taken
    _, questions, taken = read_questions(place, kind=None, split="test", columns={"cluster": "source"})
    assert [one.cluster for one in questions] == ["s0", "s1", "s0", "s1"]
    assert "cluster=source" in taken


@given(
    st.dictionaries(
        st.sampled_from(["id", "question", "answer", "rationale", "choices", "cluster"]), st.from_type(object)
    )
)
def test_any_fields_give_a_question_or_a_message(fields: dict[str, Any]) -> None:
    for kind in ("number", "choice", "yes_no"):
        try:
            question = question_from(fields, kind=kind, where="here")
        except UsageError as error:
            assert str(error).startswith("here")  # noqa: PT017 (both outcomes are right)
        else:
            assert question.text
            assert question.answer


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmark files in ../shared/data")
@pytest.mark.parametrize(
    ("place", "split", "kind", "count"),
    [
        ("gsm8k", "test", "number", 1319),
        ("gsm8k", "train", "number", 7473),
        ("asdiv", "test", "number", 396),
        ("asdiv", "train", "number", 1688),
        ("aqua", "test", "choice", 254),
        ("aqua", "validation", "choice", 254),
        ("strategyqa", "test", "yes_no", 458),
        ("strategyqa", "train", "yes_no", 1832),
        ("date_understanding", "test", "choice", 250),
        ("date_understanding", "test_bigbench369", "choice", 369),
    ],
)
def test_the_benchmarks_load_completely(place: str, split: str, kind: str, count: int) -> None:
    found, questions, *_ = read_questions(DATA / place, kind=None, split=split)
    assert (found, len(questions)) == (kind, count)
    assert not any("<<" in step for question in questions for step in question.rationale)


@pytest.mark.parametrize(
    ("formulas", "numbers", "kind"), [(1, 9, "expression"), (1, 10, "number"), (2, 0, "expression"), (0, 3, "number")]
)
def test_one_formula_in_ten_answers_makes_an_expression_task(
    tmp_path: Path, formulas: int, numbers: int, kind: str
) -> None:
    solutions = [f"So $\\boxed{{{n}\\sqrt{{2}}}}$." for n in range(2, 2 + formulas)]
    solutions += [f"So $\\boxed{{\\frac{{{n}}}{{2}}}}$." for n in range(numbers)]
    rows = [{"problem": f"{n}?", "solution": solution} for n, solution in enumerate(solutions)]
    data = read_questions(write(tmp_path / "math.jsonl", *rows), kind=None, split="test")
    assert data.kind == kind
    assert ("`--answer-kind expression`" in data.taken) == (kind == "number" and formulas > 0)


def test_our_own_files_of_numbers_and_formulas_stay_of_kind_number(tmp_path: Path) -> None:
    rows = [GOOD | {"id": str(n), "answer": f"{n}\\sqrt{{2}}"} for n in range(2, 5)]
    data = read_questions(write(tmp_path / "own.jsonl", *rows), kind=None, split="test")
    assert data.kind == "number"
    assert "`--answer-kind expression`" in data.taken


def test_a_formula_that_is_no_number_is_refused_with_the_kind_that_reads_it(tmp_path: Path) -> None:
    said = refusal(write(tmp_path / "q.jsonl", GOOD | {"answer": "\\text{odd}"}), kind="number")
    assert "give `--answer-kind expression`" in said
