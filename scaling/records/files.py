"""Files that are replaced in one step, and how our own modules are run as commands. Standard library only.

A reader of such a file finds the old one or the new one, whole, whatever is killed in between.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULE = (sys.executable, "-P", "-m")  # -P: a file of the user that has a module's name is not run in its place


@contextmanager
def replaced(path: Path, *, partial: Path | None = None, sync: bool = False) -> Iterator[Path]:
    """Gives a file to write to, which takes the place of `path` at the end. An error leaves `path` as it was.

    Args:
        partial: the file to write to, for a caller who is the only writer and wants to know its name. None makes up a name
            beside `path`, so that several processes may write at once, and the last one stays.
        sync: whether the disk must have the content before `path` is replaced, so that even a loss of power leaves no part.
    """
    partial = partial or path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # no process number: containers share them
    try:
        yield partial
        if sync:
            with partial.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str, *, encoding: str = "utf-8", errors: str = "strict") -> None:
    """Replaces the file by one with this text, in one step."""
    with replaced(path) as partial:
        partial.write_text(text, encoding=encoding, errors=errors)
