"""The table of texts and their readings, `answers_table.yaml`, row by row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from scaling.tasks.answers import Reading
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.kinds import KINDS

TABLE = Path(__file__).with_name("answers_table.yaml")


class Row(NamedTuple):
    text: str
    kind: str
    choices: tuple[str, ...]
    question: str
    gold: str
    reading: Reading
    right: bool


def rows() -> Iterator[Row]:
    # the base loader leaves every value a text: no "no" becomes false, no 1_000 a number
    for section in yaml.load(TABLE.read_text(encoding="utf-8"), Loader=yaml.BaseLoader):
        for text, gold, *readings in section["rows"]:
            strict, lenient = (None if reading == "none" else reading for reading in readings[:2])
            assert readings[2:] in ([], ["wrong"]), f"a row ends in `wrong` or in its lenient answer: {text}"
            yield Row(
                text=text.replace("⏎", "\n"),
                kind=section["kind"],
                choices=tuple(section.get("choices", ())),
                question=section.get("question", ""),
                gold=gold,
                reading=Reading(strict, lenient),
                right=lenient is not None and not readings[2:],
            )


ROWS = list(rows())


def test_the_table_is_long_enough_to_mean_something() -> None:
    assert len({(row.text, row.kind, row.question, row.gold) for row in ROWS}) == len(ROWS) >= 150


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}: {row.text}")
def test_row(row: Row, checker: AnswerChecker) -> None:
    assert KINDS[row.kind].read(row.text, choices=row.choices, question=row.question) == row.reading
    gold = KINDS[row.kind].canonical(row.gold, num_choices=len(row.choices))
    assert gold is not None
    lenient = row.reading.lenient
    assert (lenient is not None and KINDS[row.kind].equal(gold, lenient, checker)) is row.right
