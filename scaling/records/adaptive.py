"""Decides when a question's vote needs no more samples (arXiv 2305.11860). Standard library only.

The samples of a question have a canonical order: sample 0 of all paths, then sample 1 of all paths, and so on. A decision
only looks at the first k samples of that order, all of which have to be finished. A sample that finishes early waits for
those before it. So a decision depends neither on how many samples are drawn at once nor on which chains are short.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cache
from heapq import nlargest
from math import comb

from scaling.records.answer_classes import AnswerClass, classes_of, may_be_rounded
from scaling.records.records import Completion, Key


class Stopping:
    """Says which questions of a run are decided. It is told every completion, in any order."""

    def __init__(self, *, num_paths: int, num_samples: int, confidence: float) -> None:
        """Begins without any completion.

        Args:
            num_paths: N.
            num_samples: M, the samples of each path.
            confidence: see `stop_after`.
        """
        self._num_paths, self._num_samples, self._confidence = num_paths, num_samples, confidence
        # completions of questions that are not decided yet, by question
        self._completions: dict[str, dict[Key, Completion]] = defaultdict(dict)
        self._decided: set[str] = set()

    def add(self, completion: Completion) -> bool:
        """Takes a completion, and says whether it has just decided its question.

        A completion outside the grid decides nothing. A question whose whole grid is needed is never called decided.
        """
        if self.decided(completion.question_id):
            return False
        completions = self._completions[completion.question_id]
        completions[completion.key] = completion
        first = leading(
            completion.question_id,
            completions,
            num_paths=self._num_paths,
            num_samples=self._num_samples,
            confidence=self._confidence,
        )
        if first is None or len(first) == self._num_paths * self._num_samples:
            return False
        self._decided.add(completion.question_id)
        del self._completions[completion.question_id]
        return True

    def decided(self, question_id: str) -> bool:
        """Whether this question was decided early. False for a question that needed its whole grid."""
        return question_id in self._decided


def leading(
    question_id: str,
    completions: Mapping[Key, Completion],
    *,
    num_paths: int,
    num_samples: int,
    confidence: float | None,
) -> list[Completion] | None:
    """The completions of a question that its vote counts.

    These are the first k in canonical order if they decide the vote, else the whole grid. Further completions never change
    the result.

    Args:
        question_id: the question.
        completions: completions by key; there may be other questions' among them.
        num_paths: N.
        num_samples: M.
        confidence: see `stop_after`; None never decides a vote early.

    Returns:
        The completions in canonical order, None while the vote is not decided and the grid is not complete.
    """
    total = num_paths * num_samples
    finished: list[Completion] = []
    for place in range(total):
        sample, path = divmod(place, num_paths)
        completion = completions.get((question_id, path, sample))
        if completion is None:
            break
        finished.append(completion)
    if confidence is not None:
        stop = stop_after([completion.answer for completion in finished], total=total, confidence=confidence)
        if stop is not None:
            return finished[:stop]
    return finished if len(finished) == total else None


def stop_after(ballots: Sequence[str | None], *, total: int, confidence: float) -> int | None:
    """After how many ballots a vote is decided.

    A vote is decided when the ballots that are left can neither change nor tie it. With a confidence below 1 it is also
    decided when its leader beats the second answer with at least that probability, see `lead_probability`. Equal answers
    are counted together. Which of them are equal is judged among the ballots so far.

    Args:
        ballots: the first answers in canonical order. None is a completion without an answer: it votes for nothing.
        total: number of ballots of the whole grid.
        confidence: from 0 to 1; 1 only stops where the rest cannot change the vote.

    Returns:
        The number of ballots, None where the vote is not decided before the last one.
    """
    count = _Count()
    for number, answer in enumerate(ballots[: total - 1], start=1):
        if answer is not None:
            count.add(answer)
        first, second = [*nlargest(2, count.classes.values()), 0, 0][:2]
        if confidence < 1 and lead_probability(first, second) >= confidence:
            return number
        if first > second + total - number and count.is_final(left=total - number):
            return number
    return None


class _Count:
    """Counts the ballots so far.

    Attributes:
        classes: number of ballots of each class of equal answers.
    """

    def __init__(self) -> None:
        self.classes: Counter[AnswerClass] = Counter()
        self._answers: list[str] = []
        self._class_of: Mapping[str, AnswerClass] = {}

    def add(self, answer: str) -> None:
        """Counts one more ballot. A new answer may change which of the earlier ones are equal."""
        self._answers.append(answer)
        if answer in self._class_of:
            self.classes[self._class_of[answer]] += 1
        else:
            self._class_of = classes_of(self._answers)
            self.classes = Counter(self._class_of[earlier] for earlier in self._answers)

    def is_final(self, *, left: int) -> bool:
        """Whether further ballots can neither change nor tie the vote, whatever they are.

        Further answers may move a rounded decimal from one class to another (see `answer_classes`). They never separate
        ballots of the same exact value, and never move anything but rounded decimals. So the leader only counts the ballots
        of its own exact value, and the worst case is that all other rounded decimals join its strongest rival. Without any
        rounded decimals, the rival is just the second class.

        Args:
            left: number of ballots that are still to come.
        """
        rounded = Counter(classes_of([answer])[answer].key for answer in self._answers if may_be_rounded(answer))
        exact = Counter(self._class_of[answer].key for answer in self._answers if not may_be_rounded(answer))
        (leader, most), *_ = (exact + rounded).most_common(1)
        others = max((count for answer, count in exact.items() if answer != leader), default=0)
        return most > others + sum(count for answer, count in rounded.items() if answer != leader) + left


@cache
def lead_probability(first: int, second: int) -> float:
    """Probability that the leading answer is really more frequent than the second one (arXiv 2305.11860).

    It is P(p > 1/2), where p has the distribution Beta(first + 1, second + 1): the posterior of the leader's share of the
    ballots of both, under a uniform prior. For whole numbers this tail of a Beta distribution is one of a binomial: the
    probability of at most `first` heads in first + second + 1 tosses of a coin.

    Args:
        first: ballots of the leader.
        second: ballots of the second answer.
    """
    tosses = first + second + 1
    return sum(comb(tosses, heads) for heads in range(first + 1)) / (1 << tosses)
