"""Parses the arguments of `scale-report`: run directories, their names and sizes, as in `NAME=FOLDER@8x4@100`.

It checks which folders exist but opens none of them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_SIZE = re.compile(r"(?P<place>.*)@(?P<paths>\d+)x(?P<samples>\d+)(@(?P<limit>\d+))?", re.DOTALL)


class Size(NamedTuple):
    """How much of a run to use. None stands for as much as the run's settings say."""

    paths: int | None = None
    samples: int | None = None
    limit: int | None = None


WHOLE = Size()


class RunArgument(NamedTuple):
    """One argument, parsed.

    Attributes:
        name: the method's name in the report; None where the user gave none.
        folders: one run directory, or the directories of a run's shards.
        size: how much of the run to use.
    """

    name: str | None
    folders: tuple[Path, ...]
    size: Size = WHOLE


def parse_run(text: str) -> RunArgument:
    """Parses `[NAME=]FOLDER[,FOLDER ...][@PATHSxSAMPLES[@QUESTIONS]]`.

    The name of a folder may itself contain `=`, `,` or `@`. So a reading that names an existing folder comes first.
    """
    name, equals, place = text.partition("=")
    readings = [(None, text), (name, place)] if equals else [(None, text)]
    for named, whole in readings:
        for folder, size in ((whole, WHOLE), _without_size(whole)):
            if Path(folder).exists():
                return RunArgument(named, (Path(folder),), size)
    # no such folder exists, so the text lists shards, or loading will report the missing folder
    named, whole = readings[-1]
    folders, size = _without_size(whole)
    return RunArgument(named, tuple(map(Path, folders.split(","))), size)


def _without_size(text: str) -> tuple[str, Size]:
    """Splits the size off the end of a text. It is `WHOLE` where there is none."""
    match = _SIZE.fullmatch(text)
    if not match:
        return text, WHOLE
    limit = int(match["limit"]) if match["limit"] else None
    return match["place"], Size(int(match["paths"]), int(match["samples"]), limit)
