"""Thoughts that are kept: made once, the same to the last bit, made again where anything that decides them differs."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaling.methods.build import build
from scaling.methods.thoughts import CachedThoughts, think_ahead
from scaling.models import hardware
from scaling.records.costs import ThinkerCosts
from scaling.records.errors import UsageError
from scaling.records.records import Question
from scaling.tasks.catalogue import task_of

QUESTIONS = [Question(id=f"q{number}", text=f"How many is {number}?", answer=str(number)) for number in range(3)]


class Source:
    """Thoughts of their own for every question; counts how often it thinks."""

    assistant = None
    num_tokens, projection, costs = 2, 7, ThinkerCosts(pair=3)

    def __init__(self):
        self.thought = []

    def __call__(self, question):
        self.thought.append(question.id)
        return torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(len(question.text) + int(question.id[1:])))

    def prompt(self, question):
        return tuple(question.text.encode())

    def reads(self, question):
        return len(self.prompt(question))


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path))
    return tmp_path / "thoughts"


def kept(source, to_device=lambda: None, **made_by):
    return CachedThoughts(source, made_by={"assistant": "a", "dtype": "float32"} | made_by, to_device=to_device)


def test_a_question_is_thought_about_once_whoever_asks(folder):
    first, second = Source(), Source()
    wanted = [Source()(question) for question in QUESTIONS]
    for source in (first, second):
        found = [kept(source)(question) for question in QUESTIONS]
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        assert {one.dtype for one in found} == {torch.float32}
    assert (first.thought, second.thought) == (["q0", "q1", "q2"], [])
    assert len(list(folder.rglob("*"))) == 1 + len(QUESTIONS), "a folder and a file for each, nothing half-written"


def test_two_that_keep_the_same_thoughts_at_once_do_not_meet(monkeypatch, folder):
    """In two containers, which may have the same process number."""
    replace = os.replace

    def replace_later(*files):
        monkeypatch.setattr(os, "replace", replace)
        kept(Source())(QUESTIONS[0])
        replace(*files)

    monkeypatch.setattr(os, "getpid", lambda: 1)
    monkeypatch.setattr(os, "replace", replace_later)
    assert torch.equal(kept(Source())(QUESTIONS[0]), Source()(QUESTIONS[0]))
    assert len(list(folder.rglob("*.*"))) == 1


def test_the_assistant_is_woken_for_what_is_missing_alone():
    woken = []
    for _ in range(2):
        thoughts = kept(Source(), to_device=lambda: woken.append("up"))
        for question in QUESTIONS:
            thoughts(question)
    assert woken == ["up"] * len(QUESTIONS)


def test_what_decides_the_thoughts_decides_the_file():
    kept(Source())(QUESTIONS[0])
    for changed in ({"assistant": "b"}, {"dtype": "bfloat16"}, {"paths": 2}):
        source = Source()
        kept(source, **changed)(QUESTIONS[0])
        assert source.thought == ["q0"]
    source = Source()
    source.prompt = lambda question: (1, *question.text.encode())  # as another tokenizer or template makes it
    kept(source)(QUESTIONS[0])
    assert source.thought == ["q0"]


def template(assistant, thinker):  # noqa: ARG001
    file = assistant / "chat_template.jinja"
    file.write_text(f"Think.{file.read_text()}")


def positions(assistant, thinker):  # noqa: ARG001
    edit(assistant / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500.0})


def plain_states(assistant, thinker):  # noqa: ARG001
    edit(thinker / "config.json", normalise=False)


def other_weights(assistant, thinker):  # noqa: ARG001
    file = thinker / "thinker.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(file).items()}, file)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("change", [template, positions, plain_states, other_weights])
def test_thoughts_that_are_kept_are_those_that_would_be_made(
    config_of, tiny_model_folder, make_checkpoint, tmp_path, change
):
    assistant, thinker = shutil.copytree(tiny_model_folder, tmp_path / "assistant"), make_checkpoint()
    weights = load_file(assistant / "model.safetensors")  # states of another size, so that normalising changes them
    weights["model.norm.weight"] *= 3
    save_file(weights, assistant / "model.safetensors", metadata={"format": "pt"})
    given = {"method": "softcot++", "assistant": str(assistant), "thinker": str(thinker)}

    def thoughts(**changes):
        config, dtype = hardware.placed(config_of(**given, **changes).resolved())
        task = task_of(config)
        prompts = build(config, task, dtype, lambda _: None).method.prompts(task.questions[0], (0, 1))
        return torch.stack([prompt.thoughts for prompt in prompts])

    outside = {"engine": "openai", "base_url": "http://localhost:1/v1", "device": "auto"}
    before = thoughts(**outside)
    change(assistant, thinker)
    made, found = thoughts(), thoughts(**outside)
    assert torch.equal(found, made)
    assert not torch.allclose(found, before)


def test_how_a_thinker_came_to_be_decides_nothing(config_of, make_checkpoint, folder):
    thinker = make_checkpoint()
    outside = {"engine": "openai", "base_url": "http://localhost:1/v1", "device": "auto", "thinker": str(thinker)}
    for about in ({}, {"loss": 1.0}):
        edit(thinker / "config.json", about=about)
        config, dtype = hardware.placed(config_of(method="softcot++", **outside).resolved())
        task = task_of(config)
        build(config, task, dtype, lambda _: None).method.prompts(task.questions[0], (0, 1))
    assert len(list(folder.rglob("*.safetensors"))) == 1


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


def test_a_folder_that_takes_no_thoughts_is_told(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match="set SOFTCOTPP_CACHE"):
        kept(Source())(QUESTIONS[0])


def test_what_it_costs_is_what_the_source_costs():
    thoughts = kept(Source())
    assert (thoughts.num_tokens, thoughts.projection, thoughts.reads(QUESTIONS[0])) == (2, 7, len(QUESTIONS[0].text))
    assert thoughts.costs == ThinkerCosts(pair=3)
