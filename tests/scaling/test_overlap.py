"""Digests of questions: the same for texts that say the same, and what two sets of them share."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.config import DEFAULT_THINKER, RunConfig
from scaling.methods import thinkers
from scaling.records.journal import config_hash
from scaling.records.overlap import KEY, Overlap, digests_of, learned_from, overlap_of, question_digest
from scaling.records.records import Question
from scaling.tasks.catalogue import load_task
from scaling.training.config import TrainConfig
from scaling.training.targets import split_of

WORDS = st.lists(st.text("abcXYZ019?é.", min_size=1, max_size=5), min_size=1, max_size=6)
SPACES = st.lists(st.sampled_from([" ", "  ", "\n", "\t", "\u00a0"]), min_size=6, max_size=6)


@given(WORDS, SPACES, st.permutations(["one", "two", "three"]))
def test_white_space_case_and_order_of_options_change_no_digest(words, spaces, options):
    told = "".join(f"{space}{word}" for space, word in zip(spaces, words, strict=False))
    plain = question_digest(" ".join(words), ["one", "two", "three"])
    assert question_digest(told.upper(), options) == question_digest(told.lower(), options) == plain


@given(WORDS, WORDS)
def test_texts_that_say_something_else_have_another_digest(one, other):
    same = [word.casefold() for word in one] == [word.casefold() for word in other]
    assert (question_digest(" ".join(one)) == question_digest(" ".join(other))) is same


def test_options_are_part_of_a_question_and_no_text_fails():
    assert question_digest("Which?", ["a", "b"]) != question_digest("Which?", ["a", "c"])
    assert question_digest("Which?", ["a", "b"]) != question_digest("Which? a b")
    assert len(question_digest("\ud800 half a pair \x00")) == 8


def test_a_checkpoint_knows_its_questions_again_whatever_their_ids():
    trained, validated = (
        [Question("t", "How  many?", "1")],
        [Question("v", "WHY so?", "2"), Question("w", "how many?", "1")],
    )
    about = json.loads(json.dumps(digests_of("mine", trained, validated)))
    asked = [Question("a", "why\nso?", "2"), Question("b", "Who?", "3"), Question("c", "how many?", "1")]
    assert learned_from(about).name == "mine"
    assert overlap_of(asked, learned_from(about)) == Overlap(trained=("c",), validated=("a",))


@pytest.mark.parametrize("damage", [None, 7, [], {}, {"of": "x"}, {"of": "x", "train": 3, "validation": ""}])
def test_a_checkpoint_that_does_not_say_is_not_guessed_at(damage):
    assert learned_from({KEY: damage}) is None
    assert learned_from({}) is None


@pytest.mark.parametrize("method", ["softcot++", "softcot"])
def test_the_trained_defaults_know_the_questions_they_were_trained_on(method):
    """Their training wrote a hash of its questions, which those that are generated today still have."""
    about = thinkers.about(RunConfig(method=method, thinker=DEFAULT_THINKER))
    split = split_of(TrainConfig(limit=about["limit"], validation=about["validation"]).resolved())
    ids = "\0".join(question.id + question.text for question in (*split.train, *split.validation))
    assert config_hash({"ids": ids}) == about["questions"]
    assert about[KEY] == digests_of("arithmetic", split.train, split.validation)[KEY]
    learned = learned_from(about)
    for difficulty in (1, 2):
        tested = load_task("arithmetic", split="test", limit=500, difficulty=difficulty).questions
        assert overlap_of(tested, learned).ids == ()
    assert len(overlap_of(load_task("arithmetic", split="train", limit=20).questions, learned).trained) == 20
