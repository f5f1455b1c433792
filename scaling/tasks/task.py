"""A task: its questions, how they are put to a model, how answers are read and judged, and its defaults for a run.

Built-in tasks and tasks of users are subclasses of `Task`. torch is not loaded.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from string import ascii_uppercase

from scaling.records.errors import DATA, UsageError, nearest, one_line
from scaling.records.records import Question
from scaling.tasks.answers import Reading
from scaling.tasks.counterfactuals import Counterfactual, with_another_number
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.files import Data, read_questions
from scaling.tasks.kinds import KINDS, Kind, kind_of, request_for, unknown_kind


class Task:
    """Questions, how they are put to a model, and how its answers are read and judged.

    Subclass it, set the attributes that differ, and override the methods that differ. The default of `questions` reads the
    files that `--data` names; the defaults of the other methods follow from `kind`.

    Attributes:
        name: what run directories and reports call the task; if it is empty, the name of the file or the class.
        kind: what an answer is: a name of `scaling.tasks.kinds.KINDS`, or a `Kind` of your own. The kind supplies the
            defaults of the request, the reader, the comparison and the canonical form of answers.
        wanted: what the answer is, as a request calls it, such as "the city"; None for the kind's words. All prompts of
            `--prompt` ask for it.
        request: the sentence at the end of the prompt `plain` that asks for the answer; None for one that follows from
            `wanted`. Without `wanted`, the other prompts add what they ask for to this sentence.
        hint_first: whether thoughts and hints come before the request; None for what the kind says.
        splits: the possible values of `--split`; empty if `questions` accepts any.
        limit: how many questions a run asks by default; None for all. `--limit` overrides it.
        max_new_tokens: the longest answer by default, in tokens. `--max-new-tokens` overrides it.
        generated: whether the questions are generated without end, with no question in two splits.
        local: whether the questions can be read without a network.
        takes_data: whether an overridden `questions` reads `data`; if not, `--data` is refused.
        data: the file, folder or Hub data set of `--data`, for `questions` to read.
        columns: the value of `--columns`; None if it was not given.
        equations: whether rationales are wanted as equations alone, the value of `--rationale`. `questions` may give them
            with calculator annotations (`<<16-3-4=9>>`): the rest is left out.
        taken: once `questions` has read `data`, which of its columns were taken; empty if they are called like the fields.
        levels: how many difficulties the task has; the values of `--difficulty` are 1 to this number.
        difficulty: the value of `--difficulty`.
    """

    name: str = ""
    kind: str | Kind = "text"
    wanted: str | None = None
    request: str | None = None
    hint_first: bool | None = None
    splits: Sequence[str] = ()
    limit: int | None = None
    max_new_tokens: int = 512
    generated: bool = False
    local: bool = True
    takes_data: bool = False
    data: Path | None = None
    columns: Mapping[str, str] | None = None
    equations: bool = False
    taken: str = ""
    levels: int = 1
    difficulty: int = 1

    @property
    def answers(self) -> Kind:
        """The kind of the answers, as an object."""
        return kind_of(self.kind)

    @property
    def ending(self) -> str:
        """How a solution ends, in the words of a request: '"The answer is" and the city'."""
        return self.answers.ending if self.wanted is None else f'"The answer is" and {self.wanted}'

    def questions(self, split: str, limit: int | None) -> Iterable[Question]:
        """The questions of a split. By default, those in the files that `--data` names.

        Args:
            split: the value of `--split`.
            limit: how many questions are needed; None for all. More may be returned: they are cut off.
        """
        if self.data is None:
            raise UsageError(f"the task {self.name} needs `--data`, a file or folder with its questions: add it.")
        return self._asked(
            read_questions(
                self.data,
                kind=self._kind,
                split=split,
                limit=limit,
                columns=self.columns,
                equations=self.equations,
            )
        )

    @property
    def _kind(self) -> Kind | None:
        """The kind of the answers; None if it follows from the rows of `data`."""
        return self.answers

    def _asked(self, read: Data) -> list[Question]:
        """The questions of a data set that was read. What was found out about it is kept."""
        self.taken = read.taken
        if self._kind is None:
            self.kind = read.kind
        return read.questions

    def generates_beside(self, data: Path) -> bool:  # noqa: ARG002
        """Whether it generates training questions without end where `data` has the others; for a built-in task with both."""
        return False

    def text(self, question: Question) -> str:
        """The question as the prompt shows it. By default its text, and its lettered options if it has any."""
        return with_options(question)

    def assistant_text(self, question: Question) -> str:
        """The question as the assistant's prompt shows it. Thoughts come from it. By default: what the backbone reads."""
        return self.text(question)

    def counterfactual(self, question: Question) -> Counterfactual | None:
        """The question with something changed that its answer depends on, as `--control counterfactual` needs it.

        By default one number of its text is changed, and the answer is not known.

        Returns:
            None if nothing in it can be changed.
        """
        return with_another_number(question.text)

    def asks(self, question: Question) -> str:  # noqa: ARG002
        """The request at the end of the prompt; an empty text for none."""
        request = self.answers.request if self.wanted is None else request_for(self.ending)
        return request if self.request is None else self.request

    def solution(self, question: Question) -> str:
        """The rationale and the answer, stated as the request asks for it. Training learns it, and `--shots` show it."""
        return " ".join([*question.rationale, f"The answer is {self.answers.written(question.answer)}."])

    def canonical(self, answer: str, question: Question) -> str | None:
        """The canonical form of a gold answer: one text for all ways to write it. Votes count equal texts as one answer.

        Returns:
            None if the text is no answer of this task.
        """
        return self.answers.gold(answer, num_choices=len(question.choices))

    def read(self, text: str, question: Question) -> Reading | str | None:
        """The answer of a completion in canonical form; None if it has none.

        A `Reading` holds two answers: a strict one, stated as the request asks for it, and a lenient one, found anywhere.
        """
        return self.answers.read(text, choices=question.choices, question=question.text)

    def equal(self, question: Question, answer: str, checker: AnswerChecker) -> bool:
        """Whether an answer in canonical form is the gold answer. checker: compares numbers and formulas."""
        return self.answers.equal(question.answer, answer, checker)


class PlainTask(Task):
    """The task of questions that come without one, from `--data` or the lm-evaluation-harness: the defaults of a kind."""

    def __init__(self, kind: str | Kind | None, *, name: str = "") -> None:
        """Makes the task; `kind` is None if it follows from the rows of `data`, see `scaling.tasks.files.infer_kind`."""
        self.kind, self.name = kind or Task.kind, name
        self._inferred = kind is None

    @property
    def _kind(self) -> Kind | None:
        return None if self._inferred else self.answers


@dataclass(frozen=True)
class LoadedTask:
    """A task with the questions that a run asks.

    Attributes:
        name: the task's name.
        definition: the task itself.
        questions: those that are asked.
        identity: what run.json records of a user's task, so that an edited task makes another run. Empty for others.
    """

    name: str
    definition: Task = field(compare=False)
    questions: tuple[Question, ...]
    identity: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The name of the kind of the task's answers."""
        return self.definition.answers.name

    @property
    def taken(self) -> str:
        """A line that says which columns of the data were taken; empty where they are called like the fields."""
        return f"{DATA}{self.definition.taken}" if self.definition.taken else ""


def with_options(question: Question) -> str:
    """The text of a question, followed by its lettered options if it has any."""
    options = [f"({letter}) {text}" for letter, text in zip(ascii_uppercase, question.choices, strict=False)]
    return "\n".join([question.text, *options])


def ask(task: Task, method: str, question: Question) -> str:
    """Calls a method of a task, which may be a user's code, with a question.

    Args:
        task: the task.
        method: `text`, `assistant_text`, `asks` or `solution`.
        question: the method's argument.

    Returns:
        The text that the method returns.

    Raises:
        UsageError: the method fails or returns no text.
    """
    where = f"the task {task.name}: `{method}`"
    try:
        answer = getattr(task, method)(question)
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the task {task.name}: `{method}` {failed(error)} at question {question.id}: correct it."
        ) from None
    if not isinstance(answer, str):
        raise UsageError(f"{where} must give a text, and gave {answer!r:.60} for question {question.id}: correct it.")
    return answer


def counterfactual_of(task: Task, question: Question) -> Counterfactual | None:
    """A changed question, of which the assistant reads something else than of the question itself; None if there is none.

    Raises UsageError if the task's `counterfactual`, which may be a user's code, fails or gives something else.
    """
    where = f"the task {task.name}: `counterfactual`"
    try:
        changed = task.counterfactual(question)
    except Exception as error:
        raise UsageError(f"{where} {failed(error)} at question {question.id}: correct it.") from None
    if changed is None:
        return None
    text, answer = changed if isinstance(changed, tuple) and len(changed) == 2 else (None, None)
    if not isinstance(text, str) or not isinstance(answer, str | None):
        raise UsageError(
            f"{where} must give a text and its answer (or None for that), or None, and gave {changed!r:.60} for question "
            f"{question.id}: correct it."
        )
    edited = replace(question, text=text)
    if ask(task, "assistant_text", edited) == ask(task, "assistant_text", question):
        return None
    return Counterfactual(text, answer and (task.canonical(answer, edited) or answer))


def read_answer(task: Task, text: str, question: Question) -> Reading:
    """Both readings of a completion, in canonical form where they have one.

    Raises:
        TypeError: the task's reader returns no text.
        UnicodeEncodeError: its text is none that can be written.
        Exception: whatever the task's reader raises.
    """
    reading = task.read(text, question)
    if not isinstance(reading, Reading):
        reading = Reading(reading, reading)
    return Reading(*(_canonical(task, answer, question) for answer in (reading.strict, reading.lenient)))


def _canonical(task: Task, answer: object, question: Question) -> str | None:
    if answer is None or answer == "":
        return None
    if not isinstance(answer, str):
        raise TypeError(f"`read` must give a text or None, and gave {answer!r:.60}")
    answer.encode()
    if type(task).read is Task.read:
        return answer
    return task.answers.canonical(answer, num_choices=len(question.choices)) or answer


def load_questions(task: Task, *, place: str, split: str, limit: int | None) -> tuple[Question, ...]:
    """The first questions of a user's task, checked.

    Args:
        task: the user's task.
        place: the option that names the task, with which messages begin.
        split: the value of `--split`.
        limit: how many questions; None for all.

    Raises:
        UsageError: the task has no such split, its code fails, or a question is wrong, which the message names.
    """
    if task.splits and split not in task.splits:
        raise unknown_split(task.name, split, task.splits)
    try:
        questions = list(islice(task.questions(split, limit), limit))
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(f"{place}: `questions` {failed(error)} for `--split {split}`: correct it.") from None
    known: dict[str, int] = {}
    return tuple(_checked(task, question, number, known, place) for number, question in enumerate(questions, start=1))


def unknown_split(name: str, split: str, splits: Iterable[str]) -> UsageError:
    """The error for a split that a task does not have. splits: those that it has."""
    known = ", ".join(f"`{known}`" for known in splits)
    if split == "train":
        return UsageError(
            f"the task `{name}` has no questions to learn from, which trainings, `--shots` and `--split train` need, but "
            f"only {known}: give another task, or questions of your own by `--data`."
        )
    return UsageError(
        f"`--split` must be one of {known} for the task `{name}`, not `{split}`: give one of these.{nearest(split, splits)}"
    )


def _checked(task: Task, question: object, number: int, known: dict[str, int], place: str) -> Question:
    """A question of a user's task, checked, with its gold answer in canonical form.

    Args:
        task: the user's task.
        question: what its `questions` returned.
        number: of the question, from 1.
        known: for each id so far the number of its question; this question is added.
        place: the option that names the task, with which messages begin.
    """
    where = f"{place}: question {number}"
    if not isinstance(question, Question):
        raise UsageError(f"{where} must be a `Question`, not {question!r:.60}: correct `questions`.")
    where = f"{where} ({question.id!r:.60})"
    for name, value in (("id", question.id), ("text", question.text), ("answer", question.answer)):
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{where} must have a text as its `{name}`, not {value!r:.60}: correct `questions`.")
    for name, texts in (("choices", question.choices), ("rationale", question.rationale)):
        if not isinstance(texts, list | tuple) or not all(isinstance(entry, str) for entry in texts):
            raise UsageError(f"{where} must have texts as its `{name}`, not {texts!r:.60}: correct `questions`.")
    if not isinstance(question.cluster, str | None):
        raise UsageError(
            f"{where} must have a text or None as its `cluster`, not {question.cluster!r:.60}: correct it."
        )
    if known.setdefault(question.id, number) != number:
        raise UsageError(f"{where} has the id of question {known[question.id]}: give each its own.")
    if task.answers.has_choices and not 2 <= len(question.choices) <= len(ascii_uppercase):
        raise UsageError(
            f"{where} must have 2 to {len(ascii_uppercase)} `choices`, not {len(question.choices)}: correct `questions`."
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
    """Raises UsageError for attributes of a user's task with impossible values. place: with which messages begin."""
    kind = task.kind.name if isinstance(task.kind, Kind) and hasattr(task.kind, "name") else task.kind
    # for each attribute, whether its value is possible, and what to do if not
    checks: dict[str, tuple[bool, str]] = {
        "kind": (
            isinstance(kind, str) and (kind in KINDS or isinstance(task.kind, Kind)),
            unknown_kind(kind).rstrip("."),
        ),
        "wanted": (task.wanted is None or isinstance(task.wanted, str), "give a text"),
        "request": (task.request is None or isinstance(task.request, str), "give a text"),
        "limit": (task.limit is None or _is_count(task.limit), "give a whole number from 1, or None"),
        "max_new_tokens": (_is_count(task.max_new_tokens), "give a whole number from 1"),
        "splits": (_are_texts(task.splits), "give names of splits"),
        "generated": (
            not task.generated or _is_count(task.limit),
            "give it a `limit` too, as its questions have no end",
        ),
    }
    for name, (fits, todo) in checks.items():
        if not fits:
            raise UsageError(f"{place}: its `{name}` is {getattr(task, name)!r:.60}: {todo}.")


def failed(error: BaseException) -> str:
    """How a user's code failed, with its file and line, as the middle of a sentence: "fails in ... line 3 (...)"."""
    frames = traceback.extract_tb(error.__traceback__)
    others = (Path(__file__).resolve().parent, *map(Path, map(sysconfig.get_path, ("stdlib", "purelib"))))
    # neither of this package, nor of Python, nor of an installed package
    users = [frame for frame in frames if not any(other in Path(frame.filename).resolve().parents for other in others)]
    place = users[-1] if users and Path(users[-1].filename).is_file() else None
    at = f" in {place.filename} line {place.lineno}" if place else ""
    return f"fails{at} ({type(error).__name__}: {one_line(error)})"


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)
