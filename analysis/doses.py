"""Compares the accuracy of a method over `--thought-scale`: does it rise with what tells thoughts of questions apart?

Methods of a report that differ in nothing but the scale (and in what may differ between seeds) are one row here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.methods import Method, without
from analysis.statistics import Interval

_SCALE = "thought_scale"


@dataclass(frozen=True)
class OverDoses:
    """A method's accuracy at each scale of its thoughts.

    Attributes:
        method: the method's name without the scale.
        num_paths: N, the same at all scales.
        num_samples: M, likewise.
        accuracies: share of questions that the report's first vote gets right, by rising scale; at least two.
    """

    method: str
    num_paths: int
    num_samples: int
    accuracies: dict[float, Interval]


def over_doses(methods: Sequence[tuple[Method, Interval]]) -> list[OverDoses]:
    """The methods that a report holds at several scales. methods: each with its accuracy."""
    groups: dict[Any, dict[float, Interval]] = {}
    for method, accuracy in methods:
        scale = method.runs[0].config.get(_SCALE)
        groups.setdefault(without(method, [_SCALE]), {})[1.0 if scale is None else float(scale)] = accuracy
    return [
        OverDoses(name, num_paths, num_samples, dict(sorted(accuracies.items())))
        for (name, num_paths, num_samples, _), accuracies in groups.items()
        if len(accuracies) > 1
    ]
