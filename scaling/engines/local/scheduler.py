"""Which request is decoded when: keeps every row busy and memory within its bound. Knows no tensors.

A request is *waiting* until its prompt's keys and values are held, then *ready*, then in a row. A prompt is held as long as
requests that were seen need it; a prefix is held once for all prompts that begin with it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice

from scaling.engines.base import Request, SoftPrompt


class Scheduler:
    """Decides which request is decoded next, and which prompts are held meanwhile.

    Args:
        source: of the requests.
        num_rows: how many completions are decoded together.
        prompt_tokens: most tokens of prompts that are held at once; a single prompt may be longer.
        share_prefix: whether a prefix that several prompts share is held, and counted, once.
        lookahead: how many requests are read ahead of time, besides the few that the rows need next. A prompt to which they
            come back is then still held.
    """

    def __init__(
        self, source: Iterator[Request], *, num_rows: int, prompt_tokens: int, share_prefix: bool, lookahead: int = 0
    ) -> None:
        self._source = source
        self._prompt_tokens, self._share = prompt_tokens, share_prefix
        self._ahead = max(1, num_rows // 4)  # prompts are computed some requests ahead, so that several share a pass
        self._lookahead = lookahead
        self._waiting: deque[Request] = deque()
        self._ready: deque[Request] = deque()
        self._wanted: Counter[SoftPrompt] = Counter()  # requests seen and not finished
        self._needed: Counter[SoftPrompt] = Counter()  # those of them that are ready or in a row
        self._held: dict[SoftPrompt, None] = {}
        self._prefixes: Counter[tuple[int, ...]] = Counter()
        self._cancelled: set[str] = set()
        self.held_tokens = 0

    @property
    def open(self) -> list[Request]:
        """Requests seen and in no row."""
        return [*self._ready, *self._waiting]

    def prepare(self, free: int) -> tuple[list[SoftPrompt], list[SoftPrompt]]:
        """Prompts to compute so that `free` rows can be filled, and prompts to drop before that."""
        self._pull(max(free - len(self._ready), 0) + self._ahead + self._lookahead)
        if len(self._ready) > free:
            return [], []
        new: list[SoftPrompt] = []
        dropped: list[SoftPrompt] = []
        while self._waiting and len(self._ready) < free + self._ahead:
            prompt = self._waiting[0].prompt
            if prompt not in self._held:
                if self._too_many(prompt):
                    dropped += self._drop_idle()
                if self._too_many(prompt) and self._needed.total():
                    break
                self._hold(prompt)
                new.append(prompt)
            self._needed[prompt] += 1
            self._ready.append(self._waiting.popleft())
        return new, dropped

    def take(self, free: int) -> list[Request]:
        """The next requests for `free` rows; their prompts are held."""
        return [self._ready.popleft() for _ in range(min(free, len(self._ready)))]

    def finish(self, request: Request) -> bool:
        """A request has left its row for good; whether nobody needs its prompt any more, so that it is to be dropped."""
        prompt = request.prompt
        self._needed[prompt] -= 1
        return self._forget(prompt)

    def cancel(self, question_id: str) -> list[SoftPrompt]:
        """Requests of a question that are in no row are given up; returns prompts to drop."""
        self._cancelled.add(question_id)
        dropped = []
        for queue, ready in ((self._ready, True), (self._waiting, False)):
            for request in [r for r in queue if r.prompt.question_id == question_id]:
                queue.remove(request)
                self._needed[request.prompt] -= ready
                if self._forget(request.prompt):
                    dropped.append(request.prompt)
        return dropped

    def _pull(self, number: int) -> None:
        while len(self._waiting) < number and (taken := list(islice(self._source, 1))):
            if taken[0].prompt.question_id not in self._cancelled:
                self._waiting += taken
                self._wanted[taken[0].prompt] += 1

    def _forget(self, prompt: SoftPrompt) -> bool:
        self._wanted[prompt] -= 1
        if self._wanted[prompt] or prompt not in self._held:
            return False
        self._release(prompt)
        return True

    def _cost(self, prompt: SoftPrompt) -> int:
        """Tokens that holding this prompt adds."""
        shared = self._share and self._prefixes[prompt.prefix] > 0
        return len(prompt) - (len(prompt.prefix) if shared else 0)

    def _too_many(self, prompt: SoftPrompt) -> bool:
        return self.held_tokens + self._cost(prompt) > self._prompt_tokens

    def _hold(self, prompt: SoftPrompt) -> None:
        self.held_tokens += self._cost(prompt)
        self._held[prompt] = None
        self._prefixes[prompt.prefix] += 1

    def _release(self, prompt: SoftPrompt) -> None:
        del self._held[prompt]
        self._prefixes[prompt.prefix] -= 1
        self.held_tokens -= self._cost(prompt)

    def _drop_idle(self) -> list[SoftPrompt]:
        """Gives up prompts that only waiting requests need; they are computed again when their turn comes."""
        idle = [prompt for prompt in self._held if not self._needed[prompt]]
        for prompt in idle:
            self._release(prompt)
        return idle
