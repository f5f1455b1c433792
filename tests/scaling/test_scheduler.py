"""The scheduler against a small simulator: rows that finish in any order, prompts that are held and dropped."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaling.engines.base import Request, SoftPrompt
from scaling.engines.local.scheduler import Scheduler

NO_THOUGHTS = torch.zeros(0, 4)
ENOUGH = 10_000  # tokens, more than any list of requests here needs

quick = settings(max_examples=60, deadline=None)


def prompt_of(question: int, path: int, *, prefix: int, suffix: int) -> SoftPrompt:
    return SoftPrompt(f"q{question}", path, (question,) * prefix, NO_THOUGHTS, (path,) * suffix)


@st.composite
def prompts(draw: st.DrawFn) -> list[SoftPrompt]:
    """Paths of up to four questions. The prefix is a question's own, its length 0 to 12; suffixes differ in length."""
    found = []
    for question in range(draw(st.integers(1, 4))):
        prefix = draw(st.integers(0, 12))
        suffixes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
        found += [prompt_of(question, path, prefix=prefix, suffix=n) for path, n in enumerate(suffixes)]
    return found


@st.composite
def in_grid_order(draw: st.DrawFn) -> list[Request]:
    """All samples of a prompt one after another, as runs ask for them."""
    each = [(prompt, draw(st.integers(1, 7))) for prompt in draw(prompts())]
    return [Request(prompt, sample, 0) for prompt, samples in each for sample in range(samples)]


@st.composite
def in_any_order(draw: st.DrawFn) -> list[Request]:
    return draw(st.permutations(draw(in_grid_order())))


class Source:
    """Counts what was taken from it."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = iter(requests)
        self.consumed: list[Request] = []

    def __iter__(self) -> Iterator[Request]:
        return self

    def __next__(self) -> Request:
        self.consumed.append(next(self._requests))
        return self.consumed[-1]


class Simulator:
    """An engine without a model. Checks after every call what must always hold.

    rows: requests being decoded; taken: all that ever were; held: prompts whose keys an engine would keep; computed: every
    prompt that was prefilled, as often as it was; cancelled: questions.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        *,
        num_rows: int = 4,
        budget: int = ENOUGH,
        share: bool = True,
        order: random.Random | None = None,
    ) -> None:
        self.source = Source(requests)
        self.num_rows, self.budget, self.share = num_rows, budget, share
        self.order = order or random.Random(0)
        self.scheduler = Scheduler(self.source, num_rows=num_rows, prompt_tokens=budget, share_prefix=share)
        self.rows: list[Request] = []
        self.taken: list[Request] = []
        self.computed: list[SoftPrompt] = []
        self.held: set[SoftPrompt] = set()
        self.cancelled: set[str] = set()

    def run(self) -> Simulator:
        self.fill()
        while self.rows:
            self.finish(self.order.sample(self.rows, self.order.randint(1, len(self.rows))))
            self.fill()
        return self

    def fill(self) -> None:
        free = self.num_rows - len(self.rows)
        if not free:
            return
        open_before = len(self.scheduler.open)
        new, dropped = self.scheduler.prepare(free)
        assert len(self.scheduler.open) <= max(open_before, free + 2 * max(1, self.num_rows // 4))
        self.drop(dropped)
        assert len(set(new)) == len(new)
        assert self.held.isdisjoint(new), "computed although it was held"
        self.held.update(new)
        self.computed += new
        self.check()
        taken = self.scheduler.take(free)
        assert len(taken) <= free
        assert all(request.prompt in self.held for request in taken), "taken without its prompt"
        assert self.cancelled.isdisjoint(request.prompt.question_id for request in taken)
        self.rows += taken
        self.taken += taken
        self.check()

    def finish(self, requests: Sequence[Request]) -> None:
        for request in requests:
            self.rows.remove(request)
            wanted = {left.prompt for left in chain(self.rows, self.scheduler.open)}
            unneeded = self.scheduler.finish(request)
            assert unneeded is (request.prompt not in wanted), "dropped too early or too late"
            if unneeded:
                self.drop([request.prompt])
            self.check()

    def cancel(self, question: str) -> None:
        self.cancelled.add(question)
        self.drop(self.scheduler.cancel(question))
        self.check()

    def drop(self, prompts: Sequence[SoftPrompt]) -> None:
        needed = {request.prompt for request in self.rows}
        assert needed.isdisjoint(prompts), "dropped although a row needs it"
        assert len(set(prompts)) == len(prompts)
        assert self.held.issuperset(prompts)
        self.held.difference_update(prompts)

    def check(self) -> None:
        assert self.scheduler.held_tokens == self.recount()
        assert self.recount() <= self.budget or len(self.held) <= 1

    def recount(self) -> int:
        if not self.share:
            return sum(map(len, self.held))
        prefixes = {prompt.prefix for prompt in self.held}
        return sum(map(len, prefixes)) + sum(len(prompt) - len(prompt.prefix) for prompt in self.held)


simulations = st.builds(
    Simulator,
    in_any_order(),
    num_rows=st.integers(1, 9),
    budget=st.one_of(st.integers(-5, 60), st.just(ENOUGH)),
    share=st.booleans(),
    order=st.randoms(use_true_random=False),
)


@quick
@given(in_any_order(), st.integers(1, 9), st.integers(-5, 60), st.booleans(), st.randoms(use_true_random=False))
def test_every_request_is_taken_once_and_in_the_order_it_came(
    requests: list[Request], num_rows: int, budget: int, share: bool, order: random.Random
) -> None:
    simulator = Simulator(requests, num_rows=num_rows, budget=budget, share=share, order=order).run()
    assert simulator.taken == requests
    assert simulator.scheduler.open == []


@quick
@given(simulations)
def test_nothing_is_held_in_the_end(simulator: Simulator) -> None:
    simulator.run()
    assert simulator.held == set()
    assert simulator.scheduler.held_tokens == 0


@quick
@given(in_any_order(), st.integers(1, 9), st.booleans())
def test_a_budget_of_one_token_holds_one_prompt_at_a_time(requests: list[Request], num_rows: int, share: bool) -> None:
    simulator = Simulator(requests, num_rows=num_rows, budget=1, share=share)
    simulator.fill()
    while simulator.rows:
        assert len({request.prompt for request in simulator.rows}) == 1
        assert len(simulator.held) == 1
        simulator.finish(simulator.order.sample(simulator.rows, 1))
        simulator.fill()
    assert simulator.taken == requests


@quick
@given(in_any_order(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_rows_are_never_idle_while_the_budget_allows(
    requests: list[Request], num_rows: int, order: random.Random
) -> None:
    simulator = Simulator(requests, num_rows=num_rows, order=order)
    simulator.fill()
    finished = 0
    while simulator.rows:
        assert len(simulator.rows) == min(num_rows, len(requests) - finished)
        leaving = order.sample(simulator.rows, order.randint(1, len(simulator.rows)))
        finished += len(leaving)
        simulator.finish(leaving)
        simulator.fill()
    assert finished == len(requests)


@quick
@given(in_grid_order(), st.integers(1, 9), st.booleans(), st.randoms(use_true_random=False))
def test_samples_that_follow_each_other_share_one_computation(
    requests: list[Request], num_rows: int, share: bool, order: random.Random
) -> None:
    simulator = Simulator(requests, num_rows=num_rows, share=share, order=order).run()
    assert simulator.computed == [prompt for prompt, _ in groupby(requests, key=lambda request: request.prompt)]


@pytest.mark.parametrize("num_rows", [1, 2, 3])
def test_one_prompt_is_computed_once_for_all_its_samples(num_rows: int) -> None:
    """Each row is filled alone, so that nothing but looking ahead tells that the prompt is still wanted."""
    prompt = prompt_of(0, 0, prefix=3, suffix=2)
    simulator = Simulator([Request(prompt, sample, 0) for sample in range(12)], num_rows=num_rows)
    simulator.fill()
    for together in [1, num_rows] * 12:
        simulator.finish(simulator.rows[:together])
        simulator.fill()
    assert len(simulator.taken) == 12
    assert simulator.computed == [prompt]


@quick
@given(simulations, st.integers(0, 6), st.data())
def test_a_cancelled_question_is_not_taken_any_more(simulator: Simulator, rounds: int, data: st.DataObject) -> None:
    """That nothing of it is taken, `fill` checks; that its prompts are released, `finish` and the end."""
    simulator.fill()
    for _ in range(rounds):
        if simulator.rows:
            simulator.finish([simulator.order.choice(simulator.rows)])
            simulator.fill()
    question = data.draw(st.sampled_from(["q0", "q1", "no such question"]))
    simulator.cancel(question)
    assert all(request.prompt.question_id != question for request in simulator.scheduler.open)
    simulator.finish([request for request in simulator.rows if request.prompt.question_id == question])
    assert all(prompt.question_id != question for prompt in simulator.held)
    before = len(simulator.taken)
    simulator.fill()
    simulator.run()
    assert list(simulator.source) == [], "the rest of the source was looked at"
    left = [r for r in simulator.source.consumed if r in simulator.taken or r.prompt.question_id != question]
    assert simulator.taken == left
    assert all(request.prompt.question_id != question for request in simulator.taken[before:])
    assert simulator.scheduler.held_tokens == 0


def test_the_prompt_of_a_cancelled_row_stays_until_the_row_is_done() -> None:
    prompt = prompt_of(0, 0, prefix=3, suffix=2)
    simulator = Simulator([Request(prompt, sample, 0) for sample in range(9)], num_rows=2)
    simulator.fill()
    simulator.cancel("q0")
    assert simulator.held == {prompt}
    simulator.finish(simulator.rows[:1])
    assert simulator.held == {prompt}
    simulator.finish(simulator.rows[:1])
    assert simulator.held == set()


def test_a_request_that_is_open_is_released_when_its_question_is_cancelled() -> None:
    """Two rows, so that one more request is looked at, and its prompt is computed ahead."""
    ahead = prompt_of(1, 0, prefix=3, suffix=2)
    first = [Request(prompt_of(0, 0, prefix=3, suffix=2), sample, 0) for sample in range(2)]
    simulator = Simulator([*first, Request(ahead, 0, 0)], num_rows=2)
    simulator.fill()
    assert ahead in simulator.held
    simulator.cancel("q1")
    assert ahead not in simulator.held
    assert simulator.run().taken == first


@quick
@given(st.integers(1, 40))
def test_the_source_is_read_no_further_than_a_quarter_of_the_rows_ahead(num_rows: int) -> None:
    endless = (Request(prompt_of(n // 3, 0, prefix=2, suffix=1), n % 3, 0) for n in range(10**9))
    source = Source(endless)
    scheduler = Scheduler(source, num_rows=num_rows, prompt_tokens=ENOUGH, share_prefix=True)
    assert source.consumed == []
    scheduler.prepare(num_rows)
    scheduler.take(num_rows)
    assert num_rows <= len(source.consumed) <= num_rows + max(1, num_rows // 4)


def test_prefixes_are_counted_once_where_they_are_shared() -> None:
    """2 paths of a prefix of 5 and suffixes of 2 and 3: 5 + 2 + 3 tokens, or 7 + 8."""
    requests = [Request(prompt_of(0, path, prefix=5, suffix=2 + path), 0, 0) for path in range(2)]
    for share, tokens in ((True, 10), (False, 15)):
        simulator = Simulator(requests, share=share)
        simulator.fill()
        assert simulator.scheduler.held_tokens == tokens


def test_a_prompt_waits_until_there_is_room_for_it() -> None:
    """Two prompts of 4 tokens, of different questions: 7 tokens hold one of them, 8 hold both."""
    requests = [Request(prompt_of(question, 0, prefix=3, suffix=1), 0, 0) for question in range(2)]
    for budget, together in ((7, 1), (8, 2)):
        simulator = Simulator(requests, budget=budget)
        simulator.fill()
        assert len(simulator.rows) == together
        assert simulator.run().taken == requests
