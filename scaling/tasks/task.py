"""A task: its questions, their prompt, the reader of their answers, and what a run does unless it is told otherwise.

Built-in tasks and a user's are subclasses of `Task`. Loads no torch.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from scaling.records.errors import UsageError, nearest, one_line
from scaling.records.records import Question
from scaling.tasks.answers import Reading
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.files import read_questions
from scaling.tasks.kinds import KINDS, Kind, kind_of, unknown_kind

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Task:
    """Questions, how they are put to a model, and how its answers are read and judged.

    Subclass it, set the attributes that differ, and override the methods that differ. Every method has a default but
    `questions`, and that one reads the files that `--data` names.

    Attributes:
        name: what run directories and reports call the task; the file's or the class's name where it is empty.
        kind: what an answer is: "number", "choice", "yes_no", "text", or an own `Kind`. It brings the request, the reader,
            the equality and the canonical form that the methods below fall back on.
        request: asks for the answer at the end of the prompt; None for that of the kind.
        hint_first: whether thoughts and hints stand before the request; None for what the kind says.
        splits: what `--split` may be; empty where `questions` takes whatever it is given.
        limit: how many questions a run asks unless `--limit` says otherwise; None for all.
        max_new_tokens: the longest answer, in tokens, unless `--max-new-tokens` says otherwise.
        generated: whether the questions are a stream without end, whose splits have none in common.
        local: whether the questions are read without a network.
        data: the file or folder of `--data`, for `questions` to read. A task that overrides `questions` and reads it
            sets `takes_data`; with any other the option is refused.
        difficulty: of `--difficulty`, which only the generated task `arithmetic` has.
    """

    name: str = ""
    kind: str | Kind = "text"
    request: str | None = None
    hint_first: bool | None = None
    splits: Sequence[str] = ()
    limit: int | None = None
    max_new_tokens: int = 512
    generated: bool = False
    local: bool = True
    takes_data: bool = False
    data: Path | None = None
    difficulty: int = 1

    @property
    def answers(self) -> Kind:
        """The kind of the answers as an object."""
        return kind_of(self.kind)

    def questions(self, split: str, limit: int | None) -> Iterable[Question]:
        """The questions of a split; more than `limit` are cut off. Here those of the files that `--data` names."""
        if self.data is None:
            raise UsageError(f"the task {self.name} needs `--data`, a file or folder with its questions: add it.")
        return read_questions(self.data, kind=self.answers, split=split, limit=limit)[1]

    def text(self, question: Question) -> str:
        """What is asked: the question's text, followed by its lettered options where it has any."""
        return with_options(question)

    def asks(self, question: Question) -> str:  # noqa: ARG002
        """What the prompt asks for at its end; nothing where it is empty."""
        return self.answers.request if self.request is None else self.request

    def solution(self, question: Question) -> str:
        """The question's rationale and its answer in the asked-for form: what is learned from, and what `--shots` show."""
        return " ".join([*question.rationale, f"The answer is {self.answers.written(question.answer)}."])

    def canonical(self, answer: str, question: Question) -> str | None:
        """The one text that stands for all ways to write a gold answer, None for what is no answer. Votes count equal
        texts as one answer."""
        return self.answers.gold(answer, num_choices=len(question.choices))

    def read(self, text: str, question: Question) -> Reading | str | None:
        """The answer of a completion in canonical form; None where it has none.

        A `Reading` tells two: one that is stated as asked for, and one that is looked for everywhere.
        """
        return self.answers.read(text, choices=question.choices, question=question.text)

    def equal(self, question: Question, answer: str, checker: AnswerChecker) -> bool:
        """Whether an answer in canonical form is the question's gold answer. checker: compares numbers and formulas."""
        return self.answers.equal(question.answer, answer, checker)


class PlainTask(Task):
    """Questions of a file in the plain form of one kind, as `--data` and the lm-evaluation-harness bring them.

    kind: None where the rows of `data` shall tell it.
    """

    def __init__(self, kind: str | Kind | None, *, name: str = "", data: Path | None = None) -> None:
        self.kind, self.name, self.data = kind or Task.kind, name, data
        self._inferred = kind is None

    def questions(self, split: str, limit: int | None) -> Iterable[Question]:
        if self._inferred and self.data is not None:
            self.kind, found = read_questions(self.data, kind=None, split=split, limit=limit)
            return found
        return super().questions(split, limit)


@dataclass(frozen=True)
class LoadedTask:
    """What a run holds of a task: its name, what it is, and the questions that are asked.

    identity: what run.json says of a task that is not built in, so that an edited one makes another run.
    """

    name: str
    definition: Task = field(compare=False)
    questions: tuple[Question, ...]
    identity: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The name of the kind of its answers."""
        return self.definition.answers.name


def with_options(question: Question) -> str:
    """The question's text, followed by its lettered options where it has any."""
    options = [f"({letter}) {text}" for letter, text in zip(_LETTERS, question.choices, strict=False)]
    return "\n".join([question.text, *options])


def ask(task: Task, method: str, question: Question) -> str:
    """What a task says of a question. Raises UsageError where the user's code fails.

    method: `text`, `asks` or `solution`.
    """
    where = f"the task {task.name}: `{method}`"
    try:
        said = getattr(task, method)(question)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the task {task.name}: `{method}` {failed(error)} at question {question.id}: correct it."
        ) from None
    if not isinstance(said, str):
        raise UsageError(f"{where} must give a text, and gave {said!r:.60} for question {question.id}: correct it.")
    return said


def read_answer(task: Task, text: str, question: Question) -> Reading:
    """Both readings of a completion. Raises whatever the task's reader raises, and TypeError where it gives no text."""
    found = task.read(text, question)
    if not isinstance(found, Reading):
        found = Reading(found or None, found or None)
    for one in (found.strict, found.lenient):
        if not (one is None or isinstance(one, str)):
            raise TypeError(f"`read` must give a text or None, and gave {one!r:.60}")
    return found


def load_questions(task: Task, *, place: str, split: str, limit: int | None) -> tuple[Question, ...]:
    """The first questions of a user's task, checked. Raises UsageError with the question that is wrong.

    Args:
        place: the option that names the task, which opens an error message.
    """
    if task.splits and split not in task.splits:
        raise unknown_split(task.name, split, task.splits)
    try:
        found = list(islice(task.questions(split, limit), limit))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{place}: `questions` {failed(error)} for `--split {split}`: correct it.") from None
    known: dict[str, int] = {}
    return tuple(_checked(task, one, number, known, place) for number, one in enumerate(found, start=1))


def unknown_split(name: str, split: str, splits: Iterable[str]) -> UsageError:
    known = ", ".join(f"`{known}`" for known in splits)
    return UsageError(
        f"`--split` must be one of {known} for the task `{name}`, not `{split}`: give one of these.{nearest(split, splits)}"
    )


def _checked(task: Task, question: object, number: int, known: dict[str, int], place: str) -> Question:
    """The question with its gold answer in canonical form. known: the number of each id so far."""
    where = f"{place}: question {number}"
    if not isinstance(question, Question):
        raise UsageError(f"{where} must be a `Question`, not {question!r:.60}: correct `questions`.")
    where = f"{where} ({question.id!r:.60})"
    for name, value in (("id", question.id), ("text", question.text), ("answer", question.answer)):
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{where} must have a text as its `{name}`, not {value!r:.60}: correct `questions`.")
    for name, texts in (("choices", question.choices), ("rationale", question.rationale)):
        if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
            raise UsageError(f"{where} must have texts as its `{name}`, not {texts!r:.60}: correct `questions`.")
    if known.setdefault(question.id, number) != number:
        raise UsageError(f"{where} has the id of question {known[question.id]}: give each its own.")
    if task.answers.has_choices and not 2 <= len(question.choices) <= len(_LETTERS):
        raise UsageError(
            f"{where} must have 2 to {len(_LETTERS)} `choices`, not {len(question.choices)}: correct `questions`."
        )
    question = replace(question, choices=tuple(question.choices), rationale=tuple(question.rationale))
    try:
        answer = task.canonical(question.answer, question)
    except Exception as error:
        raise UsageError(f"{where}: `canonical` {failed(error)}: correct it.") from None
    if not isinstance(answer, str) or not answer:
        required = task.answers.required(len(question.choices))
        raise UsageError(
            f"{where}: the answer {question.answer!r:.60} must be {required} in a task of kind `{task.answers.name}`: "
            f"correct `questions` or `canonical`."
        )
    return replace(question, answer=answer)


def check(task: Task, *, place: str) -> None:
    """Raises UsageError for attributes of a user's task that cannot be."""
    kind = task.kind.name if isinstance(task.kind, Kind) and hasattr(task.kind, "name") else task.kind
    wanted: dict[str, tuple[bool, str]] = {
        "kind": (
            isinstance(kind, str) and (kind in KINDS or isinstance(task.kind, Kind)),
            unknown_kind(kind).rstrip("."),
        ),
        "request": (task.request is None or isinstance(task.request, str), "give a text"),
        "limit": (task.limit is None or _is_count(task.limit), "give a whole number from 1, or None"),
        "max_new_tokens": (_is_count(task.max_new_tokens), "give a whole number from 1"),
        "splits": (_are_texts(task.splits), "give names of splits"),
    }
    for name, (fits, todo) in wanted.items():
        if not fits:
            raise UsageError(f"{place}: its `{name}` is {getattr(task, name)!r:.60}: {todo}.")


def failed(error: BaseException) -> str:
    """What went wrong in a user's code, with its file and line: the middle of a sentence."""
    frames = traceback.extract_tb(error.__traceback__)
    others = (Path(__file__).resolve().parent, *map(Path, map(sysconfig.get_path, ("stdlib", "purelib"))))
    own = [one for one in frames if not any(other in Path(one.filename).resolve().parents for other in others)]
    place = own[-1] if own and Path(own[-1].filename).is_file() else None
    at = f" in {place.filename} line {place.lineno}" if place else ""
    return f"fails{at} ({type(error).__name__}: {one_line(error)})"


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
