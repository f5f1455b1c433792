"""Thoughts that are kept: made once, the same to the last bit, made again where anything that decides them differs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scaling.methods.thoughts import Kept, think_ahead
from scaling.records import Question

QUESTIONS = [Question(id=f"q{number}", text=f"How many is {number}?", answer=str(number)) for number in range(3)]


class Source:
    """Thoughts of their own for every question; counts how often it thinks."""

    assistant = None
    num_tokens, projection = 2, 7

    def __init__(self):
        self.thought = []

    def __call__(self, question):
        self.thought.append(question.id)
        return torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(len(question.text) + int(question.id[1:])))

    def reads(self, question):
        return len(question.text)


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path))
    return tmp_path / "thoughts"


def kept(source, wake=lambda: None, **made_by):
    return Kept(source, made_by={"assistant": "a", "dtype": "float32"} | made_by, wake=wake)


def test_a_question_is_thought_about_once_whoever_asks(folder):
    first, second = Source(), Source()
    wanted = [Source()(question) for question in QUESTIONS]
    for source in (first, second):
        found = [kept(source)(question) for question in QUESTIONS]
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert {one.dtype for one in found} == {torch.float32}
    assert (first.thought, second.thought) == (["q0", "q1", "q2"], [])
    assert len(list(folder.rglob("*"))) == 1 + len(QUESTIONS), "a folder and a file for each, nothing half-written"


def test_the_assistant_is_woken_for_what_is_missing_alone():
    woken = []
    for _ in range(2):
        thoughts = kept(Source(), wake=lambda: woken.append("up"))
        for question in QUESTIONS:
            thoughts(question)
    assert woken == ["up"] * len(QUESTIONS)


def test_what_decides_the_thoughts_decides_the_file():
    kept(Source())(QUESTIONS[0])
    for changed in ({"assistant": "b"}, {"dtype": "bfloat16"}, {"paths": 2}):
        source = Source()
        kept(source, **changed)(QUESTIONS[0])
        assert source.thought == ["q0"]
    for changed in ({"text": "Another question?"}, {"choices": ("1", "2")}):
        source = Source()
        kept(source)(replace(QUESTIONS[0], **changed))
        assert source.thought == ["q0"]


def test_thinking_ahead_makes_what_is_missing_and_tells():
    source, told = Source(), []
    thoughts = kept(source)
    thoughts(QUESTIONS[1])
    think_ahead(thoughts, QUESTIONS, told.append)
    assert source.thought == ["q1", "q0", "q2"]
    assert told == ["thinking about question 1 of 3"]


@pytest.mark.parametrize("left", [b"", b"\x08\x00\x00\x00\x00\x00\x00\x00{"])
def test_a_damaged_file_is_made_again(folder, left):
    kept(Source())(QUESTIONS[0])
    (file,) = folder.rglob("*.safetensors")
    file.write_bytes(left)
    source = Source()
    assert torch.equal(kept(source)(QUESTIONS[0]), Source()(QUESTIONS[0]))
    assert source.thought == ["q0"]


def test_what_it_costs_is_what_the_source_costs():
    thoughts = kept(Source())
    assert (thoughts.num_tokens, thoughts.projection, thoughts.reads(QUESTIONS[0])) == (2, 7, len(QUESTIONS[0].text))
