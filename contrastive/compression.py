"""How many contemplation tokens stand for a chain of thought, and for which of its tokens (CCoT, arXiv 2412.13171).

Needs the standard library only, so that settings can be checked without loading torch.
"""

from __future__ import annotations

import math

MOST = 200  # contemplation tokens that are made at most where the ratio is 1
_DIGITS = 9  # of a product with a ratio, before it is rounded up: 0.07 x 100 is 7 and not 7.000000000000001


def count_of(chain: int, ratio: float) -> int:
    """How many contemplation tokens stand for a chain of so many tokens: k = ceil(r m)."""
    return math.ceil(round(ratio * chain, _DIGITS))


def most_of(ratio: float) -> int:
    """The most contemplation tokens that are made for a question: h = 200 r, rounded down."""
    return math.floor(round(MOST * ratio, _DIGITS))


def gold_places(chain: int, count: int) -> list[int]:
    """Evenly spaced places in a chain of tokens: the last one of each of `count` parts of it."""
    return [math.ceil((part + 1) * chain / count) - 1 for part in range(count)]
