"""Benchmarks from the Hub: how each dataset's rows are mapped, and what is said when they cannot be had."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from scaling.records.errors import UsageError
from scaling.records.records import Question
from scaling.tasks import hub

datasets = pytest.importorskip("datasets", reason="needs the extra `hub`")

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

# One row or two with the columns of each dataset as its card documents them.
ROWS: dict[str, list[dict[str, Any]]] = {
    "gsm8k": [
        {
            "question": "Ann sold 48 clips, then half as many. How many?",
            "answer": "She then sold 48/2 = <<48/2=24>>24.\nIn all 48+24 = <<48+24=72>>1,072.\n#### 1,072",
        }
    ],
    "asdiv": [
        {
            "body": "Seven red apples and two green apples are in the basket.",
            "question": "How many apples are in the basket?",
            "solution_type": "Addition",
            "answer": "9 (apples)",
            "formula": "7+2=9",
        }
    ],
    "aqua": [
        {
            "question": "What is 3 * 7?",
            "options": ["A)21", "B)B) 21.5", "C)$23", "D) (24)", "E)None of these"],
            "rationale": "3 * 7 = 21.\nThe answer is A.",
            "correct": "A",
        }
    ],
    "strategyqa": [
        {
            "qid": "4fd64bb6ce5b78ab20b6",
            "term": "Albany, Georgia",
            "description": "City in Georgia",
            "question": "Will the Albany in Georgia reach a hundred thousand occupants before the one in New York?",
            "answer": False,
            "facts": "Albany, GA has around 75,000 people. Albany, NY has almost 100,000 people.",
        }
    ],
    "date-understanding": [
        {
            "input": "Today is Christmas Eve of 1937. What is the date tomorrow?\n"
            "Options:\n(A) 12/11/1937\n(B) 12/25/1937\n(C) 01/04/1938",
            "target": "(B)",
        }
    ],
}

QUESTIONS = {
    "gsm8k": Question(
        "gsm8k-test-00000",
        "Ann sold 48 clips, then half as many. How many?",
        "1072",
        (),
        ("She then sold 48/2 = 24.", "In all 48+24 = 1,072."),
    ),
    "aqua": Question(
        "aqua-test-00000",
        "What is 3 * 7?",
        "A",
        ("21", "B) 21.5", "$23", "(24)", "None of these"),
        ("3 * 7 = 21.", "The answer is A."),
    ),
    "strategyqa": Question(
        "4fd64bb6ce5b78ab20b6",
        "Will the Albany in Georgia reach a hundred thousand occupants before the one in New York?",
        "no",
        (),
        ("Albany, GA has around 75,000 people. Albany, NY has almost 100,000 people.",),
    ),
    "date-understanding": Question(
        "date-understanding-test-00000",
        "Today is Christmas Eve of 1937. What is the date tomorrow?",
        "B",
        ("12/11/1937", "12/25/1937", "01/04/1938"),
    ),
}


def serve(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Rows from memory instead of the Hub; returns the list of the calls."""
    calls: list[tuple[Any, ...]] = []

    def load_dataset(path: str, config: str | None, *, split: str) -> Any:
        calls.append((path, config, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def refusal(name: str, *, split: str = "test") -> str:
    with pytest.raises(UsageError) as caught:
        hub.load(name, split=split)
    return str(caught.value)


@pytest.mark.parametrize("name", QUESTIONS)
def test_rows_become_questions(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    serve(monkeypatch, ROWS[name])
    assert hub.load(name, split="test") == [QUESTIONS[name]]


def test_a_gsm8k_answer_keeps_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS["gsm8k"][0] | {"answer": "From 3 degrees it fell by 8, to 3 - 8 = <<3-8=-5>>-5.\n#### -5"}
    serve(monkeypatch, [row])
    [question] = hub.load("gsm8k", split="test")
    assert (question.answer, question.rationale) == ("-5", ("From 3 degrees it fell by 8, to 3 - 8 = -5.",))


def test_the_facts_of_strategyqa_may_be_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, [ROWS["strategyqa"][0] | {"facts": ["One.", "Two."]}])
    assert hub.load("strategyqa", split="test")[0].rationale == ("One.", "Two.")


@pytest.mark.parametrize(
    ("name", "split", "call"),
    [
        ("gsm8k", "train", ("openai/gsm8k", "main", "train")),
        ("asdiv", "train", ("EleutherAI/asdiv", None, "validation")),
        ("aqua", "validation", ("deepmind/aqua_rat", "raw", "validation")),
        ("strategyqa", "test", ("ChilleD/StrategyQA", None, "test")),
        ("date-understanding", "test", ("lukaemon/bbh", "date_understanding", "test")),
    ],
)
def test_the_right_dataset_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, split: str, call: tuple[Any, ...]
) -> None:
    calls = serve(monkeypatch, ROWS[name])
    hub.load(name, split=split)
    assert calls == [call]


def test_asdiv_is_parted_by_text_into_a_fifth_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ROWS["asdiv"][0]
    rows = [first | {"body": f"There are {i} red apples."} for i in range(500)]
    serve(monkeypatch, rows)
    test = {question.text for question in hub.load("asdiv", split="test")}
    train = {question.text for question in hub.load("asdiv", split="train")}
    assert not test & train
    assert len(test | train) == 500
    # A binomial of 500 rows at 1/5: mean 100, standard deviation 8.9; the hash is fixed, so this never flickers.
    assert 73 <= len(test) <= 127
    serve(monkeypatch, rows[::-1])
    assert {question.text for question in hub.load("asdiv", split="test")} == test


def test_asdiv_ids_count_the_rows_that_are_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ROWS["asdiv"][0]
    serve(monkeypatch, [first | {"answer": "Ann"}, first])
    found = [question for split in ("train", "test") for question in hub.load("asdiv", split=split)]
    assert [question.id.rpartition("-")[2] for question in found] == ["00001"]
    assert (
        found[0].text == "Seven red apples and two green apples are in the basket. How many apples are in the basket?"
    )
    assert (found[0].answer, found[0].rationale) == ("9", ("7+2=9",))


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("9 (apples)", "9"),
        ("1,200", "1,200"),
        ("0.5 (mile)", "0.5"),
        ("-3", "-3"),
        ("1/2 (cup)", None),
        ("3:2", None),
        ("2 (cats); 3 (dogs)", None),
        ("Yes", None),
        ("", None),
    ],
)
def test_only_one_plain_number_counts_as_an_asdiv_answer(answer: str, number: str | None) -> None:
    assert hub.plain_number(answer) == number


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the benchmark files in ../shared/data")
def test_the_same_asdiv_rows_are_plain_numbers_as_in_the_local_files() -> None:
    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (DATA / "asdiv" / name).read_text(encoding="utf-8").splitlines()]

    plain = {row["id"] for row in lines("meta.jsonl") if hub.plain_number(row["answer_raw"]) is not None}
    assert plain == {row["id"] for row in lines("train.jsonl") + lines("test.jsonl")}


@pytest.mark.parametrize(
    ("name", "split", "known"),
    [
        ("gsm8k", "validation", "`train`, `test`"),
        ("asdiv", "validation", "`train`, `test`"),
        ("strategyqa", "validation", "`train`, `test`"),
        ("date-understanding", "train", "`test`"),
        ("aqua", "dev", "`train`, `test`, `validation`"),
    ],
)
def test_a_split_the_dataset_lacks_is_never_replaced(
    monkeypatch: pytest.MonkeyPatch, name: str, split: str, known: str
) -> None:
    calls = serve(monkeypatch, ROWS[name])
    message = refusal(name, split=split)
    assert f"`--split` must be one of {known}" in message
    assert f"not `{split}`" in message
    assert not calls


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Couldn't reach 'openai/gsm8k' on the Hub (LocalEntryNotFoundError)"),
        datasets.exceptions.DatasetNotFoundError("Dataset 'openai/gsm8k' doesn't exist on the Hub."),
        RuntimeError("Dataset scripts are no longer supported, but found gsm8k.py"),
        TimeoutError(),
    ],
)
def test_whatever_the_client_raises_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal("gsm8k")
    for part in ["`--task gsm8k`", "openai/gsm8k", str(error) or "TimeoutError", "`--data FILE_OR_FOLDER`"]:
        assert part in message
    assert "\n" not in message


def test_the_client_itself_says_when_there_is_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert "could not load openai/gsm8k from the Hub" in refusal("gsm8k")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = refusal("aqua")
    assert 'pip install "softcotpp[hub]"' in message
    assert "`--data FILE_OR_FOLDER`" in message


def test_a_dataset_that_changed_is_not_guessed_at(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, [{"prompt": "?", "answer": "#### 1"}])
    assert "openai/gsm8k must have the column `question`" in refusal("gsm8k")
    serve(monkeypatch, [{"question": "?", "answer": "#### unknown"}])
    assert "openai/gsm8k row 0, field `answer`" in refusal("gsm8k")
