"""What a decoder does for the engine: hold prompts, put them into rows, feed every row one token. The decoders are in
`shared`, `plain` and `single`; `fitting` chooses among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from scaling.engines.base import SoftPrompt

PREFILL_TOKENS = 4096  # of one forward pass, padding included: bounds the memory of its activations


class Decoder(Protocol):
    """Rows in use are always the first `used`.

    share_prefix: whether prompts that begin alike share what is held. bytes_per_token: of keys and values, all layers.
    """

    share_prefix: bool

    @property
    def bytes_per_token(self) -> int: ...

    @property
    def used(self) -> int: ...

    def hold(self, prompts: Sequence[SoftPrompt]) -> int:
        """Computes keys and values of prompts; returns the number of tokens it computed."""
        ...

    def drop(self, prompt: SoftPrompt) -> None:
        """Forgets a prompt that no row uses."""
        ...

    def place(self, rows: Sequence[int], prompts: Sequence[SoftPrompt]) -> Tensor:
        """Starts a completion in each of `rows`, which are free, or follow the rows in use. Logits [len(rows), V]."""
        ...

    def remove(self, rows: Sequence[int]) -> list[int]:
        """Frees rows. Returns, for each row then in use, which row it was before."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds each row in use its last token, [used] int64. Logits [used, V] after it."""
        ...


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Which pieces to compute together: numbers of pieces, longest first, at most PREFILL_TOKENS with their padding."""
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        last = found[-1] if found else None
        if last and (len(last) + 1) * lengths[last[0]] <= PREFILL_TOKENS:
            last.append(number)
        else:
            found.append([number])
    return found


def compacted(used: int, gone: Sequence[int]) -> list[int]:
    """Row numbers after the last rows have moved into the places of those that are gone."""
    left = used - len(gone)
    leaving = set(gone)
    movers = [row for row in range(left, used) if row not in leaving]
    return [row if row not in leaving else movers.pop() for row in range(left)]
