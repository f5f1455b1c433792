"""Says how a method is drawn: its colour, marker and dash, the same in every figure and on the page.

Lines differ in colour, marker and dash, so that they can also be told apart in grey. The colours are those of Okabe and Ito,
which were made for colour-blind readers; brown stands in for their black, which a dark page would swallow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#9c5a2c")
ON_DARK = ("#4aa8e0", "#f08a3c", "#2fc898", "#e0a0c4", "#f2bb45", "#8accf2", "#a8a8a8", "#cf8f62")  # the same, lighter
_MARKERS = "osD^vPX*"
_DASHES = ("-", "--", "-.", ":")
# The methods with a colour of their own, in the order of the colours. Any other takes one that a report does not need.
_OWNERS = ("softcot++", "softcot", "cot", "lora", "prompt-tuning", "refiner", "coconut", "ccot")


@dataclass(frozen=True)
class Look:
    """How the lines of a method are drawn. number: of its colour and marker; round: how often all were used before."""

    number: int
    round: int = 0

    @property
    def colour(self) -> str:
        return COLOURS[self.number]

    @property
    def line(self) -> dict[str, Any]:
        """Colour, marker and dash as keywords of matplotlib."""
        return {
            **{"color": self.colour, "marker": _MARKERS[self.number], "markersize": 5, "linewidth": 1.6},
            "linestyle": _DASHES[(self.number + self.round) % len(_DASHES)],
        }


def looks(methods: Sequence[tuple[str, str]]) -> dict[str, Look]:
    """The look of each line, by its name.

    The first line of a method gets the method's own colour, whatever else is in the report and whatever the user calls it.
    Further lines of that method, such as its controls, and methods without a colour of their own get what is left.

    Args:
        methods: for each line its name in the report, which is unique, and the key of its method, such as `softcot++`.
    """
    given: dict[str, Look] = {}
    for name, key in methods:
        if key in _OWNERS and (own := Look(_OWNERS.index(key))) not in given.values():
            given[name] = own
    everything = (Look(number, round) for round in range(len(methods) + 1) for number in range(len(COLOURS)))
    free = (look for look in everything if look not in set(given.values()))
    return {name: given.get(name) or next(free) for name, _ in methods}
