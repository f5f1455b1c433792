"""Properties of the arithmetic task, read from the questions it hands out and not from its inner steps."""

from __future__ import annotations

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations, islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.records.records import Question
from scaling.tasks.arithmetic import DIFFICULTIES, SPLITS, generate, split_of
from scaling.tasks.arithmetic_stories import NAMES, STORIES

EQUATION = re.compile(r", so (\d+) ([-+*/]) (\d+) = (\d+)\.$")
EVERY_STREAM = [(split, difficulty) for split in SPLITS for difficulty in DIFFICULTIES]
streams = st.sampled_from(EVERY_STREAM)


def first(split: str, difficulty: int, number: int) -> list[Question]:
    return list(islice(generate(split, difficulty=difficulty), number))


def equations(question: Question) -> list[tuple[int, str, int, int]]:
    """(before, operation, operand, after) of every step; fails where a step does not end in one equation."""
    found = []
    for sentence in question.rationale:
        match = EQUATION.search(sentence)
        assert match, sentence
        found.append((int(match[1]), match[2], int(match[3]), int(match[4])))
    return found


def operands(question: Question) -> list[int]:
    steps = equations(question)
    return [steps[0][0], *(operand for _, _, operand, _ in steps)]


def sentences(question: Question) -> set[str]:
    """The sentences of a text without its numbers, names and pronouns."""
    names = "|".join(name for both in NAMES.values() for group in both for name in group.split())
    text = re.sub(rf"\b({names})\b", "NAME", question.text)
    text = re.sub(r"\b(twice|\d+ times)\b", "TIMES", text)
    text = re.sub(r"\b(he|she)\b", "HE", re.sub(r"\b(his|him|her)\b", "HIS", re.sub(r"\d+", "N", text.lower())))
    return set(re.split(r"(?<=[.?]) ", text))


def digest(split: str, difficulty: int, number: int) -> str:
    return hashlib.sha256(repr(first(split, difficulty, number)).encode()).hexdigest()


@settings(max_examples=60, deadline=None)
@given(stream=streams, number=st.integers(1, 300))
def test_the_rationale_is_correct_and_leads_to_the_answer(stream: tuple[str, int], number: int) -> None:
    compute = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    question = first(*stream, number)[-1]
    steps = equations(question)
    for before, operation, operand, after in steps:
        assert compute[operation](before, operand) == after
        assert operation != "/" or after * operand == before
    assert all(left[3] == right[0] for left, right in pairwise(steps))
    assert str(steps[-1][3]) == question.answer
    assert question.choices == ()


@pytest.mark.parametrize(("split", "difficulty"), EVERY_STREAM)
def test_a_question_states_every_operand_in_order(split: str, difficulty: int) -> None:
    for question in first(split, difficulty, 500):
        stated = [int(n) for n in re.findall(r"\d+", question.text.replace("twice", "2"))]
        assert stated == operands(question), question.text
        assert min(stated) >= 2


@pytest.mark.parametrize(("split", "difficulty"), EVERY_STREAM)
def test_the_number_of_steps_is_the_difficulty(split: str, difficulty: int) -> None:
    for question in first(split, difficulty, 300):
        assert len(question.rationale) == difficulty
        assert len(sentences(question)) == difficulty + 2


@pytest.mark.parametrize(("split", "difficulty"), EVERY_STREAM)
def test_no_field_is_left_and_every_sentence_starts_with_a_capital_or_a_number(split: str, difficulty: int) -> None:
    for question in first(split, difficulty, 500):
        for sentence in [*re.split(r"(?<=[.?]) ", question.text), *question.rationale]:
            assert re.fullmatch(r"[A-Z0-9][A-Za-z0-9 ,'*/+=-]*[.?]", sentence), sentence
        assert question.text.count("?") == 1
        assert question.text.endswith("?")


@pytest.mark.parametrize("split", SPLITS)
def test_difficulty_1_is_sums_and_differences_of_small_numbers(split: str) -> None:
    operations, answers = [], []
    for question in first(split, 1, 3000):
        [(before, operation, operand, after)] = equations(question)
        assert 2 <= before <= 10
        assert 2 <= operand <= 10
        assert 1 <= after <= 20
        operations.append(operation)
        answers.append(after)
    assert set(operations) == {"+", "-"}
    assert 0.3 < operations.count("+") / len(operations) < 0.7
    assert max(Counter(answers).values()) < 0.17 * len(answers)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("difficulty", [2, 3, 4])
def test_higher_difficulties_use_every_operation_below_100(split: str, difficulty: int) -> None:
    steps = [step for question in first(split, difficulty, 1000) for step in equations(question)]
    assert {operation for _, operation, _, _ in steps} == {"+", "-", "*", "/"}
    assert all(1 <= after < 100 for _, _, _, after in steps)


@pytest.mark.parametrize(("split", "difficulty"), EVERY_STREAM)
def test_ids_count_up_and_texts_are_distinct(split: str, difficulty: int) -> None:
    questions = first(split, difficulty, 3000)
    assert [question.id for question in questions] == [f"arithmetic-{split}-d{difficulty}-{i:05d}" for i in range(3000)]
    assert len({question.text for question in questions}) == 3000


@settings(max_examples=30, deadline=None)
@given(stream=streams, few=st.integers(0, 60), more=st.integers(0, 60))
def test_a_stream_has_stable_prefixes(stream: tuple[str, int], few: int, more: int) -> None:
    assert first(*stream, few) == first(*stream, few + more)[:few]


def test_streams_that_run_side_by_side_do_not_disturb_each_other() -> None:
    pairs = list(islice(zip(generate("train"), generate("train"), generate("test"), strict=False), 50))
    assert [pair[0] for pair in pairs] == [pair[1] for pair in pairs] == first("train", 1, 50)
    assert [pair[2] for pair in pairs] == first("test", 1, 50)


@pytest.mark.parametrize("hash_seed", ["1", "77"])
def test_other_processes_get_the_same_questions(hash_seed: str) -> None:
    code = (
        "import hashlib\nfrom itertools import islice\nfrom scaling.tasks.arithmetic import generate\n"
        "questions = list(islice(generate('test', difficulty=3), 200))\n"
        "print(hashlib.sha256(repr(questions).encode()).hexdigest())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest("test", 3, 200)


def test_the_first_question_of_every_split_is_pinned() -> None:
    """A change of a story or of the drawing changes every measured result: this test says so."""
    assert [first(split, 2, 1)[0].text for split in SPLITS] == [
        (
            "Jane puts 17 cookies on a plate. Her friends eat 2 cookies. "
            "She sells 3 cookies. How many cookies are on the plate now?"
        ),
        (
            "A cake for Simon is decorated with 17 candles. 4 candles are taken from the edge. "
            "A helper puts on enough candles to make it 4 times as many. "
            "What number of candles does Simon see in the end?"
        ),
        (
            "Daniel has got 10 buttons. He gives his cousin 3 buttons. "
            "He drops 4 buttons down a drain. How many buttons has Daniel got now?"
        ),
    ]


def test_splits_share_no_sentence() -> None:
    seen: dict[str, set[str]] = {split: set() for split in SPLITS}
    for split, difficulty in EVERY_STREAM:
        seen[split].update(*(sentences(question) for question in first(split, difficulty, 1000)))
    for one, other in combinations(SPLITS, 2):
        assert not seen[one] & seen[other]


def test_splits_share_no_template_noun_or_name() -> None:
    """Stronger than sentences: the templates differ even with the noun left open."""
    for one, other in combinations(SPLITS, 2):
        assert not set(" ".join(NAMES[one]).split()) & set(" ".join(NAMES[other]).split())
        lines, other_lines = (
            set(re.sub(r"^\S+ ", "", STORIES[s], flags=re.MULTILINE).split("\n")) - {""} for s in (one, other)
        )
        assert not lines & other_lines
        nouns, other_nouns = (set(re.findall(r"^(\w+): ", STORIES[s], flags=re.MULTILINE)) for s in (one, other))
        assert not nouns & other_nouns


@pytest.mark.parametrize(("split", "least"), [("train", 12), ("validation", 5), ("test", 8)])
def test_every_story_of_a_split_is_told(split: str, least: int) -> None:
    nouns = set(re.findall(r"^(\w+): ", STORIES[split], flags=re.MULTILINE))
    told = {noun for question in first(split, 1, 400) for noun in nouns if re.search(rf"\b{noun}\b", question.text)}
    assert told == nouns
    assert len(nouns) >= least


def test_splits_share_no_numbers_at_any_difficulty() -> None:
    seen: dict[str, set[tuple[int, ...]]] = {split: set() for split in SPLITS}
    for split, difficulty in EVERY_STREAM:
        seen[split].update(tuple(sorted(operands(question))) for question in first(split, difficulty, 1000))
    for one, other in combinations(SPLITS, 2):
        assert not seen[one] & seen[other]


@given(numbers=st.lists(st.integers(2, 500), min_size=2, max_size=5), rnd=st.randoms(use_true_random=False))
def test_the_split_of_numbers_ignores_their_order(numbers: list[int], rnd: random.Random) -> None:
    shuffled = list(numbers)
    rnd.shuffle(shuffled)
    assert split_of(shuffled) == split_of(numbers)
    assert split_of(numbers) in SPLITS


@pytest.mark.parametrize("split", SPLITS)
def test_a_stream_goes_on_with_larger_numbers(split: str) -> None:
    questions = first(split, 1, 20_000)
    assert len({question.text for question in questions}) == 20_000


def test_the_smallest_split_widens_its_numbers_only_when_it_must() -> None:
    largest = [max(operands(question)) for question in first("validation", 1, 30_000)]
    assert max(largest[:3000]) <= 10
    assert 10 < max(largest) <= 10 * 4


@pytest.mark.parametrize(("split", "difficulty"), [("dev", 1), ("", 1), ("train", 0), ("train", 5), ("train", -1)])
def test_an_unknown_split_or_difficulty_is_refused_at_the_call(split: str, difficulty: int) -> None:
    with pytest.raises(ValueError, match="must be one of"):
        generate(split, difficulty=difficulty)
