"""Benchmarks from the Hub: how each dataset's rows are mapped, and what is said when they cannot be had."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from scaling.records.errors import UsageError
from scaling.records.records import Question
from scaling.tasks import hub, own
from scaling.tasks.catalogue import definition_of

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
    "math-500": [
        {
            "problem": "Halve the number $3\\pi$.",
            "solution": "Half of $3\\pi$ is $\\boxed{\\frac{3\\pi}{2}}$.",
            "answer": "\\frac{3\\pi}{2}",
            "subject": "Prealgebra",
            "level": 1,
            "unique_id": "test/prealgebra/1.json",
        },
        {
            "problem": "Where is the corner?",
            "solution": "It is at $\\boxed{(3, 0)}$.",
            "answer": "(3, 0)",
            "subject": "Geometry",
            "level": 2,
            "unique_id": "test/geometry/2.json",
        },
    ],
    "aime-24": [
        {
            "id": 60,
            "problem": "Find the number of ways.",
            "solution": "There are $5^2 = \\boxed{025}$ ways.",
            "answer": "025",
            "url": "https://example.org/60",
            "year": "2024",
        }
    ],
    "aime-25": [
        {"problem": "Find the sum of all bases.", "answer": "70", "id": "0"},
        {"problem": "Find the remainder.", "answer": "0", "id": "1"},
    ],
    "gpqa-diamond": [
        {
            "Pre-Revision Question": "Which particle is light?",
            "Pre-Revision Correct Answer": "electron",
            "Question": "Which particle is the lightest?\n",
            "Correct Answer": "electron\n",
            "Incorrect Answer 1": "proton",
            "Incorrect Answer 2": "neutron",
            "Incorrect Answer 3": "muon",
            "Explanation": "An electron has 0.511 MeV.\nA muon has 106 MeV.",
            "Subdomain": "Physics (general)",
            "Record ID": "rec1",
            "High-level domain": "Physics",
        }
    ],
    "mmlu-pro": [
        {
            "question_id": 70,
            "question": f"Which is number {right}?",
            "options": [f"option {number}" for number in range(count)],
            "answer": "ABCDEFGHIJ"[right],
            "answer_index": right,
            "cot_content": "A: Let's think step by step. So it is." * (right == 2),
            "category": "business",
            "src": "ours",
        }
        | {"question_id": 70 + right}
        for count, right in ((10, 9), (3, 2))
    ],
    "svamp": [
        {
            "ID": "chal-1",
            "Body": "Ann had 9 pens. She lost 2 of them.",
            "Question": "How many pens has she left?",
            "Equation": "( 9.0 - 2.0 )",
            "Answer": answer,
            "Type": "Subtraction",
            "question_concat": "Ann had 9 pens. She lost 2 of them. How many pens has she left?",
        }
        for answer in ("7",)
    ],
    "gsm-hard": [
        {"input": f"How much is {target}?", "code": f"def solution():\n    return {target}", "target": target}
        for target in (5.0, -9867630.0, 1.2e17, 0.25)
    ],
    "commonsense-qa": [
        {
            "id": "075e",
            "question": "Where do you keep milk?",
            "question_concept": "milk",
            "choices": {"label": list("ABCDE"), "text": ["desk", "fridge", "oven", "street", "pond"]},
            "answerKey": "B",
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
    "aime-24": Question("60", "Find the number of ways.", "25", (), ("There are $5^2 = \\boxed{025}$ ways.",)),
    "svamp": Question(
        "chal-1",
        "Ann had 9 pens. She lost 2 of them. How many pens has she left?",
        "7",
        (),
        ("( 9.0 - 2.0 )",),
    ),
    "commonsense-qa": Question("075e", "Where do you keep milk?", "B", ("desk", "fridge", "oven", "street", "pond")),
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


def load(name: str, *, split: str = "test", data: Path | None = None) -> list[Question]:
    return list(definition_of(name, data).questions(split, None))


def refusal(name: str, *, split: str = "test") -> str:
    with pytest.raises(UsageError) as caught:
        load(name, split=split)
    return str(caught.value)


@pytest.mark.parametrize("name", QUESTIONS)
def test_rows_become_questions(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    serve(monkeypatch, ROWS[name])
    assert load(name, split="test") == [QUESTIONS[name]]


def test_formulas_are_the_gold_answers_of_math_500(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, ROWS["math-500"])
    half, corner = load("math-500")
    assert (half.id, half.text, half.answer) == (
        "test/prealgebra/1.json",
        "Halve the number $3\\pi$.",
        "\\frac{3\\pi}{2}",
    )
    assert half.rationale == ("Half of $3\\pi$ is $\\boxed{\\frac{3\\pi}{2}}$.",)
    assert (corner.id, corner.answer) == ("test/geometry/2.json", "(3, 0)")


def test_aime_25_has_ids_and_no_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, ROWS["aime-25"])
    assert [(q.id, q.answer, q.rationale) for q in load("aime-25")] == [("0", "70", ()), ("1", "0", ())]


def test_the_right_option_of_gpqa_is_known_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(
        monkeypatch,
        [ROWS["gpqa-diamond"][0] | {"Question": f"Which of the {n}?", "Record ID": f"{n}"} for n in range(40)],
    )
    questions = load("gpqa-diamond")
    assert {q.choices["ABCD".index(q.answer)] for q in questions} == {"electron"}
    assert {frozenset(q.choices) for q in questions} == {frozenset(("electron", "proton", "neutron", "muon"))}
    assert {q.answer for q in questions} == set("ABCD")
    assert [q.id for q in questions] == [str(n) for n in range(40)]
    assert questions[0].rationale == ("An electron has 0.511 MeV.", "A muon has 106 MeV.")


def test_mmlu_pro_has_three_to_ten_options(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, ROWS["mmlu-pro"])
    many, few = load("mmlu-pro")
    assert (many.id, many.answer, len(many.choices), many.rationale) == ("79", "J", 10, ())
    assert (few.id, few.answer, few.choices) == ("72", "C", ("option 0", "option 1", "option 2"))
    assert few.rationale == ("A: Let's think step by step. So it is.",)


def test_targets_of_gsm_hard_are_read_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, ROWS["gsm-hard"])
    questions = load("gsm-hard")
    assert [q.answer for q in questions] == ["5", "-9867630", "12" + 16 * "0", "0.25"]
    assert [q.id for q in questions] == [f"gsm-hard-test-{n:05d}" for n in range(4)]


OPTIONS = "\nOptions:\n(A) one\n(B) two\n(C) three"
BBH = {  # for each kind of answers: input, target, and the gold answer
    "yes_no": [("not ( True ) is", "False", "no"), ("Do you return?\nOptions:\n- Yes\n- No", "Yes", "yes")],
    "number": [("How many fruits have I?", "8", "8"), ("((1 - 5) - (2 * 4)) =", "-12", "-12")],
    "choice": [(f"Which?{OPTIONS}", "(C)", "C")],
    "text": [
        ("Is it valid?\nOptions:\n- valid \n- invalid", "invalid", "invalid"),
        ("List: b a", "ant bee", "ant bee"),
    ],
}
SUBSETS = [name for name in hub.TASKS if name.startswith("bbh-")]


@pytest.mark.parametrize("name", SUBSETS)
def test_subsets_of_big_bench_hard(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kind = hub.TASKS[name]().answers.name
    calls = serve(monkeypatch, [{"input": text, "target": target} for text, target, _ in BBH[kind]])
    questions = load(name)
    assert [q.answer for q in questions] == [gold for *_, gold in BBH[kind]]
    assert [q.choices for q in questions] == [("one", "two", "three") if kind == "choice" else () for _ in questions]
    assert questions[0].id == f"{name}-test-00000"
    assert calls == [("SaylorTwift/bbh", name.removeprefix("bbh-").replace("-", "_"), "test")]


@pytest.mark.parametrize("name", hub.TASKS)
def test_a_shipped_file_is_a_task_that_a_user_could_write(name: str) -> None:
    task, identity = own.find(str(hub.FILES[name]))
    shipped = hub.TASKS[name]()
    assert (task.answers, task.max_new_tokens) == (shipped.answers, shipped.max_new_tokens)
    assert not shipped.local
    assert identity


def test_an_id_that_comes_twice_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, ROWS["svamp"] * 2)
    message = refusal("svamp")
    assert "`--task svamp`: hf:ChilleD/SVAMP row 2, field `id` must be unique" in message


def test_every_shipped_file_is_in_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    room, patterns = Path(hub.__file__).parents[1], project["tool"]["setuptools"]["package-data"]["scaling"]
    packed = {file for pattern in patterns for file in room.glob(pattern)}
    assert set(hub.FILES.values()) == set((room / "tasks" / "shipped").rglob("*.yaml")) <= packed


@pytest.mark.parametrize("name", ROWS)
def test_the_published_file_gives_the_questions_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    serve(monkeypatch, ROWS[name])
    file = tmp_path / "raw.json"
    file.write_text(json.dumps(ROWS[name]))
    split = "train" if name == "asdiv" else "test"
    assert load(name, data=file, split=split) == load(name, split=split)


@pytest.mark.parametrize(
    "name", ["math-500", "aime-24", "gpqa-diamond", "mmlu-pro", "bbh-navigate", "date-understanding"]
)
def test_a_task_without_a_training_split_says_so(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls = serve(monkeypatch, [])
    message = refusal(name, split="train")
    for part in (f"`{name}` has no questions to learn from", "`--shots`", "`test`", "`--data`"):
        assert part in message
    assert not calls


def test_a_gated_data_set_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: object, **__: object) -> None:
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'Idavidrein/gpqa' is a gated dataset on the Hub.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    message = refusal("gpqa-diamond")
    for part in ("accept its conditions on https://huggingface.co/datasets/Idavidrein/gpqa", "HF_TOKEN", "`--data"):
        assert part in message


def test_a_gsm8k_answer_keeps_its_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS["gsm8k"][0] | {"answer": "From 3 degrees it fell by 8, to 3 - 8 = <<3-8=-5>>-5.\n#### -5"}
    serve(monkeypatch, [row])
    [question] = load("gsm8k", split="test")
    assert (question.answer, question.rationale) == ("-5", ("From 3 degrees it fell by 8, to 3 - 8 = -5.",))


def test_the_facts_of_strategyqa_may_be_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, [ROWS["strategyqa"][0] | {"facts": ["One.", "Two."]}])
    assert load("strategyqa", split="test")[0].rationale == ("One.", "Two.")


@pytest.mark.parametrize(
    ("name", "split", "call"),
    [
        ("gsm8k", "train", ("openai/gsm8k", "main", "train")),
        ("asdiv", "train", ("EleutherAI/asdiv", None, "validation")),
        ("aqua", "validation", ("deepmind/aqua_rat", "raw", "validation")),
        ("strategyqa", "test", ("ChilleD/StrategyQA", None, "test")),
        ("math-500", "test", ("HuggingFaceH4/MATH-500", None, "test")),
        ("aime-24", "test", ("HuggingFaceH4/aime_2024", None, "train")),
        ("aime-25", "test", ("math-ai/aime25", None, "test")),
        ("gpqa-diamond", "test", ("Idavidrein/gpqa", "gpqa_diamond", "train")),
        ("mmlu-pro", "validation", ("TIGER-Lab/MMLU-Pro", None, "validation")),
        ("svamp", "train", ("ChilleD/SVAMP", None, "train")),
        ("gsm-hard", "test", ("reasoning-machines/gsm-hard", None, "train")),
        ("commonsense-qa", "test", ("tau/commonsense_qa", None, "validation")),
        ("date-understanding", "test", ("SaylorTwift/bbh", "date_understanding", "test")),
    ],
)
def test_the_right_dataset_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, name: str, split: str, call: tuple[Any, ...]
) -> None:
    calls = serve(monkeypatch, ROWS[name])
    load(name, split=split)
    assert calls == [call]


def test_asdiv_is_parted_by_text_into_a_fifth_and_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ROWS["asdiv"][0]
    rows = [first | {"body": f"There are {i} red apples."} for i in range(500)]
    serve(monkeypatch, rows)
    test = {question.text for question in load("asdiv", split="test")}
    train = {question.text for question in load("asdiv", split="train")}
    assert not test & train
    assert len(test | train) == 500
    # A binomial of 500 rows at 1/5: mean 100, standard deviation 8.9; the hash is fixed, so this never flickers.
    assert 73 <= len(test) <= 127
    serve(monkeypatch, rows[::-1])
    assert {question.text for question in load("asdiv", split="test")} == test


def test_asdiv_ids_count_the_rows_that_are_left_out_too(monkeypatch: pytest.MonkeyPatch) -> None:
    first = ROWS["asdiv"][0]
    serve(monkeypatch, [first | {"answer": "Ann"}, first])
    found = [question for split in ("train", "test") for question in load("asdiv", split=split)]
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
        ("date-understanding", "validation", "`test`"),
        ("gsm-hard", "validation", "`test`"),
        ("aqua", "dev", "`train`, `validation`, `test`"),
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
    assert "openai/gsm8k:main must have the column `question`" in refusal("gsm8k")
    serve(monkeypatch, [{"question": "?", "answer": "#### unknown"}])
    assert "openai/gsm8k:main row 1, field `answer`" in refusal("gsm8k")
