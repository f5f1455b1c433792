"""Draws the samples of a run: asks an engine for N paths x M samples of every question, and reads what comes back.

Knows the engine's interface and the method's, but neither files nor tasks.
"""

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
    """The samples that a run wants: of every question, on paths 0 .. N-1, the samples 0 .. M-1.

    Attributes:
        questions: the questions.
        num_paths: N.
        num_samples: M.
        seed: the run's seed, which the random stream of every sample depends on.
        adaptive: the confidence at which a question's vote counts as decided, so that its other samples are not wanted.
            None for wanting all.
    """

    questions: Sequence[Question]
    num_paths: int
    num_samples: int
    seed: int
    adaptive: float | None = None

    def missing(self, question: Question, done: Collection[Key]) -> list[tuple[int, int]]:
        """The (path, sample) of a question that are not in `done`, path by path. done: keys of completions."""
        cells = ((path, sample) for path in range(self.num_paths) for sample in range(self.num_samples))
        return [cell for cell in cells if (question.id, *cell) not in done]

    def stopping(self, done: Iterable[Completion]) -> Stopping | None:
        """What decides that a question needs no more samples; None where every sample is wanted.

        done: the completions that are already there, which count.
        """
        if self.adaptive is None:
            return None
        stopping = Stopping(num_paths=self.num_paths, num_samples=self.num_samples, confidence=self.adaptive)
        for completion in done:
            stopping.add(completion)
        return stopping


ReadCompletion = Callable[[Question, Generated], Completion]  # finds the answers in what an engine has generated


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
    """Draws the samples of a grid that are still missing.

    Args:
        grid: the samples that the run wants.
        done: keys of the completions that are already there.
        method: makes the prompts.
        engine: generates the tokens.
        decoding: how tokens are sampled.
        read: turns generated tokens into a completion with its answers.
        stopping: decides when a question needs no more samples; it knows the completions in `done`. None draws them all.
        window: with `stopping`, the number of questions whose samples are drawn in turn.

    Yields:
        The new completions, in the order in which they finish.
    """
    by_id = {question.id: question for question in grid.questions}
    if stopping is None:
        results = engine.generate(_Lasting(lambda seen: requests(grid, seen, method), done), decoding)
    else:
        # The next sample of a path is requested one wave later. An engine that looks two waves ahead sees it in time to keep
        # the prompt of that path in memory.
        wave = window * grid.num_paths
        source = _Lasting(lambda seen: waves(grid, seen, method, stopping, window), done)
        results = engine.generate(source, decoding, lookahead=2 * wave)
    for generated in results:
        completion = read(by_id[generated.request.prompt.question_id], generated)
        if stopping and stopping.add(completion):
            engine.cancel(completion.question_id)
        yield completion


class _Lasting(Iterator[Request]):
    """An iterator over requests that can continue after an error.

    Thoughts are computed while requests are made, and may run out of memory. The engine then frees some and asks again. A
    generator would have ended with the error; here a new one is made that leaves out the requests already given.
    """

    def __init__(self, make: Callable[[Collection[Key]], Iterator[Request]], done: Collection[Key]) -> None:
        """make: makes the requests whose keys are not in a collection. done: the first such collection."""
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
    """The missing requests of a grid, question by question.

    Thoughts are computed when the engine asks for the first request of their question.

    Args:
        grid: the samples that the run wants.
        done: keys of the samples that are not missing.
        method: makes the prompts.
    """
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
    """The missing requests of questions that are not decided, several questions at a time.

    First come the first samples of these questions, then their second ones, and so on. While the samples of one question
    are drawn, those of the others come back, and may decide that no more are needed.

    Args:
        grid: the samples that the run wants.
        done: keys of the samples that are not missing.
        method: makes the prompts.
        stopping: says which questions are decided.
        window: number of questions at a time.
    """
    questions = [q for q in grid.questions if grid.missing(q, done) and not stopping.decided(q.id)]
    for start in range(0, len(questions), window):
        prompts: dict[str, dict[int, SoftPrompt]] = {}
        together = questions[start : start + window]
        for number, question, path in product(range(grid.num_samples), together, range(grid.num_paths)):
            # checked as late as possible, when the engine asks for this request: the question may just have been decided
            if (question.id, path, number) in done or stopping.decided(question.id):
                continue
            if question.id not in prompts:
                prompts[question.id] = _prompts(question, range(grid.num_paths), method)
            yield _request(grid, prompts[question.id][path], number)


def _prompts(question: Question, paths: Collection[int], method: PromptSource) -> dict[int, SoftPrompt]:
    """The prompts of some paths of a question, by path."""
    return dict(zip(sorted(paths), method.prompts(question, sorted(paths)), strict=True))


def _request(grid: Grid, prompt: SoftPrompt, number: int) -> Request:
    """The request for a sample, with the seed of its random stream."""
    return Request(prompt, number, stream_seed(grid.seed, prompt.question_id, prompt.path, number))
