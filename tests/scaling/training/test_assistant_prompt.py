"""`--assistant-prompt`: how the assistant is asked, in runs and in trainings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from contrastive.parallel import Processes
from scaling.config import RunConfig
from scaling.models import loading, model_files
from scaling.prompts import PromptBuilder
from scaling.records.errors import UsageError
from scaling.tasks.catalogue import load_task
from scaling.training.config import TrainConfig
from scaling.training.hint import command_for
from scaling.training.run import train
from scaling.wording import ANSWER, ASSISTANT_CONTENT, Wording, wording_of

HIDDEN = load_task("hidden-fact", split="train", limit=3)
TEMPLATE = '{% extends "plain" %}{% block user %}Think about this: {{ question }}{% endblock %}'


@pytest.fixture
def model(tiny_model_folder):
    name = str(tiny_model_folder)
    return loading.load(model_files.locate(name), name=name, device="cpu", dtype="float32")


@pytest.fixture
def template(tmp_path):
    (tmp_path / "think.jinja").write_text(TEMPLATE)
    return str(tmp_path / "think.jinja")


def read_by_assistant(model, question, **wording) -> str:
    builder = PromptBuilder.of_assistant(model, task=HIDDEN.definition, wording=Wording(**wording))
    text = model.tokenizer.decode(list(builder.assistant(question)))
    assert builder.assistant(question) == builder.hint_request(question) or not wording.get("assistant_prompt")
    return text


def test_the_assistant_reads_its_own_text_and_is_about_to_answer(model):
    for question in HIDDEN.questions:
        text = read_by_assistant(model, question, assistant_prompt=ANSWER)
        assert question.text in text  # with the digit that only the assistant reads
        assert "Without any explanation" in text
        assert text.endswith("The answer is ")


def test_a_template_of_ones_own_is_shown_as_written(model, template):
    question = HIDDEN.questions[0]
    assert f"Think about this: {question.text}" in read_by_assistant(model, question, assistant_prompt=template)


def test_the_backbones_wording_does_not_change_the_assistants(model):
    question = HIDDEN.questions[0]
    plain = read_by_assistant(model, question)
    assert "note what matters" in plain
    own = {"prompt": "boxed", "system_prompt": "Be kind.", "prefill": "Well,"}
    assert read_by_assistant(model, question, **own) == plain
    assert read_by_assistant(model, question, **own, assistant_prompt=ANSWER) == read_by_assistant(
        model, question, assistant_prompt=ANSWER
    )


def test_a_run_keeps_it_with_the_text_of_its_template(run, template, tmp_path):
    run(tmp_path / "run", assistant_prompt=template, thinker="untrained")
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert kept["assistant_prompt"] == template
    assert kept[ASSISTANT_CONTENT] == Wording(assistant_prompt=template).identity()[ASSISTANT_CONTENT]


def test_a_training_names_it_in_its_command_and_a_run_with_another_one_differs(settings, quiet, tmp_path):
    config = settings(assistant_prompt=ANSWER, states="last")
    folder = train(config, quiet(), Processes()).folder
    about = json.loads((folder / "config.json").read_text())["about"]
    assert f"--assistant-prompt {ANSWER}" in command_for(config.resolved(), folder)
    for card in (folder / "README.md", folder / "last" / "README.md"):
        assert f"\n{command_for(config.resolved(), Path('FOLDER'))}\n" in card.read_text()
    assert wording_of(config).unlike(about) == []
    other = replace(wording_of(config), assistant_prompt=None)
    assert other.unlike(about) == [f"`--assistant-prompt` {ANSWER} there, none here"]
    other = train(settings(states="last", out=tmp_path / "noting"), quiet(), Processes()).folder
    assert (folder / "thinker.safetensors").read_bytes() != (other / "thinker.safetensors").read_bytes()


@pytest.mark.parametrize("method", ["cot", "prompt-tuning"])
def test_a_method_without_an_assistant_refuses_it(method):
    with pytest.raises(UsageError, match="`--assistant-prompt`"):
        RunConfig(method=method, assistant_prompt=ANSWER).resolved()
    if method != "cot":
        with pytest.raises(UsageError, match="`--assistant-prompt`"):
            TrainConfig(method=method, assistant_prompt=ANSWER).resolved()


def test_a_missing_template_is_named_with_its_option():
    with pytest.raises(UsageError, match=r"`--assistant-prompt nothing\.jinja` must be"):
        Wording(assistant_prompt="nothing.jinja").check()


def test_a_misspelt_value_is_told_what_there_is():
    with pytest.raises(UsageError, match=rf"must be {ANSWER}, .*Did you mean `{ANSWER}`") as refused:
        Wording(assistant_prompt="answr").check()
    assert "`--assistant-prompt answr`" in str(refused.value)
    with pytest.raises(UsageError, match="`--prompt answr` must be") as refused:
        Wording(prompt="answr").check()
    assert ANSWER not in str(refused.value).replace("answr", "").split(), "which is no value of `--prompt`"
