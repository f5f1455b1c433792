"""Finds where a text holds the answer: the characters that state it, and the steps from which it could be copied."""

from __future__ import annotations

import re

from scaling.records.records import Question
from scaling.tasks.answers import Reading
from scaling.tasks.kinds import Kind
from scaling.tasks.task import Task, read_answer

# a sentence, an equation such as <<2+3=5>>, or a line
_STEP = re.compile(r".+?(?:(?<=[.!?])(?=\s)|(?<=[0-9]>>)(?=\s)|(?<=[。！？])|$)", re.MULTILINE)


def answer_place(kind: Kind, answer: str, text: str) -> tuple[int, int] | None:
    """Where a text states an answer last, in the spelling of solutions, without the signs of a box around it.

    Sought are, in this order, the answer as `Kind.written` gives it, in a box, and bare.

    Args:
        kind: says how the answer is written.
        answer: in canonical form.
        text: such as a solution.

    Returns:
        The place of its first character and the one after its last; None if it does not stand there as a word of its own.
    """
    bare = kind.in_box(answer)
    for form in (kind.written(answer), f"\\boxed{{{bare}}}", bare):
        if place := _last_place(form, text):
            start = place[0]
            inside = _last_place(bare, text[slice(*place)])
            return (start + inside[0], start + inside[1]) if inside else place
    return None


def _last_place(form: str, text: str) -> tuple[int, int] | None:
    """Where some characters stand last in a text, as a word of their own; None if they do not."""
    places = [match.span() for match in re.finditer(rf"(?<![\w.]){re.escape(form)}(?!\w)", text)]
    return places[-1] if places else None


def before_answer(chain: str, question: Question, task: Task) -> str:
    """What is left of a right chain of thought before the steps from which its answer could be copied.

    Steps are sentences, equations or lines. The last one that holds the answer is cut with all that follows. Then further
    steps are cut from the end, as long as the last one left holds the answer, or the task still reads the answer from what
    is left: of "2 + 3 = 5. 5 + 4 = 9. The answer is 9." the first sentence is left. An answer that is spread over several
    steps, as "St. Louis" is over two, is cut as a whole.

    The answer is found in any spelling that the kind of answers knows (`Kind.mentions`) or that the task reads as the gold
    answer or as the answer of the whole chain.

    Args:
        chain: the chain.
        question: its question.
        task: reads answers.

    Returns:
        The text up to the first step that is cut, with the white space before that; empty if nothing is left, or if the
        answer is found nowhere.
    """
    texts = [match for match in _STEP.finditer(chain) if match[0].strip()]
    starts = [match.end() - len(match[0].lstrip()) for match in texts] + [len(chain)]
    whole = _reading(chain, question, task)
    answers = {question.answer, whole.strict, whole.lenient} - {None}

    def mentions(first: int, end: int) -> bool:
        text = chain[starts[first] : starts[end]]
        return any(task.answers.mentions(text, answer, choices=question.choices) for answer in answers if answer)

    def is_read(first: int, end: int) -> bool:
        reading = _reading(chain[starts[first] : starts[end]], question, task)
        return not answers.isdisjoint((reading.strict, reading.lenient))

    def start_of_mention(end: int) -> int:
        """The first step of the shortest mention that needs the last of these steps; `end` if there is none."""
        needing = (n for n in reversed(range(end)) if mentions(n, end) and (n == end - 1 or not mentions(n, end - 1)))
        return next(needing, end)

    steps = len(texts)
    left = next((n for n in reversed(range(steps)) if mentions(n, steps) or is_read(n, steps)), 0)
    while left:
        start = start_of_mention(left)
        if start == left and not (is_read(left - 1, left) or is_read(0, left)):
            break
        left = min(start, left - 1)
    return chain[: starts[left]] if left else ""


def _reading(text: str, question: Question, task: Task) -> Reading:
    """The answers that the task reads from a text; none where its reader, which may be a user's code, fails."""
    try:
        return read_answer(task, text, question)
    except Exception:
        return Reading(None, None)
