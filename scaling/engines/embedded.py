"""Soft prompts as rows of the backbone's embedding space: tokens are looked up, and thoughts stand between them.

`embedded` is for a model in this process, `EmbeddedPrompts` for an engine elsewhere that takes prompts as embeddings. A
question's prefix is the same, bit for bit, in the prompts of all its paths, so an engine that caches by content computes it
once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scaling.engines.base import SoftPrompt
from scaling.models.loading import LanguageModel
from scaling.records.errors import UsageError

# What is not kept is made again in tens of milliseconds, and the samples of a path follow each other but for `--adaptive`,
# where those of up to 2 x batch size prompts come by turns. This holds 32 prompts of 500 tokens of a 4096-wide backbone in
# bfloat16, the paths of a question and more, or all those that come by turns of a small one.
PROMPT_BYTES = 128 << 20
_TEXT_BYTES = 32 << 20  # of rows that prompts share

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


def embedded(model: PreTrainedModel, prompt: SoftPrompt) -> Tensor:
    """Input embeddings of a whole prompt, [T, D], on the model's device and in its dtype."""
    embed, device = model.get_input_embeddings(), model.device
    return _joined(
        prompt,
        lambda ids: embed(torch.tensor(ids, dtype=torch.long, device=device)),
        prompt.thoughts.to(device=device, dtype=model.dtype),
    )


def _joined(prompt: SoftPrompt, look_up: Callable[[tuple[int, ...]], Tensor], thoughts: Tensor) -> Tensor:
    """Puts a prompt together: the rows of its prefix, its thoughts, and the rows of its suffix, [T, D].

    Args:
        prompt: whose prefix and suffix are looked up.
        look_up: makes rows [T, D] of token ids.
        thoughts: the prompt's, [L, D], of the same dtype and on the same device as the rows.
    """
    return torch.cat([look_up(prompt.prefix), thoughts, look_up(prompt.suffix)])


class Recent(Generic[Key, Value]):
    """A cache of the values that were used last, as many as fit into a number of bytes, and always the very last."""

    def __init__(self, make: Callable[[Key], Value], *, size: Callable[[Value], int], limit: int) -> None:
        """
        Args:
            make: makes the value of a key that is not in the cache.
            size: bytes of a value.
            limit: bytes of all values together.
        """
        self._make, self._size, self._limit = make, size, limit
        self._held: OrderedDict[Key, Value] = OrderedDict()
        self.bytes = 0

    def __call__(self, key: Key) -> Value:
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        self._held[key] = value = self._make(key)
        self.bytes += self._size(value)
        while self.bytes > self._limit and len(self._held) > 1:
            _, oldest = self._held.popitem(last=False)
            self.bytes -= self._size(oldest)
        return value


class EmbeddedPrompts:
    """Makes embeddings of prompts for an engine elsewhere, and refuses prompts that would make it fail."""

    def __init__(self, embedding: torch.nn.Module, *, width: int, context: int, dtype: torch.dtype) -> None:
        """
        Args:
            embedding: makes of token ids [T] the rows [T, D] that the first layer receives.
            width: D.
            context: tokens of the longest prompt that the engine takes, plus one for the first token of the completion.
            dtype: of the engine.
        """
        self._embedding, self._width, self._context, self._dtype = embedding, width, context, dtype
        self._rows = Recent(self._look_up, size=_bytes, limit=_TEXT_BYTES)
        self.embed = Recent(self._embed, size=_bytes, limit=PROMPT_BYTES)

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
        """The embeddings of a prompt, [T, D] on the CPU in the engine's dtype.

        Raises UsageError as `check` does, and for thoughts that are too large for this dtype.
        """
        self.check(prompt)
        thoughts = prompt.thoughts.to("cpu", self._dtype)
        if not bool(thoughts.isfinite().all()):
            raise UsageError(
                f"the thoughts of question {prompt.question_id} are too large for {_plain(self._dtype)}: use `--dtype "
                f"bfloat16` or float32."
            )
        return _joined(prompt, self._rows, thoughts)

    def _look_up(self, ids: tuple[int, ...]) -> Tensor:
        rows: Tensor = self._embedding(torch.tensor(ids, dtype=torch.long))
        return rows.to(self._dtype)


def embedded_prompts(backbone: LanguageModel, *, dtype: str, context: int) -> EmbeddedPrompts:
    """Makes embeddings of a run's prompts.

    Args:
        backbone: whose input embeddings are used.
        dtype: of the run's models, by torch's name.
        context: as for `EmbeddedPrompts`.
    """
    embedding = backbone.model.get_input_embeddings()
    return EmbeddedPrompts(embedding, width=backbone.width, context=context, dtype=getattr(torch, dtype))


def _bytes(rows: Tensor) -> int:
    return rows.nbytes


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
