"""Makes the examples of a probe: an answer's own tokens, after the question alone or after a rationale.

The wording around the answer ("The answer is") belongs to what the backbone has read, so that it does not count. No end
token counts either.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from contrastive.target_loss import Example
from scaling.records.records import Question
from scaling.tasks.task import Task
from scaling.training.answer_spans import answer_place
from scaling.training.targets import ExampleBuilder


@dataclass(frozen=True)
class Answered:
    """A question with the examples made of it.

    Attributes:
        question: the question.
        alone: the answer's own tokens after the question.
        informed: the same after the question and a rationale; one for each chain.
        chains: whole chains: rationale, answer and end token.
    """

    question: Question
    alone: Example
    informed: tuple[Example, ...]
    chains: tuple[Example, ...]


def gold_chain(build: ExampleBuilder, question: Question) -> str | None:
    """The gold rationale with the answer behind it; None without a rationale.

    A task whose solutions are answers alone, such as hidden-fact, has the rationale put before.
    """
    if not question.rationale:
        return None
    solution = build.solution(question)
    bare = build.statement(question)
    return solution if solution != bare else " ".join([*question.rationale, bare])


def answered(
    build: ExampleBuilder, task: Task, questions: Sequence[Question], chains_of: Callable[[Question], Sequence[str]]
) -> list[Answered]:
    """The examples of all questions that have a chain in which their answer stands.

    Args:
        build: turns questions and targets into token ids.
        task: says how answers are written.
        questions: the questions.
        chains_of: the right chains of a question.
    """
    made = []
    for question in questions:
        places = ((chain, answer_place(task.answers, question.answer, chain)) for chain in chains_of(question))
        cuts = [(chain, place) for chain, place in places if place is not None]
        if cuts:
            informed = tuple(_own_tokens(build, question, chain[:at], chain[at:end]) for chain, (at, end) in cuts)
            whole = tuple(build(question, chain) for chain, _ in cuts)
            made.append(Answered(question, alone(build, task, question), informed, whole))
    return made


def alone(build: ExampleBuilder, task: Task, question: Question) -> Example:
    """The answer's own tokens after the question and the wording around the answer."""
    bare = build.statement(question)
    at, end = answer_place(task.answers, question.answer, bare) or (0, len(bare))
    return _own_tokens(build, question, bare[:at], bare[at:end])


def _own_tokens(build: ExampleBuilder, question: Question, lead: str, answer: str) -> Example:
    """The tokens of an answer as the target, and those of the text that leads to it as what was read before."""
    whole = build.given(question, lead, answer, end=False)
    read = whole.target[: whole.given]
    return replace(whole, suffix=(*whole.suffix, *read), target=whole.scored, given=0, answer=None)
