"""Makes questions of the rows of a data set. Every field of every row is checked, and an error names the row.

A question has the fields `id` (string or integer), `question` and `answer` (string, number or true/false). It may also have
`rationale` (a string with one step per line, or a list of strings), `choices` (a list of strings, which get the letters
A, B, C ...), and `cluster` (a string or an integer, shared by questions that belong
together). `scaling.tasks.columns` gives rows these fields. A gold answer must be unambiguous: a number that could also
be a date, a range or a score is refused. This module knows nothing of named tasks and prompts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from scaling.records.errors import UsageError, nearest
from scaling.records.records import Question
from scaling.tasks import numbers
from scaling.tasks.columns import mapped
from scaling.tasks.equations import equations_in, without_equations
from scaling.tasks.formats import Row, read_rows, shown
from scaling.tasks.kinds import KINDS, Kind, kind_of

_YES_NO = ("yes", "no", "true", "false")
_LATEX = re.compile(r"\\[a-zA-Z]|\^")
_FEW = 10  # one formula in so many answers makes a task of kind "expression"
_MAX_CHOICES = 26
_SHORT = 100  # characters of the longest answer that makes a task of kind "text" where no kind is named
_OTHER_KIND = "name another kind with `--answer-kind`"
_MOST = 400  # decimal places of a number as an answer


class Data(NamedTuple):
    """The questions of a data set.

    Attributes:
        kind: of the answers.
        questions: those that are asked.
        taken: which columns were taken, as a sentence; empty where they are called like the fields.
    """

    kind: str | Kind
    questions: list[Question]
    taken: str = ""


def read_questions(
    place: Path,
    *,
    kind: str | Kind | None,
    split: str,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    option: str = "--columns",
    equations: bool = False,
) -> Data:
    """Reads the questions of a data set.

    All rows are checked before `limit` cuts. So whether a data set is refused does not depend on the limit.

    Args:
        place: a file, a folder or a data set on the Hub, see `scaling.tasks.formats`.
        kind: of the answers; None infers it from the rows, see `infer_kind`.
        split: the part of a folder or of a data set on the Hub; it is not used if `place` is a file.
        limit: how many questions; None for all.
        columns: the columns of fields, see `scaling.tasks.columns`; those that are not named are found by common names.
        option: where the user can name columns, for messages.
        equations: whether rationales are their calculator annotations alone, and not the text without them.

    Raises:
        UsageError: there is no such place, its columns are not clear, or a row is wrong.
    """
    rows = read_rows(place, split=split)
    return questions_of(rows, kind=kind, limit=limit, columns=columns, option=option, equations=equations)


def questions_of(
    rows: Sequence[Row],
    *,
    kind: str | Kind | None,
    limit: int | None = None,
    columns: Mapping[str, str] | None = None,
    option: str = "--columns",
    equations: bool = False,
) -> Data:
    """Makes questions of rows that were read already; see `read_questions`."""
    rows, taken = mapped(rows, columns, option=option)
    hint, inferred = "", kind is None
    if kind is None:
        fields = [fields for _, fields in rows]
        kind = infer_kind(fields, formulas=bool(taken))
        if kind == "number" and any(map(_is_formula, fields)):
            hint = "some answers are formulas, which `--answer-kind expression` compares"
    questions = checked_questions(rows, kind=kind, equations=equations)
    bare = only_equations(rows, questions)
    named = f"kind {kind_of(kind).name}" if inferred and (taken or hint) else ""
    return Data(kind, questions[:limit], ", ".join(filter(None, (taken, named, hint, bare))))


def checked_questions(rows: Sequence[Row], *, kind: str | Kind, equations: bool = False) -> list[Question]:
    """Makes questions of rows that have the fields of questions. Raises UsageError for a wrong row, or for one id twice."""
    questions = [question_from(fields, kind=kind, where=where, equations=equations) for where, fields in rows]
    refuse_duplicates(rows, questions)
    return questions


def only_equations(rows: Iterable[Row], questions: Iterable[Question]) -> str:
    """What is to be said where all rationales are calculator annotations without text, and questions so have none."""
    if any(question.rationale for question in questions) or not any(fields.get("rationale") for _, fields in rows):
        return ""
    return "rationales are equations without text, which `--rationale equations` keeps"


def infer_kind(rows: Iterable[Mapping[str, Any]], *, formulas: bool = False) -> str:
    """The kind of the answers of rows.

    "choice" if every row has choices; else "yes_no" if every answer is yes, no, true or false; else "expression" if one in
    ten answers is a formula; else "text" if fewer than half of the answers are numbers and all are short texts; else
    "number", so that a slip among numbers is named.

    Args:
        rows: the fields of all rows.
        formulas: whether answers that could all be of kind "number" may be called "expression". Our own files, which
            version 0.1 has called "number", stay so.
    """
    rows = list(rows)
    if all(row.get("choices") for row in rows):
        return "choice"
    answers = [_answer_text(row.get("answer")).strip() for row in rows]
    if all(answer.lower() in _YES_NO for answer in answers):
        return "yes_no"
    number, expression = KINDS["number"], KINDS["expression"]
    if (
        sum(map(_is_formula, rows)) * _FEW >= len(rows)
        and (formulas or any(number.gold(answer) is None for answer in answers))
        and all(expression.gold(answer) is not None for answer in answers)
    ):
        return "expression"
    texts = all(0 < len(answer) <= _SHORT for answer in answers)
    half = (len(answers) + 1) // 2
    numbers = islice((answer for answer in answers if number.gold(answer) is not None), half)
    return "text" if texts and len(list(numbers)) < half else "number"


def _is_formula(row: Mapping[str, Any]) -> bool:
    """Whether an answer is in LaTeX, or in the box of a solution, and is not one number."""
    answer = _answer_text(row.get("answer"))
    if not _LATEX.search(answer) and "\\boxed" not in str(row.get("rationale") or ""):
        return False
    number = KINDS["number"].gold(answer)
    return number is None or numbers.value(number) is None


def question_from(fields: Mapping[str, Any], *, kind: str | Kind, where: str, equations: bool = False) -> Question:
    """Makes a question of the fields of a row and checks it. Its gold answer gets its canonical form.

    Args:
        fields: of the row, by name.
        kind: of the answer.
        where: the place of the row ("... line 3"), with which messages begin.
        equations: whether its rationale is its calculator annotations alone, and not the text without them.

    Raises:
        UsageError: a field is missing or wrong.
    """
    kind = kind_of(kind)
    choices = _choices(fields, kind=kind, where=where)
    return Question(
        id=_id(fields, where=where),
        text=_text(fields, where=where),
        answer=_answer(fields, kind=kind, num_choices=len(choices), where=where),
        choices=choices,
        rationale=_rationale(fields, where=where, equations=equations),
        cluster=_cluster(fields, where=where),
    )


def _id(fields: Mapping[str, Any], *, where: str) -> str:
    value = _required(fields, "id", where=where)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise _wrong("id", "a non-empty string or an integer", value, where=where)
    return str(value)


def _text(fields: Mapping[str, Any], *, where: str) -> str:
    value = _required(fields, "question", where=where)
    if not isinstance(value, str) or not value.strip():
        raise _wrong("question", "a non-empty string", value, where=where)
    return value.strip()


def _answer(fields: Mapping[str, Any], *, kind: Kind, num_choices: int, where: str) -> str:
    value = _required(fields, "answer", where=where)
    if isinstance(value, list) and len(value) > 1 and not kind.several:
        required = "one right answer, as a list of accepted answers is not understood"
        advice = "keep one of them in each row (`--answer-kind set` is for answers that have to name all)"
        raise _wrong("answer", required, value, where=where, advice=advice)
    values = value if kind.several and isinstance(value, list) else [value]
    answer = kind.gold("; ".join(map(_answer_text, values)), num_choices=num_choices)
    if answer is None:
        required = kind.required(num_choices)
        formula = not kind.has_choices and _LATEX.search(_answer_text(value)) and KINDS["expression"].gold(value)
        advice = f"correct that row, or {'give `--answer-kind expression`' if formula else _OTHER_KIND}"
        raise _wrong("answer", f"{required} in a task of kind `{kind.name}`", value, where=where, advice=advice)
    return answer


def _answer_text(value: Any) -> str:
    """An answer as text. For a value that cannot be an answer an empty text, which no kind of answers accepts."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        value = Decimal(repr(value))
    if isinstance(value, Decimal):  # 1e-05 as 0.00001, but 1e999999999 would fill the memory
        return format(value, "f") if not value.is_finite() or abs(value.adjusted()) < _MOST else ""
    return str(value) if isinstance(value, str | int) else ""


def _choices(fields: Mapping[str, Any], *, kind: Kind, where: str) -> tuple[str, ...]:
    value = [] if fields.get("choices") is None else fields["choices"]
    if not kind.has_choices:
        if value != []:
            required = f"absent or null in a task of kind `{kind.name}` (in a choice task every line has choices)"
            raise _wrong("choices", required, value, where=where)
        return ()
    if not _is_texts(value) or not 2 <= len(value) <= _MAX_CHOICES:
        raise _wrong("choices", f"a list of 2 to {_MAX_CHOICES} strings", fields.get("choices"), where=where)
    return tuple(value)


def _cluster(fields: Mapping[str, Any], *, where: str) -> str | None:
    value = fields.get("cluster")
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise _wrong("cluster", "null, a string or an integer", value, where=where)
    return None if value is None or not str(value).strip() else str(value).strip()


def _rationale(fields: Mapping[str, Any], *, where: str, equations: bool) -> tuple[str, ...]:
    """The steps of the rationale that are not empty: its equations, or its text without them."""
    value = [] if fields.get("rationale") is None else fields["rationale"]
    lines = value.splitlines() if isinstance(value, str) else value
    if not _is_texts(lines):
        raise _wrong("rationale", "null, a string or a list of strings", value, where=where)
    return equations_in(lines) if equations else tuple(filter(None, map(without_equations, lines)))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def refuse_duplicates(rows: Iterable[Row], questions: Iterable[Question]) -> None:
    """Raises UsageError if two questions have the same id."""
    first: dict[str, str] = {}
    for (where, _), question in zip(rows, questions, strict=True):
        if question.id in first:
            raise _wrong("id", f"unique, and {first[question.id]} has the same", question.id, where=where)
        first[question.id] = where


def _required(fields: Mapping[str, Any], name: str, *, where: str) -> Any:
    """The value of a field. Raises UsageError if it is missing."""
    if name not in fields:
        known = [key for key in fields if key not in ("id", "question", "answer")]
        raise UsageError(f"{where} must have the field `{name}`, which is missing: add it.{nearest(name, known)}")
    return fields[name]


def _wrong(name: str, required: str, value: Any, *, where: str, advice: str = "correct that row") -> UsageError:
    """The error for a field with a wrong value. required: what it must be."""
    return UsageError(f"{where}, field `{name}` must be {required}, not {shown(value)}: {advice}.")
