"""The voters by name: those that are built in, and a user's own, out of a file, a module or an installed package.

A voter gives each chain of a question a weight; the answer whose chains weigh the most together wins. It is asked once for
each question, with all chains, and a vote over fewer chains takes the same weights. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scaling.records.errors import UsageError
from scaling.records.plugins import installed, is_spec, load_object, users_code
from scaling.records.records import Completion, PromptedQuestion, Question, Vote
from scaling.records.votes import flat_vote, hierarchical_vote, weighted_vote

GROUP = "softcotpp.voters"  # of entry points
_LEAST = 1e-300  # a chain that answers weighs something, so that a grid with an answer has a vote


@dataclass(frozen=True)
class VotedQuestion:
    """What a voter learns of a question; not its gold answer. choices: option texts A, B, C ..., empty for other kinds."""

    id: str
    text: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chain:
    """What a voter learns of a completion; not whether it is right.

    answer: as it was read, None for none. log_prob: sum over the tokens, self_certainty: mean over them, both in nats, None
    where the engine tells none.
    """

    path: int
    sample: int
    text: str
    answer: str | None
    num_tokens: int
    log_prob: float | None = None
    self_certainty: float | None = None


Weigh = Callable[[VotedQuestion, Sequence[Chain]], Sequence[float]]


@dataclass(frozen=True)
class Voter:
    """A way to vote. One without `signal` and `weigh` counts every chain once, unless it `needs` something.

    meaning: what a chain weighs, in words. by_paths: each path votes over its own chains, then the paths' winners vote.
    signal: the field of a chain that `weight` makes a weight of, given the number of its tokens, too; logs: these weights
    are logarithms. weigh: a user's function; sha256, file: of its source. needs: the option of a report that tells it what
    no chain does. option: that it was named by, for messages.
    """

    name: str
    meaning: str
    by_paths: bool = False
    signal: str | None = None
    weight: Callable[[float, int], float] = lambda value, tokens: value  # noqa: ARG005
    logs: bool = False
    weigh: Weigh | None = None
    needs: str | None = None
    sha256: str | None = None
    file: str | None = None
    option: str = "--voter"

    def weights(self, question: Question | PromptedQuestion, chains: Sequence[Completion]) -> list[float] | None:
        """The weight of each chain; None where every chain counts once. Raises UsageError where it cannot be told."""
        if self.needs:
            raise UsageError(
                f"`{self.option} {self.name}` is a vote of reports: use another, or give it to `scale-report`."
            )
        if self.weigh:
            return self._checked(question, [_chain(one) for one in chains])
        if not self.signal:
            return None
        known = [(getattr(one, self.signal), one.num_tokens) for one in chains]
        if any(value is None for value, _ in known):
            raise UsageError(
                f"`{self.option} {self.name}`: the chains of question {question.id} do not hold {self.signal}, as those of "
                f"older versions or other engines; use another vote."
            )
        return [self.weight(value, tokens) for value, tokens in known]

    def vote(self, question: Question | PromptedQuestion, completions: Iterable[Completion]) -> Vote:
        """The vote over all of a question's completions. Raises UsageError, as `weights`."""
        if self.by_paths:
            return hierarchical_vote(question.id, completions)
        chains = sorted(completions, key=lambda one: (one.path, one.sample))
        weights = self.weights(question, chains)
        if weights is None:
            return flat_vote(question.id, chains)
        return weighted_vote(question.id, chains, weights, logs=self.logs)

    def _checked(self, question: Question | PromptedQuestion, chains: Sequence[Chain]) -> list[float]:
        assert self.weigh
        given = f"`{self.option}` {self.name}"
        with users_code(f"{self.name} (question {question.id})", option=self.option, file=self.file):
            returned = self.weigh(VotedQuestion(question.id, question.text, tuple(question.choices)), chains)
        try:
            weights = [float(weight) for weight in returned]
        except (TypeError, ValueError):
            weights = []
        if len(weights) != len(chains) or min(weights, default=0) < 0 or not math.isfinite(sum(weights)):
            raise UsageError(
                f"{given} must return {len(chains)} finite numbers from 0 for the {len(chains)} chains of question "
                f"{question.id}, what each one counts; it returned {str(returned)[:100]}"
            )
        return weights


def _chain(one: Completion) -> Chain:
    return Chain(one.path, one.sample, one.text, one.answer, one.num_tokens, one.log_prob, one.self_certainty)


def _mean_probability(log_prob: float, tokens: int) -> float:
    return max(math.exp(log_prob / max(1, tokens)), _LEAST)


BUILT_IN = {
    voter.name: voter
    for voter in (
        Voter("flat", "every chain counts once"),
        Voter("hierarchical", "each path votes over its chains, then the paths", by_paths=True),
        Voter(
            "log-prob-mean",
            "a chain weighs exp of the mean log-probability of its tokens (arXiv 2203.11171, table 1)",
            signal="log_prob",
            weight=_mean_probability,
        ),
        Voter(
            "log-prob-sum",
            "a chain weighs its probability, exp of the sum (arXiv 2203.11171, table 1)",
            signal="log_prob",
            logs=True,  # the probabilities of two chains may differ by more than a number can hold
        ),
        Voter(
            "self-certainty",
            "a chain weighs its self-certainty (arXiv 2502.18581)",
            signal="self_certainty",
            weight=lambda value, tokens: max(value, _LEAST),  # noqa: ARG005
        ),
        Voter(
            "path-reliability",
            "a chain weighs the log odds of its path on the questions of `--validation`",
            needs="--validation",
        ),
        Voter("best-of-n", "the chain that `--scorer` likes best answers alone", needs="--scorer"),
    )
}
OF_RUNS = tuple(voter.name for voter in BUILT_IN.values() if not voter.needs)


def what_a_voter_is() -> str:
    """Which voters a run may be given, in words."""
    return f"{', '.join(map(repr, (*OF_RUNS, *installed(GROUP))))} or a function of yours, as in `file.py:name`"


def is_voter(name: str) -> bool:
    """Whether a run may be given this voter, as far as can be told without loading anything."""
    return name in OF_RUNS or is_spec(name) or name in installed(GROUP)


def voter_of(given: str | Voter | Weigh, *, option: str = "--voter") -> Voter:
    """The voter that is meant by a name or a function. Raises UsageError for an unknown one, and for what cannot be loaded.

    Args:
        given: a name of a built-in voter, what `load_object` takes, or a function of a question and its chains.
        option: the command line's option that it was given to, for messages.
    """
    if isinstance(given, Voter):
        return given
    if not isinstance(given, str):
        return Voter(getattr(given, "__qualname__", "voter"), _meaning(given), weigh=given, option=option)
    if given in BUILT_IN:
        return BUILT_IN[given]
    loaded = load_object(given, option=option, group=GROUP, known=BUILT_IN)
    if not callable(loaded.object):
        raise UsageError(
            f"`{option}` {given} is no function but {type(loaded.object).__name__}; a voter is called with a question and "
            f"its chains, and returns a weight for each of them"
        )
    return Voter(
        given, _meaning(loaded.object), weigh=loaded.object, sha256=loaded.sha256, file=loaded.file, option=option
    )


def voter_record(voter: Voter) -> dict[str, Any]:
    """What a run's environment says of a voter that is not built in; nothing of one that is."""
    return {"voter": {"name": voter.name, "sha256": voter.sha256}} if voter.weigh else {}


def _meaning(function: Any) -> str:
    """The first line of its docstring, as a report explains it."""
    first = (getattr(function, "__doc__", None) or "").strip().partition("\n")[0].rstrip(".")
    return first or "a chain weighs what this function says"
