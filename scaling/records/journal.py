"""The run directory: run.json, questions.jsonl, samples.jsonl and thoughts.jsonl (append-only), and summary.json.

Safe against kill -9 always.

One line of samples.jsonl is one completion, and it is there when its newline is there: a last line without one, or
unreadable, is torn and cut on the next open. Even a last line that lacks nothing but its newline is cut: its completion
is drawn again from its own seed, whereas completing the line would mean guessing that nothing else was lost. Damage
anywhere else is never repaired, only reported: lines that end with another checksum than they had when they were written,
lines of another run, whose seed is not the one that this run's completion would have, and values that no completion has.

A run has an id, which is its hash at the time when it began, and keeps it when it is continued, extended or judged anew. The
checksum of each line depends on the id, so that lines of another run are told apart even where both draw from the same
streams. Runs that began before there were ids have none.

What the run has cost stands in the lines, too: each holds what was added since the one before it.

questions.jsonl holds the questions that are asked now, and of those asked before the ones that have completions. So a text
that has changed under its id is refused, and a gold answer that has changed is judged by anew.

Knows nothing of tasks, votes or models, and waits for no lock.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from scaling.records.errors import InUse, UsageError, listed
from scaling.records.files import replaced
from scaling.records.json_lines import parsed, start_of, whole_lines
from scaling.records.records import (
    PEAKS,
    TIMEOUTS,
    Completion,
    Costs,
    Key,
    PathCosines,
    PromptedQuestion,
    added,
    completion_from,
    cost_from,
    is_amount,
    path_cosines_from,
    prompted_question_from,
    to_json,
)
from scaling.records.seeds import stream_seed
from scaling.records.settings import Effect, run_names, run_settings

RUN, QUESTIONS, SAMPLES, SUMMARY, LOCK = "run.json", "questions.jsonl", "samples.jsonl", "summary.json", ".lock"
THOUGHTS = "thoughts.jsonl"  # only where there are several latent paths
UNREAD = "config-"  # how a model's fingerprint begins where its weights were not read: many have the same
_FIRST = "first_question"  # the digest that tells other questions, where there is no questions.jsonl to tell them by
_WORKED_OUT = ("generated", "slot_occupancy")  # of a summary's figures: follow from others
ID = "id"  # in run.json
_OTHER_OUT = "restore the file or choose another `--out`"


@dataclass
class Held:
    """What samples.jsonl holds. size: of its whole lines, in bytes. costs: of all its lines together."""

    completions: dict[Key, Completion] = field(default_factory=dict)
    costs: Costs = field(default_factory=dict)
    size: int = 0


# What a config holds besides options, in words.
_NO_OPTION = {
    "first_question": "the first question of the data (a digest of its text and answer)",
    "prompt_version": "the version of the prompts",
    "stop_strings": "what ends a completion of a model without a chat format",
    "engine_changes": "`--engine-args`, as far as it changes what is drawn,",
    "backbone_fingerprint": "what `--backbone` holds (a fingerprint of its weights)",
    "assistant_fingerprint": "what `--assistant` holds (a fingerprint of its weights)",
    "merged_fingerprint": "the backbone with `--adapter` merged (a fingerprint of its weights)",
    "exemplars": "the solved questions of `--shots` (their ids)",
    "initial_token": "what fills the slots of a thinker without tokens of its own",
    "thinker_sha256": "the file of `--thinker` (its SHA-256)",
    "adapter_sha256": "the file of `--adapter` (its SHA-256)",
    "method_sha256": "the code of `--method` (a SHA-256 of its file and name)",
    "method_identity": "what the code of `--method` says of itself",
    "decoder_fingerprint": "the model with which `--method` decodes (a fingerprint of its weights)",
    "task_sha256": "what `--task` is (a SHA-256 of its file and name)",
}


class Journal:
    """An open run directory, held by one process at a time. Open with `Journal.open`, use as a context manager.

    completions: by key. costs: what the run has cost as far as its lines tell. restated: questions whose gold answer is
    another one than their completions were judged by; `rejudge` ends that.
    """

    def __init__(
        self,
        folder: Path,
        *,
        run_id: str | None,
        held: Held,
        questions: Sequence[PromptedQuestion],
        thoughts: dict[str, PathCosines],
        samples: int,
        lock: int,
    ) -> None:
        """run_id: None for a run that has none. questions, thoughts: the lines of questions.jsonl and thoughts.jsonl.
        samples, lock: open file descriptors, which the journal closes."""
        self.folder = folder
        self._id = run_id
        self._start = start_of(run_id)
        self.completions = held.completions
        self.costs = held.costs
        self.restated = [asked for asked in questions if not asked.judged]
        self._questions = questions
        self._size = held.size
        self._samples = samples
        self._lock = lock
        self._thoughts = thoughts

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        config: dict[str, Any],
        environment: dict[str, Any],
        questions: Sequence[PromptedQuestion] = (),
    ) -> Journal:
        """Start the run in `folder`, or continue the one there if its config agrees but for what may grow and what is
        free. One that has drawn nothing gives way to another config.

        questions: those that are asked now, all of them; they replace the ones in questions.jsonl.
        Raises UsageError for a directory in use, another config, a question that has completions and another text now,
        foreign files or a damaged journal, changing nothing.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"`--out` {folder} cannot be created ({error.strerror}); choose another folder") from error
        # Twice: before the lock, so that a refusal leaves no lock file; under it, as another may have been first.
        _refuse_unfit(folder, config, questions)
        lock = _acquire(folder)
        try:
            other = _refuse_unfit(folder, config, questions)
            begun = _read_run(folder) if (folder / RUN).exists() else {}
            held = read_samples(folder, {**begun, "config": config})
            run_id = begun.get(ID) if held.size else config_hash(config)  # where nothing is drawn, it begins now
            asked = _brought_up_to_date(folder, [] if other else stored_questions(folder), questions, held.completions)
            if other:
                for name in (SUMMARY, THOUGHTS):
                    (folder / name).unlink(missing_ok=True)
            else:
                costs_so_far(folder, {})  # a damaged summary is refused before anything is written
            thoughts = load_thoughts(folder)  # and so are damaged thoughts
            _write_run(folder, config, environment, run_id)
            _write_lines(folder / QUESTIONS, asked)
            samples = _open_to_append(folder / SAMPLES)
            os.ftruncate(samples, held.size)
            if (folder / THOUGHTS).exists():  # written anew: without a torn last line
                _write_lines(folder / THOUGHTS, thoughts.values())
        except BaseException:
            os.close(lock)
            raise
        return cls(folder, run_id=run_id, held=held, questions=asked, thoughts=thoughts, samples=samples, lock=lock)

    def append(self, completion: Completion, costs: Mapping[str, float] | None = None) -> None:
        """Add one line, handed to the operating system before this returns. Raises ValueError for a known key.

        costs: what the run has cost so far, in all; what the lines do not tell of it yet is told by this one.
        """
        if completion.key in self.completions:
            raise ValueError(f"{completion.key} is already in {self.folder / SAMPLES}")
        cost = _beyond(self.costs, costs or {})
        line = to_json(completion, cost=cost, start=self._start).encode("ascii") + b"\n"
        # One write of a whole line: a killed process leaves at most a torn last line, never two halves.
        if os.write(self._samples, line) != len(line):
            # A full disk takes part of a line. Were it left there, the next append would bury it in the middle.
            os.ftruncate(self._samples, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / SAMPLES))
        self._size += len(line)
        self.completions[completion.key] = completion
        self.costs = added(self.costs, cost)

    def rejudge(self, judged: Mapping[Key, Completion], timeouts: Mapping[Key, int]) -> None:
        """Puts these completions in the place of those of the same keys, in one step, and settles `restated`.

        timeouts: comparisons that were not finished, by key of the completion; they replace those that its line tells.
        A kill leaves the file as it was or as it is to be, and in either case the next open knows what is still to do.
        """
        path = self.folder / SAMPLES
        with replaced(path, partial=_temporary(path), sync=True) as new:
            with path.open("rb") as lines, new.open("wb") as handle:
                handle.writelines(_rejudged(line, judged, timeouts, self._start) for line in lines)
            samples = _open_to_append(new)
        os.close(self._samples)
        self._samples, self._size = samples, os.fstat(samples).st_size
        self.completions.update(judged)
        self.costs = _costs_in(path, self._start)
        self._questions = [replace(asked, judged=True) for asked in self._questions]
        _write_lines(self.folder / QUESTIONS, self._questions)
        self.restated = []

    def restate(self, config: dict[str, Any], environment: dict[str, Any]) -> None:
        """Replace what run.json says, as where all completions were read anew by an edited task."""
        _write_run(self.folder, config, environment, self._id)

    def record_thoughts(self, thoughts: PathCosines) -> None:
        """Add a question's line to thoughts.jsonl, unless the same stands there."""
        if self._thoughts.get(thoughts.question_id) != thoughts:
            self._thoughts[thoughts.question_id] = thoughts
            with (self.folder / THOUGHTS).open("a", encoding="ascii") as handle:
                handle.write(f"{to_json(thoughts)}\n")

    def costs_so_far(self) -> Costs:
        """What the run has cost in all sessions, as its lines and its summary tell."""
        return costs_so_far(self.folder, self.costs)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace summary.json in one step: a reader sees the old one or the new one, never a part."""
        _write_json(self.folder / SUMMARY, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """The summary last written, or None before the first."""
        return load_summary(self.folder)

    def close(self) -> None:
        """Let go of the directory. A second call does nothing."""
        if self._lock < 0:
            return
        os.close(self._samples)
        # Unlocked by name: a forked worker may still hold a copy of the descriptor, and with it the lock.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        # So that a late append fails, rather than writing to whichever file got the number next.
        self._samples = self._lock = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def config_hash(config: dict[str, Any]) -> str:
    """12 hex digits that name what a run computes: the same for configs that may share a run directory.

    What is not set has no part in it, so that an option of a later version renames no run that lacks it.
    """
    may_change = run_names(Effect.SIZE, Effect.FREE)
    fixed = {key: value for key, value in config.items() if key not in may_change and value is not None}
    return hashlib.sha256(_canonical(fixed).encode("ascii")).hexdigest()[:12]


def place_of(parent: Path, begin: str, config: dict[str, Any], questions: Sequence[PromptedQuestion]) -> Path:
    """The directory in `parent` of a run for which none was named: `begin` and the hash of its config.

    The first question is part of the hash, gold answer included. Where that gold answer was another one when the run began,
    its directory keeps the name that it got then.
    """
    usual = parent / f"{begin}-{config_hash(config)}"
    if not (usual / RUN).exists() and parent.is_dir():
        name = re.compile(re.escape(begin) + "-[0-9a-f]{12}")
        for other in sorted(parent.iterdir()):
            if name.fullmatch(other.name) and _began_with_other_gold(other, config, questions[0]):
                return other
    return usual


def _began_with_other_gold(folder: Path, config: dict[str, Any], first: PromptedQuestion) -> bool:
    """Whether the run in `folder` has this config and this first question, whatever its gold answer is."""
    with suppress(UsageError):  # what cannot be read is no run to go on with
        old = load_run(folder)["config"]
        stored = {asked.id: asked for asked in stored_questions(folder)}
        same = config_hash({**old, _FIRST: None}) == config_hash({**config, _FIRST: None})
        return same and first.id in stored and not changes(stored[first.id], first)
    return False


def refuse_unfit_folder(folder: Path, config: dict[str, Any], questions: Sequence[PromptedQuestion]) -> None:
    """Raises UsageError where a run with this config could not go on, or begin, in `folder`. Writes nothing.

    Args:
        questions: those that are asked now, all of them.
        config: what is known of it; what is not, as a model's fingerprint before it is loaded, counts as the same.
    """
    if not folder.exists():
        above = next(place for place in folder.absolute().parents if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UsageError(f"`--out` {folder} cannot be created in {above}; choose another folder")
        return
    if not folder.is_dir():
        raise UsageError(f"`--out` {folder} is a file; choose a folder")
    there = _read_run(folder) if (folder / RUN).exists() else {"config": {}}
    known = {**there["config"], **config}
    _refuse_unfit(folder, known, questions)
    read_samples(folder, {**there, "config": known})


def load(folder: Path) -> tuple[dict[str, Any], list[Completion]]:
    """run.json and the completions, read-only: a torn last line is passed over and left as it is."""
    run = load_run(folder)
    return run, list(read_samples(folder, run).completions.values())


def load_run(folder: Path, *, strict: bool = True) -> dict[str, Any]:
    """run.json, with at least `config` and `environment`. Raises UsageError where there is none, or it is damaged.

    Args:
        strict: False takes a file without an environment, and NaN in it: estimates can do without either.
    """
    if not (folder / RUN).is_file():
        raise UsageError(f"{folder} is no run directory: it has no {RUN}; give the folder that a run was written to")
    run = _read_run(folder, *(["environment"] if strict else []), nan=not strict)
    run.setdefault("environment", {})
    return run


def load_summary(folder: Path) -> dict[str, Any] | None:
    """The summary last written, or None before the first. Raises UsageError for a damaged one."""
    path = folder / SUMMARY
    return _read_json(path) if path.exists() else None


def load_questions(folder: Path) -> list[PromptedQuestion]:
    """The questions of a run as they were asked; none where the directory has no questions.jsonl.

    Raises UsageError for a damaged file, and where the run was stopped while it was judged by a new gold answer.
    """
    current = [asked for asked in stored_questions(folder) if asked.current]
    if unjudged := [asked.id for asked in current if not asked.judged]:
        raise UsageError(
            f"the completions in {folder} are not judged yet by the new gold answers of {listed(unjudged)}; the same "
            f"`scale-run` command does it, or `scale-run --rescore --out {folder}`"
        )
    return current


def stored_questions(folder: Path) -> list[PromptedQuestion]:
    """All lines of questions.jsonl, those of questions that are no longer asked included."""
    path = folder / QUESTIONS
    found: dict[str, PromptedQuestion] = {}
    advice = "restore the file, or delete it, and the same run again writes it anew"
    for number, _, asked in whole_lines(path, prompted_question_from, "question", advice, torn=False):
        if found.setdefault(asked.id, asked) is not asked:
            raise UsageError(f"{path} line {number} repeats question {asked.id!r}; {advice}")
    return list(found.values())


def load_thoughts(folder: Path) -> dict[str, PathCosines]:
    """The lines of thoughts.jsonl by question, the last one of each; a torn last line is passed over."""
    advice = "restore the file, or delete it, which loses nothing but the cosines"
    lines = whole_lines(folder / THOUGHTS, path_cosines_from, "comparison of thoughts", advice)
    return {thoughts.question_id: thoughts for _, _, thoughts in lines}


def changes(old: PromptedQuestion, new: PromptedQuestion) -> list[str]:
    """What differs in what the model reads of a question. Its gold answer is none of that."""
    found = [name for name in ("text", "choices") if getattr(old, name) != getattr(new, name)]
    if old.kind != new.kind and old.kind is not None and new.kind is not None:
        found.append("kind")
    # notes that an assistant writes may differ in a word between machines, and are no part of the question
    if not found and old.prompt != new.prompt and not (old.hint_tokens or new.hint_tokens):
        found.append("prompt")
    return found


@dataclass(frozen=True)
class MergedRun:
    """The shards of one run, read as one run that holds what any of them holds.

    config: the first shard's, as large as the largest shard. environment: what is true of every shard, and under `shards`
    all that each one says. costs: of all shards together.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    questions: list[PromptedQuestion]
    completions: list[Completion]
    thoughts: list[PathCosines]
    costs: Costs


def read_shards(folders: Sequence[Path]) -> MergedRun:
    """The shards in `folders` as one run. A completion that several shards hold must be the same in each.

    Raises UsageError for directories that are not shards of one run, or are damaged.
    """
    runs, found, costs = _read_shards(folders)
    environments = [run["environment"] for run in runs]
    # Said of the whole only where it is true of every shard.
    shared = {key: value for key, value in environments[0].items() if all(e.get(key) == value for e in environments)}
    return MergedRun(
        config=_merged_config([run["config"] for run in runs]),
        environment={**shared, "shards": environments},
        questions=list(_asked_together(folders).values()),
        completions=list(found.values()),
        thoughts=[thoughts for folder in folders for thoughts in load_thoughts(folder).values()],
        costs=costs,
    )


def merge(folders: Sequence[Path], into: Path) -> int:
    """Merge the shards of one run into a new directory; returns the number of completions.

    A completion that several shards hold must be the same in each. Every shard is read before anything is written.
    """
    if not folders:
        raise UsageError("a merge needs at least one run directory, none was given; name the shards to merge")
    merged = read_shards(folders)
    if (into / RUN).exists():
        raise UsageError(f"{into} already holds a run; merge into a new or empty folder")
    config = {**merged.config, "out": str(into)}
    with Journal.open(into, config=config, environment=merged.environment, questions=merged.questions) as journal:
        for completion in merged.completions:
            journal.append(completion, merged.costs)  # the first line tells what all shards have cost
        for thoughts in merged.thoughts:
            journal.record_thoughts(thoughts)
    return len(merged.completions)


def _read_shards(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[Key, Completion], Costs]:
    runs: list[dict[str, Any]] = []
    found: dict[Key, Completion] = {}
    costs: Costs = {}
    for folder in folders:
        run = load_run(folder)
        runs.append(run)
        differing = _differences(run["config"], runs[0]["config"], there=folder / RUN, here=f"in {folders[0] / RUN}")
        if differing:
            raise UsageError(f"{differing}; merge only shards of one run")
        held = read_samples(folder, run)
        for completion in held.completions.values():
            if found.setdefault(completion.key, completion) != completion:
                raise UsageError(f"{folder} and an earlier shard differ in completion {completion.key}; leave one out")
        costs = added(costs, costs_so_far(folder, held.costs))
    return runs, found, costs


def _asked_together(folders: Sequence[Path]) -> dict[str, PromptedQuestion]:
    """The questions of all shards by id. Raises UsageError where two shards hold different ones under one id."""
    found: dict[str, PromptedQuestion] = {}
    for folder in folders:
        for asked in load_questions(folder):
            known = found.setdefault(asked.id, asked)
            differing = changes(known, asked)
            if differing:
                raise UsageError(
                    f"{folder} and an earlier shard ask different things under the id {asked.id} ({differing[0]} "
                    f"differs); merge only shards of one run"
                )
            if known.answer != asked.answer:
                raise UsageError(
                    f"{folder} and an earlier shard are judged by different gold answers of {asked.id} ({asked.answer} and "
                    f"{known.answer}); judge both anew with `scale-run --rescore --out SHARD`"
                )
    return found


def _merged_config(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first shard's config, widened to hold every shard's completions. A `limit` of None is no limit."""
    merged = dict(configs[0])
    for key in run_names(Effect.SIZE):
        if key in merged:
            values: list[Any] = [config.get(key) for config in configs]
            merged[key] = None if None in values else max(values)
    return merged


def _refuse_unfit(folder: Path, config: dict[str, Any], questions: Sequence[PromptedQuestion]) -> bool:
    """Whether a run with another config is there that has drawn nothing, as one whose engine did not start."""
    path, samples = folder / RUN, folder / SAMPLES
    if path.exists():
        old = _read_run(folder)["config"]
        if old.get(_FIRST) != config.get(_FIRST) and {q.id for q in questions} & {
            q.id for q in stored_questions(folder)
        }:
            old = {**old, _FIRST: config.get(_FIRST)}  # what has changed is told question by question
        differing = _differences(old, config, there=path, here="now")
        if differing and samples.exists() and samples.stat().st_size:
            raise UsageError(f"{differing}; choose another `--out` or give the same values")
        return bool(differing)
    # What a run leaves that was killed before its run.json was in place is no foreign file.
    if foreign := sorted({entry.name for entry in folder.iterdir()} - {LOCK, _temporary(path).name}):
        message = f"`--out` {folder} is not empty ({foreign[0]}) and has no {RUN}, so it is no run directory"
        raise UsageError(f"{message}; choose a new or empty folder")
    return False


def _brought_up_to_date(
    folder: Path,
    stored: Sequence[PromptedQuestion],
    questions: Sequence[PromptedQuestion],
    completions: Collection[Key],
) -> list[PromptedQuestion]:
    """The lines of questions.jsonl from now on: today's questions, and those asked before that have completions.

    Raises UsageError for a question that has completions and reads otherwise than when they were drawn.
    """
    drawn = {question_id for question_id, _, _ in completions}
    before = {asked.id: asked for asked in stored if asked.id in drawn}
    altered = {new.id: what for new in questions if new.id in before and (what := changes(before[new.id], new))}
    if altered:
        parts = ", ".join(dict.fromkeys(name for names in altered.values() for name in names))
        raise UsageError(
            f"{len(altered)} of the questions that have completions in {folder} are no longer what they were "
            f"({parts} of {listed(list(altered))}), so old and new chains would be mixed; restore the "
            f"questions or choose another `--out`"
        )
    now = [replace(new, current=True, judged=_is_judged(before.get(new.id), new)) for new in questions]
    ids = {new.id for new in questions}
    return [*now, *(replace(old, current=False) for key, old in before.items() if key not in ids)]


def _is_judged(old: PromptedQuestion | None, new: PromptedQuestion) -> bool:
    return old is None or (old.judged and old.answer == new.answer)


def _differences(old: dict[str, Any], new: dict[str, Any], *, there: Path, here: str) -> str:
    """Every key that forbids sharing a directory, with both values; empty where none does."""
    differing = []
    moved = {  # two places that hold the same are one
        place
        for place, own in run_settings().items()
        if (known := old.get(own.content)) and known == new.get(own.content) and not known.startswith(UNREAD)
    }
    for key in sorted((old.keys() | new.keys()) - moved.union(run_names(Effect.SIZE, Effect.FREE))):
        values = (config.get(key) for config in (old, new))
        before, after = ("not set" if value is None else _canonical(value) for value in values)
        if before != after:
            name = _NO_OPTION.get(key) or f"`--{key.replace('_', '-')}`"
            differing.append(f"{name} is {before} in {there} and {after} {here}")
    return "; ".join(differing)


def _acquire(folder: Path) -> int:
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        advice = "wait for it or choose another `--out`"
        raise InUse(f"run directory {folder} is in use by another process; {advice}") from error
    return lock


def read_samples(folder: Path, run: Mapping[str, Any]) -> Held:
    """What samples.jsonl holds.

    run: run.json. Every completion's stream follows from the seed in its config, where it has one, and every checksum from
    its id, likewise.
    """
    path, seed, held, start = folder / SAMPLES, run["config"].get("seed"), Held(), start_of(run.get(ID))
    for number, line, (completion, cost) in whole_lines(path, _with_cost, "completion", _OTHER_OUT, start=start):
        if isinstance(seed, int) and completion.seed != (own := stream_seed(seed, *completion.key)):
            raise UsageError(
                f"{path} line {number} is of another run: completion {completion.key} of `--seed` {seed} has the stream "
                f"{own}, and this one {completion.seed}; {_OTHER_OUT}"
            )
        if held.completions.setdefault(completion.key, completion) is not completion:
            raise UsageError(f"{path} line {number} repeats completion {completion.key}; delete one of the two lines")
        held.size += len(line)
        held.costs = added(held.costs, cost) if cost else held.costs
    return held


def _rejudged(line: bytes, judged: Mapping[Key, Completion], timeouts: Mapping[Key, int], start: int) -> bytes:
    told = parsed(line, start)
    completion, cost = _with_cost(told)
    if completion.key not in judged:
        return line
    cost = {name: value for name, value in cost.items() if name != TIMEOUTS}
    cost |= {TIMEOUTS: timeouts[completion.key]} if timeouts.get(completion.key) else {}
    return to_json(judged[completion.key], cost=cost, start=start).encode("ascii") + b"\n"


def _with_cost(told: dict[str, Any]) -> tuple[Completion, Costs]:
    cost = cost_from(told)
    return completion_from(told), cost


def _costs_in(path: Path, start: int) -> Costs:
    costs: Costs = {}
    for _, _, (_, cost) in whole_lines(path, _with_cost, "completion", _OTHER_OUT, start=start):
        costs = added(costs, cost)
    return costs


def _beyond(told: Mapping[str, float], costs: Mapping[str, float]) -> Costs:
    """What `costs` are more than is told already; seconds in whole milliseconds, and nothing that is zero.

    Milliseconds are rounded down, so that lines never tell of more than the summary that is written after them.
    """
    more: Costs = {}
    for key, value in costs.items():
        known = told.get(key, 0)
        beyond = (value if key in PEAKS else value - known) if value > known else 0
        if beyond := beyond if isinstance(beyond, int) else math.floor(beyond * 1000) / 1000:
            more[key] = beyond
    return more


def costs_so_far(folder: Path, told: Mapping[str, float]) -> Costs:
    """What the run in `folder` has cost; told: as far as its lines tell. Raises UsageError for a damaged summary.

    Lines and summary tell of the same counters at different times, so the larger figure is the later one. That is the
    summary's where it was written after the last line, and in runs of version 0.1, whose lines tell no costs.
    """
    noted = _costs_of(load_summary(folder) or {}, folder / SUMMARY)
    return {key: max(noted.get(key, 0), told.get(key, 0)) for key in noted | dict(told)}


def _costs_of(summary: Mapping[str, Any], path: Path) -> Costs:
    """The costs in a run's summary, by the names they have in its lines. Raises UsageError for a damaged one."""
    costs: Costs = {}
    parts = [summary.get(name, {}) for name in ("tokens", "engine")]
    if all(isinstance(part, dict) for part in parts):
        told = {**parts[0], **parts[1], **{key: summary.get(key, 0) for key in ("seconds", "peak_memory_bytes")}}
        costs = {key: 0 if value is None else value for key, value in told.items()}
        if all(map(is_amount, costs.values())):
            return {key: value for key, value in costs.items() if value and key not in _WORKED_OUT}
    raise UsageError(f"{path} is damaged; restore it, or delete it, and what the run's lines tell of its costs is kept")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _refuse_constant(name: str) -> None:
    """Raises ValueError for NaN and infinities, which no run writes."""
    raise ValueError(f"{name} is no JSON")


def _read_json(path: Path, *required: str, nan: bool = False) -> dict[str, Any]:
    """The object in a JSON file. Raises UsageError for a damaged file.

    Args:
        required: keys that must hold objects.
        nan: whether NaN and infinities, which no run writes, are taken.
    """
    try:
        fields = json.loads(path.read_bytes(), parse_constant=None if nan else _refuse_constant)
    except (OSError, ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not all(isinstance(fields.get(key), dict) for key in required):
        raise UsageError(f"{path} is damaged or not written by a run; restore it or choose another folder")
    return fields


def _read_run(folder: Path, *required: str, nan: bool = False) -> dict[str, Any]:
    """run.json. Raises UsageError where it is damaged. required, nan: as of `_read_json`."""
    from scaling.records.run_file import refuse_damaged  # here, as checking settings takes more than reading records

    run = _read_json(folder / RUN, "config", *required, nan=nan)
    refuse_damaged(run, folder / RUN)
    return run


def _write_run(folder: Path, config: dict[str, Any], environment: dict[str, Any], run_id: str | None) -> None:
    told = {"config": config, "config_hash": config_hash(config), "environment": environment}
    _write_json(folder / RUN, {**told, ID: run_id} if run_id else told)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    _write(path, json.dumps(fields, indent=2, allow_nan=False) + "\n")


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _write_lines(path: Path, records: Iterable[PromptedQuestion | PathCosines]) -> None:
    _write(path, "".join(f"{to_json(one)}\n" for one in records))


def _write(path: Path, text: str) -> None:
    try:
        with replaced(path, partial=_temporary(path), sync=True) as new:
            new.write_text(text, encoding="ascii")
    except OSError as error:  # a full disk does not say where it is
        raise OSError(error.errno, error.strerror, str(path)) from None


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
