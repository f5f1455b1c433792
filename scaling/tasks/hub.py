"""Benchmarks as published: loaded from the Hugging Face Hub, or from files in the published form that `--data` names.

Each is a YAML file in the folder `shipped`, as users write them (`scaling.tasks.yaml_task`), and is named after it; those of
BIG-Bench Hard are called `bbh-` and the file's name. The extra `hub` is needed for the Hub. No dataset may run code of its
own. A split that a dataset lacks is refused and never replaced by another one; a file says openly where what a dataset calls
`validation` or `train` is the test. This module knows nothing of prompts and models.

Without a network the Hub's client tries for about 20 seconds, or not at all where `HF_HUB_OFFLINE=1` is set.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path

from scaling.records.records import Question
from scaling.tasks.columns import are_fields, mapped
from scaling.tasks.files import Data, checked_questions, only_equations, questions_of
from scaling.tasks.formats import Fields, Row, holds_split, hub_rows, on_hub, read_rows
from scaling.tasks.task import Task, unknown_split
from scaling.tasks.yaml_task import YamlTask

_FOLDER = Path(__file__).parent / "shipped"
_PLAIN_NUMBER = re.compile(
    r"\s*([-+]?(?:[0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+))\s*(?:\([^()]*\))?\s*"
)  # "9", "1,200 (apples)"


class HubTask(YamlTask):
    """The task of a shipped file: its questions are on the Hub, or in files in the published form or our own."""

    def __init__(self, name: str, file: Path) -> None:
        self._option = f"--task {name}"
        super().__init__(file, place=f"`{self._option}`")
        self.name = name
        # `data` and `columns` are what the user gives
        self._home, self.data = self.data, None
        self._published, self.columns = dict(self.columns or {}), None

    def questions(self, split: str, limit: int | None) -> Iterable[Question]:
        if self.data is None:
            return self._asked(self._converted(self._hub_rows(split), split))
        rows = read_rows(self.data, split=self._called(self.data, split))
        if self.columns or not self._fits(rows):
            kind, columns = self.answers, self.columns
            return self._asked(questions_of(rows, kind=kind, limit=limit, columns=columns, equations=self.equations))
        return self._asked(self._converted(rows, split))

    def _hub_rows(self, split: str) -> list[Row]:
        if self._home is None or split not in self._files:
            raise unknown_split(self.name, split, self._files)
        advice = "use `--data FILE_OR_FOLDER`"
        rows = hub_rows(self._home, split=self._files[split], asked=self._place, advice=advice)
        return [(f"{self._place}: {self._home} row {number}", row) for number, row in enumerate(rows, start=1)]

    def _called(self, place: Path, split: str) -> str:
        """What a split is called in a place, which may be a copy of the published data set."""
        published = self._files.get(split, split)
        missing = place.is_dir() and not holds_split(place, split)
        return published if on_hub(place) or (missing and holds_split(place, published)) else split

    def _fits(self, rows: Sequence[Row]) -> bool:
        """Whether rows have the published columns, and not those of our own files."""
        names = rows[0][1].keys() if rows else set[str]()
        published = {name for columns in self._published.values() for name in columns.split("+")}
        return published <= names and not are_fields(names)

    def _converted(self, rows: Sequence[Row], split: str) -> Data:
        """The questions of rows in the published form. An id does not depend on which rows are left out."""
        converted, taken = mapped(rows, self._published, option=self._option)
        if "id" not in self._published:
            for number, (_, fields) in enumerate(converted):
                fields["id"] = f"{self.name}-{split}-{number:05d}"
        kept = [(where, fields) for where, fields in converted if self._keeps(fields, split)]
        questions = checked_questions(kept, kind=self.kind, equations=self.equations)
        said = taken.replace("id made from content", "id=number of the row"), only_equations(kept, questions)
        return Data(self.kind, questions, ", ".join(filter(None, said)))

    def _keeps(self, fields: Fields, split: str) -> bool:  # noqa: ARG002
        """Whether a row is asked in a split. Its answer may be rewritten."""
        return True


class ASDiv(HubTask):
    """ASDiv, which is one piece: `test` is a fifth of its rows, chosen by a hash of the question's text, `train` the rest.

    Rows whose answer is not one plain number are left out of both. This is not the split of the paper's folds.
    """

    def _keeps(self, fields: Fields, split: str) -> bool:
        fields["answer"] = plain_number(str(fields["answer"]))
        # The text decides, not the position in the dataset, so that a repeated question is in one split only.
        part = "train" if int.from_bytes(sha256(fields["question"].encode()).digest()) % 5 else "test"
        return fields["answer"] is not None and part == split


def plain_number(answer: str) -> str | None:
    """The number of an ASDiv answer such as "9 (apples)"; None for several numbers, ratios, fractions, times and names."""
    match = _PLAIN_NUMBER.fullmatch(answer)
    return match[1] if match else None


_WITH_CODE: dict[str, Callable[[str, Path], Task]] = {"asdiv": ASDiv}
FILES = {
    "-".join(file.relative_to(_FOLDER).with_suffix("").parts): file
    for pattern in ("*.yaml", "*/*.yaml")
    for file in sorted(_FOLDER.glob(pattern))
}
TASKS: dict[str, Callable[[], Task]] = {
    name: partial(_WITH_CODE.get(name, HubTask), name, file) for name, file in FILES.items()
}
