"""When a question's vote is decided before all its samples are drawn (arXiv 2305.11860). Standard library only.

The samples of a question have a canonical order: sample 0 of all paths, sample 1 of all paths, and so on. A decision looks
only at the first k samples of that order, all of them finished. It therefore depends neither on how many samples are drawn
at once nor on which chains are short: what finishes early behind a gap waits until the gap is closed.
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
    """Is told the completions of a run, in whatever order, and says which questions are decided."""

    def __init__(self, *, num_paths: int, num_samples: int, confidence: float) -> None:
        self._num_paths, self._num_samples, self._confidence = num_paths, num_samples, confidence
        self._found: dict[str, dict[Key, Completion]] = defaultdict(dict)  # of questions that are not decided
        self._decided: set[str] = set()

    def add(self, completion: Completion) -> bool:
        """Takes one completion; whether it has just decided its question. One outside the grid decides nothing."""
        if self.decided(completion.question_id):
            return False
        found = self._found[completion.question_id]
        found[completion.key] = completion
        first = leading(
            completion.question_id,
            found,
            num_paths=self._num_paths,
            num_samples=self._num_samples,
            confidence=self._confidence,
        )
        if first is None or len(first) == self._num_paths * self._num_samples:
            return False
        self._decided.add(completion.question_id)
        del self._found[completion.question_id]
        return True

    def decided(self, question_id: str) -> bool:
        """Whether no more samples of this question are wanted. False for one whose whole grid it took."""
        return question_id in self._decided


def leading(
    question_id: str,
    completions: Mapping[Key, Completion],
    *,
    num_paths: int,
    num_samples: int,
    confidence: float | None,
) -> list[Completion] | None:
    """The first k completions of a question in canonical order, after which its vote is decided, or its whole grid.

    None where there is neither. The result does not change with more completions. confidence: None never decides.
    """
    total = num_paths * num_samples
    found: list[Completion] = []
    for place in range(total):
        sample, path = divmod(place, num_paths)
        completion = completions.get((question_id, path, sample))
        if completion is None:
            break
        found.append(completion)
    if confidence is not None:
        stop = stop_after([completion.answer for completion in found], total=total, confidence=confidence)
        if stop is not None:
            return found[:stop]
    return found if len(found) == total else None


def stop_after(ballots: Sequence[str | None], *, total: int, confidence: float) -> int | None:
    """After how many of the first ballots in canonical order the vote is decided, None if it is not before the last one.

    Decided is a vote that the ballots left cannot change nor tie, and below confidence 1 also one whose leader has the
    larger share of all answers with at least this probability. A ballot of None has no answer and only uses up its place.
    Equal answers count together, by what is equal among the first ballots alone.
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
    """The ballots so far. classes: how many there are of each class of equal answers."""

    def __init__(self) -> None:
        self.classes: Counter[AnswerClass] = Counter()
        self._given: list[str] = []
        self._known: Mapping[str, AnswerClass] = {}

    def add(self, answer: str) -> None:
        self._given.append(answer)
        if answer in self._known:
            self.classes[self._known[answer]] += 1
        else:
            self._known = classes_of(self._given)
            self.classes = Counter(self._known[one] for one in self._given)

    def is_final(self, *, left: int) -> bool:
        """Whether no further ballots can change nor tie the vote, whatever they are.

        Further answers may draw a rounded decimal from one class into another, but never split ballots of one exact value,
        nor take others from their class. So the leader counts by its exact value, and may have to beat a class that all
        rounded decimals have joined. Without any, it has to beat the second class.
        """
        rounded = Counter(classes_of([one])[one].key for one in self._given if may_be_rounded(one))
        fixed = Counter(self._known[one].key for one in self._given if not may_be_rounded(one))
        (leader, most), *_ = (fixed + rounded).most_common(1)
        others = max((count for one, count in fixed.items() if one != leader), default=0)
        return most > others + sum(count for one, count in rounded.items() if one != leader) + left


@cache
def lead_probability(first: int, second: int) -> float:
    """P(p > 1/2) for p of Beta(first + 1, second + 1): that the leader by counts also leads in shares, without a prior.

    For whole numbers this Beta tail is a binomial one: at most `first` heads in first + second + 1 tosses of a coin.
    """
    tosses = first + second + 1
    return sum(comb(tosses, heads) for heads in range(first + 1)) / (1 << tosses)
