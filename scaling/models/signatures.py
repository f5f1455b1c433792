"""Tells which arguments a model's forward pass takes, as model families differ in them."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether the forward pass has an argument of this name."""
    return name in inspect.signature(model.forward).parameters


def last_logits_only(model: PreTrainedModel, inputs: Tensor) -> dict[str, Any]:
    """Keyword arguments that make a model compute the last position's logits alone; empty where it always computes all.

    Args:
        model: takes the arguments.
        inputs: the embeddings that it is given with them, [rows, X, D].
    """
    return {"logits_to_keep": positions_to_keep(inputs)} if takes(model, "logits_to_keep") else {}


def positions_to_keep(inputs: Tensor, number: int = 1) -> int | Tensor:
    """What `logits_to_keep` must be for the logits of the last `number` positions of inputs [rows, X, D] alone.

    Where positions of several rows are left out, those that stay are told by an index, which makes their states contiguous.
    A number would make a slice of them. A CPU multiplies a slice by a copy of the output layer's weight for each row: for 4
    rows in bfloat16 that took 65 times as long.
    """
    rows, length, _ = inputs.shape
    if rows == 1 or number >= length:
        return number
    return torch.arange(length - number, length, device=inputs.device)
