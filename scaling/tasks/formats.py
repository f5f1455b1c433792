"""Reads the rows of a data set, in every common format, as they are: no value is converted, guessed or left out.

A place is one of these:

    FILE                       JSON Lines, JSON (an array, or one object with one list of objects), CSV, TSV or Parquet;
                               or a text with a line `Question||<<1+2=3>> #### 3` for each question, as da03's trainings of
                               implicit chains of thought have it; texts may be compressed by gzip, bzip2 or xz
    FOLDER                     one file for each split: test.jsonl, data/test-00000-of-00001.parquet, main/test/0000.parquet;
                               or what `datasets` has saved by `save_to_disk`
    hf:OWNER/NAME[:CONFIG]     a data set on the Hugging Face Hub; only here the network is used

The texts of a CSV file stay texts ("007", "NA"). Numbers in JSON keep all their digits. A split that is not there is
refused, and never replaced by another. This module knows nothing of questions: see `scaling.tasks.columns`.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

from scaling.records.errors import UsageError, install, listed, nearest, one_line
from scaling.records.names import COMPRESSED, PAIRS, TABLES, stem_of

Fields = dict[str, Any]
Row = tuple[str, Fields]  # where it is ("`--data`: test.jsonl line 3", with which messages begin), and its fields

_HUB = "hf:"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_ALIASES = {"validation": ("validation", "dev", "valid", "val")}  # what files of a split may be called
_DEPTHS = ("*", "*/*", "*/*/*")  # where files of a folder are looked for, nearest first
_SHARD = re.compile(r"-(\d+)-of-(\d+)$")
_ARRAY = re.compile(rb"\s*\[\s*[{\]]")  # the beginning of a JSON array of objects
_MARK = b"\xef\xbb\xbf"  # a byte order mark, which Windows editors write
_MARKS_OF_16_BITS = (b"\xff\xfe", b"\xfe\xff")  # of UTF-16, which spreadsheets call "Unicode text"
_BETWEEN = "||"  # parts question and solution in a line of pairs
_DELIMITERS = (",", ";", "\t")  # of tables; spreadsheets in half of the world write semicolons
_UNPACK: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
}
_PACKED = (b"PK\x03\x04", b"\x28\xb5\x2f\xfd")  # zip and zstandard
_POINTER = b"version https://git-lfs.github.com/spec/"


def read_rows(place: Path, *, split: str) -> list[Row]:
    """The rows of a split.

    Args:
        place: the value of `--data`.
        split: the split. A single file is read whatever its split is.

    Raises:
        UsageError: there is no such place or split, or it cannot be read.
    """
    if on_hub(place):
        return _numbered(str(place), hub_rows(place, split=split))
    if place.is_dir():
        if is_saved(place):
            return _numbered(str(place), _saved_rows(place, split=split))
        return [row for file in _files_of(place, split=split) for row in _read(file)]
    if not place.exists():
        siblings = [sibling.name for sibling in place.parent.iterdir()] if place.parent.is_dir() else []
        raise UsageError(
            f"`--data` must be a file or a folder, but `{place}` does not exist.{nearest(place.name, siblings)}"
        )
    return _read(place)


def holds_split(place: Path, split: str) -> bool:
    """Whether a folder holds a split. False for a file, and for a data set on the Hub."""
    if not place.is_dir():
        return False
    return split in _saved_splits(place) if is_saved(place) else bool(_candidates(place, split=split))


def on_hub(place: Path) -> bool:
    """Whether a value of `--data` names a data set on the Hub."""
    return str(place).startswith(_HUB)


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` has made a folder."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def hub_rows(
    place: Path, *, split: str, asked: str = "`--data`", advice: str = "give a local file or folder"
) -> list[Fields]:
    """The rows of a data set on the Hub.

    Args:
        place: hf:OWNER/NAME[:CONFIG].
        split: its name in the data set.
        asked: the option that asks for it, with which messages begin.
        advice: what can be done where it cannot be had.
    """
    name, _, config = str(place).removeprefix(_HUB).partition(":")
    if not _HUB_NAME.fullmatch(name):
        raise UsageError(
            f"{asked} must name a data set as hf:OWNER/NAME[:CONFIG], and is `{place}`: name one, or {advice}."
        )
    datasets = _datasets(asked, advice)
    try:
        return _with_classes(datasets.load_dataset(name, config or None, split=split))
    except Exception as error:  # the client raises errors of many libraries, and the advice is the same for all
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        todo = "check the network"
        if "gated" in reason:
            todo = (
                f"accept its conditions on https://huggingface.co/datasets/{name} and set HF_TOKEN to a token of yours"
            )
        raise UsageError(f"{asked} could not load {name} from the Hub ({reason}): {todo}, or {advice}.") from error


def _datasets(asked: str, advice: str) -> Any:
    """The package `datasets`. Raises UsageError if it is missing."""
    try:
        import datasets
    except ImportError as error:
        raise UsageError(
            f"{asked} needs the package `datasets`, which is missing: run {install('hub')}, or {advice}."
        ) from error
    return datasets


def _with_classes(data: Any) -> list[Fields]:
    """The rows of a data set of `datasets`. Where a column holds classes, a row has the name of its class."""
    classes = {column: feature.names for column, feature in data.features.items() if hasattr(feature, "names")}
    return _named_classes(data.to_list(), classes)


def _named_classes(rows: list[Fields], classes: Mapping[str, Sequence[str]]) -> list[Fields]:
    """Rows with names of classes instead of their numbers; -1 stands for no class. classes: the names, by column."""
    for row in rows:
        row |= {column: _class(row[column], names) for column, names in classes.items()}
    return rows


def _class(number: int | None, names: Sequence[str]) -> str | None:
    return None if number is None or number < 0 else names[number]


def _numbered(place: str, rows: Iterable[Fields]) -> list[Row]:
    return [(f"`--data`: {place} row {number}", dict(row)) for number, row in enumerate(rows, start=1)]


def _saved_splits(folder: Path) -> list[str]:
    """The splits of a folder that `save_to_disk` has made."""
    several = folder / "dataset_dict.json"
    read = _json_file(several if several.is_file() else folder / "state.json")
    return [str(name) for name in read.get("splits", [])] or [str(read.get("_split") or "")]


def _json_file(file: Path) -> dict[str, Any]:
    try:
        read = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(f"`--data`: {file} cannot be read ({one_line(error)}): save the data set again.") from None
    return read if isinstance(read, dict) else {}


def _saved_rows(folder: Path, *, split: str) -> list[Fields]:
    known = _saved_splits(folder)
    if known != [""] and split not in known:  # a part of a data set may have no name
        raise _no_such_split(folder, split, known)
    datasets = _datasets(f"`--data {folder}`", "give its rows as JSON Lines, CSV or Parquet")
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # of arrow, of the file system, or of `datasets`
        raise UsageError(f"`--data`: {folder} cannot be read ({one_line(error)}): save the data set again.") from None
    return _with_classes(saved[split] if isinstance(saved, dict) else saved)


def _no_such_split(folder: Path, split: str, known: Iterable[str]) -> UsageError:
    shown = listed([f"`{name}`" for name in known], shown=12)
    return UsageError(
        f"`--split` must be one that `{folder}` has, and it has none for `{split}`: give one of {shown}, or a "
        f"single file as `--data`."
    )


def _files_of(folder: Path, *, split: str) -> list[Path]:
    """The files of a split in a folder: one, or all of its parts. Raises UsageError if they are not there, or not clear."""
    found = _candidates(folder, split=split)
    if not found:
        raise _without(folder, split)
    groups: dict[tuple[Path, str, str], list[Path]] = {}
    for file in found:
        groups.setdefault(_group(file), []).append(file)
    if len(groups) > 1:
        folders = sorted({str(above) for above, _, _ in groups})
        choices = folders if len(folders) == len(groups) else [str(files[0]) for files in groups.values()]
        raise UsageError(
            f"`--data {folder}` must hold one file for `--split {split}`, and has {len(groups)}: give one of "
            f"{listed([f'`{choice}`' for choice in choices], shown=6)} as `--data`."
        )
    total = _SHARD.search(stem_of(found[0]))
    if total and len(found) != int(total[2]):
        raise UsageError(
            f"`--data {folder}` must hold all {int(total[2])} parts of `{split}`, and has {len(found)}: copy the others too."
        )
    return found


def _group(file: Path) -> tuple[Path, str, str]:
    """What all parts of one split have in common: their folder, the split's name, and their format."""
    stem = _SHARD.sub("", stem_of(file))
    above = file.parent.parent if stem.isdigit() else file.parent
    return above, _split_of(file), file.name.removeprefix(stem_of(file))


def _candidates(folder: Path, *, split: str) -> list[Path]:
    """The files that are called like a split, in the nearest folder that has any; of several other names of it, all."""
    for depth in _DEPTHS:
        files = _tables(folder, depth)
        for names in ((split,), _ALIASES.get(split, ())):
            if found := [file for file in files if _split_of(file) in names]:
                return found
    return []


def _tables(folder: Path, depth: str) -> list[Path]:
    """The files of rows in a folder, without hidden ones. A text is one where it is called like a split."""
    return sorted(
        file
        for file in folder.glob(depth)
        if stem_of(file) != file.name
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
        and file.is_file()
        and (_suffix(file) != PAIRS or _is_split(_split_of(file)))
    )


def _is_split(name: str) -> bool:
    return name in ("train", "test", *_ALIASES["validation"])


def _split_of(file: Path) -> str:
    """The split of a file by its name: test-00000-of-00001.parquet is of `test`, and so is test/0000.parquet."""
    stem = _SHARD.sub("", stem_of(file))
    return file.parent.name if stem.isdigit() else stem


def _without(folder: Path, split: str) -> UsageError:
    """The error for a split that a folder does not have."""
    files = next(filter(None, (_tables(folder, depth) for depth in _DEPTHS)), [])
    if not files:
        return UsageError(
            f"`--data {folder}` must hold `{split}.jsonl`, but has no file of rows ({', '.join(TABLES)}): give another "
            f"place."
        )
    if len(files) == 1 and not _is_split(_split_of(files[0])):
        return UsageError(
            f"`--data {folder}` must hold a file that is called like the split `{split}`, and has one that is called "
            f"otherwise: give `--data {files[0]}`."
        )
    names = {name: key for key, aliases in _ALIASES.items() for name in aliases}
    return _no_such_split(folder, split, sorted({names.get(name, name) for name in map(_split_of, files)}))


def _read(file: Path) -> list[Row]:
    """The rows of a file. Its content says what it is; only CSV, TSV and JSON are told by their names."""
    try:
        content = _unpacked(file, file.read_bytes())
    except OSError as error:
        raise UsageError(f"`--data` must be readable, but `{file}` is not ({error.strerror}): change that.") from error
    if content.startswith(_POINTER):
        raise UsageError(f"`--data`: {file} is only a pointer to its content: run `git lfs pull` in its folder.")
    suffix = _suffix(file)
    if content.startswith(b"PAR1") or suffix == ".parquet":
        return _numbered(str(file), _parquet(file, content))
    content = _in_bytes(file, content).removeprefix(_MARK)
    if suffix in (".csv", ".tsv") and not content.lstrip().startswith(b"{"):
        return list(_separated(file, content, suffix))
    if _ARRAY.match(content) or suffix == ".json":
        return _document(file, content)
    if suffix in ("", PAIRS) and content.strip() and not content.lstrip().startswith((b"{", b"[")):
        if suffix == PAIRS and _BETWEEN.encode() in content.lstrip().split(b"\n", 1)[0]:
            return list(_pairs(file, content))
        named = ", ".join(ending for ending in TABLES if ending != PAIRS)
        raise UsageError(
            f"`--data`: {file} must have a name that tells its format ({named}), as it holds no JSON: rename it."
        )
    return _lines(file, content)


def _in_bytes(file: Path, content: bytes) -> bytes:
    """The content of a text file in UTF-8, if its first bytes say that it is UTF-16; else the content itself."""
    if not content.startswith(_MARKS_OF_16_BITS):
        return content
    try:
        return content.decode("utf-16").encode()
    except UnicodeDecodeError as error:
        raise UsageError(f"`--data`: {file} must be valid UTF-16 ({error}): save the file as UTF-8.") from None


def _suffix(file: Path) -> str:
    """The ending of a name that tells a format; empty for none."""
    ending = file.name.removeprefix(stem_of(file)).lower()
    return next((ending.removesuffix(packed) for packed in COMPRESSED if ending.endswith(packed)), ending)


def _unpacked(file: Path, content: bytes) -> bytes:
    if content.startswith(_PACKED):
        raise UsageError(
            f"`--data`: {file} is compressed, and gzip, bzip2 and xz are read: unpack it first, or save a "
            f"spreadsheet as CSV."
        )
    unpack = next((unpack for magic, unpack in _UNPACK.items() if content.startswith(magic)), None)
    if unpack is None:
        return content
    try:
        return unpack(content)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise UsageError(f"`--data`: {file} cannot be unpacked ({one_line(error)}): copy it again.") from None


def _parquet(file: Path, content: bytes) -> list[Fields]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(pyarrow.BufferReader(content))
        return _named_classes(table.to_pylist(), _classes(table.schema.metadata))
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UsageError(f"`--data`: {file} is no whole Parquet file ({one_line(error)}): copy it again.") from None


def _classes(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """The names of classes by column, which `datasets` writes into its Parquet files."""
    written = json.loads((metadata or {}).get(b"huggingface", b"{}"))
    features = written.get("info", {}).get("features", {})
    labels = {column: feature for column, feature in features.items() if isinstance(feature, dict)}
    return {column: feature["names"] for column, feature in labels.items() if feature.get("_type") == "ClassLabel"}


def _separated(file: Path, content: bytes, suffix: str) -> Iterator[Row]:
    """The rows of a CSV or TSV file as texts. Its first line names the columns."""
    text = _decoded(content, file)
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if suffix == ".tsv" else _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    line = 1
    try:
        for entries in reader:
            where, line = f"`--data`: {file} line {line}", reader.line_num + 1
            if not entries:
                continue
            if not columns:
                columns = _named_once(entries, where)
                continue
            if len(entries) != len(columns):
                raise UsageError(
                    f"{where} must have {len(columns)} entries, as the first line names so many columns, not "
                    f"{len(entries)}: correct that row."
                )
            yield where, dict(zip(columns, entries, strict=True))
    except csv.Error as error:
        raise UsageError(f"`--data`: {file} line {reader.line_num} is not valid ({error}): correct that row.") from None


def _pairs(file: Path, content: bytes) -> Iterator[Row]:
    """The rows of a text file: a line is a question, `||` and a solution, which ends in `#### ` and the answer."""
    for number, line in enumerate(_decoded(content, file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"`--data`: {file} line {number}"
        question, *solution = line.split(_BETWEEN)
        if len(solution) != 1:
            raise UsageError(
                f"{where} must hold a question and its solution with one `{_BETWEEN}` between them, and has "
                f"{len(solution) or 'none'}: correct that row."
            )
        yield where, {"question": question.strip(), "answer": solution[0].strip()}


def _delimiter(text: str) -> str:
    """What separates the entries of a table: of what its first line has, the first that parts the second line alike."""
    header = text.split("\n", 1)[0]
    found = [delimiter for delimiter in _DELIMITERS if delimiter in header] or [","]
    return next((delimiter for delimiter in found if _parts_alike(text, delimiter)), found[0])


def _parts_alike(text: str, delimiter: str) -> bool:
    try:
        rows = filter(None, csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
        return len({len(row) for row in islice(rows, 2)}) == 1
    except csv.Error:
        return False


def _named_once(columns: list[str], where: str) -> list[str]:
    names = [name.strip() for name in columns]
    twice = next((name for number, name in enumerate(names) if name and name in names[:number]), None)
    if twice is not None:
        raise UsageError(f"{where} must name each column once, and names `{twice}` twice: rename one of them.")
    return names


def _decoded(content: bytes, file: Path) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UsageError(
            f"`--data`: {file} line {line} must be valid UTF-8 ({error}): save the file as UTF-8."
        ) from None


def _document(file: Path, content: bytes) -> list[Row]:
    """The rows of a JSON file: an array, an object with one list of objects, or in spite of its name JSON Lines."""
    text = _decoded(content, file)
    try:
        read = json.loads(text, parse_float=Decimal)
    except (ValueError, RecursionError) as error:
        if not _ARRAY.match(content) and content.count(b"\n") and _is_object(content.lstrip().split(b"\n", 1)[0]):
            return _lines(file, content)
        raise UsageError(f"`--data`: {file} is not valid JSON ({one_line(error)}): correct it.") from None
    rows = read if isinstance(read, list) else _only_list(file, read)
    return [
        (where, _checked(fields, where))
        for where, fields in ((f"`--data`: {file} entry {number}", row) for number, row in enumerate(rows, start=1))
    ]


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _only_list(file: Path, read: Any) -> list[Any]:
    """The list of objects in the object of a JSON file. The object itself is a row if it has no such list."""
    if not isinstance(read, dict):
        raise UsageError(f"`--data`: {file} must hold objects, one a row, not {shown(read)}: give another file.")
    if not read:
        return []
    lists = {key: value for key, value in read.items() if isinstance(value, list) and _are_objects(value)}
    if len(lists) > 1:
        names = listed([f"`{key}`" for key in lists])
        raise UsageError(
            f"`--data`: {file} must hold one list of rows, and has {names}: write the one that you mean to a file."
        )
    if not lists and all(isinstance(value, dict | list) for value in read.values()):
        raise UsageError(
            f"`--data`: {file} must hold a list of objects, one a row, and holds an object with "
            f"{listed([f'`{key}`' for key in read], shown=3)}: write its rows as an array, or one a line."
        )
    return next(iter(lists.values()), [read])


def _are_objects(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(entry, dict) for entry in value)


def _lines(file: Path, content: bytes) -> list[Row]:
    """The rows of a file of JSON Lines; empty lines are skipped."""
    # Lines are split as bytes for two reasons: a text may contain characters that `str.splitlines` takes for line ends, and
    # an error must name the line that is not UTF-8.
    numbered = [(f"`--data`: {file} line {number}", line) for number, line in enumerate(content.split(b"\n"), start=1)]
    return [(where, _object(line, where)) for where, line in numbered if line.strip()]


def _object(line: bytes, where: str) -> Fields:
    """The object of one line. Raises UsageError if it is none."""
    try:
        return _checked(json.loads(line.decode("utf-8"), parse_float=Decimal), where)
    except UnicodeError as error:
        raise UsageError(f"{where} must be valid UTF-8 ({error}): correct that row.") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} must be one JSON object, but is not JSON ({error}): correct that row.") from error


def _checked(fields: Any, where: str) -> Fields:
    """The object itself, if it is one whose texts can be written. Raises UsageError if not."""
    if not isinstance(fields, dict):
        raise UsageError(f"{where} must be one JSON object, not {shown(fields)}: correct that row.")
    try:
        # fails for half a surrogate pair, which json.loads accepts
        json.dumps(fields, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeError as error:
        raise UsageError(f"{where} must be valid UTF-8 ({error}): correct that row.") from error
    return fields


def shown(value: Any) -> str:
    """A value as JSON of at most 60 characters, for messages."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
