"""Reads questions from JSON Lines files. Every field of every line is checked, and an error names the line.

One line is one object with the fields `id` (string or integer), `question` and `answer` (string, number or true/false).
It may also have `rationale` (a string with one step per line, or a list of strings) and `choices` (a list of strings, which
get the letters A, B, C ...). Other fields are ignored. A gold answer must be unambiguous: a number that could also be a
date, a range or a score is refused. This module knows nothing of named tasks, prompts and the network.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from scaling.records.errors import UsageError, nearest
from scaling.records.records import Question
from scaling.tasks.kinds import Kind, kind_of

Row = tuple[
    str, dict[str, Any]
]  # where it is ("`--data`: test.jsonl line 3", with which messages begin), and its fields

_CALCULATION = re.compile(r"<<[^<>]*>>")  # a calculator call in a rationale of GSM8K, which is no part of the text
_YES_NO = ("yes", "no", "true", "false")
_MAX_CHOICES = 26
_ARRAY = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*\[\s*\{"
)  # the beginning of a JSON array of objects, perhaps after a byte order mark


def read_questions(
    path: Path,
    *,
    kind: str | Kind | None,
    split: str,
    limit: int | None = None,
    columns: Callable[[int, Mapping[str, Any], str], dict[str, Any]] | None = None,
) -> tuple[str | Kind, list[Question]]:
    """Reads the questions of a file, or of `<path>/<split>.jsonl` if `path` is a folder.

    All rows are checked before `limit` cuts. So whether a file is refused does not depend on the limit.

    Args:
        path: a file or a folder.
        kind: of the answers; None infers it from the rows, see `infer_kind`.
        split: the file of a folder; it is not used if `path` is a file.
        limit: how many questions; None for all.
        columns: converts a row with other field names, called with the row's number from 0, the row, and the place with
            which messages begin.

    Returns:
        The kind of the answers, and the questions.

    Raises:
        UsageError: there is no such file, or a row is wrong.
    """
    rows = _rows(_file_of(path, split=split))
    if columns:
        rows = [(where, columns(number, fields, where)) for number, (where, fields) in enumerate(rows)]
    kind = kind or infer_kind(fields for _, fields in rows)
    questions = [question_from(fields, kind=kind, where=where) for where, fields in rows]
    _refuse_duplicates(rows, questions)
    return kind, questions[:limit]


def infer_kind(rows: Iterable[Mapping[str, Any]]) -> str:
    """ "choice" if every row has choices; else "yes_no" if every answer is yes, no, true or false; else "number"."""
    rows = list(rows)
    if all(row.get("choices") for row in rows):
        return "choice"
    if all(_answer_text(row.get("answer")).strip().lower() in _YES_NO for row in rows):
        return "yes_no"
    return "number"


def question_from(fields: Mapping[str, Any], *, kind: str | Kind, where: str) -> Question:
    """Makes a question of the fields of a row and checks it. Its gold answer gets its canonical form.

    Args:
        fields: of the row, by name.
        kind: of the answer.
        where: the place of the row ("... line 3"), with which messages begin.

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
        rationale=_rationale(fields, where=where),
    )


def _file_of(path: Path, *, split: str) -> Path:
    """The file itself, or the file of a split in a folder. The validation split may also be called `dev.jsonl`."""
    if path.is_file():
        return path
    if not path.exists():
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(
            f"`--data` must be a file or a folder, but `{path}` does not exist.{nearest(path.name, siblings)}"
        )
    names = [split, "dev"] if split == "validation" else [split]
    files = [path / f"{name}.jsonl" for name in names if (path / f"{name}.jsonl").is_file()]
    if not files:
        raise UsageError(_no_such_split(path, split=split))
    return files[0]


def _no_such_split(folder: Path, *, split: str) -> str:
    """The error message for a split that a folder does not have."""
    known = sorted({"validation" if file.stem == "dev" else file.stem for file in folder.glob("*.jsonl")})
    if not known:
        return f"`--data {folder}` must hold `{split}.jsonl`, but has no .jsonl file: give another place."
    listed = ", ".join(f"`{name}`" for name in known)
    return f"`--split` must name a .jsonl file in `{folder}`, which has none for `{split}`: give one of {listed}."


def _rows(file: Path) -> list[Row]:
    """The rows of a file; empty lines are skipped. Raises UsageError if it is no file of JSON Lines."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"`--data` must be readable, but `{file}` is not ({error.strerror}): change that.") from error
    _refuse_other_formats(file, content)
    # Lines are split as bytes for two reasons: a text may contain characters that `str.splitlines` takes for line ends, and
    # an error must name the line that is not UTF-8. A byte order mark, which Windows editors write, is dropped.
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    numbered = [(f"`--data`: {file} line {number}", line) for number, line in enumerate(lines, start=1)]
    return [(where, _object(line, where=where)) for where, line in numbered if line.strip()]


def _refuse_other_formats(file: Path, content: bytes) -> None:
    """Raises UsageError for a file in another common format. The message has a command that converts it."""
    if content.startswith((b"\x1f\x8b", b"PK\x03\x04")):
        raise UsageError(f"`--data`: {file} is a compressed file, and JSON Lines are wanted: unpack it first.")
    kind, read = _other_format(file, content)
    if kind:
        here, there = (json.dumps(str(path), ensure_ascii=False) for path in (file, _converted(file)))
        code = f'import json, pandas, pathlib; {read.format(here)}.to_json({there}, orient="records", lines=True)'
        raise UsageError(
            f"`--data`: {file} is {kind}, and JSON Lines are wanted: one object a line, with `id`, `question` and `answer`. "
            f"This converts it: python -c {shlex.quote(code)}"
        )


def _other_format(file: Path, content: bytes) -> tuple[str, str]:
    """The format of a file, and Python code that reads it as a table; two empty texts if it may be JSON Lines."""
    if content.startswith(b"PAR1"):
        return "a Parquet file", "pandas.read_parquet({})"
    if _ARRAY.match(content):
        return "one JSON array", 'pandas.DataFrame(json.loads(pathlib.Path({}).read_text("utf-8-sig")), dtype=object)'
    if file.suffix.lower() == ".csv" and not content.lstrip().startswith(b"{"):
        return "a CSV file", "pandas.read_csv({}, dtype=str)"
    return "", ""


def _converted(file: Path) -> Path:
    """The path of the converted file: in the same folder, and never the file itself."""
    return file.with_name(f"{file.stem}-lines.jsonl") if file.suffix == ".jsonl" else file.with_suffix(".jsonl")


def _object(line: bytes, *, where: str) -> dict[str, Any]:
    """The object of one line. Raises UsageError if it is none."""
    try:
        fields = json.loads(line.decode("utf-8"))
        json.dumps(fields, ensure_ascii=False).encode(
            "utf-8"
        )  # fails for half a surrogate pair, which json.loads accepts
    except UnicodeError as error:
        raise UsageError(f"{where} must be valid UTF-8 ({error}): correct that row.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} must be one JSON object, but is not JSON ({error}): correct that row.") from error
    if not isinstance(fields, dict):
        raise UsageError(f"{where} must be one JSON object, not {_shown(fields)}: correct that row.")
    return fields


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
    values = value if kind.several and isinstance(value, list) else [value]
    answer = kind.gold("; ".join(map(_answer_text, values)), num_choices=num_choices)
    if answer is None:
        required = kind.required(num_choices)
        raise _wrong("answer", f"{required} in a task of kind `{kind.name}`", value, where=where)
    return answer


def _answer_text(value: Any) -> str:
    """An answer as text. For a value that cannot be an answer an empty text, which no kind of answers accepts."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return format(Decimal(repr(value)), "f")  # 1e-05 as 0.00001
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


def _rationale(fields: Mapping[str, Any], *, where: str) -> tuple[str, ...]:
    """The steps of the rationale, without GSM8K's calculator calls and empty steps."""
    value = [] if fields.get("rationale") is None else fields["rationale"]
    lines = value.splitlines() if isinstance(value, str) else value
    if not _is_texts(lines):
        raise _wrong("rationale", "null, a string or a list of strings", value, where=where)
    steps = (_CALCULATION.sub("", line).strip() for line in lines)
    return tuple(step for step in steps if step)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def _refuse_duplicates(rows: list[Row], questions: list[Question]) -> None:
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


def _wrong(name: str, required: str, value: Any, *, where: str) -> UsageError:
    """The error for a field with a wrong value. required: what it must be."""
    return UsageError(f"{where}, field `{name}` must be {required}, not {_shown(value)}: correct that row.")


def _shown(value: Any) -> str:
    """A value as JSON of at most 60 characters, for messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
