"""Scores of chains: by a function, by a reward model, once for each text, and through the command that reports call."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scaling import scoring
from scaling.records.errors import UsageError
from scaling.records.journal import Journal
from scaling.records.records import Completion, PromptedQuestion
from scaling.scoring import reward_model, score_run

ASKED = [PromptedQuestion(f"q{i}", f"What is {i}?", "1", (), "", 3, 0, 0, 0) for i in range(2)]
TEXTS = {("q0", 0): "short", ("q0", 1): "a longer one", ("q1", 0): "short", ("q1", 1): "short"}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    with Journal.open(folder, config={"latent_paths": 1, "samples": 2}, environment={}, questions=ASKED) as journal:
        for (question, sample), text in TEXTS.items():
            journal.append(Completion(question, 0, sample, text, "1", True, "1", True, 3, "end", 0))
    return folder


@pytest.fixture
def judge(tmp_path, monkeypatch):
    """A module in a folder that can be imported from: judge:length scores by length and notes what it was asked."""
    (tmp_path / "judge.py").write_text(
        "asked = []\n"
        "def length(question, chains):\n"
        "    asked.append((question, list(chains)))\n"
        "    return [len(chain) for chain in chains]\n"
        "def few(question, chains):\n    return [1.0]\n"
        "def endless(question, chains):\n    return [float('inf')] * len(chains)\n"
        "def broken(question, chains):\n    raise RuntimeError('out of order')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "judge", raising=False)
    return tmp_path


def scored(run, spec, tmp_path):
    lines = score_run(run, spec, tmp_path / "cache", lambda *_: None)
    return {(line["question_id"], line["sample"]): line["score"] for line in lines}


@pytest.mark.usefixtures("judge")
def test_every_chain_has_the_score_of_its_text(run, tmp_path):
    assert scored(run, "judge:length", tmp_path) == {key: len(text) for key, text in TEXTS.items()}


@pytest.mark.usefixtures("judge")
def test_a_text_is_scored_once(run, tmp_path):
    scored(run, "judge:length", tmp_path)
    module = sys.modules["judge"]
    assert module.asked == [("What is 0?", ["short", "a longer one"]), ("What is 1?", ["short"])]
    scored(run, "judge:length", tmp_path)
    assert len(module.asked) == 2


def test_a_changed_scorer_scores_anew(run, judge, tmp_path):
    scored(run, "judge:length", tmp_path)
    (judge / "judge.py").write_text(
        "def length(question, chains):\n    return [-float(len(c)) for c in chains] # other\n"
    )
    del sys.modules["judge"]
    assert scored(run, "judge:length", tmp_path)["q0", 0] == -5


@pytest.mark.usefixtures("judge")
def test_a_torn_line_of_the_cache_is_scored_again(run, tmp_path):
    expected = scored(run, "judge:length", tmp_path)
    [file] = (tmp_path / "cache").iterdir()
    file.write_text(file.read_text().rstrip()[:-4])
    assert scored(run, "judge:length", tmp_path) == expected
    assert scored(run, "judge:length", tmp_path) == expected
    assert len(sys.modules["judge"].asked) == 3


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("judge:few", "must return 2 finite numbers for 2 chains"),
        ("judge:endless", "must return 2 finite numbers"),
        ("judge:nothing", "has no `nothing`"),
        ("nobody:score", "there is no module nobody"),
    ],
)
def test_what_a_scorer_may_get_wrong(run, tmp_path, spec, said):
    with pytest.raises(UsageError, match=said):
        scored(run, spec, tmp_path)


def test_the_command_writes_scores_and_says_what_is_wrong(run, judge):
    command = [sys.executable, "-m", "scaling.scoring", str(run), "--out", str(judge / "out.jsonl"), "--scorer"]
    environment = {
        "PYTHONPATH": f"{judge}:{Path(scoring.__file__).parents[1]}",
        "SOFTCOTPP_CACHE": str(judge / "cache"),
    }
    done = subprocess.run([*command, "judge:length"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (judge / "out.jsonl").read_text().splitlines()]
    assert lines[1] == {"question_id": "q0", "path": 0, "sample": 1, "score": 12.0}
    done = subprocess.run([*command, "judge:few"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "finite numbers" in done.stdout


@pytest.fixture
def rewards(tiny_model_folder, tmp_path):
    """Folder of a tiny random reward model; labels: its number of outputs."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)

    def make(labels=1):
        torch.manual_seed(0)
        config = LlamaConfig(
            **{"vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1},
            **{"num_attention_heads": 2, "num_labels": labels, "pad_token_id": 0},
        )
        folder = tmp_path / f"reward{labels}"
        LlamaForSequenceClassification(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def test_a_reward_model_scores_a_chain_alike_alone_and_in_a_batch(rewards):
    score = reward_model(str(rewards()))
    chains = ["one", "another and a longer one", "a third"]
    together = score("What is it?", chains)
    assert together == pytest.approx([score("What is it?", [chain])[0] for chain in chains], abs=1e-5)
    assert len(set(together)) == 3
    assert score("What else?", chains) != together


def test_what_is_no_reward_model_is_refused(rewards, tmp_path):
    with pytest.raises(UsageError, match="has 3 outputs, and a reward model has one"):
        reward_model(str(rewards(3)))
    with pytest.raises(UsageError, match="is neither `module:function` nor"):
        reward_model(str(tmp_path / "nothing"))
