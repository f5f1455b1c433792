"""Makes a report again and again while its runs go on, for `scale-report --watch`, each time of what is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.load import Unfinished
from analysis.results import Results, Tell
from scaling.records.errors import counted
from scaling.records.journal import SAMPLES

EVERY = 20  # seconds at least between two reports, and between two loads of an open page
_SHARE = 5  # making reports may take at most about a fifth of the time


def watch(
    make: Callable[[], Results],
    folders: Sequence[Path],
    tell: Tell,
    *,
    leave: Callable[[], None] = lambda: None,
    wait: Callable[[float], None] = time.sleep,
) -> Results:
    """Makes the report whenever a journal has grown, until every question of every run is complete.

    A run that has stopped is waited for, as it may be continued. Ctrl-C ends the waiting, and so does any error.

    Args:
        make: makes the report once.
        folders: the run directories whose journals are watched.
        tell: is called with a line after each report, and while no question is complete.
        leave: is called where the waiting ends before the runs are complete.
        wait: waits so many seconds.

    Returns:
        The figures of the last report, which is one of complete runs.

    Raises:
        UsageError: as `make` does, but for runs of which no question is complete yet.
    """
    try:
        return _watch(make, folders, tell, wait)
    except BaseException:
        leave()
        raise


def _watch(make: Callable[[], Results], folders: Sequence[Path], tell: Tell, wait: Callable[[float], None]) -> Results:
    """As `watch`."""
    while True:
        sizes, began = _sizes(folders), time.monotonic()
        try:
            found = make()
        except Unfinished:
            tell("no question has all its samples yet")
        else:
            if not any(run.incomplete for one in found.methods for run in one.method.runs):
                return found
            tell(f"{counted(found.num_questions, 'question')} complete. {found.lead}")
        pause = max(EVERY, _SHARE * (time.monotonic() - began))
        wait(pause)
        while _sizes(folders) == sizes:
            wait(pause)


def _sizes(folders: Sequence[Path]) -> list[int]:
    """The sizes of the journals in bytes, 0 for one that is not there."""
    journals = [folder / SAMPLES for folder in folders]
    return [journal.stat().st_size if journal.exists() else 0 for journal in journals]
