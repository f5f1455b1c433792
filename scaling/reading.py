"""Reads the answers of completions and judges them. No text can make this fail: a completion has an answer or has none.

Runs, `--rescore` and the lm-evaluation-harness all read answers by this module. It knows no models and no files.
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
    """A task's reader of answers, or its comparison of answers, failed on a text. The message says why."""


def equality(checker: AnswerChecker, task: Task) -> Equal:
    """Makes the function that tells whether a recorded answer is the gold answer of a question of this task.

    Args:
        checker: compares numbers and formulas.
        task: the task of the questions.

    Returns:
        A function of a question and an answer. No answer (None) is never right.
    """

    def equal(question: Question, answer: str | None) -> bool:
        if answer is None:
            return False
        try:
            verdict = task.equal(question, from_text(answer) if task.answers.verbatim else answer, checker)
        except (OSError, SystemExit) as error:
            if type(task).equal is Task.equal:
                raise  # the checker's process cannot be started: a fault of the machine, not of the text
            raise ReaderFailed(_reason(error)) from error
        if not (isinstance(verdict, bool) or type(verdict).__name__ == "bool_"):  # of numpy
            raise ReaderFailed(f"TypeError: `equal` must give True or False, and gave {verdict!r:.60}")
        return bool(verdict)

    return equal


def reader(
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    equal: Equal,
    until: Sequence[str] = (),
    asked: Callable[[Question], Question] = lambda question: question,
) -> ReadCompletion:
    """Makes the function that turns generated tokens into a completion with its answers.

    Args:
        tokenizer: that of the model that generated the tokens.
        task: its reader of answers is used.
        equal: whether an answer is the question's gold answer.
        until: a completion is cut before the first of these texts, and its answer is read from the rest.
        asked: changes a question before the reader of answers sees it.
    """

    def read(question: Question, generated: Generated) -> Completion:
        text = generated.text
        if text is None:
            text = str(tokenizer.decode(generated.tokens, skip_special_tokens=True))
        text = before_first(until, own_words(text, tokenizer).strip())
        return answered(_unanswered(question, generated, text), asked(question), said=text, task=task, equal=equal)

    return read


def _unanswered(question: Question, generated: Generated, text: str) -> Completion:
    """The completion of generated tokens, before any answer is read from it."""
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
    """A value with four decimals, as the others depend on the machine. None for NaN and infinities, which JSON lacks."""
    return None if value is None or not math.isfinite(value) else round(value, 4)


def answered(
    one: Completion,
    question: Question,
    *,
    said: str,
    task: Task,
    equal: Equal,
) -> Completion:
    """Reads the answers of a completion and judges them.

    Args:
        one: the completion.
        question: its question.
        said: the part of its text that the model wrote as its answer, see `scaling.prompts.own_words`.
        task: its reader of answers is used.
        equal: whether an answer is the question's gold answer.

    Returns:
        The completion with both answers, and whether they are correct. If reading or judging failed, it has no answer, and
        `unread` says why.
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
    """Judges the answers of a completion anew, without reading them anew. The arguments are those of `answered`."""
    return _guarded(
        lambda: replace(one, correct=equal(question, one.answer), correct_strict=equal(question, one.answer_strict)),
        one,
    )


def _reading(task: Task, said: str, question: Question) -> Reading:
    """Both answers of a text as they are recorded.

    Raises:
        ReaderFailed: for any exception of the task's reader. Even an OSError, as a reader may open a file.
    """
    try:
        reading = read_answer(task, said, question)
        if not task.answers.verbatim:
            return reading
        return Reading(*(None if answer is None else as_text(answer) for answer in (reading.strict, reading.lenient)))
    except (Exception, SystemExit) as error:
        raise ReaderFailed(_reason(error)) from error


def _guarded(read: Callable[[], Completion], completion: Completion) -> Completion:
    """What `read` returns. If it fails, `completion` without answers and with the reason in `unread`."""
    try:
        return read()
    except (UsageError, OSError):
        raise  # a fault of the machine, such as a process that cannot be started, and not of the text
    except Exception as error:
        reason = str(error) if isinstance(error, ReaderFailed) else _reason(error)
        return replace(completion, answer=None, correct=False, answer_strict=None, correct_strict=False, unread=reason)


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error)}"
