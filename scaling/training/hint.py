"""Writes the `scale-run` command that uses the result of a training, ready to be copied into a shell."""

from __future__ import annotations

import shlex
from pathlib import Path

from scaling.config import DEFAULT_MODEL, option
from scaling.methods.kinds import DEFAULT, Trait, kind_of
from scaling.records.names import DEFAULT_TASK
from scaling.records.settings import Tag, names
from scaling.tasks.columns import typed
from scaling.tasks.formats import holds_split
from scaling.training.config import TrainConfig

_METHOD_OF_ONE = "softcot"  # the name of the default method where a thinker has a single path


def command_for(config: TrainConfig, folder: Path) -> str:
    """The command for the thinker or adapter in `folder`. config: the resolved settings of its training."""
    if kind_of(config.method).has(Trait.ADAPTER):
        parts = ["--method", config.method, "--adapter", str(folder)]
    else:
        method = _METHOD_OF_ONE if config.latent_paths == 1 and config.method == DEFAULT else config.method
        parts = [*(["--method", method] if method != DEFAULT else []), "--thinker", str(folder)]
        if kind_of(method).has(Trait.ASSISTANT):
            parts += _unless_default("--assistant", config.assistant)
    return _joined([*parts, *_unless_default("--backbone", config.backbone), *_questions(config), *_prompt(config)])


def command_for_merged(config: TrainConfig, folder: Path) -> str:
    """The command for the merged model in `folder`, which is used with the prompts of chain of thought."""
    return _joined(["--method", "cot", "--backbone", str(folder), *_questions(config), *_prompt(config)])


def _joined(parts: list[str]) -> str:
    return f"scale-run {shlex.join(parts)}"


def _unless_default(option: str, value: str) -> list[str]:
    return [] if value == DEFAULT_MODEL else [option, value]


def _prompt(config: TrainConfig) -> list[str]:
    """The options by which the backbone is asked as in the training."""
    given = {key: getattr(config, key) for key in names(TrainConfig, Tag.WORDING)}
    return [text for key, value in given.items() if value is not None for text in (option(key), value)]


def _questions(config: TrainConfig) -> list[str]:
    """Options for the test questions of the task that was trained on.

    There are none where the data was a single file, or a folder without test questions.
    """
    if config.data is None:
        difficulty = [] if config.difficulty == 1 else ["--difficulty", str(config.difficulty)]
        return ([] if config.task == DEFAULT_TASK else ["--task", str(config.task)]) + difficulty
    if not holds_split(config.data, "test"):
        return []
    columns = ["--columns", typed(config.columns)] if config.columns else []
    kind = ["--answer-kind", str(config.answer_kind)] if config.answer_kind else []
    return [*(["--task", config.task] if config.task else []), "--data", str(config.data), *columns, *kind]
