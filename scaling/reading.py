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
from scaling.wording import Wording

_THOUGHT_BEGINS, _THOUGHT_ENDS = "<think>", "</think>"
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
    wording: Wording | None = None,
) -> ReadCompletion:
    """Makes the function that turns generated tokens into a completion with its answers.

    Args:
        tokenizer: that of the model that generated the tokens.
        task: its reader of answers is used.
        equal: whether an answer is the question's gold answer.
        until: a completion is cut before the first of these texts, and its answer is read from the rest. A thought is not.
        asked: changes a question before the reader of answers sees it.
        wording: how the model was asked. If its answer was begun for it, the completion's text has that beginning too.
    """
    wording = wording or Wording()
    beginnings: dict[Question, str] = {}

    def read(question: Question, generated: Generated) -> Completion:
        if question not in beginnings:
            beginnings[question] = wording.turns(question, task=task).answer
        begun, text = beginnings[question], generated.text
        if text is None:
            # decoded together, as some tokenizers drop the space before the first word that they decode
            ids = tokenizer(begun, add_special_tokens=False)["input_ids"] if begun else []
            text = str(tokenizer.decode([*ids, *generated.tokens], skip_special_tokens=True))
        else:
            text = f"{begun}{text}"
        text = own_words(text, tokenizer).strip()
        answer = after_thought(text) if wording.thinks else text
        text = f"{text.removesuffix(answer)}{before_first(until, answer)}"
        unanswered = _unanswered(question, generated, text)
        return answered(unanswered, asked(question), said=text, task=task, equal=equal, thinks=wording.thinks)

    return read


def after_thought(text: str) -> str:
    """The part of a text after the last thought in it; all of it if no thought ends there."""
    return text.rpartition(_THOUGHT_ENDS)[2].lstrip() if _THOUGHT_ENDS in text else text


def _is_cut(one: Completion, said: str) -> bool:
    """Whether the thought of a model that thinks before its answer has no end, so that nothing is its answer."""
    return _THOUGHT_ENDS not in said and (one.stop_reason == "length" or _THOUGHT_BEGINS in said)


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
    thinks: bool = False,
) -> Completion:
    """Reads the answers of a completion and judges them.

    Args:
        one: the completion.
        question: its question.
        said: the part of its text that the model wrote as its answer, see `scaling.prompts.own_words`.
        task: its reader of answers is used.
        equal: whether an answer is the question's gold answer.
        thinks: whether a thought stands before the answer. Answers are read after it. If it was cut, there is no strict one.

    Returns:
        The completion with both answers, and whether they are correct. If reading or judging failed, it has no answer, and
        `unread` says why.
    """

    def read() -> Completion:
        answer = _reading(task, after_thought(said) if thinks else said, question)
        if thinks and _is_cut(one, said):
            answer = Reading(None, answer.lenient)
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
