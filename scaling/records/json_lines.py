"""Files of JSON lines that end with their checksum: how a line is written, and how none that is damaged is passed over.

Standard library only. Knows nothing of what the lines say.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from scaling.records.errors import UsageError

CHECKSUM = ', "crc": "'  # what a line's checksum begins with; its 8 hex digits and `"}` end the line
Line = TypeVar("Line")


class Unfit(ValueError):
    """Says of a journal line that was parsed what is wrong with it, as the end of a sentence: "is no completion: ..."."""


def start_of(run_id: str | None) -> int:
    """What the checksums of a run's lines begin from, so that no other run's lines fit; 0 for a run without an id."""
    return zlib.crc32(run_id.encode("ascii")) if run_id else 0


def sealed(told: Mapping[str, Any], start: int = 0) -> str:
    """The fields as one line that ends with the checksum of what stands before it. start: see `start_of`."""
    body = json.dumps(told, ensure_ascii=True)[:-1]
    return f'{body}{CHECKSUM}{zlib.crc32(body.encode("ascii"), start):08x}"}}'


def parsed(line: bytes, start: int = 0) -> dict[str, Any]:
    """The fields of one line; the checksum is checked and left out. Where it starts from 0, a line need not have one.

    Raises ValueError for what is no JSON object, as a line that was cut may be, and Unfit for a wrong checksum.
    """
    body = line.rstrip(b"\r\n")
    try:
        told = json.loads(body)
    except RecursionError:
        raise ValueError("brackets in brackets") from None
    if not isinstance(told, dict):
        raise ValueError("no object")
    if "crc" in told and not _matches(body, start):
        raise Unfit(_why_not(body, start))
    if "crc" not in told and start and line.endswith(b"\n"):
        raise Unfit("is of another run: it has no checksum, and every line of this run has one")
    told.pop("crc", None)
    return told


def _matches(body: bytes, start: int) -> bool:
    end = len(CHECKSUM) + 10
    return body[-end:] == f'{CHECKSUM}{zlib.crc32(body[:-end], start):08x}"}}'.encode("ascii")


def _why_not(body: bytes, start: int) -> str:
    """What a line may be that does not match its checksum."""
    if start and _matches(body, 0):
        return "is of another run, whose lines have no part of this run's id in their checksums"
    other = "is of another run, or " if start else ""
    return f"{other}was changed after it was written: it does not match its checksum"


def whole_lines(
    path: Path, record: Callable[[dict[str, Any]], Line], name: str, advice: str, *, torn: bool = True, start: int = 0
) -> Iterator[tuple[int, bytes, Line]]:
    """(number, line, record) of every line, but for a torn last one. No lines where there is no file.

    name: what a line is. torn: whether the last line may be one. start: of the checksums, see `start_of`. Raises UsageError
    for any other line that is none, with its number.
    """
    for number, line, last in _numbered(path):
        try:
            told = parsed(line, start)
            if line.endswith(b"\n"):
                yield number, line, record(told)
                continue
            what = "has no line end"
        except Unfit as error:
            what, last = str(error), False
        except ValueError:
            what = f"is no {name}"
        if not (last and torn and may_be_torn(line)):
            what = "has other line ends than it was written with" if b"\r" in _without_end(line) else what
            raise UsageError(f"{path} line {number} {what}; {advice}")


def _numbered(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """(number, line, whether it is the last) of every line; none where there is no file."""
    if not path.exists():
        return
    with path.open("rb") as lines:
        number, line = 1, lines.readline()
        while line:
            following = lines.readline()
            yield number, line, not following
            number, line = number + 1, following


def _without_end(line: bytes) -> bytes:
    return line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line


def may_be_torn(line: bytes) -> bool:
    """Whether a last line is what is left of one record, rather than several without line ends between them."""
    text = _without_end(line).decode("latin-1")
    with suppress(ValueError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(text)
        return end == len(text)
    return "\r" not in text
