"""Voters: ways to choose one answer of a question's chains of thought. Some are built in, and users may bring their own.

A voter gives each chain of a question a weight. The answer with the largest sum of weights wins. A voter is called once for
each question, with all its chains; a vote over fewer of them uses the same weights. Only the standard library is used.
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

GROUP = "softcotpp.voters"  # entry points under which packages install voters
_LEAST = 1e-300  # smallest weight: with weights of 0 only, a question that has answers would have no vote


@dataclass(frozen=True)
class VotedQuestion:
    """What a voter may know of a question. The gold answer is not part of it.

    Attributes:
        id: the question's id.
        text: the question.
        choices: the texts of options A, B, C ...; empty unless it is a multiple choice.
    """

    id: str
    text: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chain:
    """What a voter may know of a completion. Whether it is correct is not part of it.

    Attributes:
        path: number of its latent path, from 0.
        sample: number within the path, from 0.
        text: what the model wrote.
        answer: the answer read from it; None if it has none.
        num_tokens: generated tokens, with the end token.
        log_prob: sum of the tokens' log-probabilities, in nats; None if the engine does not compute it.
        self_certainty: mean of the tokens' self-certainty, in nats; None if the engine does not compute it.
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
    """A way to vote. Without `signal`, `weigh` and `needs`, every chain counts once.

    Attributes:
        name: what the option calls it.
        meaning: what a chain weighs, in words.
        by_paths: whether each path votes over its own chains first, and then the paths' winners vote.
        signal: the field of a completion that the weight is computed from.
        weight: computes the weight from the value of `signal` and the number of tokens.
        logs: whether these weights are logarithms.
        weigh: a user's function that computes the weights of all chains of a question.
        needs: the option of `scale-report` without which it cannot vote; None for a voter of runs.
        sha256: of the source of `weigh`.
        file: of the source of `weigh`.
        option: the option that named the voter, for messages.
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
        """The weight of each chain, in their order; None if every chain counts once.

        Raises:
            UsageError: the chains lack what the weights are computed from, or the user's function fails.
        """
        if self.needs:
            raise UsageError(
                f"`{self.option} {self.name}` is a vote of reports: use another, or give it to `scale-report`."
            )
        if self.weigh:
            return self._checked(question, [_chain(completion) for completion in chains])
        if not self.signal:
            return None
        values = [(getattr(chain, self.signal), chain.num_tokens) for chain in chains]
        if any(value is None for value, _ in values):
            raise UsageError(
                f"`{self.option} {self.name}`: the chains of question {question.id} do not hold {self.signal}, as those of "
                f"older versions or other engines; use another vote."
            )
        return [self.weight(value, tokens) for value, tokens in values]

    def vote(self, question: Question | PromptedQuestion, completions: Iterable[Completion]) -> Vote:
        """The vote over all completions of a question. Raises UsageError, as `weights` does."""
        if self.by_paths:
            return hierarchical_vote(question.id, completions)
        chains = sorted(completions, key=lambda chain: (chain.path, chain.sample))
        weights = self.weights(question, chains)
        if weights is None:
            return flat_vote(question.id, chains)
        return weighted_vote(question.id, chains, weights, logs=self.logs)

    def _checked(self, question: Question | PromptedQuestion, chains: Sequence[Chain]) -> list[float]:
        """The weights that the user's function returns. Raises UsageError unless they are finite and not negative."""
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


def _chain(completion: Completion) -> Chain:
    return Chain(
        completion.path,
        completion.sample,
        completion.text,
        completion.answer,
        completion.num_tokens,
        completion.log_prob,
        completion.self_certainty,
    )


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
            logs=True,  # the probabilities themselves may be too small for a float
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
    """The voters that a run can use, in words."""
    return f"{', '.join(map(repr, (*OF_RUNS, *installed(GROUP))))} or a function of yours, as in `file.py:name`"


def is_voter(name: str) -> bool:
    """Whether a name may be that of a voter that a run can use. Nothing is loaded to find out."""
    return name in OF_RUNS or is_spec(name) or name in installed(GROUP)


def voter_of(given: str | Voter | Weigh, *, option: str = "--voter") -> Voter:
    """The voter of a name or a function.

    Args:
        given: the name of a built-in voter, a user's function as `load_object` names it, or a function of a question and its
            chains.
        option: the command-line option that it was given to, for messages.

    Raises:
        UsageError: there is no such voter, or it cannot be loaded.
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
    """What run.json records of a user's voter; empty for a built-in one."""
    return {"voter": {"name": voter.name, "sha256": voter.sha256}} if voter.weigh else {}


def _meaning(function: Any) -> str:
    """What a report says of a user's voter: the first line of its docstring."""
    first = (getattr(function, "__doc__", None) or "").strip().partition("\n")[0].rstrip(".")
    return first or "a chain weighs what this function says"
