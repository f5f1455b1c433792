"""The interface of an engine: the requests that it takes and the results that it gives.

An engine knows neither tasks nor answers. Prompts go in, and token ids come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from scaling.engines.stops import StopStrings


@dataclass(frozen=True, eq=False)
class KeysAndValues:
    """The keys and values of tokens that a method has read itself.

    Attributes:
        keys: of each layer, [H, T, d], with H heads of width d, on the engine's device and in its dtype.
        values: the same for values.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class SoftPrompt:
    """Everything the backbone reads before it decodes: prefix tokens, soft thoughts, suffix tokens.

    Attributes:
        question_id: the question's.
        path: number of the latent path, from 0.
        prefix: token ids before the soft tokens, the same for all paths of a question.
        thoughts: soft tokens in the backbone's embedding space, [L, D] float32; L is 0 for methods without soft tokens.
        suffix: token ids after the soft tokens, up to and including the header of the model's turn.
        read: keys and values of prefix and soft tokens, where the method has read them with other weights than the
            engine's. The engine then reads the suffix alone, which is not empty. Only an engine in this process can.
    """

    question_id: str
    path: int
    prefix: tuple[int, ...]
    thoughts: Tensor
    suffix: tuple[int, ...]
    read: KeysAndValues | None = None

    def __len__(self) -> int:
        return len(self.prefix) + self.thoughts.shape[0] + len(self.suffix)


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen. These settings alone decide; a model's generation config adds nothing to them.

    Attributes:
        temperature: 0 for greedy decoding.
        top_p: probability mass of the nucleus that tokens are drawn from, 1 for no limit.
        top_k: number of tokens that are drawn from, 0 for no limit.
        max_new_tokens: most tokens of a completion, the end token included.
        log_probs: whether results carry their log-probability and self-certainty.
        stop: strings that end a completion as an end token does. Their tokens are generated and counted, and are left out
            when the text is read. None where only end tokens end a completion.
    """

    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    log_probs: bool = False
    stop: StopStrings | None = None


@dataclass(frozen=True)
class Workload:
    """How much a run will ask of its engine.

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
    """One completion to sample.

    Attributes:
        prompt: what the backbone reads.
        sample: number of the sample of this prompt, from 0.
        seed: of the sample's own random stream.
    """

    prompt: SoftPrompt
    sample: int
    seed: int


@dataclass(frozen=True, eq=False)
class Generated:
    """A finished completion.

    Attributes:
        request: what was asked for.
        tokens: generated ids. Where stop_reason is "end", the end token or the stop string is among them. Empty from an
            engine that tells no ids.
        stop_reason: "end", or "length" where max_new_tokens was reached.
        log_prob: sum of the tokens' log-probabilities under the model at temperature 1, in nats; None unless asked for.
        self_certainty: mean over the tokens, in nats, see `scaling.engines.local.sampling.confidences`; None unless asked
            for.
        text: from an engine that tells no ids, None otherwise.
        num_tokens: from an engine that tells no ids, None otherwise.
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
    """What the engine has computed, and what sharing has saved, compared with a prompt computed for every completion.

    A counter that an engine does not know is 0.

    Attributes:
        prefill_computed: prompt tokens that were computed.
        prefill_avoided: prompt tokens that sharing has saved.
        kv_bytes_held: bytes of keys and values at their peak.
        kv_bytes_avoided: bytes that sharing has saved at their peak.
        decode_steps: forward passes that decode one token in each row.
        decoded_rows: rows in these passes that were in use.
        row_capacity: rows that would have fit into these passes.
        cancelled_tokens: tokens decoded for completions that were then cancelled.
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
    """Samples completions.

    Attributes:
        counters: what it has computed so far.
        batch_size: how many completions are sampled together.
    """

    counters: Counters
    batch_size: int

    def generate(self, requests: Iterable[Request], decoding: Decoding, *, lookahead: int = 0) -> Iterator[Generated]:
        """Yields every request's completion once, as soon as it is finished, in any order.

        Args:
            requests: read only as there is room for more.
            decoding: how tokens are chosen.
            lookahead: how many requests are read ahead of time, where the same prompts come back after others.
        """
        ...

    def cancel(self, question_id: str) -> None:
        """Stops all completions of a question. This takes effect before the next token; they are not yielded."""
        ...

    def close(self) -> None:
        """Ends what the engine has started, such as processes. A second call does nothing."""
        ...
