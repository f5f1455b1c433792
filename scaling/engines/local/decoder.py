"""The interface of a decoder, which turns the last tokens of all rows into logits.

It computes prompts and holds their keys and values, puts them into rows, and feeds every row one token at a time. The
decoders are in `shared`, `plain` and `single`, and `fitting` chooses among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from scaling.engines.base import SoftPrompt

PREFILL_TOKENS = 4096  # of one forward pass, padding included: bounds the memory of its activations


class Decoder(Protocol):
    """Decodes one token at a time in many rows. The rows in use are always the first `used` ones.

    Attributes:
        share_prefix: whether prompts with the same prefix share its keys and values.
        bytes_per_token: bytes of the keys and values of a token in all layers.
        used: how many rows are in use.
    """

    share_prefix: bool

    @property
    def bytes_per_token(self) -> int: ...

    @property
    def used(self) -> int: ...

    def hold(self, prompts: Sequence[SoftPrompt]) -> int:
        """Computes and holds the keys and values of prompts. Returns the number of tokens that were computed."""
        ...

    def drop(self, prompt: SoftPrompt) -> None:
        """Forgets a prompt that no row uses."""
        ...

    def place(self, rows: Sequence[int], prompts: Sequence[SoftPrompt]) -> Tensor:
        """Starts a completion in each of `rows`, which are free or follow the rows in use.

        Returns:
            The logits after each prompt, [len(rows), V].
        """
        ...

    def remove(self, rows: Sequence[int]) -> list[int]:
        """Frees rows and closes the gaps. Returns, for each row that is still in use, which row it was before."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Feeds each row in use its last token, [used] int64. Returns the logits after it, [used, V]."""
        ...


def batches(lengths: Sequence[int]) -> list[list[int]]:
    """Groups pieces of text into batches of at most PREFILL_TOKENS tokens, padding included. Longer pieces come first.

    Args:
        lengths: of the pieces, in tokens.

    Returns:
        The numbers of the pieces in each batch.
    """
    grouped: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        last = grouped[-1] if grouped else None
        if last and (len(last) + 1) * lengths[last[0]] <= PREFILL_TOKENS:
            last.append(number)
        else:
            grouped.append([number])
    return grouped


def on_device(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Numbers that the host knows, as an int64 tensor on a device.

    The host does not wait until the device has done what it was given before, as it would with `torch.tensor` alone.
    """
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


def index_of(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """What picks rows of a tensor on a device: a slice where they follow each other, so that nothing has to be copied."""
    following = range(rows[0], rows[0] + len(rows)) if rows else range(0)
    return slice(following.start, following.stop) if list(rows) == list(following) else on_device(rows, device)


def compacted(used: int, gone: Sequence[int]) -> list[int]:
    """Row numbers after the last rows have moved into the places of those that are gone."""
    left = used - len(gone)
    leaving = set(gone)
    movers = [row for row in range(left, used) if row not in leaving]
    return [row if row not in leaving else movers.pop() for row in range(left)]
