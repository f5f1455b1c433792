"""How the answers of a question become one: a flat vote over all N x M completions, a hierarchical one over samples, then
paths, or a weighted one. `scaling.records.voters` knows them by name.

Equal answers are counted together: votes are for classes of answers, see `scaling.records.answer_classes`. A completion
whose answer is None, or whose weight is 0, never votes. Where the highest count is shared, the tie rule decides:

1. the tied class backed by more distinct paths wins, since agreement across paths is rarer than agreement within one;
2. if that is shared too, the class with the smallest blake2b hash of (question id, its key) wins; the key of a plain
   answer is the answer. The hash favours neither small numbers nor early arrivals, and gives the same winner on every
   machine.

Neither the order of arrival nor the labels of the paths nor the spelling of an answer changes a vote. Knows nothing of
which answer is correct.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from scaling.records.answer_classes import AnswerClass, classes_of
from scaling.records.records import Completion, Vote

ALIKE = 1e-9  # relative difference up to which two sums of weights are tied: they were added in another order

Ballot = tuple[int, str | None]  # (path, answer)
_Ballot = tuple[int, AnswerClass | None, float]  # and its weight


def flat_vote(question_id: str, completions: Iterable[Completion]) -> Vote:
    """One majority vote over all N x M answers; counts are completions."""
    return majority(question_id, [(completion.path, completion.answer) for completion in completions])


def hierarchical_vote(question_id: str, completions: Iterable[Completion]) -> Vote:
    """Each path votes over its own samples, then the paths' winners vote; counts are paths.

    A path without any answer has no winner and casts no vote. Ties within a path and among paths are broken by the same
    rule, where only its second step can tell the answers apart; `tied` speaks of the vote among paths alone.
    """
    return _vote(question_id, [(path, winner, 1) for path, winner in _of_paths(question_id, completions).items()])


def weighted_vote(
    question_id: str, completions: Iterable[Completion], weights: Sequence[float], *, logs: bool = False
) -> Vote:
    """The class of answers with the largest sum of weights; counts are these sums.

    Args:
        weights: what each completion counts, from 0.
        logs: weights are logarithms of that, and counts are relative to the heaviest completion with an answer.
    """
    own = list(completions)
    if logs:
        most = max((w for w, one in zip(weights, own, strict=True) if one.answer is not None), default=0.0)
        weights = [math.exp(min(0.0, weight - most)) for weight in weights]
    classes = classes_of(one.answer for one in own)
    return _vote(question_id, [(one.path, _class(classes, one.answer), w) for one, w in zip(own, weights, strict=True)])


def path_votes(question_id: str, completions: Iterable[Completion]) -> dict[int, str | None]:
    """The answer that each path votes for, None where it has none. What is equal is decided over all paths."""
    winners = _of_paths(question_id, completions)
    return {path: winner.shown if winner else None for path, winner in winners.items()}


def majority(question_id: str, ballots: Sequence[Ballot]) -> Vote:
    """The class with the most ballots, ties broken by the rule above."""
    classes = classes_of(answer for _, answer in ballots)
    return _vote(question_id, [(path, _class(classes, answer), 1) for path, answer in ballots])


def tie_hash(question_id: str, key: str) -> bytes:
    """The second step of the tie rule, 8 bytes: of tied classes that as many paths support, the smallest wins."""
    # surrogatepass: a model may emit half of a surrogate pair, and a vote must not fail on it.
    return hashlib.blake2b(f"{question_id}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _of_paths(question_id: str, completions: Iterable[Completion]) -> dict[int, AnswerClass | None]:
    every = list(completions)
    classes = classes_of(one.answer for one in every)
    by_path: dict[int, list[_Ballot]] = {}
    for one in every:
        by_path.setdefault(one.path, []).append((one.path, _class(classes, one.answer), 1))
    return {path: _winner(question_id, own, _counted(own)[1]) for path, own in by_path.items()}


def _class(classes: Mapping[str, AnswerClass], answer: str | None) -> AnswerClass | None:
    return None if answer is None else classes[answer]


def _vote(question_id: str, ballots: Sequence[_Ballot]) -> Vote:
    counts, leaders = _counted(ballots)
    winner = _winner(question_id, ballots, leaders)
    # Sorted, so that a vote looks the same wherever it is printed, whatever arrived first.
    shown = dict(sorted((one.shown, count) for one, count in counts.items()))
    return Vote(question_id, answer=winner.shown if winner else None, counts=shown, tied=len(leaders) > 1)


def _counted(ballots: Sequence[_Ballot]) -> tuple[Mapping[AnswerClass, float], list[AnswerClass]]:
    """What the ballots for each class weigh, and the classes that have the most."""
    counts: dict[AnswerClass, float] = defaultdict(int)
    for _, one, weight in ballots:
        if one is not None and weight > 0:
            counts[one] += weight
    top = max(counts.values(), default=0)
    return counts, [one for one, count in counts.items() if count >= top * (1 - ALIKE)]


def _winner(question_id: str, ballots: Sequence[_Ballot], leaders: Sequence[AnswerClass]) -> AnswerClass | None:
    if len(leaders) < 2:
        return leaders[0] if leaders else None
    backers = {leader: {path for path, one, weight in ballots if one == leader and weight > 0} for leader in leaders}
    return min(leaders, key=lambda one: (-len(backers[one]), tie_hash(question_id, one.key)))
