"""One answer out of many: a flat vote over all N x M completions, or a hierarchical one over samples, then paths.

A completion whose answer is None never votes. Where the highest count is shared, the tie rule decides:

1. the tied answer backed by more distinct paths wins, since agreement across paths is rarer than agreement within one;
2. if that is shared too, the answer with the smallest blake2b hash of (question id, answer) wins. The hash favours
   neither small numbers nor early arrivals, and gives the same winner on every machine.

Neither the order of arrival nor the labels of the paths changes a vote. Knows nothing of which answer is correct.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence

from scaling.records import Completion, Vote

VOTERS = ("flat", "hierarchical")

Ballot = tuple[int, str | None]  # (path, answer)


def flat_vote(question_id: str, completions: Iterable[Completion]) -> Vote:
    """One majority vote over all N x M answers; counts are completions."""
    return majority(question_id, [(completion.path, completion.answer) for completion in completions])


def hierarchical_vote(question_id: str, completions: Iterable[Completion]) -> Vote:
    """Each path votes over its own samples, then the paths' winners vote; counts are paths.

    A path without any answer has no winner and casts no vote. Ties within a path and among paths are broken by the same
    rule, where only its second step can tell the answers apart; `tied` speaks of the vote among paths alone.
    """
    by_path: dict[int, list[Ballot]] = {}
    for completion in completions:
        by_path.setdefault(completion.path, []).append((completion.path, completion.answer))
    return majority(question_id, [(path, majority(question_id, own).answer) for path, own in by_path.items()])


def majority(question_id: str, ballots: Sequence[Ballot]) -> Vote:
    """The most frequent answer among the ballots, ties broken by the rule above."""
    counts = Counter(answer for _, answer in ballots if answer is not None)
    if not counts:
        return Vote(question_id, answer=None, counts={}, tied=False)
    top = max(counts.values())
    leaders = [answer for answer, count in counts.items() if count == top]
    winner = leaders[0] if len(leaders) == 1 else _break_tie(question_id, leaders, ballots)
    # Sorted, so that a vote looks the same wherever it is printed, whatever arrived first.
    return Vote(question_id, answer=winner, counts=dict(sorted(counts.items())), tied=len(leaders) > 1)


def _break_tie(question_id: str, leaders: Sequence[str], ballots: Sequence[Ballot]) -> str:
    backers: dict[str, set[int]] = {answer: set() for answer in leaders}
    for path, answer in ballots:
        if answer in backers:
            backers[answer].add(path)
    return min(leaders, key=lambda answer: (-len(backers[answer]), tie_hash(question_id, answer)))


def tie_hash(question_id: str, answer: str) -> bytes:
    """The second step of the tie rule, 8 bytes: of tied answers that as many paths support, the smallest wins."""
    # surrogatepass: a model may emit half of a surrogate pair, and a vote must not fail on it.
    return hashlib.blake2b(f"{question_id}\0{answer}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
