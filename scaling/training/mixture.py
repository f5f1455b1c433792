"""What a training may learn to say after a question, and how such targets are mixed. Imports no torch."""

from __future__ import annotations

import math
from typing import Any

GOLD, SELF, ANSWER, FIRST_STEP, TEACHER = TARGETS = ("gold", "self", "answer", "first-step", "teacher")
OWN = (SELF, TEACHER)  # targets that are made of chains which the backbone samples itself


def parse_targets(text: str) -> dict[str, float]:
    """The kinds of targets in a mixture such as "answer:1,teacher:2", with their weights.

    A weight multiplies the losses and the number of tokens of its targets, so that only the ratio of weights counts. It is 1
    where none is given, and for a single kind.

    Args:
        text: kinds separated by commas, each with its weight behind a colon or without.

    Raises:
        ValueError: it names no kind of target, or one twice, or a weight that is no number above 0.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, colon, given = (piece.strip() for piece in part.partition(":"))
        if name not in TARGETS:
            raise ValueError(f"targets are {', '.join(TARGETS)}, or several such as answer:1,teacher:2")
        if name in weights:
            raise ValueError(f"{name} stands there twice")
        try:
            weights[name] = float(given) if colon else 1
        except ValueError:
            weights[name] = math.nan
        if not 0 < weights[name] < math.inf:
            raise ValueError(f"the weight of {name} must be a number above 0")
    return weights if len(weights) > 1 else dict.fromkeys(weights, 1)


def plain_targets(value: Any) -> Any:
    """The one spelling of a mixture: kinds in the order of TARGETS, without weights of 1. Raises as `parse_targets`."""
    if not isinstance(value, str):
        return value
    weights = parse_targets(value)
    return ",".join(f"{name}:{weights[name]:g}" if weights[name] != 1 else name for name in TARGETS if name in weights)
