"""Data sets in the shapes in which they are published: each is read, or refused with the columns to type.

All rows were written for this test, after the documented columns of each data set.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas
import pytest

from scaling.records.errors import UsageError
from scaling.tasks.catalogue import load_task
from scaling.tasks.columns import parse
from scaling.tasks.task import LoadedTask

Rows = list[dict[str, Any]]


def lines(place: Path, rows: Rows) -> None:
    place.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def array(place: Path, rows: Rows) -> None:
    place.write_text(json.dumps(rows, indent=1))


def examples(place: Path, rows: Rows) -> None:
    place.write_text(json.dumps({"canary": "do not train on this", "examples": rows}))


def one(place: Path, rows: Rows) -> None:
    place.write_text(json.dumps(rows[0], indent=4))


def parquet(place: Path, rows: Rows) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows).to_parquet(place)


def comma(place: Path, rows: Rows) -> None:
    pandas.DataFrame(rows).to_csv(place, index=False)


def tabbed(place: Path, rows: Rows) -> None:
    pandas.DataFrame(rows).to_csv(place, index=False, sep="\t")


def packed(place: Path, rows: Rows) -> None:
    place.write_bytes(gzip.compress("".join(f"{json.dumps(row)}\n" for row in rows).encode()))


def saved(place: Path, rows: Rows) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `hub`")
    parts = {"train": datasets.Dataset.from_list([{"question": "?", "answer": "0"}])}
    datasets.DatasetDict({**parts, "test": datasets.Dataset.from_list(rows)}).save_to_disk(str(place))


PENS: dict[str, Any] = {
    "question": "Ann has 3 pens and buys 4. How many has she?",
    "answer": "She has 3+4 = <<3+4=7>>7.\n#### 7",
}
SUMS: Rows = [{"question": "What is 2 + 3?", "answer": 5}, {"question": "What is 10 / 4?", "answer": 2.5}]
SKY: dict[str, Any] = {
    **{"question": "Which colour has the sky?", "subject": "nature"},
    **{"choices": ["red", "blue", "green", "black"], "answer": 1},
}
GRASS = {**SKY, "question": "Which colour has grass?", "answer": 2}
ROSE = {**SKY, "question": "Which colour has a rose?", "answer": 0}
ARC: Rows = [
    {
        **{"id": "Mercury_1", "question": "Which melts?", "answerKey": "B"},
        "choices": {"text": ["stone", "ice", "sand"], "label": ["A", "B", "C"]},
    },
    {
        **{"id": "NYSEDREGENTS_2", "question": "Which flies?", "answerKey": "3"},
        "choices": {"text": ["cow", "fish", "owl"], "label": ["1", "2", "3"]},
    },
]
BOX = {"problem": "What is $3^2$?", "level": "Level 1", "solution": "Three times three: $3^2=\\boxed{9}$."}
GPQA = {
    **{"Record ID": "rec1", "Question": "What attracts iron?", "Correct Answer": "A magnet", "Explanation": "It does."},
    **{"Incorrect Answer 1": "Wood", "Incorrect Answer 2": "Water", "Incorrect Answer 3": "Air"},
}
CSQA = {"id": "c1", "question_concept": "fish", "answerKey": "B"}
WORDS = {"label": ["A", "B"], "text": ["tree", "sea"]}

Expected = tuple[Any, str, list[Any], list[str]]  # text, answer, options and steps of the first question

READ: dict[str, tuple[Callable[[Path, Rows], None], str, Rows, str, Expected]] = {
    "GSM8K": (lines, "test.jsonl", [PENS], "number", (PENS["question"], "7", [], ["She has 3+4 = 7."])),
    "SVAMP": (
        array,
        "SVAMP.json",
        [{"ID": "c-1", "Body": "Dan had 9 pens.", "Question": "How many are left?", "Equation": "9-2", "Answer": 7.0}],
        "number",
        ("Dan had 9 pens. How many are left?", "7", [], []),
    ),
    "MMLU": (parquet, "test.parquet", [SKY, GRASS, ROSE], "choice", (SKY["question"], "B", SKY["choices"], [])),
    "ARC": (parquet, "arc.parquet", ARC, "choice", ("Which melts?", "B", ["stone", "ice", "sand"], [])),
    "ARC, numbered": (lines, "arc.jsonl", ARC[::-1], "choice", ("Which flies?", "C", ["cow", "fish", "owl"], [])),
    "AQuA": (
        lines,
        "aqua.json",
        [{"question": "3 * 7?", "options": ["A)21", "B)22"], "rationale": "3 * 7 = 21.\nA.", "correct": "A"}],
        "choice",
        ("3 * 7?", "A", ["21", "22"], ["3 * 7 = 21.", "A."]),
    ),
    "MATH": (one, "1.json", [BOX | {"type": "Algebra"}], "number", (BOX["problem"], "9", [], [BOX["solution"]])),
    "MATH-500": (
        lines,
        "test.jsonl",
        [BOX | {"answer": "9", "subject": "Algebra", "level": 1, "unique_id": "test/algebra/1.json"}],
        "number",
        (BOX["problem"], "9", [], [BOX["solution"]]),
    ),
    "CSV": (comma, "sums.csv", SUMS, "number", ("What is 2 + 3?", "5", [], [])),
    "CSV with a column for each option": (
        comma,
        "mmlu.csv",
        [{"Question": "Which is big?", "A": "ant", "B": "whale", "C": "bee", "D": "fly", "Answer": "B"}],
        "choice",
        ("Which is big?", "B", ["ant", "whale", "bee", "fly"], []),
    ),
    "CSV with options as JSON": (
        comma,
        "quiz.csv",
        [{"question": "Which is big?", "choices": json.dumps(["ant", "whale"]), "answer": "whale"}],
        "choice",
        ("Which is big?", "B", ["ant", "whale"], []),
    ),
    "CSV with options as pandas writes lists": (
        comma,
        "quiz.csv",
        [{"question": "Which is big?", "choices": ["ant", "whale"], "answer": "whale"}],
        "choice",
        ("Which is big?", "B", ["ant", "whale"], []),
    ),
    "TSV": (tabbed, "sums.tsv", SUMS, "number", ("What is 2 + 3?", "5", [], [])),
    "Parquet": (parquet, "sums.parquet", SUMS, "number", ("What is 2 + 3?", "5", [], [])),
    "JSON array": (array, "sums.json", SUMS, "number", ("What is 2 + 3?", "5", [], [])),
    "BBH": (
        examples,
        "date_understanding.json",
        [{"input": "It is 1 May. Tomorrow?\nOptions:\n(A) 2 May\n(B) 3 May", "target": "(A)"}],
        "choice",
        ("It is 1 May. Tomorrow?", "A", ["2 May", "3 May"], []),
    ),
    "BBH, yes or no": (
        examples,
        "navigate.json",
        [{"input": "Turn around.\nOptions:\n- Yes\n- No", "target": "No"}],
        "yes_no",
        ("Turn around.\nOptions:\n- Yes\n- No", "no", [], []),
    ),
    "a folder saved by datasets": (saved, "kept", [PENS], "number", (PENS["question"], "7", [], ["She has 3+4 = 7."])),
    "a clone from the Hub": (
        *(parquet, "gsm8k/main/test-00000-of-00001.parquet", [PENS], "number"),
        (PENS["question"], "7", [], ["She has 3+4 = 7."]),
    ),
    "gzip": (packed, "test.jsonl.gz", SUMS, "number", ("What is 2 + 3?", "5", [], [])),
    "CommonsenseQA": (
        parquet,
        "validation.parquet",
        [CSQA | {"question": "Where do fish live?", "choices": WORDS}],
        "choice",
        ("Where do fish live?", "B", ["tree", "sea"], []),
    ),
    "CommonsenseQA before the Hub": (
        lines,
        "dev_rand_split.jsonl",
        [
            {
                **{"id": "c1", "answerKey": "B"},
                "question": {
                    "stem": "Where do fish live?",
                    "choices": [{"label": "A", "text": "tree"}, {"label": "B", "text": "sea"}],
                },
            }
        ],
        "choice",
        ("Where do fish live?", "B", ["tree", "sea"], []),
    ),
    "StrategyQA": (
        array,
        "strategyqa_train.json",
        [{"qid": "b8", "term": "Ice", "question": "Is ice hot?", "answer": False, "facts": ["Ice is cold.", "So no."]}],
        "yes_no",
        ("Is ice hot?", "no", [], ["Ice is cold.", "So no."]),
    ),
    "OpenBookQA": (
        parquet,
        "test-00000-of-00001.parquet",
        [{"id": "7-1", "question_stem": "Fish live in the", "choices": WORDS, "answerKey": "B"}],
        "choice",
        ("Fish live in the", "B", ["tree", "sea"], []),
    ),
    "PIQA": (
        lines,
        "valid.jsonl",
        [
            {"goal": "Cool tea.", "sol1": "Wait.", "sol2": "Boil it.", "label": 0},
            {"goal": "Heat tea.", "sol1": "Wait.", "sol2": "Boil it.", "label": 1},
        ],
        "choice",
        ("Cool tea.", "A", ["Wait.", "Boil it."], []),
    ),
    "HellaSwag": (
        parquet,
        "validation.parquet",
        [
            {
                **{"ind": number, "activity_label": "Cooking", "ctx_a": "He cooks.", "ctx_b": "He", "label": label},
                **{"ctx": "He cooks. He", "endings": ["flies.", "eats.", "sings.", "swims."]},
            }
            for number, label in enumerate(["1", "0", "3"])
        ],
        "choice",
        ("He cooks. He", "B", ["flies.", "eats.", "sings.", "swims."], []),
    ),
    "AIME": (
        parquet,
        "aime.parquet",
        [{"ID": "2024-I-1", "Problem": "Find $1+1$.", "Solution": "It is 2.", "Answer": 2}],
        "number",
        ("Find $1+1$.", "2", [], ["It is 2."]),
    ),
    "MMLU-Pro": (
        parquet,
        "test.parquet",
        [
            {
                **{"question_id": 70, "question": "Which is big?", "options": ["ant", "whale", "bee"], "answer": "B"},
                **{"answer_index": 1, "cot_content": "", "category": "biology", "src": "ori"},
            }
        ],
        "choice",
        ("Which is big?", "B", ["ant", "whale", "bee"], []),
    ),
    "GSM-hard": (
        lines,
        "gsmhard.jsonl",
        [{"input": "Ann has 3000001 pens and buys 4. How many?", "code": "return 3000001 + 4", "target": 3000005.0}],
        "number",
        ("Ann has 3000001 pens and buys 4. How many?", "3000005", [], []),
    ),
    "MedMCQA": (
        lines,
        "dev.json",
        [
            {
                **{"id": "m1", "question": "Which is an organ?", "cop": number, "exp": "It pumps."},
                **{"opa": "heart", "opb": "chair", "opc": "sun", "opd": "sea"},
            }
            for number in (0, 2)
        ],
        "choice",
        ("Which is an organ?", "A", ["heart", "chair", "sun", "sea"], ["It pumps."]),
    ),
    "MedQA": (
        lines,
        "test.jsonl",
        [{"question": "Which pumps?", "answer": "heart", "options": {"A": "hair", "B": "heart"}, "answer_idx": "B"}],
        "choice",
        ("Which pumps?", "B", ["hair", "heart"], []),
    ),
    "last letters": (
        lines,
        "last_letters.jsonl",
        [{"question": "Last letters of Ann Bob?", "answer": "nb"}],
        "text",
        ("Last letters of Ann Bob?", "nb", [], []),
    ),
}


def load(place: Path, **options: Any) -> LoadedTask:
    return load_task(options.pop("task", None), data=place, **options)


@pytest.mark.parametrize("name", READ)
def test_a_published_data_set_is_read_as_it_is(tmp_path: Path, name: str) -> None:
    write, file, rows, kind, (text, answer, choices, rationale) = READ[name]
    place = tmp_path / file
    write(place, rows)
    task = load(place)
    first = task.questions[0]
    assert (task.kind, len(task.questions)) == (kind, len(rows))
    assert (first.text, first.answer) == (text, answer)
    assert (list(first.choices), list(first.rationale)) == (choices, rationale)
    assert task.taken.startswith("data: question=")


REFUSED: dict[str, tuple[Rows, str, tuple[str, str, list[str]]]] = {
    "BoolQ": (
        [{"question": "is ice cold", "answer": True, "passage": "Ice is frozen water."}],
        "question=passage+question answer=answer",
        ("Ice is frozen water. is ice cold", "yes", []),
    ),
    "DROP": (
        [
            {
                **{
                    "section_id": "n1",
                    "query_id": "q1",
                    "passage": "They scored 3 and 4.",
                    "question": "How many in all?",
                },
                "answers_spans": {"spans": ["7"], "types": ["number"]},
            }
        ],
        "question=passage+question answer=answers_spans.spans",
        ("They scored 3 and 4. How many in all?", "7", []),
    ),
    "SocialIQA": (
        [
            {
                **{"context": "Ann fell.", "question": "How is she?", "label": label},
                **{"answerA": "hurt", "answerB": "blue", "answerC": "tall"},
            }
            for label in ("1", "3")
        ],
        "question=context+question answer=label choices=answerA+answerB+answerC",
        ("Ann fell. How is she?", "A", ["hurt", "blue", "tall"]),
    ),
    "Alpaca": (
        [{"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}],
        "question=instruction+input answer=output",
        ("Add the numbers. 2 and 3", "5", []),
    ),
    "numbers of options that may begin at 0 or at 1": (
        [{"question": "Which is big?", "options": ["ant", "whale", "bee"], "answer": 1}],
        "question=question answer=answer choices=options answer_is=0",
        ("Which is big?", "B", ["ant", "whale", "bee"]),
    ),
    "two columns of answers": (
        [{"question": "2 + 3?", "target": "5", "label": "five"}],
        "question=question answer=target",
        ("2 + 3?", "5", []),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_where_two_readings_are_possible_the_columns_to_type_are_told(tmp_path: Path, name: str) -> None:
    rows, typed, expected = REFUSED[name]
    lines(tmp_path / "q.jsonl", rows)
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "q.jsonl")
    said = re.search(r'`--columns "(.*)"`', str(caught.value))
    assert said is not None
    assert said[1] == typed
    first = load(tmp_path / "q.jsonl", columns=parse(said[1])).questions[0]
    assert (first.text, first.answer, list(first.choices)) == expected


def test_columns_that_nobody_can_know_are_listed_with_the_line_to_fill_in(tmp_path: Path) -> None:
    rows = [{"sentence": "The _ is big.", "option1": "ant", "option2": "whale", "answer": "2"}]
    lines(tmp_path / "winogrande.jsonl", rows)
    with pytest.raises(UsageError) as caught:
        load(tmp_path / "winogrande.jsonl")
    assert "`sentence`, `option1`, `option2`, `answer`" in str(caught.value)
    assert 'give `--columns "question=NAME answer=answer"`' in str(caught.value)
    columns = parse("question=sentence answer=answer answer_is=1")
    assert load(tmp_path / "winogrande.jsonl", columns=columns).questions[0].answer == "B"


@pytest.mark.parametrize(
    ("right", "row"),
    [
        ("A magnet", GPQA),
        ("Ice", {"question": "Cold?", "mc1_targets": {"choices": ["Ice", "Fire", "Sun"], "labels": [1, 0, 0]}}),
        ("Ice", {"input": "Cold?", "target_scores": {"Ice": 1, "Fire": 0, "Sun": 0}}),
        ("Ice", {"question": "Cold?", "correct_answer": "Ice", "distractor1": "Fire", "distractor2": "Sun"}),
    ],
    ids=["GPQA", "TruthfulQA", "BIG-bench", "SciQ"],
)
def test_options_whose_place_tells_the_right_one_get_an_order_that_tells_nothing(
    tmp_path: Path, right: str, row: dict[str, Any]
) -> None:
    key = next(key for key in row if key.lower() in ("question", "input"))
    rows = [row | {key: f"{row[key]} ({number})"} for number in range(60)]
    lines(tmp_path / "q.jsonl", rows)
    questions = load(tmp_path / "q.jsonl").questions
    assert all(question.choices[ord(question.answer) - ord("A")] == right for question in questions)
    assert {question.answer for question in questions} == set("ABCD"[: len(questions[0].choices)])
    lines(tmp_path / "r.jsonl", rows[::-1])
    assert {question.choices for question in load(tmp_path / "r.jsonl").questions} == {
        question.choices for question in questions
    }


PUBLISHED: dict[str, Rows] = {
    "gsm8k": [PENS],
    "aqua": READ["AQuA"][2],
    "strategyqa": READ["StrategyQA"][2],
    "date-understanding": READ["BBH"][2],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_named_task_reads_its_published_file_as_it_reads_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra `hub`")
    rows = PUBLISHED[name]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows))
    lines(tmp_path / "raw.jsonl", rows)
    assert load(tmp_path / "raw.jsonl", task=name).questions == load_task(name).questions


def test_a_published_asdiv_file_is_parted_as_the_hubs_is(tmp_path: Path) -> None:
    rows = [
        {
            "body": f"There are {i} red apples.",
            "question": "How many?",
            "answer": f"{i} (apples)",
            "formula": f"{i}={i}",
        }
        for i in range(50)
    ]
    rows.append(rows[0] | {"body": "Ann and Bob.", "answer": "Ann"})
    lines(tmp_path / "asdiv.jsonl", rows)
    parts = [load(tmp_path / "asdiv.jsonl", task="asdiv", split=split).questions for split in ("train", "test")]
    texts = [{question.text for question in part} for part in parts]
    assert len(texts[0] | texts[1]) == 50
    assert not texts[0] & texts[1]
    assert all(question.text == f"There are {question.answer} red apples. How many?" for question in parts[0])
