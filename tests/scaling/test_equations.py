"""`--rationale equations`: what is kept of a rationale, which questions a training leaves out, and files of nothing else."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.config import RunConfig
from scaling.methods.build import parts_of
from scaling.records.errors import UsageError
from scaling.records.records import Question
from scaling.tasks.catalogue import load_task
from scaling.tasks.equations import equations_in, lead_to_answer, without_equations
from scaling.tasks.task import read_answer
from scaling.training.answer_spans import answer_place, before_answer
from scaling.training.config import TrainConfig
from scaling.training.targets import split_of

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"
ROWS = [  # question, solution, the equations that are kept
    ("Ann has 2 bags of 3. All?", "She has 2*3 = <<2*3=6>>6.\n#### 6", ("<<2*3=6>>",)),
    (
        "Half of 16 less 7?",
        "Left are <<16-7=9>>9.\nHalf is <<9/2=4.50>>4.50.\n#### 4.5",
        ("<<16-7=9>>", "<<9/2=4.50>>"),
    ),
    ("What is 8?", "It is 8.\n#### 8", ()),
    ("Two 4s, and 1?", "They are <<2*4=8>>8.\nAnd one more.\n#### 9", ("<<2*4=8>>",)),
    ("Three 5s?", "They are <<3*5=15>>15.\n#### 15", ("<<3*5=15>>",)),
]
LEADING = {question for question, _, _ in ROWS} - {"What is 8?", "Two 4s, and 1?"}

numbers = st.integers(0, 10**6)


def written(place: Path, rows: Sequence[tuple[str, str]]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps({"question": asked, "answer": solved}) + "\n" for asked, solved in rows))
    return place


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [(asked, solved) for asked, solved, _ in ROWS]
    written(tmp_path / "gsm8k" / "train.jsonl", rows)
    return written(tmp_path / "gsm8k" / "test.jsonl", [("What is 1?", "#### 1")]).parent


def training(folder: Path, **changes: object) -> TrainConfig:
    return TrainConfig(**{"data": folder, "validation": 2, "rationale": "equations", **changes}).resolved()


@given(st.lists(st.tuples(st.text("ab .", max_size=5), numbers, numbers), max_size=5))
def test_text_and_equations_are_the_two_parts_of_a_step(parts: list[tuple[str, int, int]]) -> None:
    equations = [f"<<{a}+{b}={a + b}>>" for _, a, b in parts]
    step = "".join(f"{text}{equation}" for (text, _, _), equation in zip(parts, equations, strict=True))
    assert list(equations_in([step])) == equations
    assert without_equations(step) == "".join(text for text, _, _ in parts).strip()


@given(numbers, numbers)
def test_equations_lead_to_an_answer_by_its_value(a: int, b: int) -> None:
    steps = (f"<<{a}+0={a}>>", f"<<{a}+{b}={a + b}.0>>")
    assert lead_to_answer(Question("q", "?", str(a + b), rationale=steps))
    assert not lead_to_answer(Question("q", "?", str(a + b + 1), rationale=steps))
    assert not lead_to_answer(Question("q", "?", str(a + b)))
    assert lead_to_answer(Question("q", "?", "B", rationale=steps)), "an answer that is no number follows from none"


@pytest.mark.parametrize("task", [None, "gsm8k"])
def test_a_rationale_is_text_unless_equations_are_wanted(folder: Path, task: str | None) -> None:
    plain = load_task(task, data=folder, split="train")
    for question, (_, solved, _) in zip(plain.questions, ROWS, strict=True):
        assert "<<" not in "".join(question.rationale)
        assert len(question.rationale) == len(solved.splitlines()) - 1
    wanted = load_task(task, data=folder, split="train", rationale="equations")
    assert [question.rationale for question in wanted.questions] == [equations for _, _, equations in ROWS]


def test_a_solution_of_equations_is_read_as_its_answer(folder: Path) -> None:
    task = load_task("gsm8k", data=folder, split="train", rationale="equations")
    question = task.questions[1]
    solution = task.definition.solution(question)
    assert solution == "<<16-7=9>> <<9/2=4.50>> The answer is 4.5."
    assert read_answer(task.definition, solution, question).strict == question.answer
    assert read_answer(task.definition, solution.replace("The answer is", "####"), question).strict == question.answer
    place = answer_place(task.definition.answers, question.answer, solution)
    assert place is not None
    assert solution[place[0] - len("is ") :] == "is 4.5."
    assert before_answer(solution, question, task.definition) == "<<16-7=9>> ", "the answer's own equation is cut, too"


def test_a_training_leaves_out_what_has_no_equations_to_its_answer_and_counts_it(folder: Path) -> None:
    split = split_of(training(folder))
    assert {question.text for question in (*split.train, *split.validation)} == LEADING
    assert split.left_out == (
        "data: 3 of 5 questions are used; left out are 1 without equations and 1 whose equations end in another number than "
        "the answer"
    )
    plain = split_of(training(folder, rationale=None))
    assert len(plain.train) + len(plain.validation) == len(ROWS)
    assert plain.left_out == ""


@pytest.mark.parametrize("task", ["arithmetic", "prosqa"])
def test_a_task_without_annotations_is_refused(task: str) -> None:
    with pytest.raises(
        UsageError, match=r"`--rationale equations` takes calculator annotations .* none of the 9 questions"
    ):
        split_of(TrainConfig(task=task, rationale="equations", limit=9).resolved())


@pytest.mark.parametrize("targets", ["self", "answer", "teacher", "self:2,answer"])
def test_targets_without_rationale_refuse_the_option(targets: str) -> None:
    with pytest.raises(UsageError, match=f"`--rationale` equations .*`--targets` {targets} show none"):
        TrainConfig(rationale="equations", targets=targets).resolved()


def test_text_is_the_default_and_stands_in_no_hash(folder: Path) -> None:
    assert training(folder, rationale="text").rationale is None
    assert training(folder).rationale == "equations"
    assert RunConfig(method="cot", shots=1, rationale="text").resolved().rationale is None


def test_shots_show_equations_of_questions_that_have_them(folder: Path) -> None:
    config = RunConfig(method="cot", task="gsm8k", data=folder, shots=3, rationale="equations").resolved()
    asked = load_task("gsm8k", data=folder)
    shown = parts_of(config, asked).exemplars
    assert [question.rationale for question in shown] == [kept for asked, _, kept in ROWS if asked in LEADING]
    with pytest.raises(UsageError, match="with equations that lead to their answer, and there are 3"):
        parts_of(config.model_copy(update={"shots": 4}), asked)
    with pytest.raises(UsageError, match="`--rationale` equations says what solved questions show, and `--shots` is 0"):
        RunConfig(method="cot", rationale="equations").resolved()


# ---- files of questions and equations


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
@pytest.mark.parametrize("task", [None, "gsm8k"])
def test_a_file_of_lines_gives_the_questions_of_the_rows_that_it_was_made_from(
    folder: Path, task: str | None, name: str
) -> None:
    lines = "".join(
        f"{asked}||{' '.join(equations)} {solved[solved.index('####') :]}\n" for asked, solved, equations in ROWS
    )
    place = folder.parent / "aug" / name
    place.parent.mkdir()
    place.write_bytes(gzip.compress(lines.encode()) if name.endswith(".gz") else lines.encode())
    (place.parent / "README.txt").write_text("No || questions.\n")
    read, made = (
        load_task(task, data=data, split="train", rationale="equations").questions for data in (place.parent, folder)
    )
    assert [(q.text, q.answer, q.rationale) for q in read] == [(q.text, q.answer, q.rationale) for q in made]
    text = load_task(task, data=place.parent, split="train")
    assert not any(question.rationale for question in text.questions)
    assert "rationales are equations without text, which `--rationale equations` keeps" in text.taken


@pytest.mark.skipif(not GSM8K.is_dir(), reason="needs the published questions in ../shared/data/gsm8k")
def test_most_published_questions_have_equations() -> None:
    split = split_of(TrainConfig(task="gsm8k", data=GSM8K, rationale="equations").resolved())
    assert split.left_out.endswith(" another number than the answer")
    assert "of 7,473 questions are used; left out are 95 without equations and " in split.left_out
    assert len(split.train) + len(split.validation) >= 6843  # of these the last result is the answer letter by letter
