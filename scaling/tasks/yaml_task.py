"""A task that a YAML file describes, without code: where its data is, what the columns are called, and how it asks.

    data: capitals.jsonl          # a file or folder, relative to the YAML file, or hf:OWNER/NAME[:CONFIG]
    kind: text                    # number, choice, yes_no or text; if it is left out, it follows from the rows
    columns: {question: body+prompt, answer: target, choices: options, rationale: steps, id: key}
    splits: {test: eval.jsonl}    # files in the folder, or splits on the Hub, and no other split exists
    wanted: the city              # what the answer is, for the prompts to ask for
    instruction: Name the city.   # the whole request, in words of your own
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
from scaling.tasks import columns
from scaling.tasks.files import read_questions
from scaling.tasks.formats import on_hub
from scaling.tasks.kinds import Kind
from scaling.tasks.task import Task, unknown_split

_KEYS = ("data", "kind", "columns", "splits", "wanted", "instruction", "name", "limit", "max_new_tokens")


class YamlTask(Task):
    """The task of a YAML file."""

    takes_data = True

    def __init__(self, file: Path, *, place: str) -> None:
        """Reads the file. place: the option that names it, with which messages begin. Raises UsageError if it is wrong."""
        entries = _read(file, place)
        self._place = place
        self.name = entries.get("name", "")
        self.kind = entries.get("kind", Task.kind)
        self.wanted, self.request = entries.get("wanted"), entries.get("instruction")
        self.limit = entries.get("limit")
        self.max_new_tokens = entries.get("max_new_tokens", Task.max_new_tokens)
        self._inferred = "kind" not in entries
        self._files = _texts(entries, "splits", place)
        try:
            self.columns = columns.parse(entries.get("columns"))
        except ValueError as error:
            raise UsageError(f"{place}: `columns` is {entries['columns']!r:.60}: {error}.") from None
        if "data" in entries:
            if not isinstance(entries["data"], str):
                raise UsageError(f"{place}: `data` is {entries['data']!r:.60}: give a file, a folder or hf:OWNER/NAME.")
            named = Path(entries["data"]).expanduser()
            self.local = not on_hub(named)
            self.data = named if on_hub(named) else file.parent / named

    def questions(self, split: str, limit: int | None) -> Iterable[Question]:
        place = self.data
        if place is None:
            return super().questions(split, limit)
        if split in self._files and on_hub(place):
            split = self._files[split]
        elif split in self._files:
            place /= self._files[split]
        elif self._files:
            raise unknown_split(self.name, split, self._files)
        option = f"`columns` of {self._place}"
        return self._asked(
            read_questions(
                place,
                kind=self._kind,
                split=split,
                limit=limit,
                columns=self.columns,
                option=option,
                equations=self.equations,
            )
        )

    @property
    def _kind(self) -> Kind | None:
        return None if self._inferred else self.answers


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
