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


def sealed(told: Mapping[str, Any]) -> str:
    """The fields as one line that ends with the checksum of what stands before it."""
    body = json.dumps(told, ensure_ascii=True)[:-1]
    return f'{body}{CHECKSUM}{zlib.crc32(body.encode("ascii")):08x}"}}'


def parsed(line: bytes) -> dict[str, Any]:
    """The fields of one line; the checksum is checked, where there is one, and left out.

    Raises ValueError for what is no JSON object, as a line that was cut may be, and Unfit for a wrong checksum.
    """
    body = line.rstrip(b"\r\n")
    try:
        told = json.loads(body)
    except RecursionError:
        raise ValueError("brackets in brackets") from None
    if not isinstance(told, dict):
        raise ValueError("no object")
    if "crc" in told and not _matches(body):
        raise Unfit("was changed after it was written: it does not match its checksum")
    told.pop("crc", None)
    return told


def _matches(body: bytes) -> bool:
    end = len(CHECKSUM) + 10
    return body[-end:] == f'{CHECKSUM}{zlib.crc32(body[:-end]):08x}"}}'.encode("ascii")


def whole_lines(
    path: Path, record: Callable[[dict[str, Any]], Line], name: str, advice: str, *, torn: bool = True
) -> Iterator[tuple[int, bytes, Line]]:
    """(number, line, record) of every line, but for a torn last one. No lines where there is no file.

    name: what a line is. torn: whether the last line may be one. Raises UsageError for any other line that is none, with its
    number.
    """
    for number, line, last in _numbered(path):
        try:
            told = parsed(line)
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
