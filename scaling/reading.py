"""What is read from a text and how it is judged, in one guard: whatever a text holds, it has an answer or none.

Called by runs, by `--rescore` and by the lm-evaluation-harness alike. Knows no models and no files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from scaling.engines.base import Generated
from scaling.prompts import before_first, own_words
from scaling.records.answer_classes import as_text, from_text
from scaling.records.errors import UsageError, one_line
from scaling.records.records import Completion, Question
from scaling.sampler import ReadCompletion
from scaling.tasks.answers import Reading
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.task import Task, read_answer

Equal = Callable[[Question, str | None], bool]


class ReaderFailed(Exception):
    """A task's own reader or equality failed on a text. The message says why."""


def equality(checker: AnswerChecker, task: Task) -> Equal:
    """Whether a recorded answer is the gold answer of a question of this task. No answer (None) is never right."""

    def equal(question: Question, answer: str | None) -> bool:
        if answer is None:
            return False
        try:
            return bool(task.equal(question, from_text(answer) if task.answers.verbatim else answer, checker))
        except OSError as error:
            if type(task).equal is Task.equal:
                raise  # no process can be started: the machine's fault
            raise ReaderFailed(_reason(error)) from error

    return equal


def reader(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    equal: Equal,
    until: Sequence[str] = (),
    asked: Callable[[Question], Question] = lambda question: question,
) -> ReadCompletion:
    """What turns generated tokens into a completion with its answers.

    Args:
        tokenizer: of the model that wrote them.
        task: whose answers are read.
        equal: whether an answer is the question's gold answer.
        until: a completion ends before the first of these texts in it, so that its answer is read from what is kept.
        asked: a question as the reader of answers is to know it.
    """

    def read(question: Question, generated: Generated) -> Completion:
        text = generated.text
        if text is None:
            text = str(tokenizer.decode(generated.tokens, skip_special_tokens=True))
        text = before_first(until, own_words(text, tokenizer).strip())
        return answered(_unanswered(question, generated, text), asked(question), said=text, task=task, equal=equal)

    return read


def _unanswered(question: Question, generated: Generated, text: str) -> Completion:
    return Completion(
        question_id=question.id,
        path=generated.request.prompt.path,
        sample=generated.request.sample,
        text=text,
        answer=None,
        correct=False,
        answer_strict=None,
        correct_strict=False,
        num_tokens=generated.num_tokens or len(generated.tokens),
        stop_reason=generated.stop_reason,
        seed=generated.request.seed,
        log_prob=_rounded(generated.log_prob),
        self_certainty=_rounded(generated.self_certainty),
    )


def _rounded(value: float | None) -> float | None:
    """To four decimals: the rest is rounding of the machine. None for what is no number, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


def answered(
    one: Completion,
    question: Question,
    *,
    said: str,
    task: Task,
    equal: Equal,
) -> Completion:
    """The completion with the answers that the task reads from `said`, and the verdicts on them.

    Where reading or judging fails, the completion has no answer, and `unread` says why.

    Args:
        said: the model's own words of the completion's text.
        equal: whether an answer is the question's gold answer.
    """

    def read() -> Completion:
        answer = _reading(task, said, question)
        return replace(
            one,
            answer=answer.lenient,
            correct=equal(question, answer.lenient),
            answer_strict=answer.strict,
            correct_strict=equal(question, answer.strict),
            unread=None,
        )

    return _guarded(read, one)


def judged(one: Completion, question: Question, *, equal: Equal) -> Completion:
    """The completion with the verdicts on the answers that were read from it; `equal` as for `answered`."""
    return _guarded(
        lambda: replace(one, correct=equal(question, one.answer), correct_strict=equal(question, one.answer_strict)),
        one,
    )


def _reading(task: Task, said: str, question: Question) -> Reading:
    """Both answers as they are recorded. Whatever a reader raises, as where it opens a file, is put down to the text."""
    try:
        found = read_answer(task, said, question)
        if not task.answers.verbatim:
            return found
        return Reading(*(None if one is None else as_text(one) for one in (found.strict, found.lenient)))
    except Exception as error:
        raise ReaderFailed(_reason(error)) from error


def _guarded(read: Callable[[], Completion], one: Completion) -> Completion:
    try:
        return read()
    except (UsageError, OSError):
        raise  # the machine's fault, as where no process can be started: not the text's
    except Exception as error:
        reason = str(error) if isinstance(error, ReaderFailed) else _reason(error)
        return replace(one, answer=None, correct=False, answer_strict=None, correct_strict=False, unread=reason)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
