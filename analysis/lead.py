"""Says in one line what all comparisons of a report come to. It stands above the verdicts on the single pairs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from analysis.verdict import Comparison
from scaling.records.errors import counted

_SHOWN = 3  # most methods that the line names in one place; of more only the number is said
_NO_BUDGET = "no common budget"


def lead(names: Sequence[str], comparisons: Sequence[Comparison], num_questions: int) -> str:
    """The line, made from the decisions on all pairs at the same cost; empty for a single method.

    Args:
        names: of the methods, in the order of the report.
        comparisons: of pairs of these methods; where every pair was compared the line ranks the methods.
        num_questions: that all of them answered.
    """
    questions = f"on {counted(num_questions, 'question')}"
    pairs = [one for one in comparisons if one.decision != _NO_BUDGET]
    if len(names) < 2:
        return ""
    if not pairs:
        return f"Nothing can be compared at equal compute {questions}: extend the smaller runs."
    compared = {frozenset((one.first, one.second)) for one in pairs}
    dropped, every = len(comparisons) - len(pairs), len(comparisons)
    names = names if len(pairs) > 1 else (pairs[0].first, pairs[0].second)
    ranked = all(frozenset(pair) in compared for pair in combinations(names, 2))
    begin = _ranking(names, pairs, questions) if ranked else _pairwise(pairs, questions)
    have, stay = ("has", "stays") if dropped == 1 else ("have", "stay")
    apart = f"; {dropped} of {every} pairs {have} no common budget and {stay} out of this"
    return f"{begin}{apart if dropped else ''}."


def _ranking(names: Sequence[str], pairs: Sequence[Comparison], questions: str) -> str:
    """What is best, what is worst, and between which nothing is shown."""
    beaten_by: dict[str, set[str]] = {name: set() for name in names}
    for one in pairs:
        if one.decision in ("better", "worse"):
            winner, loser = (one.first, one.second) if one.decision == "better" else (one.second, one.first)
            beaten_by[loser].add(winner)
    ahead = [name for name in names if not beaten_by[name]]
    behind = [name for name in names if beaten_by[name]]
    if not ahead:  # a beats b, b beats c, c beats a: possible, as budgets differ between pairs
        return f"Each of {_several(names)} is worse than another {questions}"
    if len(names) == 2 and behind:
        return f"{ahead[0]} is better than {behind[0]} {questions}"
    ties = [one for one in pairs if {one.first, one.second} <= set(ahead)]
    begin = _tied(ahead, ties, questions)
    if len(ahead) == 1:
        rivals = sum(ahead[0] in winners for winners in beaten_by.values())
        best = (
            f"is best of {len(names)} methods" if rivals == len(behind) else f"is better than {rivals} of {len(behind)}"
        )
        begin = f"{ahead[0]} {best} {questions}"
    worst = [name for name in behind if len(beaten_by[name]) == len(names) - 1]
    if worst and len(names) > 2:
        return f"{begin}; {worst[0]} is worst"
    if behind and len(ahead) > 1:
        return f"{begin}; {_several(behind)} {'is' if len(behind) == 1 else 'are'} worse than at least one of them"
    return begin


def _tied(names: Sequence[str], pairs: Sequence[Comparison], questions: str) -> str:
    """What is said of methods of which none is better than another."""
    equal = sum(_is_equal(one) for one in pairs)
    if equal == 0:
        return f"Nothing is decided between {_several(names)} {questions}"
    if equal == len(pairs):
        return f"{_several(names)} are equal within the margin {questions}"
    return f"No difference is shown between {_several(names)} {questions} ({equal} of {len(pairs)} pairs are equal)"


def _pairwise(pairs: Sequence[Comparison], questions: str) -> str:
    """The line where not every pair was compared, as with a baseline: how many comparisons came out in which way."""
    shared = set.intersection(*({one.first, one.second} for one in pairs))
    against = f"Against {min(shared)}, {questions}: " if len(shared) == 1 else f"Of {len(pairs)} pairs, {questions}: "
    found: dict[str, list[str]] = {}
    for one in pairs:
        other, decision = one.first, "equal within the margin" if _is_equal(one) else one.decision
        if one.first in shared:
            other, decision = one.second, {"better": "worse", "worse": "better"}.get(decision, decision)
        found.setdefault(decision, []).append(other)
    order = ("better", "equal within the margin", "not decided", "worse")
    named = [(decision, found[decision]) for decision in order if decision in found]
    if against.startswith("Of"):
        return against + ", ".join(f"{len(firsts)} {decision}" for decision, firsts in named)
    return against + "; ".join(f"{_several(firsts)} {decision}" for decision, firsts in named)


def _is_equal(one: Comparison) -> bool:
    return one.decision.startswith("equal")


def _several(names: Sequence[str]) -> str:
    """The names, or how many they are."""
    if len(names) > _SHOWN:
        return f"{len(names)} methods"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
