"""What a user can put right, said in the user's words. Knows nothing of models, tasks or files."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Sequence

WARNING = "warning: "  # begins what a user must know although nothing has failed
DATA = "data: "  # begins a line that says how data were read


class UsageError(Exception):
    """Something the user can fix: the message names the option, what is required, what was given and what to do next.

    The command line prints the message without a traceback and exits with code 2.
    """


class InUse(UsageError):
    """Another process has it at this moment; later it may be free."""


class MayPass(UsageError):
    """What was relied on is away, such as a server: the same command may work later without any change."""


class Interrupted(Exception):
    """The user stopped a run; what had finished is in its journal. The message says how to continue. Exit code 130."""


# In lower case: torch's allocator, C++'s, oneDNN's, where it says no more, and CUDA's libraries.
_LACKS_MEMORY = (
    *("allocate memory", "bad_alloc", "not enough memory", "out of memory", "alloc_failed"),
    *("could not create a memory", "could not create a primitive", "could not execute a primitive"),
)


def out_of_memory(error: BaseException) -> bool:
    """Whether something failed for lack of memory, in any form in which Python, torch or its libraries say so."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = str(error).lower()
    # torch is not imported here: its OutOfMemoryError, of GPUs, is a RuntimeError
    return isinstance(error, RuntimeError) and any(words in said for words in _LACKS_MEMORY)


def one_line(error: BaseException, *, limit: int | None = 200) -> str:
    """What the error says without its line breaks, cut to `limit` characters."""
    return " ".join(str(error).split())[:limit]


def of_the_system(error: OSError) -> str:
    """What a full disk, a read-only folder or a file in a folder's place says, with the path: the opening of a sentence."""
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or one_line(error)}"


def listed(ids: Sequence[str], *, shown: int = 5) -> str:
    """The first ids, and how many more there are."""
    more = f" and {len(ids) - shown} more" if len(ids) > shown else ""
    return f"{', '.join(ids[:shown])}{more}"


def counted(number: int, noun: str) -> str:
    """How many there are of something, such as `1 question` or `2,000 questions`."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def install(extra: str) -> str:
    """The command that installs an optional part of this package."""
    return f'`pip install "softcotpp[{extra}]"`'


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean X?` for the closest known name, or an empty string."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean `{match[0]}`?" if match else ""
