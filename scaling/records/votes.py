"""Votes that make one answer of all answers to a question. `scaling.records.voters` knows them by name.

There is a flat vote over all N x M completions, a hierarchical one over the samples of each path and then over paths, and a
weighted one. Equal answers are counted together: votes are for classes of answers, see `scaling.records.answer_classes`. A
completion whose answer is None, or whose weight is 0, never votes. Where several classes have the highest count, this rule
breaks the tie:

1. The class with votes from more different paths wins, since agreement across paths is rarer than agreement within one.
2. If this is a tie, too, the class with the smallest blake2b hash of (question id, its key) wins. The key of a plain answer
   is the answer itself. The hash favours neither small numbers nor early answers, and is the same on every machine.

A vote depends neither on the order of completions nor on the numbers of the paths nor on how an answer is spelled. This
module does not know which answer is correct.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from scaling.records.answer_classes import AnswerClass, classes_of
from scaling.records.records import Completion, Vote

# Sums of weights are tied if their relative difference is at most this: they change by rounding with the order of adding.
ALIKE = 1e-9

Ballot = tuple[int, str | None]  # (path, answer)
_Ballot = tuple[int, AnswerClass | None, float]  # (path, class of the answer, weight)


def flat_vote(question_id: str, completions: Iterable[Completion]) -> Vote:
    """A majority vote over all N x M answers. The counts of the result are numbers of completions."""
    return majority(question_id, [(completion.path, completion.answer) for completion in completions])


def hierarchical_vote(question_id: str, completions: Iterable[Completion]) -> Vote:
    """A vote over the samples of each path, and then one over the paths' winners. The counts are numbers of paths.

    A path without any answer has no winner and does not vote. Ties within a path and among paths are broken by the same
    rule. In both cases the tied answers have equally many paths, so that its second step decides. `tied` of the result is
    about the vote among paths.
    """
    return _vote(question_id, [(path, winner, 1) for path, winner in _of_paths(question_id, completions).items()])


def weighted_vote(
    question_id: str, completions: Iterable[Completion], weights: Sequence[float], *, logs: bool = False
) -> Vote:
    """A vote in which the class of answers with the largest sum of weights wins. The counts are these sums.

    Args:
        question_id: id of the question.
        completions: of the question.
        weights: the weight of each completion, at least 0.
        logs: the weights are given as logarithms. The counts are then relative to the heaviest completion with an answer.
    """
    drawn = list(completions)
    if logs:
        # relative to the largest one, so that exp neither overflows nor turns all weights into zero
        largest = max(
            (weight for weight, completion in zip(weights, drawn, strict=True) if completion.answer is not None),
            default=0.0,
        )
        weights = [math.exp(min(0.0, weight - largest)) for weight in weights]
    classes = classes_of(completion.answer for completion in drawn)
    return _vote(
        question_id,
        [
            (completion.path, _class(classes, completion.answer), weight)
            for completion, weight in zip(drawn, weights, strict=True)
        ],
    )


def path_votes(question_id: str, completions: Iterable[Completion]) -> dict[int, str | None]:
    """The answer that each path votes for, None for a path without one. Which answers are equal is judged over all paths."""
    winners = _of_paths(question_id, completions)
    return {path: winner.shown if winner else None for path, winner in winners.items()}


def majority(question_id: str, ballots: Sequence[Ballot]) -> Vote:
    """A majority vote. Ties are broken by the rule of this module. ballots: (path, answer) of each completion."""
    classes = classes_of(answer for _, answer in ballots)
    return _vote(question_id, [(path, _class(classes, answer), 1) for path, answer in ballots])


def tie_hash(question_id: str, key: str) -> bytes:
    """The hash of the second step of the tie rule, 8 bytes: the smallest wins. key: of a class of answers."""
    # surrogatepass: a model may emit half of a surrogate pair, and a vote must not fail on it.
    return hashlib.blake2b(f"{question_id}\0{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _of_paths(question_id: str, completions: Iterable[Completion]) -> dict[int, AnswerClass | None]:
    """The winner of each path's own vote, None for a path without an answer."""
    drawn = list(completions)
    classes = classes_of(completion.answer for completion in drawn)
    by_path: dict[int, list[_Ballot]] = {}
    for completion in drawn:
        by_path.setdefault(completion.path, []).append((completion.path, _class(classes, completion.answer), 1))
    return {path: _winner(question_id, ballots, _counted(ballots)[1]) for path, ballots in by_path.items()}


def _class(classes: Mapping[str, AnswerClass], answer: str | None) -> AnswerClass | None:
    return None if answer is None else classes[answer]


def _vote(question_id: str, ballots: Sequence[_Ballot]) -> Vote:
    """Counts ballots and breaks ties."""
    counts, leaders = _counted(ballots)
    winner = _winner(question_id, ballots, leaders)
    # sorted, so that a vote always looks the same, whatever the order of completions
    shown = dict(sorted((answer_class.shown, count) for answer_class, count in counts.items()))
    return Vote(question_id, answer=winner.shown if winner else None, counts=shown, tied=len(leaders) > 1)


def _counted(ballots: Sequence[_Ballot]) -> tuple[Mapping[AnswerClass, float], list[AnswerClass]]:
    """The sum of weights of each class, and the classes with the largest sum: several in a tie."""
    counts: dict[AnswerClass, float] = defaultdict(int)
    for _, answer_class, weight in ballots:
        if answer_class is not None and weight > 0:
            counts[answer_class] += weight
    top = max(counts.values(), default=0)
    return counts, [answer_class for answer_class, count in counts.items() if count >= top * (1 - ALIKE)]


def _winner(question_id: str, ballots: Sequence[_Ballot], leaders: Sequence[AnswerClass]) -> AnswerClass | None:
    """The winner among the classes with the largest sum, by the tie rule; None where there are no such classes."""
    if len(leaders) < 2:
        return leaders[0] if leaders else None
    backers = {
        leader: {path for path, answer_class, weight in ballots if answer_class == leader and weight > 0}
        for leader in leaders
    }
    return min(leaders, key=lambda answer_class: (-len(backers[answer_class]), tie_hash(question_id, answer_class.key)))
