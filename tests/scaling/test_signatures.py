"""Logits are computed of the positions that are asked for, from states that lie one after the other in memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from scaling.engines.base import SoftPrompt
from scaling.engines.local.plain import PlainDecoder
from scaling.engines.local.shared import SharedPrefixDecoder
from scaling.models.signatures import positions_to_keep

MakeModel = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("kind", [SharedPrefixDecoder, PlainDecoder])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@torch.inference_mode()
def test_the_output_layers_weight_is_never_copied_for_each_row(
    make_model: MakeModel, kind: type[SharedPrefixDecoder] | type[PlainDecoder], family: str
) -> None:
    """torch copies it, as many times as there are rows, to multiply states that do not lie one after the other."""
    model = make_model(family)
    seen: list[Tensor] = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    prompts = [
        SoftPrompt("", path, tuple(range(3, 3 + length)), torch.rand(2, 32), (7, 8))
        for path, length in enumerate((9, 9, 5))
    ]
    decoder = kind(model, num_rows=3, max_new_tokens=2)
    decoder.hold(prompts)
    decoder.place(range(3), prompts)
    decoder.step(torch.tensor([4, 5, 6]))
    assert max(len(states) for states in seen) == 3, "several rows at once"
    assert all(states.shape[1] == 1 and states.is_contiguous() for states in seen)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("number", [1, 2, 5])
@torch.inference_mode()
def test_the_last_positions_are_kept(make_model: MakeModel, rows: int, number: int) -> None:
    model = make_model("llama").double()
    inputs = torch.rand(rows, 5, 32, dtype=torch.float64)
    every = model(inputs_embeds=inputs).logits
    kept = model(inputs_embeds=inputs, logits_to_keep=positions_to_keep(inputs, number)).logits
    torch.testing.assert_close(kept, every[:, -number:], rtol=0, atol=1e-12)
