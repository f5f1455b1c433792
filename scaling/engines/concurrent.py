"""Turns requests to an asynchronous engine into one ordinary generator. Knows neither models nor tokens."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from multiprocessing import resource_tracker
from queue import SimpleQueue
from typing import Any, TypeVar

from scaling.engines.base import Generated, Request

Result = TypeVar("Result")

_LAST = 10.0  # seconds for what is cancelled at the end


class Background:
    """An event loop in a thread of its own, which works on while the caller does something else."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # processes that are started here inherit this: Ctrl-C is for the caller, who ends them in order. The tracker is
        # started first, as that would undo it
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._loop.run_forever()

    def call(self, work: Coroutine[Any, Any, Result]) -> Result:
        """What `work` returns or raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stream(
        self,
        requests: Iterable[Request],
        complete: Callable[[Request], Awaitable[Generated | None]],
        *,
        limit: int,
    ) -> Iterator[Generated]:
        """Every request's completion as it finishes, at most `limit` begun and unfinished; None is passed over.

        Requests are asked for only as there is room. Raises what `complete` raises first, and then begins nothing more;
        what was begun is cancelled, as it is where the caller stops early.
        """
        finished: SimpleQueue[Future[Generated | None]] = SimpleQueue()
        begun: set[Future[Generated | None]] = set()
        source = iter(requests)
        try:
            while True:
                while len(begun) < limit and (request := next(source, None)) is not None:
                    future = asyncio.run_coroutine_threadsafe(_awaited(complete, request), self._loop)
                    begun.add(future)
                    future.add_done_callback(finished.put)
                if not begun:
                    return
                future = finished.get()
                begun.remove(future)
                if (generated := future.result()) is not None:
                    yield generated
        finally:
            for future in begun:
                future.cancel()

    def close(self, *, patience: float | None = None) -> bool:
        """Ends the loop and what is left in it. A second call does nothing. patience: seconds to wait for work that does not
        give way, None for ever. Returns whether it has ended; where it has not, another call waits again."""
        if not self._closing:
            self._closing = True
            asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
        self._thread.join(patience)
        if self._thread.is_alive():
            return False
        self._loop.close()
        return True

    async def _finish(self) -> None:
        # what a loop leaves unfinished is complained about on stderr when it is collected
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.wait([asyncio.gather(*left, return_exceptions=True)], timeout=_LAST)
        self._loop.stop()


async def _awaited(complete: Callable[[Request], Awaitable[Generated | None]], request: Request) -> Generated | None:
    return await complete(request)
