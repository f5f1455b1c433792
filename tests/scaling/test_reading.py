"""From generated tokens to a completion: what is cut, what is read, and which question the reader knows."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from scaling.engines.base import Generated, Request, SoftPrompt
from scaling.reading import reader
from scaling.records.records import Question
from scaling.tasks.task import PlainTask

QUESTION = Question("q7", "How many?", "5")
ENDS = ("STOP", "\n\n", "##")


@pytest.fixture(scope="session")
def chat(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="session")
def plain(other_model_folder):
    """Without a chat format."""
    return AutoTokenizer.from_pretrained(other_model_folder)


def generated(text, tokenizer=None, **changes):
    request = Request(SoftPrompt("q7", 1, (1,), torch.empty(0, 8), ()), 3, 11)
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"] if tokenizer else []
    return replace(Generated(request, tokens, "end"), text=None if tokenizer else text, **changes)


def equal(question, answer):
    return answer == question.answer


def test_a_completion_is_what_the_tokens_say_and_knows_its_place(chat):
    one = reader(chat, PlainTask("number"), equal=equal)(QUESTION, generated(" So it is 5. ", chat))
    assert (one.text, one.answer, one.correct) == ("So it is 5.", "5", True)
    assert (one.key, one.seed, one.stop_reason) == (("q7", 1, 3), 11, "end")
    assert one.num_tokens == len(chat(" So it is 5. ", add_special_tokens=False)["input_ids"])


def test_a_model_without_chat_format_ends_where_its_next_turn_begins(plain):
    one = reader(plain, PlainTask("number"), equal=equal)(QUESTION, generated("It is 5.\nQuestion: 6?", plain))
    assert (one.text, one.answer) == ("It is 5.", "5")


@given(parts=st.lists(st.sampled_from([*ENDS, "The answer is 4.", " and ", "#", "5"]), max_size=8))
def test_no_text_that_ends_a_completion_is_in_it(chat, parts):
    whole = "".join(parts)
    one = reader(chat, PlainTask("number"), equal=equal, until=ENDS)(QUESTION, generated(whole))
    assert whole.strip().startswith(one.text)
    assert not any(end in one.text for end in ENDS)
    rest = whole.strip()[len(one.text) :]
    assert not rest or rest.startswith(ENDS)


def test_the_answer_is_read_from_what_is_kept(chat):
    text = generated("The answer is 4. STOP The answer is 5.")
    assert reader(chat, PlainTask("number"), equal=equal, until=ENDS)(QUESTION, text).answer == "4"
    assert reader(chat, PlainTask("number"), equal=equal)(QUESTION, text).answer == "5"


def test_the_reader_of_answers_knows_the_question_that_it_is_given(chat):
    """Letters are read among the options that there are."""
    task, text = PlainTask("choice"), generated("The answer is (C).")
    three = reader(chat, task, equal=equal, asked=lambda question: replace(question, choices=("x", "y", "z")))
    two = reader(chat, task, equal=equal, asked=lambda question: replace(question, choices=("x", "y")))
    assert (three(QUESTION, text).answer, two(QUESTION, text).answer) == ("C", None)


@pytest.mark.parametrize("given", [None, math.nan, -math.inf, -1.23456789])
def test_signals_are_rounded_and_always_json(chat, given):
    one = reader(chat, PlainTask("number"), equal=equal)(QUESTION, generated("5", log_prob=given, self_certainty=given))
    kept = -1.2346 if given is not None and math.isfinite(given) else None
    assert (one.log_prob, one.self_certainty) == (kept, kept)
