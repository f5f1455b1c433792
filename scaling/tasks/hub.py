"""Benchmarks as published: loaded from the Hugging Face Hub, or from files in the published form that `--data` names.

The extra `hub` is needed for the Hub. No dataset may run code of its own. A split that a dataset lacks is refused and never
replaced by another one. This module knows nothing of prompts and models.

ASDiv comes as one piece. Here `test` is a fifth of its rows, chosen by a hash of the question's text, and `train` is
the rest; rows whose answer is not one plain number are left out of both. This is not the split of the paper's folds.
Without a network the Hub's client tries for about 20 seconds, or not at all where `HF_HUB_OFFLINE=1` is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

from scaling.records.records import Question
from scaling.tasks.columns import mapped, parse
from scaling.tasks.files import Data, question_from, questions_of
from scaling.tasks.formats import Row, holds_split, hub_rows, on_hub, read_rows
from scaling.tasks.task import Task, unknown_split

_PLAIN_NUMBER = re.compile(
    r"\s*([-+]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+))\s*(?:\([^()]*\))?\s*"
)  # "9", "1,200 (apples)"


@dataclass(frozen=True)
class Source:
    """Where a benchmark is on the Hub, and what its columns are.

    Attributes:
        path: the dataset's id.
        config: the dataset's configuration; None if it has only one.
        kind: the kind of the answers.
        splits: the dataset's name of each split, by the value of `--split`.
        columns: its columns, in the form of `--columns`.
        answer: makes the answer of what is in its column; None leaves the row out.
        part: the split of a question by its text, for a dataset that comes as one piece; None for others.
    """

    path: str
    config: str | None
    kind: str
    splits: Mapping[str, str]
    columns: str
    answer: Callable[[str], str | None] | None = None
    part: Callable[[str], str] | None = None

    @property
    def mapping(self) -> dict[str, str]:
        """The columns by field."""
        mapping: dict[str, str] = parse(self.columns)
        return mapping

    def fits(self, rows: Sequence[Row]) -> bool:
        """Whether rows have the published columns, and not those of our own files."""
        names = rows[0][1].keys() if rows else set[str]()
        published = {name for columns in self.mapping.values() for name in columns.split("+")}
        return published <= names and not {"id", "question", "answer"} <= names


def load(name: str, *, split: str) -> list[Question]:
    """The questions of a benchmark from the Hub, in the order of the dataset.

    Args:
        name: a key of `SOURCES`.
        split: the value of `--split`.

    Raises:
        UsageError: there is no such split, or the dataset cannot be loaded.
    """
    source = SOURCES[name]
    if split not in source.splits:
        raise unknown_split(name, split, source.splits)
    asked, advice = f"`--task {name}`", "use `--data FILE_OR_FOLDER`"
    place = Path(":".join(filter(None, ("hf", source.path, source.config))))
    rows = hub_rows(place, split=source.splits[split], asked=asked, advice=advice)
    return _published(name, split, [(f"{asked}: {source.path} row {i}", row) for i, row in enumerate(rows)]).questions


def _published(name: str, split: str, rows: Sequence[Row]) -> Data:
    """The questions of rows in the published form. An id does not depend on which rows are left out."""
    source = SOURCES[name]
    converted, taken = mapped(rows, source.mapping, option=f"--task {name}")
    questions = []
    for number, (where, fields) in enumerate(converted):
        if source.answer:
            fields["answer"] = source.answer(str(fields["answer"]))
        if fields["answer"] is None or (source.part and source.part(fields["question"]) != split):
            continue
        if "id" not in source.mapping:
            fields["id"] = f"{name}-{split}-{number:05d}"
        questions.append(question_from(fields, kind=source.kind, where=where))
    return Data(source.kind, questions, taken.replace("id made from content", "id=number of the row"))


def plain_number(answer: str) -> str | None:
    """The number of an ASDiv answer such as "9 (apples)"; None for several numbers, ratios, fractions, times and names."""
    match = _PLAIN_NUMBER.fullmatch(answer)
    return match[1] if match else None


def _asdiv_part(text: str) -> str:
    # The text decides, not the position in the dataset, so that a repeated question is in one split only.
    return "train" if int.from_bytes(sha256(text.encode()).digest()) % 5 else "test"


_TRAIN_TEST = {"train": "train", "test": "test"}

SOURCES: dict[str, Source] = {
    "gsm8k": Source("openai/gsm8k", "main", "number", _TRAIN_TEST, "question=question answer=answer"),
    "asdiv": Source(
        *("EleutherAI/asdiv", None, "number", {"train": "validation", "test": "validation"}),
        "question=body+question answer=answer rationale=formula",
        *(plain_number, _asdiv_part),
    ),
    "aqua": Source(
        *("deepmind/aqua_rat", "raw", "choice", _TRAIN_TEST | {"validation": "validation"}),
        "question=question answer=correct choices=options rationale=rationale",
    ),
    "strategyqa": Source(
        *("ChilleD/StrategyQA", None, "yes_no", _TRAIN_TEST),
        "id=qid question=question answer=answer rationale=facts",
    ),
    "date-understanding": Source(
        *("lukaemon/bbh", "date_understanding", "choice", {"test": "test"}),
        "question=input answer=target",
    ),
}


class HubTask(Task):
    """The task of a benchmark: from the Hub, or from files in the published form or our own."""

    local = False
    takes_data = True

    def __init__(self, name: str) -> None:
        self.name, self.kind = name, SOURCES[name].kind

    def questions(self, split: str, limit: int | None) -> Iterable[Question]:
        if self.data is None:
            return load(self.name, split=split)[:limit]
        source = SOURCES[self.name]
        rows = read_rows(self.data, split=self._called(self.data, split))
        if self.columns or not source.fits(rows):
            return self._asked(questions_of(rows, kind=self.answers, limit=limit, columns=self.columns))
        return self._asked(_published(self.name, split, rows))[:limit]

    def _called(self, place: Path, split: str) -> str:
        """What a split is called in a place, which may be a copy of the published data set."""
        published = SOURCES[self.name].splits.get(split, split)
        missing = place.is_dir() and not holds_split(place, split)
        return published if on_hub(place) or (missing and holds_split(place, published)) else split


TASKS: dict[str, Callable[[], Task]] = {name: partial(HubTask, name) for name in SOURCES}
