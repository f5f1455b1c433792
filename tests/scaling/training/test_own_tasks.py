"""A thinker and an adapter learn a user's own task; the same file is another task once it is edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contrastive.parallel import Processes
from scaling.records.errors import UsageError
from scaling.training.config import TrainConfig
from scaling.training.lora import train_lora
from scaling.training.run import train
from tests.scaling.training.test_training import Quiet

WORDS = """
from scaling.tasks.task import Question, Task

class Words(Task):
    def questions(self, split, limit):
        return [Question(f"{split}{n}", f"{split} word {n}?", f"w{n}") for n in range(9)]

    def solution(self, question):
        return f"Word: {question.answer}."

    def read(self, text, question):
        return question.answer if question.id == "train0" else None
"""


@pytest.fixture
def words(tmp_path) -> Path:
    path = tmp_path / "words.py"
    path.write_text(WORDS)
    return path


@pytest.fixture
def settings(tiny_model_folder, tmp_path, words):
    model = str(tiny_model_folder)
    standard = {
        **{"backbone": model, "device": "cpu", "dtype": "float32", "validation": 3, "max_steps": 2, "batch_size": 3},
        **{"task": str(words), "out": tmp_path / "trained"},
    }
    thoughts = {"assistant": model, "latent_paths": 2, "soft_tokens": 2}
    return lambda method, **changes: TrainConfig.model_validate(
        {**standard, **(thoughts if method == "softcot++" else {}), "method": method, **changes}
    )


def test_a_thinker_learns_its_solutions_and_an_edited_task_is_another_training(settings, words, tmp_path):
    result = train(settings("softcot++"), Quiet(), Processes())
    assert result.progress.step == 2
    about = json.loads((tmp_path / "trained" / "train.json").read_text())
    assert (about["task"], len(about["task_sha256"])) == ("words", 64)
    words.write_text(WORDS.replace("Word:", "Say:"))
    with pytest.raises(UsageError, match=r"holds another training: what `--task` is \(a SHA-256"):
        train(settings("softcot++", resume=True), Quiet(), Processes())


def test_own_chains_are_read_by_the_tasks_reader(settings):
    """Only one training question is ever read, so nothing is left to validate on."""
    with pytest.raises(UsageError, match="no chain to learn from"):
        train(settings("softcot++", targets="self", chains=1), Quiet(), Processes())


def test_an_adapter_learns_it_and_is_checked_on_another_file(settings, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text("".join(f'{{"id": "h{n}", "question": "{n} + 1?", "answer": {n + 1}}}\n' for n in range(3)))
    result = train_lora(settings("lora", check_on=held, rank=2), Quiet(), Processes())
    assert result.check is not None
    assert result.check.questions == 3
