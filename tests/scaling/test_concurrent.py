"""Asynchronous completions as one generator: each once, no more at a time than asked for, none left behind."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.engines.base import Generated, Request, SoftPrompt
from scaling.engines.concurrent import Background

PROMPT = SoftPrompt("q", 0, (1,), torch.empty(0, 4), ())


@pytest.fixture(scope="module")
def background():
    loop = Background()
    yield loop
    loop.close()


def requests(number):
    return [Request(PROMPT, sample, sample) for sample in range(number)]


def samples(results):
    return [generated.request.sample for generated in results]


@settings(deadline=None, max_examples=30)
@given(delays=st.lists(st.integers(0, 3), max_size=20), limit=st.integers(1, 6))
def test_every_request_comes_once_and_only_so_many_are_open(background, delays, limit):
    open_now, most = 0, 0

    async def complete(request):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        await asyncio.sleep(delays[request.sample] / 1000)
        open_now -= 1
        return Generated(request, [1], "end")

    found = samples(background.stream(requests(len(delays)), complete, limit=limit))
    assert sorted(found) == list(range(len(delays)))
    assert most <= limit


def test_results_come_as_they_finish(background):
    release = threading.Event()

    async def complete(request):
        while request.sample == 0 and not release.is_set():
            await asyncio.sleep(0.001)
        return Generated(request, [1], "end")

    stream = background.stream(requests(5), complete, limit=2)
    assert samples(next(stream) for _ in range(4)) == [1, 2, 3, 4]
    release.set()
    assert samples(stream) == [0]


def test_requests_are_asked_for_only_as_there_is_room(background):
    taken = []

    def source():
        for request in requests(10):
            taken.append(request.sample)
            yield request

    async def complete(request):
        return Generated(request, [1], "end")

    stream = background.stream(source(), complete, limit=3)
    next(stream)
    assert len(taken) == 3
    next(stream)
    assert len(taken) == 4


def test_what_is_given_up_is_passed_over(background):
    async def complete(request):
        return Generated(request, [1], "end") if request.sample % 2 else None

    assert sorted(samples(background.stream(requests(6), complete, limit=2))) == [1, 3, 5]


@pytest.mark.parametrize("how", ["error", "left"])
def test_nothing_goes_on_after_an_error_or_once_the_caller_has_left(background, how):
    cancelled = threading.Event()

    async def complete(request):
        if request.sample == 0:
            if how == "error":
                raise ValueError("of the engine")
            return Generated(request, [1], "end")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    stream = background.stream(requests(2), complete, limit=2)
    if how == "error":
        with pytest.raises(ValueError, match="of the engine"):
            list(stream)
    else:
        next(stream)
        stream.close()
    assert cancelled.wait(5)


def test_a_closed_one_may_be_closed_again():
    loop = Background()
    assert loop.close()
    assert loop.close()


def test_what_is_left_when_it_is_closed_comes_to_its_end():
    loop, ended = Background(), []

    async def left():
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cleaned up")

    async def begin():
        kept.append(asyncio.create_task(left()))
        await asyncio.sleep(0)

    kept = []
    loop.call(begin())
    late = left()
    asyncio.run_coroutine_threadsafe(late, loop._loop)  # may not have begun when the loop ends
    loop.close()
    assert "cleaned up" in ended
    assert kept[0].cancelled()
    assert late.cr_frame is None, "it is at its end, too"


def test_one_that_does_not_give_way_is_waited_for_as_long_as_asked_for():
    loop, release, blocked = Background(), threading.Event(), threading.Event()

    async def block():
        blocked.set()
        release.wait()

    asyncio.run_coroutine_threadsafe(block(), loop._loop)
    blocked.wait()
    assert not loop.close(patience=0.01)
    assert not loop.close(patience=0.01)
    release.set()
    assert loop.close()
