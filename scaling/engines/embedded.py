"""Soft prompts as rows of the backbone's embedding space, for engines that take prompts as embeddings.

A question's prefix is looked up once and its rows are the same, bit for bit, in the prompts of all its paths, so that an
engine that caches by content computes them once.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from scaling.engines.base import SoftPrompt
from scaling.errors import UsageError

_PROMPTS, _TEXTS = 1024, 128  # prompts and prefixes that are kept


class EmbeddedPrompts:
    """Makes embeddings of prompts and refuses what an engine would choke on."""

    def __init__(self, embedding: torch.nn.Module, *, width: int, context: int, dtype: torch.dtype) -> None:
        """embedding: token ids -> what the first layer receives, [T] -> [T, D]. width: D. context: longest prompt, and the
        first token after it. dtype: of the engine."""
        self._embedding, self._width, self._context, self._dtype = embedding, width, context, dtype
        self._rows = lru_cache(_TEXTS)(self._looked_up)
        self.embed = lru_cache(_PROMPTS)(self._embed)

    def check(self, prompt: SoftPrompt) -> None:
        """Raises UsageError where a prompt's thoughts are not finite float32 [L, D], or where it is empty or too long."""
        thoughts, name = prompt.thoughts, f"question {prompt.question_id}, path {prompt.path}"
        if thoughts.ndim != 2 or thoughts.shape[1] != self._width:
            raise UsageError(
                f"the thoughts of {name} have shape {list(thoughts.shape)}, and the backbone takes [L, {self._width}]: "
                f"give a `--thinker` that was trained for this backbone."
            )
        if thoughts.dtype != torch.float32:
            raise UsageError(f"the thoughts of {name} are {_plain(thoughts.dtype)}, and must be float32.")
        if not bool(thoughts.isfinite().all()):
            raise UsageError(
                f"the thoughts of {name} are not numbers (NaN or infinite); check the `--thinker` checkpoint, or try "
                f"`--dtype float32`."
            )
        if not 0 < len(prompt) < self._context:
            raise UsageError(
                f"the prompt of {name} has {len(prompt)} tokens, and the engine takes 1 to {self._context - 1}: raise "
                f"`max_model_len` in `--engine-args`, or ask shorter questions."
            )

    @torch.inference_mode()
    def _embed(self, prompt: SoftPrompt) -> Tensor:
        """[T, D] on the CPU, of the engine's dtype. Raises UsageError as `check` does."""
        self.check(prompt)
        thoughts = prompt.thoughts.to("cpu", self._dtype)
        if not bool(thoughts.isfinite().all()):
            raise UsageError(
                f"the thoughts of question {prompt.question_id} are too large for {_plain(self._dtype)}: use `--dtype "
                f"bfloat16` or float32."
            )
        return torch.cat([self._rows(prompt.prefix), thoughts, self._rows(prompt.suffix)])

    def _looked_up(self, ids: tuple[int, ...]) -> Tensor:
        rows: Tensor = self._embedding(torch.tensor(ids, dtype=torch.long))
        return rows.to(self._dtype)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
