"""Ends the processes that this one has started, also where this one is killed. vLLM's processes do not notice that their
parent is gone: they keep their memory and go on. So a small process watches this one, and kills them when it is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_MARK = "SOFTCOTPP_WATCHED"  # in the environment of processes that are watched
_KEEP = {"SPT_NOENV": "1"}  # keeps setproctitle, by which vLLM names its processes, from writing over their environment
_STARTING, _PAUSE = 1.0, 0.01  # seconds


class Watchdog:
    """Kills what is started while it is `watching`, and what that starts, once it is closed or this process is gone."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # its input ends with this process, however that ends. -P: the files beside this one have names of libraries
        command = [sys.executable, "-P", __file__, self._mark]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Processes that are started meanwhile inherit the mark."""
        before = {name: os.environ.get(name) for name in (_MARK, *_KEEP)}
        os.environ.update({_MARK: self._mark, **_KEEP})
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                os.environ.update({name: value} if value is not None else {})

    def kill(self) -> None:
        """Kills now what was started, and goes on watching."""
        _kill(self._mark)

    def close(self) -> None:
        """A second call does nothing."""
        self._process.communicate()


def _kill(mark: str) -> None:
    """Kills all processes with the mark, and looks again until there are none.

    A process that is killed may have started another one just before. A process that is just starting does not show its
    mark yet.
    """
    until = time.monotonic() + _STARTING
    while [process for process in psutil.process_iter() if _found(process, mark)] and time.monotonic() < until:
        time.sleep(_PAUSE)


def _found(process: psutil.Process, mark: str) -> bool:
    """Kills a process if it has the mark. Returns whether all processes must be looked at again.

    That is so where it was killed, and where it is in the middle of exec(): then it has memory, but no environment yet.
    """
    with suppress(psutil.Error):
        environment = process.environ()
        if environment.get(_MARK) == mark:
            process.kill()
            return True
        return not environment and process.memory_info().vms > 0
    return False


if __name__ == "__main__":
    sys.stdin.read()
    _kill(sys.argv[1])
