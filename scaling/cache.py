"""What is worked out once and then read from a file, whatever run asks for it. Knows nothing of what it keeps."""

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
    """Where what is worked out once lies: $SOFTCOTPP_CACHE, or `softcotpp` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "softcotpp"
    return Path(os.environ.get("SOFTCOTPP_CACHE", default)).expanduser()


def made(folder: Path) -> Path:
    """The folder, made where it is not there. Raises UsageError where it cannot be, or takes no files."""
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
    """Values by key, a line of JSON each. read: makes key and value of a line.

    A line of which it can make none is passed over, as the last one of a process that was killed while it wrote.
    """

    def __init__(self, path: Path, read: Callable[[dict[str, Any]], tuple[str, Value]]) -> None:
        self._path, self._read = path, read
        self._known: dict[str, Value] = {}
        for line in path.read_bytes().splitlines() if path.exists() else []:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                self._hold(json.loads(line))

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Value:
        return self._known[key]

    def add(self, lines: Iterable[dict[str, Any]]) -> None:
        """Writes them at once, so that an interruption loses none, and never onto a torn line. Raises UsageError where the
        folder takes no files."""
        made(self._path.parent)
        with self._path.open("ab+") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
            if file.read(1) not in (b"", b"\n"):
                file.write(b"\n")
            for line in lines:
                file.write(json.dumps(line).encode("ascii") + b"\n")
                self._hold(line)

    def _hold(self, line: dict[str, Any]) -> None:
        key, value = self._read(line)
        self._known[key] = value
