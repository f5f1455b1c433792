"""The frozen backbone as the judge of thoughts: how probable they make a target text. Knows tokens, no tasks."""

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
from contrastive.prefix import states_after


@dataclass(frozen=True)
class Example:
    """One question with a text that answers it, as token ids.

    assistant: what the assistant reads before its slots. prefix, suffix: what stands before and after the thoughts in the
    backbone's prompt, as in runs. target: rationale, answer and end token. question: its id; several targets may share it.
    """

    question: str
    assistant: tuple[int, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    target: tuple[int, ...]


class UnsupportedModel(Exception):
    """A backbone that cannot be trained for; the message says why."""


class Reader:
    """backbone: frozen, in evaluation mode. Raises UnsupportedModel where it gives no logits for a text."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.backbone = backbone
        layer = backbone.get_output_embeddings()
        self._head, self._bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
        self._cap = getattr(backbone.config.get_text_config(), "final_logit_softcapping", None)
        # where the logits are more than the output layer's, they are made for every position, which takes more memory
        self._output = hidden_states if self._logits_are_the_layers() else logits

    def losses(self, examples: Sequence[Example], thoughts: Tensor) -> Tensor:
        """Negative log-likelihood of each example's target after each path's thoughts, its sum over tokens, [B, N] float32.

        thoughts: [B, N, L, D]; L may be 0, which is the same prompt without any. In nats.
        """
        _, paths, slots, _ = thoughts.shape
        device, embed = self.backbone.device, self.backbone.get_input_embeddings()
        tails, _ = pad_right([(*example.suffix, *example.target[:-1]) for example in examples], device)
        after = embed(tails)[:, None].expand(-1, paths, -1, -1)
        inputs = torch.cat([thoughts.to(after.dtype), after], dim=2)
        prefixes = [example.prefix for example in examples]
        states = states_after(self.backbone, prefixes, inputs, output=self._output)
        counts = torch.tensor([len(example.target) for example in examples], device=device)
        starts = torch.tensor([slots + len(example.suffix) - 1 for example in examples], device=device)
        return self._sums(states, examples, counts, starts)

    def whole(self, examples: Sequence[Example]) -> Tensor:
        """Negative log-likelihood of each example's target without thoughts, its sum over tokens, [B] float32, in nats.

        Unlike in `losses`, a gradient reaches every token's states: for a backbone that itself has something to learn.
        """
        device = self.backbone.device
        ids, mask = pad_right([(*one.prefix, *one.suffix, *one.target[:-1]) for one in examples], device)
        states = self._output(self.backbone, input_ids=ids, attention_mask=mask, use_cache=False)
        counts = torch.tensor([len(one.target) for one in examples], device=device)
        starts = torch.tensor([len(one.prefix) + len(one.suffix) - 1 for one in examples], device=device)
        return self._sums(states[:, None], examples, counts, starts)[:, 0]

    def _sums(self, states: Tensor, examples: Sequence[Example], counts: Tensor, starts: Tensor) -> Tensor:
        """states: [B, N, S, D], or logits [B, N, S, V]; what stands before each target token is turned into its loss."""
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
        if self._output is logits:
            return cross_entropy(states.float(), targets, reduction="none")
        assert self._head is not None  # where there is none, the logits are not the layers'
        return token_losses(states, self._head, self._bias, targets, cap=self._cap)

    @torch.no_grad()
    def _logits_are_the_layers(self) -> bool:
        """Whether the model's logits are those of its output layer on its last hidden states, tried on a few tokens."""
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
            found = token_losses(states, self._head, self._bias, ids[0, 1:], cap=self._cap)  # type: ignore[arg-type]
        except MODEL_ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        wanted = cross_entropy(expected.float(), ids[0, 1:], reduction="none")
        return torch.allclose(found, wanted, rtol=0.02, atol=0.02)


def logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """A model's logits at all positions, [B, S, V]."""
    found: Tensor = model(**inputs).logits
    return found
