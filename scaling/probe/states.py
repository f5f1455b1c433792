"""Reads an assistant's states at the places that thoughts could be made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from contrastive.forward import decoder_of
from contrastive.token_sets import SoftTokenSets
from contrastive.windows import switches
from scaling.models.loading import LanguageModel

SLOTS, LAST, MEAN = "slots", "last", "mean"
PLACES = {SLOTS: "the slots", LAST: "the last prompt token", MEAN: "the mean over the prompt"}
_BATCH = 8


@torch.no_grad()
def read_states(
    assistant: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    num_slots: int,
    layers: Sequence[int],
    advance: Callable[[int], None] = lambda _: None,
) -> dict[tuple[str, int], Tensor]:
    """The states of an untrained thinker's assistant, whose slots hold its rarest token.

    Args:
        assistant: the frozen model.
        prompts: what it reads before its slots, as token ids.
        num_slots: L.
        layers: whose states are wanted; 0 for the embeddings, and the last for the last hidden states.
        advance: is called with the number of prompts that were read.

    Returns:
        By place and layer: [Q, L * D_a] for the slots, side by side, and [Q, D_a] for the last prompt token and the mean.
    """
    slots = SoftTokenSets.from_rows(assistant.rare_rows(), 1)(num_slots)[0]
    slots = slots.to(device=assistant.model.device, dtype=assistant.model.dtype)
    kept: dict[tuple[str, int], list[Tensor]] = {(place, layer): [] for layer in layers for place in PLACES}
    batch = 1 if switches(assistant.model) else _BATCH  # padding would make short texts long, whose keys are others
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        for row, of_layers in zip(rows, _hidden(assistant.model, rows, slots, layers), strict=True):
            for layer, states in zip(layers, of_layers, strict=True):
                read = states[: len(row)]
                kept[SLOTS, layer].append(states[len(row) : len(row) + num_slots].flatten())
                kept[LAST, layer].append(read[-1])
                kept[MEAN, layer].append(read.mean(0))
        advance(len(rows))
    return {key: torch.stack(states) for key, states in kept.items()}


def _hidden(model: Any, rows: Sequence[Sequence[int]], slots: Tensor, layers: Sequence[int]) -> Tensor:
    """States [B, layers, T, D_a] float32 on the CPU, padded on the right."""
    embed = model.get_input_embeddings()
    inputs = [torch.cat([embed(torch.tensor(row, device=slots.device)), slots]) for row in rows]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.long, device=slots.device) for row in inputs], True)
    outputs = decoder_of(model)(
        inputs_embeds=pad_sequence(inputs, batch_first=True),
        attention_mask=mask,
        output_hidden_states=True,
        use_cache=False,
    )
    return torch.stack([outputs.hidden_states[layer].float().cpu() for layer in layers], dim=1)
