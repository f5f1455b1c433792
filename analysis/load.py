"""A run directory as arrays: who answered what, was it right, how long did it take. Reads run.json and the journals alone.

Only the asked grid counts: the questions of questions.jsonl, paths below N, samples below M. A question whose grid is not
whole is left out and named; what is missing is neither wrong nor without an answer.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj
from numpy.typing import NDArray

from scaling.records.answer_classes import classes_of
from scaling.records.costs import RunCosts
from scaling.records.errors import UsageError
from scaling.records.journal import (
    RUN,
    SAMPLES,
    costs_so_far,
    load_questions,
    load_summary,
    load_thoughts,
    read_samples,
)
from scaling.records.json_lines import CHECKSUM, may_be_torn, parsed
from scaling.records.records import PEAKS, Completion, Costs, PromptedQuestion, completion_from, cost_from
from scaling.records.seeds import stream_seed
from scaling.records.votes import tie_hash

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
_CHECKED = {**_COLUMNS, "text": pa.string(), "seed": pa.int64(), "crc": pa.string()}
_MAY_BE_NULL = ("answer", "answer_strict", "log_prob", "self_certainty", "unread", "crc")
_COUNTS = ("path", "sample", "num_tokens", "seed")
_KEY = ("question_id", "path", "sample")
_OPTIONAL = (b'"answer": ', b'"answer_strict": ')
_LATER = (b'"crc"', b'"cost"')  # only lines with a checksum have them
_MARK = CHECKSUM.encode("ascii")


@dataclass(frozen=True, eq=False)
class Ballots:
    """The answers of all completions in one reading, as numbers.

    codes: [Q, N, M] int32, the number of the answer within its question, -1 for none. Equal answers to a question, see
    `scaling.records.answer_classes`, have one number. The numbers follow the voter's tie hash, so of tied answers the
    lowest number wins. verdicts: [Q, K] bool, whether the answer with number k is right; K is the largest number of
    answers to a question of which no two are equal. sizes: [Q] int64, how many there are.
    """

    codes: NDArray[np.int32]
    verdicts: NDArray[np.bool_]
    sizes: NDArray[np.int64]

    @property
    def right(self) -> NDArray[np.bool_]:
        """[Q, N, M], whether each completion is right; one without an answer is not."""
        return self.judged(self.codes)

    def judged(self, codes: NDArray[Any]) -> NDArray[np.bool_]:
        """Whether each answer is right; codes: [Q, ...], -1 for none, which is not."""
        if not self.verdicts.shape[1]:
            return np.zeros(codes.shape, dtype=bool)
        question = np.arange(len(codes)).reshape(-1, *[1] * (codes.ndim - 1))
        right: NDArray[np.bool_] = (codes >= 0) & self.verdicts[question, np.maximum(codes, 0)]
        return right

    def counts(self) -> NDArray[np.int32]:
        """[Q, N, K], how many samples of each path have each answer."""
        questions, num_paths, _ = self.codes.shape
        counts = np.zeros((questions, num_paths, max(1, self.verdicts.shape[1])), dtype=np.int32)
        q, i, j = np.nonzero(self.codes >= 0)
        np.add.at(counts, (q, i, self.codes[q, i, j]), 1)
        return counts

    def of(self, rows: NDArray[np.int64]) -> Ballots:
        """Those of some questions."""
        return Ballots(self.codes[rows], self.verdicts[rows], self.sizes[rows])


@dataclass(frozen=True, eq=False)
class Run:
    """One run of N paths x M samples. questions, incomplete: whole ones in the order asked, and the ids of the others.

    tokens: [Q, N, M] int64, generated ones. truncated: [Q, N, M] bool, cut off at the token limit. log_probs: [Q, N, M], sum
    over the tokens, and self_certainty: [Q, N, M], mean over them, both in nats, NaN where the journal has none. summary:
    what the run measured of itself, empty where it did not say. cosines: [N, N], mean over the questions of the cosine of
    every two paths' thoughts, or None. unread: completions that the answer reader failed on.
    """

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    questions: tuple[PromptedQuestion, ...]
    incomplete: tuple[str, ...]
    lenient: Ballots
    strict: Ballots
    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]
    log_probs: NDArray[np.float64]
    self_certainty: NDArray[np.float64]
    cosines: NDArray[np.float64] | None
    unread: int = 0

    @property
    def num_paths(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def num_samples(self) -> int:
        return int(self.tokens.shape[2])

    def only(self, ids: Sequence[str]) -> Run:
        """The same run as if these questions had been asked, in this order."""
        places = {asked.id: row for row, asked in enumerate(self.questions)}
        rows = np.array([places[one] for one in ids], dtype=np.int64)
        return replace(
            self,
            questions=tuple(self.questions[row] for row in rows),
            lenient=self.lenient.of(rows),
            strict=self.strict.of(rows),
            tokens=self.tokens[rows],
            truncated=self.truncated[rows],
            log_probs=self.log_probs[rows],
            self_certainty=self.self_certainty[rows],
        )


def load(folder: Path) -> Run:
    """The run in `folder`. Raises UsageError where there is none, none of its questions is whole, or a file is damaged."""
    described = _described(folder)
    config = described["config"]
    asked = load_questions(folder)
    if not asked:
        raise UsageError(f"{folder} has no questions.jsonl, as runs of older versions; the same run again writes it")
    shape = (len(asked), int(config.get("latent_paths") or 1), int(config["samples"]))
    drawn, costs = _parsed(folder, config)
    cells, table = _inside(drawn, asked, shape)
    held = np.zeros(shape[0] * shape[1] * shape[2], dtype=bool)
    held[cells] = True
    whole = held.reshape(shape).all(axis=(1, 2))
    _refuse_unfinished(folder, config, int(whole.sum()), len(asked))
    rows = np.flatnonzero(whole)
    ids = [question.id for question in asked]
    return Run(
        folder=folder,
        config=config,
        environment=described.get("environment", {}),
        summary=_measured(folder, costs, int(drawn["num_tokens"].sum())),
        questions=tuple(asked[row] for row in rows),
        incomplete=tuple(ids[row] for row in np.flatnonzero(~whole)),
        lenient=_ballots(table, "", cells, shape, ids).of(rows),
        strict=_ballots(table, "_strict", cells, shape, ids).of(rows),
        tokens=_spread(table["num_tokens"].to_numpy().astype(np.int64), cells, shape)[rows],
        truncated=_spread((table["stop_reason"] == "length").to_numpy().astype(bool), cells, shape)[rows],
        log_probs=_spread(table["log_prob"].to_numpy().astype(np.float64), cells, shape)[rows],
        self_certainty=_spread(table["self_certainty"].to_numpy().astype(np.float64), cells, shape)[rows],
        cosines=_cosines(folder, shape[1]),
        unread=int(table["unread"].notna().sum()),
    )


def texts(folder: Path, ids: set[str]) -> list[Completion]:
    """The completions of some questions with their texts, for a reader to look at."""
    wanted = []
    begin = b'{"question_id": '
    known = {json.dumps(one).encode("ascii") for one in ids}
    with (folder / SAMPLES).open("rb") as lines:
        for line in lines:
            # the id stands first, so most lines are told by their beginning and never parsed
            if line.startswith(begin) and line[len(begin) : line.find(b', "path"')] not in known:
                continue
            try:
                told = parsed(line)
                cost_from(told)
                completion = completion_from(told)
            except ValueError:
                continue  # the torn last line; damage elsewhere is found by `load`
            if completion.question_id in ids:
                wanted.append(completion)
    return wanted


def _described(folder: Path) -> dict[str, Any]:
    if not (folder / RUN).is_file():
        raise UsageError(f"{folder} is no run directory: it has no {RUN}; give the folder that a run was written to")
    try:
        described: dict[str, Any] = json.loads((folder / RUN).read_bytes())
        described["config"]["samples"]
        environment = described.get("environment", {})
        if coefficients := environment.get("costs"):
            RunCosts.from_json(coefficients)
        for shard in environment.get("shards") or []:
            shard.keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(f"{folder / RUN} is damaged or not written by a run; restore it") from None
    return described


def _refuse_unfinished(folder: Path, config: dict[str, Any], whole: int, total: int) -> None:
    if config.get("adaptive") is not None and whole < total:
        raise UsageError(
            f"{folder} was stopped early where its vote was sure (`--adaptive` {config['adaptive']}), and curves need every "
            f"sample: the same `scale-run` command without `--adaptive` draws those left out"
        )
    if not whole:
        raise UsageError(f"{folder} has no question with all its samples yet; let the run go on and report then")


def _measured(folder: Path, costs: Costs, generated: int) -> dict[str, Any]:
    """The run's summary, as of its last line where the lines tell costs. generated: tokens of all lines."""
    summary = load_summary(folder) or {}
    known = costs_so_far(folder, costs)
    if not costs.get("seconds"):
        return summary
    latest: dict[str, Any] = {key: known[key] for key in ("seconds", "peak_memory_bytes") if key in known}
    return {**summary, **latest, "tokens": {**summary.get("tokens", {}), "generated": generated}}


def _parsed(folder: Path, config: Mapping[str, Any]) -> tuple[pd.DataFrame, Costs]:
    """The completions, and what all lines say that they cost, by the very rules by which a run reads its journal."""
    path = folder / SAMPLES
    try:
        return _fast(path, config.get("seed"))
    except pa.ArrowInvalid:
        # half a surrogate pair in a text, or damage: the slow reader takes the one and names the line of the other
        held = read_samples(folder, config)
        columns = {
            name: pd.Series([getattr(one, name) for one in held.completions.values()], dtype=object)
            for name in _COLUMNS
        }
        return pd.DataFrame(columns), held.costs


def _fast(path: Path, seed: object) -> tuple[pd.DataFrame, Costs]:
    """Raises ArrowInvalid where anything is not as it was written, without saying what."""
    end, lines, sealed = _intact_lines(path)
    if not lines:
        return pd.DataFrame(columns=list(_COLUMNS)), {}
    parse = pj.ParseOptions(explicit_schema=pa.schema(_CHECKED), unexpected_field_behavior="infer")
    with pa.memory_map(str(path)) as source:
        table = pj.read_json(pa.BufferReader(source.read_buffer(end)), pj.ReadOptions(block_size=1 << 24), parse)
    if len(table) != lines or len(table) - table["crc"].null_count != sealed:
        raise pa.ArrowInvalid("two objects in a line, or a checksum that is not at its end")
    _check_values(table, seed)
    costs = _costs(table["cost"]) if "cost" in table.column_names else {}
    frame: pd.DataFrame = table.select(list(_COLUMNS)).to_pandas()
    if frame.duplicated(list(_KEY)).any():
        raise pa.ArrowInvalid("a completion stands there twice")
    return frame, costs


def _intact_lines(path: Path) -> tuple[int, int, int]:
    """Bytes of the lines that end, how many there are, and how many of them with a checksum, all of which are right."""
    end = number = sealed = 0
    if not path.exists():
        return 0, 0, 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n") and may_be_torn(line):
                break
            if line[-21:-11] == _MARK:
                if line[-11:] != b'%08x"}\n' % zlib.crc32(line[:-21]):
                    raise pa.ArrowInvalid("a wrong checksum")
                sealed += 1
            elif not all(field in line for field in _OPTIONAL) or any(field in line for field in _LATER):
                raise pa.ArrowInvalid("null where a field is missing, or as one that is never null")
            if not (line.startswith(b"{") and line.endswith(b"}\n") and line.isascii()):
                raise pa.ArrowInvalid("no line that a run writes")
            number, end = number + 1, end + len(line)
    return end, number, sealed


def _check_values(table: pa.Table, seed: object) -> None:
    """What `completion_from` checks of one completion, for all of them; and that their streams are those of the run."""
    if not set(table.column_names) <= {*_CHECKED, "cost"}:
        raise pa.ArrowInvalid("an unknown field")
    if any(table[name].null_count for name in _CHECKED if name not in _MAY_BE_NULL):
        raise pa.ArrowInvalid("a line lacks a field")
    reasons = set(pc.unique(table["stop_reason"]).to_pylist())
    if reasons - {"end", "length"} or any(pc.min(table[name]).as_py() < 0 for name in _COUNTS):
        raise pa.ArrowInvalid("a value that no completion has")
    for reading in ("", "_strict"):
        if pc.any(pc.and_(table[f"correct{reading}"], pc.is_null(table[f"answer{reading}"]))).as_py():
            raise pa.ArrowInvalid("correct without an answer")
    if isinstance(seed, int):
        keys = zip(*(table[name].to_pylist() for name in (*_KEY, "seed")), strict=True)
        if any(stream_seed(seed, question_id, path, sample) != own for question_id, path, sample, own in keys):
            raise pa.ArrowInvalid("a line of another run")


def _costs(column: pa.ChunkedArray) -> Costs:
    if not pa.types.is_struct(column.type):
        raise pa.ArrowInvalid("no costs")
    costs: Costs = {}
    for part in column.type:
        own = pc.struct_field(column, part.name)
        if not (pa.types.is_integer(part.type) or pa.types.is_floating(part.type)) or pc.min(own).as_py() < 0:
            raise pa.ArrowInvalid("no costs")
        costs[part.name] = (pc.max if part.name in PEAKS else pc.sum)(own).as_py()
    return costs


def _inside(
    table: pd.DataFrame, asked: Sequence[PromptedQuestion], shape: tuple[int, int, int]
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """The flat index of each completion in [Q, N, M], and the table, both without what lies outside the grid."""
    row = pd.Index([question.id for question in asked]).get_indexer(pd.Index(table["question_id"]))
    path, sample = (table[name].to_numpy().astype(np.int64) for name in ("path", "sample"))
    inside = (row >= 0) & (path < shape[1]) & (sample < shape[2])
    cells: NDArray[np.int64] = (row.astype(np.int64) * shape[1] + path) * shape[2] + sample
    return cells[inside], table[inside]


def _spread(values: NDArray[Any], cells: NDArray[np.int64], shape: tuple[int, int, int]) -> NDArray[Any]:
    spread = np.zeros(shape, dtype=values.dtype)
    spread.reshape(-1)[cells] = values
    return spread


def _ballots(
    table: pd.DataFrame,
    reading: str,
    cells: NDArray[np.int64],
    shape: tuple[int, int, int],
    ids: list[str],
) -> Ballots:
    """reading: "" for the lenient one, "_strict" for the strict one."""
    row = cells // (shape[1] * shape[2])
    number, answers = pd.factorize(table[f"answer{reading}"])  # -1 for null
    given = number >= 0
    pairs, inverse = np.unique(row[given] * max(1, len(answers)) + number[given], return_inverse=True)
    of_row, of_answer = np.divmod(pairs, max(1, len(answers)))
    starts = np.searchsorted(of_row, np.arange(shape[0] + 1))
    code = np.empty(len(pairs), dtype=np.int32)  # of each different answer to a question
    for question, (start, stop) in enumerate(pairwise(starts.tolist())):
        code[start:stop] = _codes(ids[question], [answers[one] for one in of_answer[start:stop]])
    sizes = np.zeros(shape[0], dtype=np.int64)
    np.maximum.at(sizes, of_row, code + 1)

    right = table[f"correct{reading}"].to_numpy()[given].astype(bool)
    verdicts = np.zeros((shape[0], int(sizes.max(initial=0))), dtype=bool)
    # right if any completion with an equal answer was judged so, as in `scaling.records.summary`
    verdicts[of_row[inverse[right]], code[inverse[right]]] = True
    codes = np.full(shape, -1, dtype=np.int32)
    codes.reshape(-1)[cells[given]] = code[inverse]
    return Ballots(codes, verdicts, sizes)


def _codes(question_id: str, answers: Sequence[str]) -> list[int]:
    """The numbers of different answers to a question: equal ones have one, and they rise with the tie hash."""
    keys = [one.key for one in map(classes_of(answers).__getitem__, answers)]
    place = {key: code for code, key in enumerate(sorted(set(keys), key=lambda key: tie_hash(question_id, key)))}
    return [place[key] for key in keys]


def _cosines(folder: Path, num_paths: int) -> NDArray[np.float64] | None:
    matrices = [thoughts.cosines for thoughts in load_thoughts(folder).values() if len(thoughts.cosines) >= num_paths]
    if num_paths < 2 or not matrices:
        return None
    mean: NDArray[np.float64] = np.mean([np.array(matrix)[:num_paths, :num_paths] for matrix in matrices], axis=0)
    return mean
