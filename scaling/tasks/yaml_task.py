"""A task that a YAML file describes, without code: where its data is, what the columns are called, and how it asks.

    data: capitals.jsonl          # a file, or a folder with one file for each split; relative to the YAML file
    kind: text                    # number, choice, yes_no or text; if it is left out, it follows from the rows
    columns: {question: prompt, answer: target, choices: options, rationale: steps, id: key}
    splits: {test: eval.jsonl}    # files in the folder, and no other split exists; without it, <split>.jsonl
    instruction: End with "The answer is" and the city.
    name: capitals
    limit: 50
    max_new_tokens: 128

torch is not loaded.
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
    """The task of a YAML file."""

    takes_data = True

    def __init__(self, file: Path, *, place: str) -> None:
        """Reads the file. place: the option that names it, with which messages begin. Raises UsageError if it is wrong."""
        entries = _read(file, place)
        self._place = place
        self.name = entries.get("name", "")
        self.kind = entries.get("kind", Task.kind)
        self.request = entries.get("instruction")
        self.limit = entries.get("limit")
        self.max_new_tokens = entries.get("max_new_tokens", Task.max_new_tokens)
        self._inferred = "kind" not in entries
        self._files = _texts(entries, "splits", place)
        self._columns = _texts(entries, "columns", place)
        if unknown := [key for key in self._columns if key not in _FIELDS]:
            raise UsageError(f"{place}: `columns` has no `{unknown[0]}`: give {', '.join(_FIELDS)}.")
        if "data" in entries:
            if not isinstance(entries["data"], str):
                raise UsageError(f"{place}: `data` is {entries['data']!r:.60}: give a file or folder.")
            self.data = file.parent / Path(entries["data"]).expanduser()

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
        actual_kind, questions = read_questions(place, kind=kind, split=split, limit=limit, columns=self._fields(split))
        self.kind = actual_kind
        return questions

    def _fields(self, split: str) -> Any:
        """The `columns` of `read_questions` for a split."""

        def fields(number: int, row: Mapping[str, Any], where: str) -> dict[str, Any]:
            """The fields of a question, from a row with the user's column names. A row without an id gets its number."""
            for ours, theirs in self._columns.items():
                if theirs not in row:
                    raise UsageError(
                        f"{where} must have the column `{theirs}`, which {self._place} takes for `{ours}`: correct "
                        f"`columns`, or that row.{nearest(theirs, row)}"
                    )
            values = {
                ours: row[self._columns.get(ours, ours)] for ours in _FIELDS if self._columns.get(ours, ours) in row
            }
            return {"id": f"{split}-{number:05d}", **values}

        return fields


def _read(file: Path, place: str) -> dict[str, Any]:
    """The entries of the file. Raises UsageError if it is no YAML or has unknown ones."""
    from scaling.config import parse_yaml

    try:
        entries = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{place} is not valid YAML: {one_line(error, limit=None)}") from None
    if not isinstance(entries, dict):
        raise UsageError(f"{place} must hold `key: value` lines: {', '.join(_KEYS)}.")
    if unknown := [str(key) for key in entries if key not in _KEYS]:
        raise UsageError(f"{place}: unknown key `{unknown[0]}`: give {', '.join(_KEYS)}.{nearest(unknown[0], _KEYS)}")
    return entries


def _texts(entries: Mapping[str, Any], key: str, place: str) -> dict[str, str]:
    """The entry `key`, which must map texts to texts; empty if there is none."""
    value = entries.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(text, str) for pair in value.items() for text in pair):
        raise UsageError(f"{place}: `{key}` is {value!r:.60}: give `name: name` pairs.")
    return value
