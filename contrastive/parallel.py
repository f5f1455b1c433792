"""Several processes that train one thinker: each has the questions rank, rank + count ... of a batch. Knows no models."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch.distributed as dist
from torch import Tensor

Rows = TypeVar("Rows", bound=Any)  # a sequence or a tensor


class Processes:
    """All processes of `accelerate launch`, or this one alone where nothing was launched."""

    def __init__(self) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.rank, self.count = (dist.get_rank(), dist.get_world_size()) if active else (0, 1)

    def share(self, rows: Rows) -> Rows:
        """This process's part of what all have."""
        return rows[self.rank :: self.count]  # type: ignore[no-any-return]

    def gather(self, own: Tensor, total: int) -> Tensor:
        """What all processes have, [total, ...], from this one's share."""
        everyone = own.new_zeros(total, *own.shape[1:])
        everyone[self.rank :: self.count] = own.detach()
        self.add_up([everyone])
        return everyone

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces each tensor by its sum over the processes."""
        if self.count > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def collect(self, own: dict[Any, Any]) -> dict[Any, Any]:
        """The union of all processes' entries, in the order of their keys."""
        every: list[Any] = [own]
        if self.count > 1:
            every = [None] * self.count
            dist.all_gather_object(every, own)
        return dict(sorted((item for part in every for item in part.items()), key=lambda item: item[0]))

    def wait(self) -> None:
        if self.count > 1:
            dist.barrier()
