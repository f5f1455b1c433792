"""Runs at their limits: memory, bad numbers, other models and checkpoints, end tokens, and each kind of task."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from transformers import LlamaForCausalLM

from scaling.config import RunConfig
from scaling.methods.thinkers import find, with_checkpoint
from scaling.models import loading
from scaling.records.errors import UsageError
from scaling.run import execute


def patch_forward(monkeypatch, change):
    """`change(number of the call, rows, result of the original)` decides what the backbone's forward pass returns."""
    original = LlamaForCausalLM.forward
    calls = []

    @functools.wraps(original)  # what the model takes is read off it
    def forward(self, *arguments, **named):
        embeds = named.get("inputs_embeds")
        calls.append(len(embeds if embeds is not None else named["input_ids"]))
        return change(len(calls), calls[-1], lambda: original(self, *arguments, **named))

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    return calls


def test_running_out_of_memory_loses_nothing(tmp_path, run, monkeypatch):
    expected = run(tmp_path / "enough")

    def scarce(_, rows, proceed):
        if rows > 4:  # as many as tell how the model can be decoded
            raise torch.OutOfMemoryError("CUDA out of memory")
        return proceed()

    rows = patch_forward(monkeypatch, scarce)
    assert run(tmp_path / "scarce", batch_size=8) == expected
    assert max(rows) > 4  # memory did run out
    assert rows[-1] <= 4


def test_running_out_of_memory_with_one_row_is_the_users_to_fix(tmp_path, run, monkeypatch):
    def none(call, _, proceed):
        if call > 4:  # those that tell whether the model can be used
            raise torch.OutOfMemoryError("CUDA out of memory")
        return proceed()

    patch_forward(monkeypatch, none)
    with pytest.raises(UsageError, match="--max-new-tokens"):
        run(tmp_path / "run", batch_size=4)


def test_logits_that_are_not_numbers_end_a_run_and_keep_what_was_finished(tmp_path, run, monkeypatch, lines_of):
    expected = run(tmp_path / "whole")

    def spoil(call, _, proceed):
        output = proceed()
        if call > 24:
            output.logits = torch.full_like(output.logits, torch.nan)
        return output

    with monkeypatch.context() as patch:
        patch_forward(patch, spoil)
        with pytest.raises(UsageError, match=r"NaN.*--dtype float32"):
            run(tmp_path / "run", batch_size=2)
    kept = lines_of(tmp_path / "run")
    assert 0 < len(kept) < len(expected)
    assert kept.items() <= expected.items()
    assert run(tmp_path / "run") == expected


@pytest.mark.parametrize("turned", [False, True])
def test_backbone_and_assistant_of_other_widths_and_tokenizers(
    tmp_path, run, tiny_model_folder, other_model_folder, turned
):
    pair = [str(tiny_model_folder), str(other_model_folder)]
    backbone, assistant = reversed(pair) if turned else pair
    lines = run(tmp_path / "run", backbone=backbone, assistant=assistant)
    assert len(lines) == 8
    assert len({line["text"] for line in lines.values()}) > 4
    assert lines == run(tmp_path / "one-by-one", backbone=backbone, assistant=assistant, batch_size=1)
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["backbone_fingerprint"] != config["assistant_fingerprint"]


def test_a_trained_checkpoint_changes_the_run(tmp_path, run, make_checkpoint):
    trained = run(tmp_path / "trained", thinker=make_checkpoint())
    untrained = run(tmp_path / "untrained", soft_tokens=3)
    assert trained.keys() == untrained.keys()
    assert {key: line["text"] for key, line in trained.items()} != {
        key: line["text"] for key, line in untrained.items()
    }


def test_without_being_asked_a_run_has_the_paths_and_soft_tokens_of_its_checkpoint(make_checkpoint):
    config = RunConfig(thinker=make_checkpoint()).resolved()
    resolved = with_checkpoint(config, find(config))
    assert (resolved.latent_paths, resolved.soft_tokens) == (2, 3)
    config = RunConfig(thinker=make_checkpoint(), latent_paths=1, soft_tokens=5).resolved()
    asked = with_checkpoint(config, find(config))
    assert (asked.latent_paths, asked.soft_tokens) == (1, 5)


def test_fewer_paths_of_a_checkpoint_are_its_first_ones(tmp_path, run, make_checkpoint):
    folder = make_checkpoint()
    both = run(tmp_path / "both", thinker=folder)
    assert run(tmp_path / "one", thinker=folder, latent_paths=1) == {k: v for k, v in both.items() if k[1] == 0}


@pytest.mark.parametrize(
    ("checkpoint", "changes", "said"),
    [
        ({"assistant_width": 40}, {}, ["assistant width 40", "`--assistant`", "width 32"]),
        ({"backbone_width": 24}, {}, ["backbone width 24", "`--backbone`", "width 32"]),
        ({}, {"latent_paths": 3}, ["holds 2 latent paths", "`--latent-paths` 3"]),
        ({"prompt_version": "0"}, {}, ["version 0", "version 1"]),
        ({"per_path": 3}, {"soft_tokens": 4}, ["`--soft-tokens` 4", "3 slots"]),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, run, make_checkpoint, monkeypatch, checkpoint, changes, said):
    monkeypatch.setattr("scaling.methods.thinkers.PROMPT_VERSION", "1")
    folder = make_checkpoint(**{"prompt_version": "1", **checkpoint})
    with pytest.raises(UsageError) as refused:
        run(tmp_path / "run", thinker=folder, **changes)
    for part in ["`--thinker`", *said]:
        assert part in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_missing_checkpoint(tmp_path, run):
    with pytest.raises(UsageError, match=r"`--thinker`.*nowhere does not exist"):
        run(tmp_path / "run", thinker=tmp_path / "nowhere")
    assert not (tmp_path / "run").exists()


def test_a_prompt_longer_than_the_context_writes_nothing(tmp_path, run):
    with pytest.raises(UsageError, match=r"`--max-new-tokens` 512.*context of 512"):
        run(tmp_path / "run", max_new_tokens=512)
    assert not (tmp_path / "run").exists()


def test_completions_end_with_an_end_token_or_at_the_limit(tmp_path, run, generated, monkeypatch):
    """Expected: the tokens drawn without any end token, cut after the first one that is an end token, or at the limit."""
    monkeypatch.setattr(loading.LanguageModel, "end_tokens", ())
    run(tmp_path / "endless")
    endless = {key: result.tokens for key, result in generated.items()}
    assert {len(tokens) for tokens in endless.values()} == {12}

    target = next(tokens for tokens in endless.values() if tokens[4] not in tokens[:4])
    ends = (target[4], next(iter(endless.values()))[9])
    monkeypatch.setattr(loading.LanguageModel, "end_tokens", ends)
    for limit in (5, 12):
        lines = run(tmp_path / str(limit), max_new_tokens=limit)
        for key, tokens in endless.items():
            end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
            assert generated[key].tokens == tokens[: min(end + 1, limit)]
            assert lines[key]["num_tokens"] == min(end + 1, limit)
            assert lines[key]["stop_reason"] == ("end" if end < limit else "length")
        assert {line["stop_reason"] for line in lines.values()} == {"end", "length"}


CHOICES = [
    {"id": "a", "question": "Which is a fruit?", "choices": ["stone", "apple", "car"], "answer": "B"},
    {"id": "b", "question": "Which is red?", "choices": ["blood", "grass"], "answer": "A"},
    {"id": "c", "question": "Which is cold?", "choices": ["fire", "ice"], "answer": "B"},
]
YES_NO = [
    {"id": 1, "question": "Is water wet?", "answer": True},
    {"id": 2, "question": "Is fire cold?", "answer": "no"},
]
NUMBERS = [{"id": "n", "question": "What is 2 + 3?", "answer": 5}, {"id": "m", "question": "And 2 - 3?", "answer": -1}]


@pytest.mark.parametrize(
    ("rows", "said", "answer", "accuracy"),
    [
        (CHOICES, "The answer is B.", "B", 2 / 3),
        (YES_NO, "The answer is no.", "no", 1 / 2),
        (NUMBERS, "So 2 - 3 makes -1. The answer is -1.", "-1", 1 / 2),
    ],
)
def test_every_kind_of_task(
    tmp_path, config_of, silent, lines_of, tiny_model_folder, monkeypatch, rows, said, answer, accuracy
):
    data = tmp_path / "mine.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = loading.load_tokenizer(str(tiny_model_folder), name="tiny")
    monkeypatch.setattr(type(tokenizer), "decode", lambda *_, **__: f" {said}")
    summary = execute(config_of(data=data, limit=None, out=tmp_path / "run"), silent)
    lines = lines_of(tmp_path / "run")
    assert {key[0] for key in lines} == {str(row["id"]) for row in rows}
    assert {line["answer"] for line in lines.values()} == {answer}
    assert {line["text"] for line in lines.values()} == {said}
    assert summary["accuracy"] == summary["pass_at_1"] == summary["coverage"] == pytest.approx(accuracy)
    assert (summary["task"], summary["num_questions"]) == ("mine", len(rows))
