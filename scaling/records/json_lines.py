"""Files of JSON lines, each of which ends with its own checksum, so that a damaged line is noticed when it is read.

Only the standard library is used. This module does not know what the lines mean.
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
    """A line was parsed, but its content is wrong. The message ends a sentence, such as "is no completion: ..."."""


def start_of(run_id: str | None) -> int:
    """The start value of the checksums of a run's lines, so that lines of other runs do not match; 0 without an id."""
    return zlib.crc32(run_id.encode("ascii")) if run_id else 0


def sealed(told: Mapping[str, Any], start: int = 0) -> str:
    """Writes fields as one line of JSON that ends with the checksum of everything before it.

    Args:
        told: the fields; none may be called `crc`.
        start: the checksum's start value, see `start_of`.

    Returns:
        The line, ASCII only and without a newline.
    """
    body = json.dumps(told, ensure_ascii=True)[:-1]
    return f'{body}{CHECKSUM}{zlib.crc32(body.encode("ascii"), start):08x}"}}'


def parsed(line: bytes, start: int = 0) -> dict[str, Any]:
    """Reads the fields of one line and checks its checksum, which is left out of what is returned.

    Args:
        line: with or without its line end.
        start: the checksum's start value, see `start_of`. If it is 0, a line need not have a checksum.

    Raises:
        ValueError: the line is no JSON object, for example because it was cut off.
        Unfit: the checksum is wrong or missing.
    """
    body = line.rstrip(b"\r\n")
    try:
        fields = json.loads(body)
    except RecursionError:
        raise ValueError("brackets in brackets") from None
    if not isinstance(fields, dict):
        raise ValueError("no object")
    if "crc" in fields and not _matches(body, start):
        raise Unfit(_why_not(body, start))
    if "crc" not in fields and start and line.endswith(b"\n"):
        raise Unfit("is of another run: it has no checksum, and every line of this run has one")
    fields.pop("crc", None)
    return fields


def _matches(body: bytes, start: int) -> bool:
    end = len(CHECKSUM) + 10
    return body[-end:] == f'{CHECKSUM}{zlib.crc32(body[:-end], start):08x}"}}'.encode("ascii")


def _why_not(body: bytes, start: int) -> str:
    """Why a line may not match its checksum, as the end of a sentence."""
    if start and _matches(body, 0):
        return "is of another run, whose lines have no part of this run's id in their checksums"
    other = "is of another run, or " if start else ""
    return f"{other}was changed after it was written: it does not match its checksum"


def whole_lines(
    path: Path, record: Callable[[dict[str, Any]], Line], name: str, advice: str, *, torn: bool = True, start: int = 0
) -> Iterator[tuple[int, bytes, Line]]:
    """Reads all lines of a file, except for a last line that was cut off while it was written (a torn line).

    Args:
        path: the file; if there is none, there are no lines.
        record: makes a record of a line's fields, or raises Unfit.
        name: what messages call a record, such as "completion".
        advice: what the user can do about a damaged line, as the end of a message.
        torn: whether the last line may be torn.
        start: the start value of the checksums, see `start_of`.

    Yields:
        The line's number, from 1, the line as bytes with its line end, and its record.

    Raises:
        UsageError: any other line is damaged. The message has its number.
    """
    for number, line, last in _numbered(path):
        try:
            fields = parsed(line, start)
            if line.endswith(b"\n"):
                yield number, line, record(fields)
                continue
            problem = "has no line end"
        except Unfit as error:
            problem, last = str(error), False
        except ValueError:
            problem = f"is no {name}"
        if not (last and torn and may_be_torn(line)):
            problem = "has other line ends than it was written with" if b"\r" in _without_end(line) else problem
            raise UsageError(f"{path} line {number} {problem}; {advice}")


def _numbered(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """The number of every line, from 1, the line, and whether it is the last one. No lines if there is no file."""
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
    """Whether a last line is the beginning of one record, rather than several records without line ends between them."""
    text = _without_end(line).decode("latin-1")
    with suppress(ValueError, RecursionError):
        _, end = json.JSONDecoder().raw_decode(text)
        return end == len(text)
    return "\r" not in text
