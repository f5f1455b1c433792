"""Prompt tuning: N constant prompts, the same for every question (arXiv 2104.08691).

It is what a thinker is worth whose thoughts carry nothing of their question.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from contrastive.thinker import ConstantPerSlot, Flops, Inputs, rare_constants


class PromptTuning(ConstantPerSlot):
    """Thoughts that are learned constants, N x L x D numbers. They read nothing."""

    kind: ClassVar[str] = "prompt-tuning"

    @classmethod
    def untrained(cls, rare_rows: Tensor, *, num_paths: int, num_slots: int, scale: float) -> PromptTuning:
        """Makes prompts of rare tokens. The arguments are those of `rare_constants`."""
        return cls(rare_constants(rare_rows, num_paths=num_paths, num_slots=num_slots, scale=scale))

    def flops(self) -> Flops:
        return Flops()

    def residual(self, inputs: Inputs, num_slots: int) -> Tensor:
        return self.offset.new_zeros(inputs.size, self.num_paths, num_slots, self.width)

    def sizes(self) -> dict[str, Any]:
        return {}

    @classmethod
    def shapes(cls, num_paths: int, soft_tokens: int, backbone_width: int) -> dict[str, list[int]]:
        return {"offset": [num_paths, soft_tokens, backbone_width]}

    @classmethod
    def empty(cls, num_paths: int, soft_tokens: int, backbone_width: int) -> PromptTuning:
        return cls(torch.zeros(num_paths, soft_tokens, backbone_width))
