"""A run as arrays, ready to be estimated: who answered what, was it right, how many tokens did it take.

A run comes from a run directory (`load`), from the directories of its shards (`load_shards`) or from completions in memory
(`run_of`). Its grid is N latent paths x M samples for each of Q questions, and can be cut to a smaller one (`Run.cut`).

Only completions of this grid count. A question that lacks some of its N x M is left out and named: what is missing is
neither wrong nor without an answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.arguments import WHOLE, Size
from analysis.journal_table import read_table, table_of
from scaling.records.answer_classes import classes_of
from scaling.records.errors import UsageError, counted
from scaling.records.journal import (
    ID,
    RUN,
    SAMPLES,
    costs_so_far,
    load_questions,
    load_run,
    load_summary,
    load_thoughts,
    read_shards,
    stored_questions,
)
from scaling.records.json_lines import parsed, start_of
from scaling.records.records import Completion, Costs, PathCosines, PromptedQuestion, completion_from, cost_from
from scaling.records.votes import tie_hash

Shape = tuple[int, int, int]  # Q questions, N paths, M samples
_DIGEST = "digest:"  # begins what stands for the content of a question


class Unfinished(UsageError):
    """Nothing is complete yet. It may be later, if the run goes on."""


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
class RunData:
    """All that a run has drawn, however much of it counts.

    table: a row for each completion, see `analysis.journal_table`. questions: those that were asked, in their order.
    cosines: for each question that noted them, [N, N], the cosine of every two paths' thoughts. folder: the run directory,
    None for a run in memory, whose texts are in `completions`. label: what messages call the run. strays: rows of questions
    that the run neither asks nor asked before, as far as it knows. summarised: whether it is read from a summary, which has
    neither table nor texts; see `analysis.summaries`.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    summary: dict[str, Any]
    table: pd.DataFrame
    questions: tuple[PromptedQuestion, ...]
    cosines: tuple[NDArray[np.float64], ...]
    label: str
    folder: Path | None = None
    completions: tuple[Completion, ...] = ()
    strays: int = 0
    summarised: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """One run of N paths x M samples for Q questions.

    Attributes:
        label: what messages call the run: its folder, and what it was cut to.
        config: the run's settings, with the size that it was cut to.
        environment: versions, hardware and costs of the models, as run.json holds them.
        summary: what the run measured of itself, empty where it did not say.
        questions: the complete ones in the order asked; incomplete: the ids of the others.
        lenient, strict: the answers in each of the two readings.
        tokens: [Q, N, M] int64, generated ones.
        truncated: [Q, N, M] bool, cut off at the token limit.
        log_probs: [Q, N, M], sum over the tokens; self_certainty: [Q, N, M], mean over them; both in nats, NaN where the
            journal has none.
        cosines: [N, N], mean over the questions of the cosine of every two paths' thoughts, or None.
        unread: completions that the answer reader failed on.
        data: all that was drawn, from which `cut` takes its part.
    """

    label: str
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
    unread: int
    data: RunData = field(repr=False)

    @property
    def folder(self) -> Path | None:
        """The run directory, None for a run in memory."""
        return self.data.folder

    @property
    def num_paths(self) -> int:
        return int(self.tokens.shape[1])

    @property
    def num_samples(self) -> int:
        return int(self.tokens.shape[2])

    def cut(self, *, paths: int | None = None, samples: int | None = None, limit: int | None = None) -> Run:
        """The same run as if it had been asked for no more than this.

        Whatever was drawn can be cut, also what the run's settings no longer ask for.

        Args:
            paths, samples: size of the grid, None for the run's own.
            limit: the first so many questions, None for all of them.

        Raises:
            UsageError: no question has all samples of this size, or the run is a summary.
        """
        self._refuse_summary("cannot be cut, as it is of one size")
        return _select(self.data, Size(paths, samples, limit))

    def only(self, ids: Sequence[str]) -> Run:
        """The same run as if these questions had been asked, in this order."""
        places = {asked.id: row for row, asked in enumerate(self.questions)}
        rows = np.array([places[one] for one in ids], dtype=np.int64)
        questions = tuple(self.questions[row] for row in rows)
        return replace(
            self,
            questions=questions,
            lenient=self.lenient.of(rows),
            strict=self.strict.of(rows),
            tokens=self.tokens[rows],
            truncated=self.truncated[rows],
            log_probs=self.log_probs[rows],
            self_certainty=self.self_certainty[rows],
            data=replace(self.data, questions=questions),
        )

    def gives(self, answers: Mapping[str, str]) -> NDArray[np.bool_]:
        """Whether each completion's answer, in the lenient reading, is equal to a given one.

        Args:
            answers: by question id, in canonical form; no completion of another question has it.

        Returns:
            [Q, N, M].
        """
        self._refuse_summary("does not say what its answers are")
        shape = self.tokens.shape
        cells, table = _inside(self.data.table, self.questions, shape)
        matches = np.zeros(len(table), dtype=bool)
        for name, rows in table.reset_index(drop=True).groupby("question_id", observed=True):
            if (question_id := str(name)) in answers:
                wanted, given = answers[question_id], rows["answer"].dropna()
                classes = classes_of([wanted, *given])
                matches[given.index] = [classes[answer].key == classes[wanted].key for answer in given]
        return _spread(matches, cells, shape)

    def completions(self, ids: Collection[str]) -> list[Completion]:
        """The completions of some questions with their texts, those of the run's grid alone."""
        self._refuse_summary("holds no texts")
        folder, wanted = self.data.folder, set(ids)
        drawn = self.data.completions if folder is None else texts(folder, wanted)
        return [
            one
            for one in drawn
            if one.question_id in wanted and one.path < self.num_paths and one.sample < self.num_samples
        ]

    def _refuse_summary(self, why: str) -> None:
        """Raises UsageError where the run is known by its summary alone."""
        if self.data.summarised:
            raise UsageError(f"{self.label} is known by a summary, which {why}: give the run directory itself.")


def content_digest(asked: PromptedQuestion) -> str:
    """What makes a question the same one: a digest of its text, gold answer and choices. A summary has it as the text."""
    if asked.text.startswith(_DIGEST) and not asked.answer:
        return asked.text
    content = json.dumps([asked.text, asked.answer, asked.choices])
    return f"{_DIGEST}{hashlib.sha256(content.encode('ascii')).hexdigest()[:16]}"


def load(folder: Path, size: Size = WHOLE) -> Run:
    """The run in `folder`, or as much of it as `size` says; see `Run.cut`.

    Raises UsageError where there is no run, none of its questions is complete, or a file is damaged.
    """
    described = load_run(folder, strict=False)
    if "samples" not in described["config"]:
        raise UsageError(f"{folder / RUN} is damaged or not written by a run: it has no `samples`; restore it")
    questions = load_questions(folder)
    if not questions:
        raise UsageError(f"{folder} has no questions.jsonl, as runs of older versions; the same run again writes it")
    table, costs = read_table(folder, described)
    data = RunData(
        config=described["config"],
        environment=described["environment"],
        summary=_measured(
            load_summary(folder) or {}, costs, costs_so_far(folder, costs), int(table["num_tokens"].sum())
        ),
        table=table,
        questions=tuple(questions),
        cosines=_matrices(load_thoughts(folder).values()),
        label=str(folder),
        folder=folder,
        strays=_strays(table, folder),
    )
    return _select(data, size)


def load_shards(folders: Sequence[Path], size: Size = WHOLE) -> Run:
    """The shards of one run as the run that they are parts of, by the rules by which runs are merged on disk.

    Raises UsageError for directories that are not shards of one run or not all different, and as `load`.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UsageError(
            f"{','.join(map(str, folders))} names a shard twice: give each once, as its costs are added up."
        )
    merged = read_shards(folders)
    generated = sum(one.num_tokens for one in merged.completions)
    return run_of(
        merged.completions,
        merged.questions,
        merged.config,
        environment=merged.environment,
        summary=_measured({}, merged.costs, merged.costs, generated),
        thoughts=merged.thoughts,
        label=f"{folders[0]} and {counted(len(folders) - 1, 'other shard')}",
        size=size,
    )


def run_of(
    completions: Iterable[Completion],
    questions: Sequence[PromptedQuestion],
    config: Mapping[str, Any],
    *,
    environment: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    thoughts: Iterable[PathCosines] = (),
    label: str = "the run in memory",
    size: Size = WHOLE,
) -> Run:
    """A run from completions in memory.

    Args:
        completions: what was drawn, each key once.
        questions: those that were asked, in their order.
        config: the run's settings, as `config` of run.json; `samples` is required.
        environment: as `environment` of run.json; `costs` in it are needed for FLOPs.
        summary: the run's own summary, from which seconds and peak memory are taken.
        thoughts: cosines of the paths' thoughts, a question each.
        label: what messages call the run.
        size: how much of the run counts.

    Raises:
        UsageError: no question has all its samples.
    """
    rows = tuple(completions)
    data = RunData(
        config=dict(config),
        environment=dict(environment or {}),
        summary=dict(summary or {}),
        table=table_of(rows),
        questions=tuple(questions),
        cosines=_matrices(thoughts),
        label=label,
        completions=rows,
    )
    return _select(data, size)


def texts(folder: Path, ids: Collection[str]) -> list[Completion]:
    """The completions of some questions with their texts, for a reader to look at."""
    wanted = []
    begin, start = b'{"question_id": ', start_of(load_run(folder, strict=False).get(ID))
    known = {json.dumps(one).encode("ascii") for one in ids}
    with (folder / SAMPLES).open("rb") as lines:
        for line in lines:
            # the id stands first, so most lines are recognised by their beginning and never parsed
            if line.startswith(begin) and line[len(begin) : line.find(b', "path"')] not in known:
                continue
            try:
                fields = parsed(line, start)
                cost_from(fields)
                completion = completion_from(fields)
            except ValueError:
                continue  # the torn last line; damage elsewhere is found by `load`
            if completion.question_id in ids:
                wanted.append(completion)
    return wanted


def _strays(table: pd.DataFrame, folder: Path) -> int:
    held = table["question_id"].value_counts()
    return int(held.drop([asked.id for asked in stored_questions(folder)], errors="ignore").sum())


def _measured(summary: dict[str, Any], told: Costs, known: Costs, generated: int) -> dict[str, Any]:
    """The run's summary, brought up to its last completion where its lines tell costs.

    Args:
        summary: as it was last written, empty where it never was.
        told: what the lines tell.
        known: what lines and summary tell together.
        generated: tokens of all completions, those outside the grid too.
    """
    if not told.get("seconds"):
        return summary
    latest: dict[str, Any] = {key: known[key] for key in ("seconds", "peak_memory_bytes") if key in known}
    return {**summary, **latest, "tokens": {**summary.get("tokens", {}), "generated": generated}}


def _select(data: RunData, size: Size) -> Run:
    """The run of this size, made of what was drawn. Raises UsageError where none of its questions is complete."""
    config, label = _resized(data, size)
    questions = data.questions[: size.limit]
    shape = (len(questions), int(config.get("latent_paths") or 1), int(config["samples"]))
    most = max(data.table["question_id"].value_counts(), default=0)
    if shape[1] * shape[2] > most:  # told before arrays of a size that somebody wrote into run.json are made
        _refuse_unfinished(label, config, 0, len(questions))
    cells, table = _inside(data.table, questions, shape)
    is_drawn = np.zeros(shape[0] * shape[1] * shape[2], dtype=bool)
    is_drawn[cells] = True
    complete = is_drawn.reshape(shape).all(axis=(1, 2))
    _refuse_unfinished(label, config, int(complete.sum()), len(questions))
    rows = np.flatnonzero(complete)
    ids = [question.id for question in questions]

    def grid(values: pd.Series[Any], kind: type) -> NDArray[Any]:
        return _spread(values.to_numpy().astype(kind), cells, shape)[rows]

    return Run(
        label=label,
        config=config,
        environment=data.environment,
        summary=data.summary,
        questions=tuple(questions[row] for row in rows),
        incomplete=tuple(ids[row] for row in np.flatnonzero(~complete)),
        lenient=_ballots(table, "", cells, shape, ids).of(rows),
        strict=_ballots(table, "_strict", cells, shape, ids).of(rows),
        tokens=grid(table["num_tokens"], np.int64),
        truncated=grid(table["stop_reason"] == "length", bool),
        log_probs=grid(table["log_prob"], np.float64),
        self_certainty=grid(table["self_certainty"], np.float64),
        cosines=_mean_cosines(data.cosines, shape[1]),
        unread=int(table["unread"].notna().sum()),
        data=data,
    )


def _shown(size: Size) -> str:
    """A size as it is written behind a folder: 8x4@100."""
    paths, samples = ("all" if number is None else number for number in (size.paths, size.samples))
    return f"{paths}x{samples}" + ("" if size.limit is None else f"@{size.limit}")


def _resized(data: RunData, size: Size) -> tuple[dict[str, Any], str]:
    """The settings of the run at this size, and what messages call it. Raises UsageError for a size below 1."""
    config = data.config
    own = Size(int(config.get("latent_paths") or 1), int(config["samples"]), config.get("limit"))
    if min(number for number in (*size, 1) if number is not None) < 1:
        raise UsageError(f"{data.label} cannot be cut to {_shown(size)}: questions, paths and samples begin at 1")
    wanted = Size(*(mine if given is None else given for given, mine in zip(size, own, strict=True)))
    if wanted == own:
        return config, data.label
    limit = "" if wanted.limit == own.limit else f"@{wanted.limit}"
    changed = {"latent_paths": wanted.paths, "samples": wanted.samples, "limit": wanted.limit}
    return {**config, **changed}, f"{data.label}@{wanted.paths}x{wanted.samples}{limit}"


def _refuse_unfinished(label: str, config: Mapping[str, Any], complete: int, total: int) -> None:
    if config.get("adaptive") is not None and complete < total:
        raise UsageError(
            f"{label} was stopped early where its vote was sure (`--adaptive` {config['adaptive']}), and curves need every "
            f"sample: the same `scale-run` command without `--adaptive` draws those left out"
        )
    if not complete:
        raise Unfinished(f"{label} has no question with all its samples yet; let the run go on and report then")


def _inside(
    table: pd.DataFrame, questions: Sequence[PromptedQuestion], shape: Shape
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """The flat index of each completion in [Q, N, M], and the table, both without what lies outside the grid."""
    row = pd.Index([question.id for question in questions]).get_indexer(pd.Index(table["question_id"]))
    path, sample = (table[name].to_numpy().astype(np.int64) for name in ("path", "sample"))
    inside = (row >= 0) & (path < shape[1]) & (sample < shape[2])
    cells: NDArray[np.int64] = (row.astype(np.int64) * shape[1] + path) * shape[2] + sample
    return cells[inside], table[inside]


def _spread(values: NDArray[Any], cells: NDArray[np.int64], shape: Shape) -> NDArray[Any]:
    """[Q, N, M], each value in its cell, and zero where there is none."""
    spread = np.zeros(shape, dtype=values.dtype)
    spread.reshape(-1)[cells] = values
    return spread


def _ballots(table: pd.DataFrame, reading: str, cells: NDArray[np.int64], shape: Shape, ids: Sequence[str]) -> Ballots:
    """The answers of the completions in `table`.

    Args:
        reading: "" for the lenient one, "_strict" for the strict one.
        cells: where each row of the table stands in [Q, N, M].
        ids: of the Q questions.
    """
    row = cells // (shape[1] * shape[2])
    number, answers = pd.factorize(table[f"answer{reading}"])  # -1 for null
    given = number >= 0
    # Each pair of a question and an answer to it once: few, so that only these are compared with each other.
    pairs, inverse = np.unique(row[given] * max(1, len(answers)) + number[given], return_inverse=True)
    of_row, of_answer = np.divmod(pairs, max(1, len(answers)))
    starts = np.searchsorted(of_row, np.arange(shape[0] + 1))
    code = np.empty(len(pairs), dtype=np.int32)
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


def _matrices(thoughts: Iterable[PathCosines]) -> tuple[NDArray[np.float64], ...]:
    return tuple(np.array(one.cosines) for one in thoughts)


def _mean_cosines(matrices: Sequence[NDArray[np.float64]], num_paths: int) -> NDArray[np.float64] | None:
    """[N, N] over the questions that have so many paths; None for a single path, and where no question has."""
    known = [matrix[:num_paths, :num_paths] for matrix in matrices if len(matrix) >= num_paths]
    if num_paths < 2 or not known:
        return None
    mean: NDArray[np.float64] = np.mean(known, axis=0)
    return mean
