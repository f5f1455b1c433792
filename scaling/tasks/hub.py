"""Loads benchmarks as published on the Hugging Face Hub, and converts their rows to the fields of local files.

The extra `hub` is needed; `datasets` is imported only when a benchmark is loaded. No dataset may run code of its own. A
split that a dataset lacks is refused and never replaced by another one. This module knows nothing of prompts and models.

ASDiv comes as one piece. Here `test` is a fifth of its rows, chosen by a hash of the question's text, and `train` is
the rest; rows whose answer is not one plain number are left out of both. This is not the split of the paper's folds.
Without a network the Hub's client tries for about 20 seconds, or not at all where `HF_HUB_OFFLINE=1` is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any

from scaling.records.errors import UsageError, install
from scaling.records.records import Question
from scaling.tasks.files import question_from
from scaling.tasks.task import Task, unknown_split

Fields = dict[str, Any]

_PLAIN_NUMBER = re.compile(
    r"\s*([-+]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+))\s*(?:\([^()]*\))?\s*"
)  # "9", "1,200 (apples)"
_OPTION_LETTER = re.compile(r"\s*\(?[A-Z]\s*\)\s*")  # "A)" and "(A) "


@dataclass(frozen=True)
class Source:
    """Where a benchmark is on the Hub, and how its rows are converted.

    Attributes:
        path: the dataset's id.
        config: the dataset's configuration; None if it has only one.
        kind: the kind of the answers.
        splits: the dataset's name of each split, by the value of `--split`.
        fields: converts a row to the fields of a local file, with `id` if the row has one.
        keep: whether a row belongs to a split; None if all rows do.
    """

    path: str
    config: str | None
    kind: str
    splits: Mapping[str, str]
    fields: Callable[[Mapping[str, Any]], Fields]
    keep: Callable[[Mapping[str, Any], str], bool] | None = None


def load(name: str, *, split: str) -> list[Question]:
    """The questions of a benchmark, in the order of the dataset.

    Args:
        name: a key of `SOURCES`.
        split: the value of `--split`.

    Raises:
        UsageError: there is no such split, or the dataset cannot be loaded.
    """
    source = SOURCES[name]
    if split not in source.splits:
        raise unknown_split(name, split, source.splits)
    rows = _download(name, source.splits[split])
    try:
        return _questions(name, split, rows)
    except KeyError as error:
        advice = "use `--data FILE_OR_FOLDER` instead"
        raise UsageError(
            f"`--task {name}`: {source.path} must have the column {error}, but has not: {advice}."
        ) from error


def _download(name: str, split: str) -> Iterable[Mapping[str, Any]]:
    source = SOURCES[name]
    try:
        import datasets
    except ImportError as error:
        advice = f"run {install('hub')}, or use `--data FILE_OR_FOLDER`"
        raise UsageError(f"`--task {name}` needs the package `datasets`, which is missing: {advice}.") from error
    try:
        rows: Iterable[Mapping[str, Any]] = datasets.load_dataset(source.path, source.config, split=split)
    except Exception as error:  # the client raises errors of many libraries, and the advice is the same for all
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = "check the network, or use `--data FILE_OR_FOLDER`"
        raise UsageError(f"`--task {name}` could not load {source.path} from the Hub ({reason}): {advice}.") from error
    return rows


def _questions(name: str, split: str, rows: Iterable[Mapping[str, Any]]) -> list[Question]:
    source = SOURCES[name]
    questions = []
    for i, row in enumerate(rows):  # i counts all rows, so an id does not depend on what is left out
        if source.keep is None or source.keep(row, split):
            fields = {"id": f"{name}-{split}-{i:05d}"} | source.fields(row)
            questions.append(question_from(fields, kind=source.kind, where=f"`--task {name}`: {source.path} row {i}"))
    return questions


def gsm8k(row: Mapping[str, Any]) -> Fields:
    rationale, _, answer = row["answer"].rpartition("#### ")
    return {"question": row["question"], "answer": answer.strip(), "rationale": rationale}


def asdiv(row: Mapping[str, Any]) -> Fields:
    number = plain_number(row["answer"])
    return {"question": _asdiv_text(row), "answer": number, "rationale": row["formula"]}


def aqua(row: Mapping[str, Any]) -> Fields:
    choices = [_OPTION_LETTER.sub("", option, count=1).strip() for option in row["options"]]
    return {"question": row["question"], "answer": row["correct"], "rationale": row["rationale"], "choices": choices}


def strategyqa(row: Mapping[str, Any]) -> Fields:
    return {"id": row["qid"], "question": row["question"], "answer": row["answer"], "rationale": row["facts"]}


def date_understanding(row: Mapping[str, Any]) -> Fields:
    question, _, options = row["input"].partition("\nOptions:\n")
    choices = [_OPTION_LETTER.sub("", line, count=1).strip() for line in options.splitlines() if line.strip()]
    return {"question": question, "answer": row["target"].strip().strip("()"), "choices": choices}


def plain_number(answer: str) -> str | None:
    """The number of an ASDiv answer such as "9 (apples)"; None for several numbers, ratios, fractions, times and names."""
    match = _PLAIN_NUMBER.fullmatch(answer)
    return match[1] if match else None


def _in_asdiv_split(row: Mapping[str, Any], split: str) -> bool:
    # The text decides, not the position in the dataset, so that a repeated question is in one split only.
    fifth = int.from_bytes(sha256(_asdiv_text(row).encode()).digest()) % 5
    return plain_number(row["answer"]) is not None and (fifth == 0) == (split == "test")


def _asdiv_text(row: Mapping[str, Any]) -> str:
    return f"{row['body'].strip()} {row['question'].strip()}".strip()


_TRAIN_TEST = {"train": "train", "test": "test"}

SOURCES: dict[str, Source] = {
    "gsm8k": Source("openai/gsm8k", "main", "number", _TRAIN_TEST, gsm8k),
    "asdiv": Source(
        "EleutherAI/asdiv", None, "number", {"train": "validation", "test": "validation"}, asdiv, _in_asdiv_split
    ),
    "aqua": Source("deepmind/aqua_rat", "raw", "choice", _TRAIN_TEST | {"validation": "validation"}, aqua),
    "strategyqa": Source("ChilleD/StrategyQA", None, "yes_no", _TRAIN_TEST, strategyqa),
    "date-understanding": Source("lukaemon/bbh", "date_understanding", "choice", {"test": "test"}, date_understanding),
}


class HubTask(Task):
    """The task of a benchmark on the Hub."""

    local = False

    def __init__(self, name: str) -> None:
        self.name, self.kind = name, SOURCES[name].kind

    def questions(self, split: str, limit: int | None) -> Iterable[Question]:
        return load(self.name, split=split)[:limit]


TASKS: dict[str, Callable[[], Task]] = {name: partial(HubTask, name) for name in SOURCES}
