"""Several processes that train together and share the questions of every batch. Knows nothing of models.

The process with number `rank` of `count` takes the questions rank, rank + count, rank + 2 count, and so on.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

Rows = TypeVar("Rows", bound=Any)  # a sequence or a tensor


class Processes:
    """The processes started by `accelerate launch`, or this one alone where nothing was launched.

    Attributes:
        rank: number of this process, from 0.
        count: number of processes.
    """

    def __init__(self) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if active else (0, 1)

    def share(self, rows: Rows) -> Rows:
        """This process's share of rows that all processes know."""
        return rows[self.rank :: self.count]  # type: ignore[no-any-return]

    def gather(self, own: Tensor, total: int) -> Tensor:
        """Collects the rows of all processes, [total, ...]. own: this process's share. No gradient passes through."""
        # each process fills in its own rows of zeros, and the sum holds them all: shares may differ in length
        rows = own.new_zeros(total, *own.shape[1:])
        rows[self.rank :: self.count] = own.detach()
        self.add_up([rows])
        return rows

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def collect(self, own: dict[Any, Any]) -> dict[Any, Any]:
        """Merges the dicts of all processes into one, sorted by key. own: this process's dict."""
        parts: list[Any] = [own]
        if self.count > 1:
            parts = [None] * self.count
            dist.all_gather_object(parts, own)
        return dict(sorted((item for part in parts for item in part.items()), key=lambda item: item[0]))

    def wait(self) -> None:
        """Waits until all processes have come here."""
        if self.count > 1:
            dist.barrier()
