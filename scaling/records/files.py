"""Replaces files in one step, hashes them, and says how the project's own modules are run. Standard library only.

A reader finds either the old file or the new one, each complete, even if the writer is killed in between.
"""

from __future__ import annotations

import hashlib
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULE = (sys.executable, "-P", "-m")  # -P: does not run a user's file that has the module's name


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replaced(path: Path, *, partial: Path | None = None, sync: bool = False) -> Iterator[Path]:
    """Gives the path of a temporary file to write to, which replaces `path` at the end. An error leaves `path` as it was.

    Args:
        path: the file to replace; it need not exist.
        partial: the temporary file, for a caller who is the only writer and must know its name. None chooses a unique name
            beside `path`. Several processes may then write at once, and the last one wins.
        sync: whether to flush the content to the disk before `path` is replaced. Then even a loss of power cannot leave a
            part of it.
    """
    partial = partial or path.with_name(
        f".{path.name}.{uuid.uuid4().hex}"
    )  # not the process id: containers may share it
    try:
        yield partial
        if sync:
            with partial.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str, *, errors: str = "strict") -> None:
    """Replaces a file by one with this text, in one step. errors: as for `Path.write_text`."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=errors)
