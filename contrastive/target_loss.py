"""Computes how probable the frozen backbone finds a target text, with thoughts in its prompt or without.

Knows token ids, no texts and no tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from contrastive.forward import MODEL_ERRORS, hidden_states, pad_right
from contrastive.losses import token_losses
from contrastive.prefix import Prefix, can_extend, prefill, states_after


@dataclass(frozen=True)
class Example:
    """One question with a text that answers it, as token ids.

    Attributes:
        question: id of the question; several examples may have the same question.
        assistant: what the assistant reads before its slots.
        prefix: what stands before the thoughts in the backbone's prompt.
        suffix: what stands after the thoughts in the backbone's prompt.
        target: what the backbone is to say: rationale, answer and end token.
        template: the same for questions that differ only in numbers and names; empty where that is not known.
    """

    question: str
    assistant: tuple[int, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    target: tuple[int, ...]
    template: str = ""


class UnsupportedModel(Exception):
    """A backbone whose losses cannot be computed. The message says why."""


class Reader:
    """Computes losses of target texts with a backbone."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        """backbone: frozen and in evaluation mode. Raises UnsupportedModel where it computes no logits for embeddings."""
        self.backbone = backbone
        layer = backbone.get_output_embeddings()
        self._head, self._bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        self._cap = getattr(backbone.config.get_text_config(), "final_logit_softcapping", None)
        # Usually the logits are those of the output layer on the last hidden states: then only the states of the target
        # tokens go through that layer. A model that does more to its logits computes them at all positions, in more memory.
        self._output = hidden_states if self._logits_are_the_layers() else logits

    def read_prefixes(self, examples: Sequence[Example]) -> Prefix | None:
        """Keys and values of the examples' prefixes, for `losses`; None for a model that cannot go on from them."""
        if not can_extend(self.backbone):
            return None
        return prefill(self.backbone, *pad_right([example.prefix for example in examples], self.backbone.device))

    def losses(self, examples: Sequence[Example], thoughts: Tensor, *, before: Prefix | None = None) -> Tensor:
        """Negative log-likelihood of each example's target after each path's thoughts, summed over its tokens, in nats.

        Only the thoughts get a gradient.

        Args:
            examples: B of them.
            thoughts: [B, N, L, D]. With L = 0 the prompt is the same one without thoughts.
            before: what `read_prefixes` returned for these examples, so that prefixes are not read again.

        Returns:
            [B, N] float32.
        """
        _, paths, slots, _ = thoughts.shape
        device, embed = self.backbone.device, self.backbone.get_input_embeddings()
        # the last target token is only predicted, so that the model need not read it
        tails, _ = pad_right([(*example.suffix, *example.target[:-1]) for example in examples], device)
        after = embed(tails)[:, None].expand(-1, paths, -1, -1)
        inputs = torch.cat([thoughts.to(after.dtype), after], dim=2)
        prefixes = [example.prefix for example in examples]
        states = states_after(self.backbone, prefixes, inputs, output=self._output, before=before)
        counts = torch.tensor([len(example.target) for example in examples], device=device)
        # the state before the first target token, which predicts it, is the last one of the suffix
        starts = torch.tensor([slots + len(example.suffix) - 1 for example in examples], device=device)
        return self._sums(states, examples, counts, starts)

    def whole(self, examples: Sequence[Example]) -> Tensor:
        """Negative log-likelihood of each example's target without thoughts, summed over its tokens, [B] float32, in nats.

        Unlike in `losses`, a gradient flows through all positions: this is for training the backbone itself.
        """
        device = self.backbone.device
        ids, mask = pad_right(
            [(*example.prefix, *example.suffix, *example.target[:-1]) for example in examples], device
        )
        states = self._output(self.backbone, input_ids=ids, attention_mask=mask, use_cache=False)
        counts = torch.tensor([len(example.target) for example in examples], device=device)
        starts = torch.tensor([len(example.prefix) + len(example.suffix) - 1 for example in examples], device=device)
        return self._sums(states[:, None], examples, counts, starts)[:, 0]

    def _sums(self, states: Tensor, examples: Sequence[Example], counts: Tensor, starts: Tensor) -> Tensor:
        """Sums the losses of the target tokens of each example and path, [B, N] float32.

        Args:
            states: [B, N, S, D], or logits [B, N, S, V] where the model's own are used.
            examples: B of them.
            counts: [B] int64, target tokens of each example.
            starts: [B] int64, where in S the state is that predicts the first target token.
        """
        batch, paths = states.shape[:2]
        question = torch.arange(batch, device=counts.device).repeat_interleave(counts)
        place = torch.cat(
            [start + torch.arange(n, device=counts.device) for start, n in zip(starts, counts, strict=True)]
        )
        targets = torch.tensor([token for example in examples for token in example.target], device=counts.device)
        chosen = states.transpose(1, 2)[question, place].flatten(0, 1)  # [tokens * N, D]
        losses = self._token_losses(chosen, targets.repeat_interleave(paths))
        return losses.new_zeros(batch, paths).index_add(0, question, losses.view(-1, paths))

    def _token_losses(self, states: Tensor, targets: Tensor) -> Tensor:
        """Loss of each target token, [T] float32. states: [T, D], or logits [T, V]; targets: [T] int64."""
        if self._output is logits:
            return cross_entropy(states.float(), targets, reduction="none")
        assert self._head is not None  # without an output layer, the model's own logits are used
        return token_losses(states, self._head, self._bias, targets, cap=self._cap)

    @torch.no_grad()
    def _logits_are_the_layers(self) -> bool:
        """Whether the model's logits are just its output layer on its last hidden states; tried on a few tokens."""
        ids = torch.arange(5, 13, device=self.backbone.device)[None]
        embedded = self.backbone.get_input_embeddings()(ids)
        try:
            expected = logits(self.backbone, inputs_embeds=embedded, use_cache=False)[0, :-1]
        except MODEL_ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).partition("\n")[0]
            raise UnsupportedModel(
                f"{type(self.backbone).__name__} gives no logits for embeddings: {reason}"
            ) from error
        try:
            states = hidden_states(self.backbone, inputs_embeds=embedded, use_cache=False)[0, :-1]
            actual = token_losses(states, self._head, self._bias, ids[0, 1:], cap=self._cap)  # type: ignore[arg-type]
        except MODEL_ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        expected_losses = cross_entropy(expected.float(), ids[0, 1:], reduction="none")
        return torch.allclose(actual, expected_losses, rtol=0.02, atol=0.02)


def logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Computes a model's logits at all positions, [B, S, V]. inputs: as of the model's own forward pass."""
    values: Tensor = model(**inputs).logits
    return values
