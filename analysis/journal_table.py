"""Reads samples.jsonl into a table with one row for each completion, a million of them in seconds.

pyarrow parses the whole file at once. It is trusted only with lines that stand there exactly as a run writes them. Any other
file goes to the slow reader of `scaling.records.journal`, which takes it or names the line that is damaged. So a report
accepts the same journals as a run does.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from scaling.records.journal import ID, SAMPLES, read_samples
from scaling.records.json_lines import CHECKSUM, may_be_torn, start_of
from scaling.records.records import PEAKS, Completion, Costs
from scaling.records.seeds import stream_seed

# Fields of a completion that estimates need. The text is the largest field and is needed only for single questions.
_COLUMNS = {
    "question_id": pa.string(),
    "path": pa.int64(),
    "sample": pa.int64(),
    "answer": pa.string(),
    "correct": pa.bool_(),
    "answer_strict": pa.string(),
    "correct_strict": pa.bool_(),
    "num_tokens": pa.int64(),
    "stop_reason": pa.string(),
    "log_prob": pa.float64(),
    "self_certainty": pa.float64(),
    "unread": pa.string(),
}
_SCHEMA = pa.schema({**_COLUMNS, "text": pa.string(), "seed": pa.int64(), "crc": pa.string()})
_NULLABLE = ("answer", "answer_strict", "log_prob", "self_certainty", "unread", "crc")
_COUNTS = ("path", "sample", "num_tokens", "seed")
_KEY = ("question_id", "path", "sample")
# Lines of version 0.1 have no checksum. pyarrow takes a missing field for null, so fields that may be null are looked for.
_NULLABLE_IN_0_1 = (b'"answer": ', b'"answer_strict": ')
_SINCE_CHECKSUMS = (b'"crc"', b'"cost"')
_CHECKSUM_FIELD = CHECKSUM.encode("ascii")


def table_of(completions: Iterable[Completion]) -> pd.DataFrame:
    """A table of completions that are in memory, as `read_table` makes it of a file."""
    rows = list(completions)
    return pd.DataFrame({name: pd.Series([getattr(one, name) for one in rows], dtype=object) for name in _COLUMNS})


def read_table(folder: Path, run: Mapping[str, Any]) -> tuple[pd.DataFrame, Costs]:
    """The completions in `folder`, and what its lines say that they cost.

    Args:
        run: run.json. The seed in its config tells which random stream each completion must have, and its id what the
            checksums start from.

    Raises:
        UsageError: the journal is damaged, or holds lines of another run.
    """
    try:
        return _read_with_arrow(folder / SAMPLES, run["config"].get("seed"), start_of(run.get(ID)))
    except pa.ArrowInvalid:
        # Damage, which the slow reader reports by its line; or half a surrogate pair in a text, which it can read.
        held = read_samples(folder, run)
        return table_of(held.completions.values()), held.costs


def _read_with_arrow(path: Path, seed: object, start: int) -> tuple[pd.DataFrame, Costs]:
    """Raises ArrowInvalid where a line is not exactly what a run writes. Which line it is remains unknown."""
    end, num_lines, num_checksums = _whole_lines(path, start)
    if not num_lines:
        return pd.DataFrame(columns=list(_COLUMNS)), {}
    parse = pj.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="infer")
    with pa.memory_map(str(path)) as source:
        table = pj.read_json(pa.BufferReader(source.read_buffer(end)), pj.ReadOptions(block_size=1 << 24), parse)
    if len(table) != num_lines or len(table) - table["crc"].null_count != num_checksums:
        raise pa.ArrowInvalid("two objects in a line, or a checksum that is not at its end")
    _check_values(table, seed)
    costs = _costs(table["cost"]) if "cost" in table.column_names else {}
    frame: pd.DataFrame = table.select(list(_COLUMNS)).to_pandas()
    if frame.duplicated(list(_KEY)).any():
        raise pa.ArrowInvalid("a completion stands there twice")
    return frame, costs


def _whole_lines(path: Path, start: int) -> tuple[int, int, int]:
    """Bytes and number of the lines up to a torn last one, and how many of these lines have a checksum. Checks every one."""
    end = number = num_checksums = 0
    if not path.exists():
        return 0, 0, 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n") and may_be_torn(line):
                break
            # A line with a checksum ends with `, "crc": "` (10 bytes), eight digits, `"}` and a newline (11 bytes).
            if line[-21:-11] == _CHECKSUM_FIELD:
                if line[-11:] != b'%08x"}\n' % zlib.crc32(line[:-21], start):
                    raise pa.ArrowInvalid("a wrong checksum")
                num_checksums += 1
            elif start:
                raise pa.ArrowInvalid("a line of another run")
            elif not all(name in line for name in _NULLABLE_IN_0_1) or any(name in line for name in _SINCE_CHECKSUMS):
                raise pa.ArrowInvalid("null where a field is missing, or as one that is never null")
            if not (line.startswith(b"{") and line.endswith(b"}\n") and line.isascii()):
                raise pa.ArrowInvalid("no line that a run writes")
            number, end = number + 1, end + len(line)
    return end, number, num_checksums


def _check_values(table: pa.Table, seed: object) -> None:
    """Checks of all completions at once what `completion_from` checks of one, and that their streams follow from `seed`."""
    if not set(table.column_names) <= {*_SCHEMA.names, "cost"}:
        raise pa.ArrowInvalid("an unknown field")
    if any(table[name].null_count for name in _SCHEMA.names if name not in _NULLABLE):
        raise pa.ArrowInvalid("a line lacks a field")
    reasons = set(pc.unique(table["stop_reason"]).to_pylist())
    if reasons - {"end", "length"} or any(pc.min(table[name]).as_py() < 0 for name in _COUNTS):
        raise pa.ArrowInvalid("a value that no completion has")
    for reading in ("", "_strict"):
        if pc.any(pc.and_(table[f"correct{reading}"], pc.is_null(table[f"answer{reading}"]))).as_py():
            raise pa.ArrowInvalid("correct without an answer")
    if isinstance(seed, int):
        keys = zip(*(table[name].to_pylist() for name in (*_KEY, "seed")), strict=True)
        if any(stream_seed(seed, question_id, path, sample) != stream for question_id, path, sample, stream in keys):
            raise pa.ArrowInvalid("a line of another run")


def _costs(column: pa.ChunkedArray) -> Costs:
    """All lines' costs together: the largest of a peak, the sum of anything else."""
    if not pa.types.is_struct(column.type):
        raise pa.ArrowInvalid("no costs")
    costs: Costs = {}
    for field in column.type:
        values = pc.struct_field(column, field.name)
        is_number = pa.types.is_integer(field.type) or pa.types.is_floating(field.type)
        if not is_number or pc.min(values).as_py() < 0:
            raise pa.ArrowInvalid("no costs")
        costs[field.name] = (pc.max if field.name in PEAKS else pc.sum)(values).as_py()
    return costs
