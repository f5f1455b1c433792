"""Compares the accuracy of a method over several prompts: how much of it is due to the wording.

Methods of a report that differ in nothing but their prompt (and in what may differ between seeds) are one row here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.methods import Method, short, without
from scaling.records.settings import Tag, run_names

_PLAIN = "plain"  # the prompt of runs that name none
_WORDING = run_names(Tag.WORDING)


@dataclass(frozen=True)
class OverPrompts:
    """A method's accuracy with each of its prompts.

    Attributes:
        method: the method's name without its prompt.
        num_paths: N, the same with all prompts.
        num_samples: M, likewise.
        accuracies: share of questions that the report's first vote gets right, by prompt; at least two.
    """

    method: str
    num_paths: int
    num_samples: int
    accuracies: dict[str, float]

    @property
    def mean(self) -> float:
        """The mean over prompts."""
        return sum(self.accuracies.values()) / len(self.accuracies)

    @property
    def lowest(self) -> str:
        """The prompt with the lowest accuracy."""
        return min(self.accuracies, key=self.accuracies.__getitem__)

    @property
    def highest(self) -> str:
        """The prompt with the highest accuracy."""
        return max(self.accuracies, key=self.accuracies.__getitem__)

    @property
    def spread(self) -> float:
        """The highest accuracy less the lowest."""
        return self.accuracies[self.highest] - self.accuracies[self.lowest]

    def to_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        figures = {key: getattr(self, key) for key in ("mean", "lowest", "highest", "spread")}
        return {**vars(self), **figures}


def over_prompts(methods: Sequence[tuple[Method, float]]) -> list[OverPrompts]:
    """The methods that a report holds with at least two prompts. methods: each with its accuracy."""
    groups: dict[Any, list[tuple[Method, float]]] = {}
    for method, accuracy in methods:
        groups.setdefault(without(method, _WORDING), []).append((method, accuracy))
    rows = []
    for (name, *_), group in groups.items():
        configs = [method.runs[0].config for method, _ in group]
        differing = [key for key in _WORDING if len({str(config.get(key)) for config in configs}) > 1]
        labels = [", ".join(_label(key, config.get(key)) for key in differing) for config in configs]
        if len(set(labels)) == len(group) > 1:
            accuracies = {label: accuracy for label, (_, accuracy) in zip(labels, group, strict=True)}
            first = group[0][0]
            rows.append(OverPrompts(name, first.num_paths, first.num_samples, accuracies))
    return rows


def _label(key: str, value: Any) -> str:
    """The value of a setting of the prompt, as a short text."""
    if key == "prompt":
        return Path(str(value)).stem if value else _PLAIN
    return f"{key.replace('_', ' ')} {short(value) if value else '-'}"
