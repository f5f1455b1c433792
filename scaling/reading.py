"""What is read from a text and how it is judged, in one guard: whatever a text holds, it has an answer or none.

Called by runs, by `--rescore` and by the lm-evaluation-harness alike. Knows no models and no files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from scaling.engines.base import Generated
from scaling.records.errors import UsageError, one_line
from scaling.records.records import Completion, Question
from scaling.tasks.answers import read_answer

Equal = Callable[[Question, str | None], bool]


def drawn(question: Question, generated: Generated, text: str) -> Completion:
    """The completion without any answer yet."""
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
        log_prob=generated.log_prob,
        self_certainty=generated.self_certainty,
    )


def answered(
    one: Completion,
    question: Question,
    *,
    said: str,
    kind: str,
    choices: Sequence[str],
    asked: str = "",
    equal: Equal,
) -> Completion:
    """The completion with the answers that are read from `said`, the model's own words of its text, and their verdicts.

    asked: the question's text where it is one question, which tells what its numbers count; see `read_answer`.
    equal: whether an answer is the question's gold answer. Where reading or judging fails, the completion has no answer, and
    `unread` says why.
    """

    def read() -> Completion:
        answer = read_answer(said, kind=kind, choices=choices, question=asked)
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


def _guarded(read: Callable[[], Completion], one: Completion) -> Completion:
    try:
        return read()
    except (UsageError, OSError):
        raise  # the machine's fault, as where no process can be started: not the text's
    except Exception as error:
        reason = f"{type(error).__name__}: {one_line(error)}"
        return replace(one, answer=None, correct=False, answer_strict=None, correct_strict=False, unread=reason)
