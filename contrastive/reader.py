"""The frozen backbone as the judge of thoughts: how probable they make a target text. Knows tokens, no tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from contrastive import prefix
from contrastive.losses import token_losses


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
    """A backbone whose logits are more than its output layer's; the message says so."""


class Reader:
    """backbone: frozen, in evaluation mode. Raises UnsupportedModel where its logits cannot be worked out in parts."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        self.backbone = backbone
        layer = backbone.get_output_embeddings()
        self._head, self._bias = layer.weight, getattr(layer, "bias", None)
        self._cap = getattr(backbone.config.get_text_config(), "final_logit_softcapping", None)
        self._check()

    def losses(self, examples: Sequence[Example], thoughts: Tensor) -> Tensor:
        """Negative log-likelihood of each example's target after each path's thoughts, its sum over tokens, [B, N] float32.

        thoughts: [B, N, L, D]; L may be 0, which is the same prompt without any. In nats.
        """
        batch, paths, slots, _ = thoughts.shape
        device, embed = self.backbone.device, self.backbone.get_input_embeddings()
        before = prefix.read(self.backbone, *padded([example.prefix for example in examples], device))
        tails, _ = padded([(*example.suffix, *example.target[:-1]) for example in examples], device)
        after = embed(tails).repeat_interleave(paths, dim=0)
        inputs = torch.cat([thoughts.flatten(0, 1).to(after.dtype), after], dim=1)
        length = inputs.shape[1]
        positions = (before.lengths[:, None] + torch.arange(length, device=device)).repeat_interleave(paths, dim=0)
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        states = prefix.go_on(self.backbone, before, inputs, positions, causal)
        counts = torch.tensor([len(example.target) for example in examples], device=device)
        starts = torch.tensor([slots + len(example.suffix) - 1 for example in examples], device=device)
        return self._sums(states.view(batch, paths, length, -1), examples, counts, starts)

    def whole(self, examples: Sequence[Example]) -> Tensor:
        """Negative log-likelihood of each example's target without thoughts, its sum over tokens, [B] float32, in nats.

        Unlike in `losses`, a gradient reaches every token's states: for a backbone that itself has something to learn.
        """
        device = self.backbone.device
        ids, mask = padded([(*one.prefix, *one.suffix, *one.target[:-1]) for one in examples], device)
        states = self.backbone.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        counts = torch.tensor([len(one.target) for one in examples], device=device)
        starts = torch.tensor([len(one.prefix) + len(one.suffix) - 1 for one in examples], device=device)
        return self._sums(states[:, None], examples, counts, starts)[:, 0]

    def _sums(self, states: Tensor, examples: Sequence[Example], counts: Tensor, starts: Tensor) -> Tensor:
        """states: [B, N, S, D]; the state before each target token is turned into its loss."""
        batch, paths = states.shape[:2]
        question = torch.arange(batch, device=counts.device).repeat_interleave(counts)
        place = torch.cat(
            [start + torch.arange(n, device=counts.device) for start, n in zip(starts, counts, strict=True)]
        )
        targets = torch.tensor([token for example in examples for token in example.target], device=counts.device)
        chosen = states.transpose(1, 2)[question, place].flatten(0, 1)  # [tokens * N, D]
        losses = token_losses(chosen, self._head, self._bias, targets.repeat_interleave(paths), cap=self._cap)
        return losses.new_zeros(batch, paths).index_add(0, question, losses.view(-1, paths))

    @torch.no_grad()
    def _check(self) -> None:
        ids = torch.arange(5, 13, device=self.backbone.device)[None]
        logits = self.backbone(input_ids=ids, use_cache=False).logits[0, :-1].float()
        states = self.backbone.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
        expected = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
        found = token_losses(states, self._head, self._bias, ids[0, 1:], cap=self._cap)
        if not torch.allclose(found, expected, rtol=0.02, atol=0.02):
            raise UnsupportedModel(f"{type(self.backbone).__name__} changes the logits of its output layer")


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [B, T] int64, padded on the right, where causal attention never looks."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True).to(device), mask.to(device)
