"""The `scale-run` command that uses what a training made, to be typed as it stands."""

from __future__ import annotations

import shlex
from pathlib import Path

from scaling.config import DEFAULT_MODEL
from scaling.methods.kinds import Trait, kind_of
from scaling.training.config import TrainConfig


def command_for(config: TrainConfig, folder: Path) -> str:
    """For the thinker or adapter in `folder`. config: the resolved settings it was trained with."""
    if kind_of(config.method).has(Trait.ADAPTER):
        parts = ["--method", "lora", "--adapter", str(folder)]
    else:
        parts = [*(["--method", "softcot"] if config.latent_paths == 1 else []), "--thinker", str(folder)]
        parts += _unless_default("--assistant", config.assistant)
    return _joined([*parts, *_unless_default("--backbone", config.backbone), *_questions(config)])


def command_for_merged(config: TrainConfig, folder: Path) -> str:
    """For the whole model in `folder`, which reads the prompts of chain of thought."""
    return _joined(["--method", "cot", "--backbone", str(folder), *_questions(config)])


def _joined(parts: list[str]) -> str:
    return f"scale-run {shlex.join(parts)}"


def _unless_default(option: str, value: str) -> list[str]:
    return [] if value == DEFAULT_MODEL else [option, value]


def _questions(config: TrainConfig) -> list[str]:
    """The test questions of what was trained on, where there are any: a single file has none beside the trained ones."""
    if config.data is None:
        difficulty = [] if config.difficulty == 1 else ["--difficulty", str(config.difficulty)]
        return ([] if config.task == "arithmetic" else ["--task", str(config.task)]) + difficulty
    if not (config.data / "test.jsonl").is_file():
        return []
    return [*(["--task", config.task] if config.task else []), "--data", str(config.data)]
