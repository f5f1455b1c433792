"""A task that a YAML file describes: where its data lie, what their columns are called, and how it asks. No code.

    data: capitals.jsonl          # a file, or a folder with one file for each split; relative to the YAML file
    kind: text                    # number, choice, yes_no or text; as the rows look where it is left out
    columns: {question: prompt, answer: target, choices: options, rationale: steps, id: key}
    splits: {test: eval.jsonl}    # files in the folder; <split>.jsonl where it is left out
    instruction: End with "The answer is" and the city.
    name: capitals
    limit: 50
    max_new_tokens: 128

Loads no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from scaling.records.errors import UsageError, nearest, one_line
from scaling.records.records import Question
from scaling.tasks.files import read_questions
from scaling.tasks.task import Task

_KEYS = ("data", "kind", "columns", "splits", "instruction", "name", "limit", "max_new_tokens")
_FIELDS = ("id", "question", "answer", "choices", "rationale")


class YamlTask(Task):
    """place: the option that names the file, which opens an error message."""

    takes_data = True

    def __init__(self, file: Path, *, place: str) -> None:
        told = _read(file, place)
        self._place = place
        self.name = told.get("name", "")
        self.kind = told.get("kind", Task.kind)
        self.request = told.get("instruction")
        self.limit = told.get("limit")
        self.max_new_tokens = told.get("max_new_tokens", Task.max_new_tokens)
        self._inferred = "kind" not in told
        self._files = _texts(told, "splits", place)
        self._columns = _texts(told, "columns", place)
        if unknown := [key for key in self._columns if key not in _FIELDS]:
            raise UsageError(f"{place}: `columns` has no `{unknown[0]}`: give {', '.join(_FIELDS)}.")
        if "data" in told:
            if not isinstance(told["data"], str):
                raise UsageError(f"{place}: `data` is {told['data']!r:.60}: give a file or folder.")
            self.data = file.parent / Path(told["data"]).expanduser()

    def questions(self, split: str, limit: int | None) -> Iterable[Question]:
        place = self.data
        if place is None:
            return super().questions(split, limit)
        if split in self._files:
            place /= self._files[split]
        elif self._files:
            known = ", ".join(f"`{one}`" for one in self._files)
            raise UsageError(
                f"`--split` must be one of {known} for the task `{self.name}`, not `{split}`: give one of these."
            )
        kind = None if self._inferred else self.answers
        found_kind, found = read_questions(place, kind=kind, split=split, limit=limit, columns=self._fields(split))
        self.kind = found_kind
        return found

    def _fields(self, split: str) -> Any:
        def fields(number: int, row: Mapping[str, Any], where: str) -> dict[str, Any]:
            """Our fields of a row; rows without ids are numbered."""
            for ours, theirs in self._columns.items():
                if theirs not in row:
                    raise UsageError(
                        f"{where} must have the column `{theirs}`, which {self._place} takes for `{ours}`: correct "
                        f"`columns`, or that row.{nearest(theirs, row)}"
                    )
            own = {ours: row[self._columns.get(ours, ours)] for ours in _FIELDS if self._columns.get(ours, ours) in row}
            return {"id": f"{split}-{number:05d}", **own}

        return fields


def _read(file: Path, place: str) -> dict[str, Any]:
    from scaling.config import parse_yaml

    try:
        told = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{place} is not valid YAML: {one_line(error, limit=None)}") from None
    if not isinstance(told, dict):
        raise UsageError(f"{place} must hold `key: value` lines: {', '.join(_KEYS)}.")
    if unknown := [str(key) for key in told if key not in _KEYS]:
        raise UsageError(f"{place}: unknown key `{unknown[0]}`: give {', '.join(_KEYS)}.{nearest(unknown[0], _KEYS)}")
    return told


def _texts(told: Mapping[str, Any], key: str, place: str) -> dict[str, str]:
    value = told.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(one, str) for pair in value.items() for one in pair):
        raise UsageError(f"{place}: `{key}` is {value!r:.60}: give `name: name` pairs.")
    return value
