"""What an engine takes and gives. An engine knows neither tasks nor answers: prompts go in, token ids come out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from scaling.engines.stops import StopStrings


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Everything the backbone reads before it decodes: prefix tokens, soft thoughts, suffix tokens.

    prefix: token ids before the soft tokens, the same for all paths of a question.
    thoughts: [L, D] soft tokens in the backbone's embedding space, float32 (L = 0 for methods without soft tokens).
    suffix: token ids after the soft tokens, up to and including the assistant header.
    """

    question_id: str
    path: int
    prefix: tuple[int, ...]
    thoughts: Tensor
    suffix: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prefix) + self.thoughts.shape[0] + len(self.suffix)


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. Nothing else of a model's generation config is ever used.

    temperature: 0 is greedy. top_p: 1 is off. top_k: 0 is off. max_new_tokens counts the end token. log_probs: whether
    results carry their log-probability and self-certainty. stop: strings that end a completion as an end token does; their
    tokens are generated and counted, and who reads the text leaves them out. None where only end tokens do.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    log_probs: bool = False
    stop: StopStrings | None = None


@dataclass(frozen=True)
class Workload:
    """What a run is going to ask of its engine.

    Attributes:
        tokens_per_row: prompt and completion of the longest request, in tokens.
        slots: whether prompts have soft tokens.
        drawn: completions that the run has already.
    """

    tokens_per_row: int
    slots: bool
    drawn: int = 0


@dataclass(frozen=True, eq=False)
class Request:
    """One completion to sample: a soft prompt, the sample's number and the seed of its own random stream."""

    prompt: SoftPrompt
    sample: int
    seed: int


@dataclass(frozen=True, eq=False)
class Generated:
    """A finished request. tokens: generated ids, those of the end included where stop_reason is "end", which may be a token
    or a stop string. text, num_tokens: of an engine that tells no ids, None otherwise; `tokens` is then empty.

    log_prob: sum over the tokens of their log-probability under the model at temperature 1. self_certainty: mean over the
    tokens, in nats; see `scaling.engines.local.sampling.confidences`. Both None unless asked for.
    """

    request: Request
    tokens: list[int]
    stop_reason: str
    log_prob: float | None = None
    self_certainty: float | None = None
    text: str | None = None
    num_tokens: int | None = None


@dataclass
class Counters:
    """What the engine did, and what it spared by sharing, compared with a copy of the prompt for every completion.

    prefill_computed, prefill_avoided: prompt tokens. kv_bytes_held, kv_bytes_avoided: bytes of keys and values at their
    peak. decode_steps: forward passes of one token a row; decoded_rows: rows in them, of row_capacity that would have fit.
    cancelled_tokens: decoded for completions that were then cancelled. What an engine does not tell is 0.
    """

    prefill_computed: int = 0
    prefill_avoided: int = 0
    kv_bytes_held: int = 0
    kv_bytes_avoided: int = 0
    decode_steps: int = 0
    decoded_rows: int = 0
    row_capacity: int = 0
    cancelled_tokens: int = 0


class Engine(Protocol):
    """Samples requests and yields each as it finishes, in any order. batch_size: completions that are drawn together."""

    counters: Counters
    batch_size: int

    def generate(self, requests: Iterable[Request], decoding: Decoding, *, lookahead: int = 0) -> Iterator[Generated]:
        """lookahead: requests to see ahead of time, where the same prompts come back after others."""
        ...

    def cancel(self, question_id: str) -> None:
        """Gives up what is left of a question; takes effect before the next token."""
        ...

    def close(self) -> None:
        """Ends what the engine has started. A second call does nothing."""
        ...
