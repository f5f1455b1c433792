"""The cache folder, and files in it with values that are computed once and then read by all runs that need them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from scaling.records.errors import UsageError

Value = TypeVar("Value")


def cache_folder() -> Path:
    """The folder of all caches: $SOFTCOTPP_CACHE, or `softcotpp` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "softcotpp"
    return Path(os.environ.get("SOFTCOTPP_CACHE", default)).expanduser()


def made(folder: Path) -> Path:
    """Creates a folder if it does not exist, and returns it. Raises UsageError where no file can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UsageError(
            f"the cache folder {folder} cannot be written ({error.strerror}): set SOFTCOTPP_CACHE to one that can."
        ) from None
    return folder


class Cache(Generic[Value]):
    """Values by key, kept in a file with a line of JSON for each of them."""

    def __init__(self, path: Path, read: Callable[[dict[str, Any]], tuple[str, Value]]) -> None:
        """Reads the values in a file.

        Args:
            path: the file, which need not exist.
            read: turns a line's JSON into a key and a value. Lines on which it fails are skipped: the last line may be
                incomplete, where a process was killed while it wrote.
        """
        self._path, self._read = path, read
        self._known: dict[str, Value] = {}
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                self._take(json.loads(line))

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Value:
        return self._known[key]

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Appends lines to the file and takes over their values. Raises UsageError where the folder cannot be written."""
        made(self._path.parent)
        with self._path.open("ab+") as file:
            # an incomplete last line is ended first, or the next line would become a part of it
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            if file.read(1) not in (b"", b"\n"):
                file.write(b"\n")
            for line in lines:
                file.write(json.dumps(line).encode("ascii") + b"\n")
                self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        key, value = self._read(line)
        self._known[key] = value
