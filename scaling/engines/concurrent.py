"""Turns the requests to an asynchronous engine into one ordinary generator. Knows neither models nor tokens."""

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

_LAST = 10.0  # seconds that tasks have to end after they were cancelled by `close`


class Background:
    """An event loop in a thread of its own. It goes on while the caller does something else."""

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
        """Runs a coroutine in the loop and waits for it. Returns or raises what it returns or raises."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stream(
        self,
        requests: Iterable[Request],
        complete: Callable[[Request], Awaitable[Generated | None]],
        *,
        limit: int,
    ) -> Iterator[Generated]:
        """Yields every request's completion as soon as it is finished, in any order.

        After an error nothing more is begun, and what was begun is cancelled. The same happens where the caller stops early.

        Args:
            requests: read only as there is room for more.
            complete: makes a completion; those that are None are not yielded.
            limit: how many requests may be in progress at once.

        Raises:
            Exception: the first that `complete` raises.
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
        """Cancels what is left in the loop, and ends it.

        Args:
            patience: seconds to wait for tasks that do not end at once, None to wait for ever.

        Returns:
            Whether the loop has ended. Where it has not, another call waits again; where it has, another call does nothing.
        """
        if not self._closing:
            self._closing = True
            asyncio.run_coroutine_threadsafe(self._finish(), self._loop)
        self._thread.join(patience)
        if self._thread.is_alive():
            return False
        self._loop.close()
        return True

    async def _finish(self) -> None:
        # asyncio would complain on stderr about tasks that are unfinished when the loop is collected
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.wait([asyncio.gather(*left, return_exceptions=True)], timeout=_LAST)
        self._loop.stop()


async def _awaited(complete: Callable[[Request], Awaitable[Generated | None]], request: Request) -> Generated | None:
    return await complete(request)
