"""The runs that a report is asked for, as text: `NAME=FOLDER,FOLDER@8x4@100`. Reads no run; stays light for the command line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_SIZE = re.compile(r"(?P<place>.*)@(?P<paths>\d+)x(?P<samples>\d+)(@(?P<limit>\d+))?", re.DOTALL)


class Size(NamedTuple):
    """How much of a run is meant. None: as much as the run's own settings say."""

    paths: int | None = None
    samples: int | None = None
    limit: int | None = None


class RunArgument(NamedTuple):
    """What one argument names.

    name: the method's name in the report, None to have it named. folders: one run directory, or those of a run's shards.
    size: how much of the run.
    """

    name: str | None
    folders: tuple[Path, ...]
    size: Size = Size()


def parse_run(text: str) -> RunArgument:
    """Takes `[NAME=]FOLDER[,FOLDER ...][@PATHSxSAMPLES[@QUESTIONS]]` apart.

    A folder that exists is a folder, whatever its name looks like.
    """
    name, equals, place = text.partition("=")
    readings = [(None, text), (name, place)] if equals else [(None, text)]
    for named, whole in readings:
        for folder, size in ((whole, Size()), _without_size(whole)):
            if Path(folder).exists():
                return RunArgument(named, (Path(folder),), size)
    # Nothing of that name is there: it names shards, or a folder that loading will not find.
    named, whole = readings[-1]
    folders, size = _without_size(whole)
    return RunArgument(named, tuple(map(Path, folders.split(","))), size)


def _without_size(text: str) -> tuple[str, Size]:
    found = _SIZE.fullmatch(text)
    if not found:
        return text, Size()
    paths, samples, limit = (found[name] and int(found[name]) for name in ("paths", "samples", "limit"))
    return found["place"], Size(paths, samples, limit)
