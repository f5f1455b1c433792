"""Tells which arguments a model's forward pass takes, as model families differ in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether the forward pass has an argument of this name."""
    return name in inspect.signature(model.forward).parameters


def last_logits_only(model: PreTrainedModel) -> Callable[[Tensor], dict[str, Any]]:
    """What gives, for inputs [rows, X, D], the keyword arguments with which a model computes the last logits alone.

    There are none where it always computes all. The model is asked once, as looking at a signature takes time.
    """
    taken = takes(model, "logits_to_keep")
    return lambda inputs: {"logits_to_keep": positions_to_keep(inputs)} if taken else {}


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
