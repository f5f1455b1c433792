"""Fans questions out into N paths x M samples over an engine and reads each completion as it comes back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from scaling.engines.base import Decoding, Engine, Generated, Request, SoftPrompt
from scaling.methods.base import PromptSource
from scaling.records.adaptive import Stopping
from scaling.records.records import Completion, Key, Question
from scaling.records.seeds import stream_seed


@dataclass(frozen=True)
class Grid:
    """The samples a run wants: every question, paths 0 .. N-1, samples 0 .. M-1, with streams of `seed`.

    adaptive: the confidence with which a question's vote is decided and its other samples are not wanted, None for never.
    """

    questions: Sequence[Question]
    num_paths: int
    num_samples: int
    seed: int
    adaptive: float | None = None

    def missing(self, question: Question, done: Collection[Key]) -> list[tuple[int, int]]:
        """(path, sample) of a question that are not in `done`, path by path."""
        every = ((path, sample) for path in range(self.num_paths) for sample in range(self.num_samples))
        return [cell for cell in every if (question.id, *cell) not in done]

    def stopping(self, done: Iterable[Completion]) -> Stopping | None:
        """What stops questions early, told the completions that there are; None where every sample is wanted."""
        if self.adaptive is None:
            return None
        stopping = Stopping(num_paths=self.num_paths, num_samples=self.num_samples, confidence=self.adaptive)
        for completion in done:
            stopping.add(completion)
        return stopping


ReadCompletion = Callable[[Question, Generated], Completion]


def sample(
    grid: Grid,
    done: Collection[Key],
    *,
    method: PromptSource,
    engine: Engine,
    decoding: Decoding,
    read: ReadCompletion,
    stopping: Stopping | None = None,
    window: int = 1,
) -> Iterator[Completion]:
    """Yields the completions of the grid that are not done yet, in the order in which they finish.

    stopping: has been told the completions in `done`; a question that it calls decided is given up at once. window:
    questions whose samples are then drawn by turns.
    """
    by_id = {question.id: question for question in grid.questions}
    if stopping is None:
        results = engine.generate(_Lasting(lambda seen: requests(grid, seen, method), done), decoding)
    else:
        # a path's next sample is one wave away: seen two ahead, it still finds its prompt in memory
        wave = window * grid.num_paths
        source = _Lasting(lambda seen: waves(grid, seen, method, stopping, window), done)
        results = engine.generate(source, decoding, lookahead=2 * wave)
    for generated in results:
        completion = read(by_id[generated.request.prompt.question_id], generated)
        if stopping and stopping.add(completion):
            engine.cancel(completion.question_id)
        yield completion


class _Lasting(Iterator[Request]):
    """Requests that can go on after an error, where a generator would be at its end: thoughts take memory, and where it
    runs out, the engine makes room and asks again."""

    def __init__(self, make: Callable[[Collection[Key]], Iterator[Request]], done: Collection[Key]) -> None:
        """make: the requests that are not among some keys."""
        self._make, self._seen = make, set(done)
        self._requests = make(self._seen)

    def __next__(self) -> Request:
        try:
            request = next(self._requests)
        except (RuntimeError, MemoryError):
            self._requests = self._make(self._seen)
            raise
        self._seen.add((request.prompt.question_id, request.prompt.path, request.sample))
        return request


def requests(grid: Grid, done: Collection[Key], method: PromptSource) -> Iterator[Request]:
    """The requests still to be made, question by question; thoughts are computed as the engine asks for them."""
    for question in grid.questions:
        missing = grid.missing(question, done)
        if not missing:
            continue
        prompts = _prompts(question, {path for path, _ in missing}, method)
        for path, number in missing:
            yield _request(grid, prompts[path], number)


def waves(
    grid: Grid, done: Collection[Key], method: PromptSource, stopping: Stopping, window: int
) -> Iterator[Request]:
    """The requests still to be made of undecided questions: `window` questions at a time, their first samples first.

    While one question's samples are drawn, those of the others come back and may decide what is still to be asked.
    """
    questions = [q for q in grid.questions if grid.missing(q, done) and not stopping.decided(q.id)]
    for start in range(0, len(questions), window):
        prompts: dict[str, dict[int, SoftPrompt]] = {}
        together = questions[start : start + window]
        for number, question, path in product(range(grid.num_samples), together, range(grid.num_paths)):
            # looked up only now, as the engine asks for this very request
            if (question.id, path, number) in done or stopping.decided(question.id):
                continue
            if question.id not in prompts:
                prompts[question.id] = _prompts(question, range(grid.num_paths), method)
            yield _request(grid, prompts[question.id][path], number)


def _prompts(question: Question, paths: Collection[int], method: PromptSource) -> dict[int, SoftPrompt]:
    return dict(zip(sorted(paths), method.prompts(question, sorted(paths)), strict=True))


def _request(grid: Grid, prompt: SoftPrompt, number: int) -> Request:
    return Request(prompt, number, stream_seed(grid.seed, prompt.question_id, prompt.path, number))
