"""Tells which arguments a model's forward pass takes, as model families differ in them."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import PreTrainedModel


def takes(model: PreTrainedModel, name: str) -> bool:
    """Whether the forward pass has an argument of this name."""
    return name in inspect.signature(model.forward).parameters


def last_logits_only(model: PreTrainedModel) -> dict[str, Any]:
    """Keyword arguments that make a model compute the last position's logits alone; empty where it always computes all."""
    return {"logits_to_keep": 1} if takes(model, "logits_to_keep") else {}
