"""What all prompts of a run begin with is read once: a chat template's first words, an instruction, solved examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contrastive.forward import CaptureCache
from contrastive.prefix import WORTH_SHARING, after_prefix, common_beginning
from scaling.engines.local.attention import Groups, SharedLevel


class Beginning:
    """The tokens that all prefixes so far begin with, and their keys and values: at first the whole first prefix.

    Letters as in `attention`.
    """

    def __init__(self) -> None:
        self._ids: tuple[int, ...] | None = None
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    @property
    def known(self) -> bool:
        """Whether a prefix was read."""
        return self._ids is not None

    def start(self, prefix: tuple[int, ...], filled: CaptureCache) -> None:
        """Takes the first prefix. filled: its keys and values, [1, H, T, d] a layer."""
        self._ids, self._keys, self._values = prefix, filled.keys, filled.values

    def narrow(self, prefixes: Sequence[tuple[int, ...]]) -> int:
        """Keeps what these prefixes begin with, too; nothing where that is short. Returns how many tokens are left."""
        known = self._ids or ()
        common = common_beginning([known, *prefixes])
        left = common if common >= WORTH_SHARING else 0
        if left != len(known):
            self._ids = known[:left]
            self._keys = [keys[:, :, :left].clone() for keys in self._keys]  # and the rest is not held any longer
            self._values = [values[:, :, :left].clone() for values in self._values]
        return left

    def level(self, positions: Tensor) -> SharedLevel:
        """The beginning as the queries at `positions`, [R, X], see it."""
        zeros = positions.new_zeros(len(positions))
        length = torch.full_like(zeros[:1], len(self._ids or ()))
        return SharedLevel(
            self._keys,
            self._values,
            length,
            zeros[:1],
            Groups.of([0] * len(zeros), num_groups=1, device=zeros.device),
            positions,
            even=True,
        )

    def before(self, filled: CaptureCache) -> CaptureCache:
        """Whole prefixes. filled: keys and values of what follows the beginning in each, [R, H, T, d] a layer."""
        whole = CaptureCache()
        whole.keys = [after_prefix(keys, own) for keys, own in zip(self._keys, filled.keys, strict=True)]
        whole.values = [after_prefix(values, own) for values, own in zip(self._values, filled.values, strict=True)]
        return whole
