"""The run directory: run.json, questions.jsonl, samples.jsonl and thoughts.jsonl (append-only), and summary.json.

A run may be killed at any time, even with kill -9, and loses at most the completion that was being written.

One line of samples.jsonl is one completion. A completion counts as written once its newline is there. A last line that has
no newline, or cannot be read, is called torn: a process was killed while it wrote it. The next `Journal.open` cuts it off,
and its completion is drawn again from the same seed. This holds even if only the newline is missing, because completing the
line would mean guessing that nothing else was lost.

Damage anywhere else is never repaired, only reported. Such damage is a line that does not match its checksum, a line of
another run (its seed is not the one that this run would have used), or a value that no completion can have.

A run has an id: the hash of its config at the time when it began. It keeps the id when it is continued, extended or judged
anew. The checksum of each line depends on the id. So lines of another run are recognised even if both runs draw from the
same random streams. Runs that began before there were ids have none.

Each line also holds what the run has cost since the line before it.

questions.jsonl holds all questions that are asked now, and those asked earlier that have completions. A question whose text
has changed under the same id is refused. Where its gold answer has changed, its completions are judged anew.

This module knows nothing of tasks, votes or models. It does not wait for a lock: a directory in use is refused at once.
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
UNREAD = "config-"  # begins the fingerprint of a model whose weights were not read; many models may share such a one
_FIRST = "first_question"  # digest of the first question: shows that the data is another where no questions.jsonl does
_WORKED_OUT = ("generated", "slot_occupancy")  # figures of a summary that are computed from others, hence no costs
ID = "id"  # in run.json
_OTHER_OUT = "restore the file or choose another `--out`"


@dataclass
class Held:
    """The contents of samples.jsonl.

    Attributes:
        completions: by their keys.
        costs: what all lines together say that the run has cost.
        size: of all whole lines, in bytes; a torn last line is not counted.
    """

    completions: dict[Key, Completion] = field(default_factory=dict)
    costs: Costs = field(default_factory=dict)
    size: int = 0


# What an error message calls the keys of run.json and train.json that are not options.
_NO_OPTION = {
    "first_question": "the first question of the data (a digest of its text and answer)",
    "prompt_version": "the version of the prompts",
    "prompt_sha256": "what `--prompt` holds (a SHA-256 of its text)",
    "stop_strings": "what ends a completion of a model without a chat format",
    "engine_changes": "`--engine-args`, as far as it changes what is drawn,",
    "backbone_fingerprint": "what `--backbone` holds (a fingerprint of its weights)",
    "assistant_fingerprint": "what `--assistant` holds (a fingerprint of its weights)",
    "backbone_quantization": "how the weights of `--backbone` are quantised",
    "assistant_quantization": "how the weights of `--assistant` are quantised",
    "merged_fingerprint": "the backbone with `--adapter` merged (a fingerprint of its weights)",
    "exemplars": "the solved questions of `--shots` (their ids)",
    "initial_token": "what fills the slots of a thinker without tokens of its own",
    "thinker_sha256": "the file of `--thinker` (its SHA-256)",
    "adapter_sha256": "the file of `--adapter` (its SHA-256)",
    "method_sha256": "the code of `--method` (a SHA-256 of its file and name)",
    "method_identity": "what the code of `--method` says of itself",
    "decoder_fingerprint": "the model with which `--method` decodes (a fingerprint of its weights)",
    "questions": "the questions of training and validation (a digest of ids and texts)",
    "task_sha256": "what `--task` is (a SHA-256 of its file and name)",
}


def spelled(key: str) -> str:
    """How messages call a key of run.json or train.json: its option or, if it has none, what it is."""
    return _NO_OPTION.get(key) or f"`--{key.replace('_', '-')}`"


class Journal:
    """An open run directory. Only one process at a time may have it open. Use `Journal.open` as a context manager.

    Attributes:
        folder: the run directory.
        completions: all completions so far, by key.
        costs: what the run has cost, according to its lines.
        restated: the questions whose gold answer has changed since their completions were judged. `rejudge` empties it.
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
        """For `Journal.open` only.

        Args:
            folder: the run directory.
            run_id: None for a run that began before runs had ids.
            held: the contents of samples.jsonl.
            questions: the lines of questions.jsonl.
            thoughts: the lines of thoughts.jsonl, by question id.
            samples: file descriptor of samples.jsonl, open to append; the journal closes it.
            lock: file descriptor of the locked lock file; the journal closes it.
        """
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
        anew: bool = False,
    ) -> Journal:
        """Starts a run in `folder`, or continues the one that is there.

        A run is continued only if its config is the same. Settings of `Effect.SIZE`, which may grow, and of `Effect.FREE`,
        which change no completion, may differ. A run that has drawn nothing yet may be replaced by one of another config.

        Args:
            folder: the run directory; it is created if there is none.
            config: the settings that decide what is drawn, with the facts that follow from them (see `Setting.content`).
            environment: where and how the run is computed; it may differ from the earlier session's.
            questions: all questions that are asked now. They replace those in questions.jsonl.
            anew: whether all completions are going to be judged anew, so that answers may be of another kind.

        Raises:
            UsageError: the directory is in use, holds another config, other files or a damaged journal, or a question that
                has completions has another text now. Nothing is changed then.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"`--out` {folder} cannot be created ({error.strerror}); choose another folder") from error
        # Checked twice. Before the lock is taken, so that a refusal leaves no lock file behind. And again under the lock,
        # because another process may have written to the folder in between.
        _refuse_unfit(folder, config, questions)
        lock = _acquire(folder)
        try:
            other = _refuse_unfit(folder, config, questions)
            recorded = _read_run(folder) if (folder / RUN).exists() else {}
            contents = read_samples(folder, {**recorded, "config": config})
            run_id = (
                recorded.get(ID) if contents.size else config_hash(config)
            )  # without completions the run begins now
            asked = _brought_up_to_date(
                folder, [] if other else stored_questions(folder), questions, contents.completions, anew=anew
            )
            if other:
                for name in (SUMMARY, THOUGHTS):
                    (folder / name).unlink(missing_ok=True)
            else:
                costs_so_far(folder, {})  # a damaged summary is refused before anything is written
            thoughts = load_thoughts(folder)  # damaged thoughts are refused likewise
            _write_run(folder, config, environment, run_id)
            _write_lines(folder / QUESTIONS, asked)
            samples = _open_to_append(folder / SAMPLES)
            os.ftruncate(samples, contents.size)
            if (folder / THOUGHTS).exists():  # written anew: without a torn last line
                _write_lines(folder / THOUGHTS, thoughts.values())
        except BaseException:
            os.close(lock)
            raise
        return cls(folder, run_id=run_id, held=contents, questions=asked, thoughts=thoughts, samples=samples, lock=lock)

    def append(self, completion: Completion, costs: Mapping[str, float] | None = None) -> None:
        """Appends one completion to samples.jsonl. The operating system has the line before this returns.

        Args:
            completion: one that is not in the journal yet.
            costs: what the run has cost so far, in total. The new line records what the lines before it have not recorded.

        Raises:
            ValueError: the journal has a completion of this key.
            OSError: the disk is full. The file is then as it was before.
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
        """Replaces completions by newly judged ones, in one step, and empties `restated`.

        The file is replaced as a whole. So a kill leaves either the old file or the new one, and the next `open` can tell
        from questions.jsonl whether there is still something to judge.

        Args:
            judged: the new completions by key. All others stay.
            timeouts: for each key of `judged`, how many comparisons of answers ran out of time. They replace those that
                the line recorded so far.
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
        """Replaces config and environment in run.json, as after an edited task has read all completions anew."""
        _write_run(self.folder, config, environment, self._id)

    def record_thoughts(self, thoughts: PathCosines) -> None:
        """Appends a question's line to thoughts.jsonl, unless its last line there is the same."""
        if self._thoughts.get(thoughts.question_id) != thoughts:
            self._thoughts[thoughts.question_id] = thoughts
            with (self.folder / THOUGHTS).open("a", encoding="ascii") as handle:
                handle.write(f"{to_json(thoughts)}\n")

    def costs_so_far(self) -> Costs:
        """What the run has cost in all its sessions, taken from its lines and its summary."""
        return costs_so_far(self.folder, self.costs)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replaces summary.json in one step: a reader sees the old file or the new one, never a part."""
        _write_json(self.folder / SUMMARY, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """The summary last written, or None before the first."""
        return load_summary(self.folder)

    def close(self) -> None:
        """Releases the directory, so that another process may open it. A second call does nothing."""
        if self._lock < 0:
            return
        os.close(self._samples)
        # Unlocked by name: a forked worker may still hold a copy of the descriptor, and with it the lock.
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        os.close(self._lock)
        # A late append must fail rather than write to whatever file is given the same descriptor next.
        self._samples = self._lock = -1

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def config_hash(config: dict[str, Any]) -> str:
    """12 hex digits that identify what a run computes. Configs that may share a run directory have the same hash.

    Settings that are None are left out. So an option that a later version adds does not change the hash of older runs.
    """
    may_change = run_names(Effect.SIZE, Effect.FREE)
    fixed = {key: value for key, value in config.items() if key not in may_change and value is not None}
    return hashlib.sha256(_canonical(fixed).encode("ascii")).hexdigest()[:12]


def place_of(parent: Path, begin: str, config: dict[str, Any], questions: Sequence[PromptedQuestion]) -> Path:
    """The directory of a run for which `--out` is not given: `parent`/`begin`-HASH, with the hash of its config.

    The first question with its gold answer is part of the hash. If that gold answer was corrected after the run began, the
    run keeps the directory that it has, and this function finds it.

    Args:
        parent: the folder of all runs.
        begin: what the directory's name begins with.
        config: the run's config.
        questions: those that are asked now; at least one.
    """
    usual = parent / f"{begin}-{config_hash(config)}"
    if not (usual / RUN).exists() and parent.is_dir():
        name = re.compile(re.escape(begin) + "-[0-9a-f]{12}")
        for other in sorted(parent.iterdir()):
            if name.fullmatch(other.name) and _began_with_other_gold(other, config, questions[0]):
                return other
    return usual


def _began_with_other_gold(folder: Path, config: dict[str, Any], first: PromptedQuestion) -> bool:
    """Whether the run in `folder` has this config and this first question, with any gold answer."""
    with suppress(UsageError):  # a run that cannot be read cannot be continued
        old = load_run(folder)["config"]
        stored = {asked.id: asked for asked in stored_questions(folder)}
        same = config_hash({**old, _FIRST: None}) == config_hash({**config, _FIRST: None})
        return same and first.id in stored and not changes(stored[first.id], first)
    return False


def refuse_unfit_folder(folder: Path, config: dict[str, Any], questions: Sequence[PromptedQuestion]) -> None:
    """Raises UsageError if a run of this config could neither begin nor go on in `folder`. Writes nothing.

    Args:
        folder: the run directory, which need not exist.
        config: what is known of the config. What is not known yet, such as the fingerprint of a model that is not loaded,
            counts as unchanged.
        questions: all questions that are asked now.
    """
    if not folder.exists():
        above = next(place for place in folder.absolute().parents if place.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise UsageError(f"`--out` {folder} cannot be created in {above}; choose another folder")
        return
    if not folder.is_dir():
        raise UsageError(f"`--out` {folder} is a file; choose a folder")
    recorded = _read_run(folder) if (folder / RUN).exists() else {"config": {}}
    known = {**recorded["config"], **config}
    _refuse_unfit(folder, known, questions)
    read_samples(folder, {**recorded, "config": known})


def load(folder: Path) -> tuple[dict[str, Any], list[Completion]]:
    """Reads run.json and the completions and changes nothing: a torn last line is skipped and left in the file."""
    run = load_run(folder)
    return run, list(read_samples(folder, run).completions.values())


def load_run(folder: Path, *, strict: bool = True) -> dict[str, Any]:
    """Reads run.json. What is returned has at least the keys `config` and `environment`.

    Args:
        folder: the run directory.
        strict: False also takes a file without an environment, or with NaN in it. Estimates of costs need neither.

    Raises:
        UsageError: there is no run.json, or it is damaged.
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
    """The questions that a run asks, as it asks them; none if the directory has no questions.jsonl.

    Raises:
        UsageError: the file is damaged, or the run was stopped before it was judged by new gold answers.
    """
    current = [asked for asked in stored_questions(folder) if asked.current]
    if unjudged := [asked.id for asked in current if not asked.judged]:
        raise UsageError(
            f"the completions in {folder} are not judged yet by the new gold answers of {listed(unjudged)}; the same "
            f"`scale-run` command does it, or `scale-run --rescore --out {folder}`"
        )
    return current


def stored_questions(folder: Path) -> list[PromptedQuestion]:
    """All lines of questions.jsonl, including questions that are no longer asked."""
    path = folder / QUESTIONS
    questions: dict[str, PromptedQuestion] = {}
    advice = "restore the file, or delete it, and the same run again writes it anew"
    for number, _, asked in whole_lines(path, prompted_question_from, "question", advice, torn=False):
        if questions.setdefault(asked.id, asked) is not asked:
            raise UsageError(f"{path} line {number} repeats question {asked.id!r}; {advice}")
    return list(questions.values())


def load_thoughts(folder: Path) -> dict[str, PathCosines]:
    """The last line of each question in thoughts.jsonl, by question id. A torn last line of the file is skipped."""
    advice = "restore the file, or delete it, which loses nothing but the cosines"
    lines = whole_lines(folder / THOUGHTS, path_cosines_from, "comparison of thoughts", advice)
    return {thoughts.question_id: thoughts for _, _, thoughts in lines}


def changes(old: PromptedQuestion, new: PromptedQuestion) -> list[str]:
    """Names the parts of a question that the model reads and that differ. The model does not read the gold answer."""
    differing = [name for name in ("text", "choices", "counterfactual") if getattr(old, name) != getattr(new, name)]
    if _another_kind(old, new):
        differing.append("kind")
    # notes that an assistant writes may differ in a word between machines, and are no part of the question
    if not differing and old.prompt != new.prompt and not (old.hint_tokens or new.hint_tokens):
        differing.append("prompt")
    return differing


def _another_kind(old: PromptedQuestion, new: PromptedQuestion) -> bool:
    return old.kind != new.kind and old.kind is not None and new.kind is not None


@dataclass(frozen=True)
class MergedRun:
    """The shards of one run, read as one run with all their completions.

    Attributes:
        config: that of the first shard, with sizes (such as `limit`) as large as those of the largest shard.
        environment: what all shards have in common, and under `shards` the whole environment of each one.
        questions: of all shards, each once.
        completions: of all shards, each once.
        thoughts: of all shards.
        costs: of all shards together.
    """

    config: dict[str, Any]
    environment: dict[str, Any]
    questions: list[PromptedQuestion]
    completions: list[Completion]
    thoughts: list[PathCosines]
    costs: Costs


def read_shards(folders: Sequence[Path]) -> MergedRun:
    """Reads the shards in `folders` as one run. A completion that is in several shards must be the same in each.

    Raises:
        UsageError: the directories are not shards of one run, or are damaged.
    """
    runs, completions, costs = _read_shards(folders)
    environments = [run["environment"] for run in runs]
    # Only what is the same in every shard holds for the merged run.
    shared = {key: value for key, value in environments[0].items() if all(e.get(key) == value for e in environments)}
    return MergedRun(
        config=_merged_config([run["config"] for run in runs]),
        environment={**shared, "shards": environments},
        questions=list(_asked_together(folders).values()),
        completions=list(completions.values()),
        thoughts=[thoughts for folder in folders for thoughts in load_thoughts(folder).values()],
        costs=costs,
    )


def merge(folders: Sequence[Path], into: Path) -> int:
    """Merges the shards of one run into a new directory. Every shard is read before anything is written.

    Args:
        folders: the run directories of the shards, at least one. A completion in several of them must be the same in each.
        into: a new or empty folder.

    Returns:
        The number of completions.

    Raises:
        UsageError: the directories are not shards of one run, or `into` holds a run already.
    """
    if not folders:
        raise UsageError("a merge needs at least one run directory, none was given; name the shards to merge")
    merged = read_shards(folders)
    if (into / RUN).exists():
        raise UsageError(f"{into} already holds a run; merge into a new or empty folder")
    config = {**merged.config, "out": str(into)}
    with Journal.open(into, config=config, environment=merged.environment, questions=merged.questions) as journal:
        for completion in merged.completions:
            journal.append(completion, merged.costs)  # the first line records the costs of all shards
        for thoughts in merged.thoughts:
            journal.record_thoughts(thoughts)
    return len(merged.completions)


def _read_shards(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[Key, Completion], Costs]:
    """The run.json of each shard, the completions of all shards by key, and the costs of all together."""
    runs: list[dict[str, Any]] = []
    completions: dict[Key, Completion] = {}
    costs: Costs = {}
    for folder in folders:
        run = load_run(folder)
        runs.append(run)
        differing = _differences(run["config"], runs[0]["config"], there=folder / RUN, here=f"in {folders[0] / RUN}")
        if differing:
            raise UsageError(f"{differing}; merge only shards of one run")
        contents = read_samples(folder, run)
        for completion in contents.completions.values():
            if completions.setdefault(completion.key, completion) != completion:
                raise UsageError(f"{folder} and an earlier shard differ in completion {completion.key}; leave one out")
        costs = added(costs, costs_so_far(folder, contents.costs))
    return runs, completions, costs


def _asked_together(folders: Sequence[Path]) -> dict[str, PromptedQuestion]:
    """The questions of all shards by id. Raises UsageError if two shards have different questions under one id."""
    questions: dict[str, PromptedQuestion] = {}
    for folder in folders:
        for asked in load_questions(folder):
            known = questions.setdefault(asked.id, asked)
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
    return questions


def _merged_config(configs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The first shard's config with the largest size of any shard. None means without limit, so it is the largest."""
    merged = dict(configs[0])
    for key in run_names(Effect.SIZE):
        if key in merged:
            values: list[Any] = [config.get(key) for config in configs]
            merged[key] = None if None in values else max(values)
    return merged


def _refuse_unfit(folder: Path, config: dict[str, Any], questions: Sequence[PromptedQuestion]) -> bool:
    """Raises UsageError if a run of this config can neither begin nor go on in `folder`.

    Returns:
        Whether a run of another config is there that has drawn nothing, for example because its engine did not start. It
        may be replaced.
    """
    path, samples = folder / RUN, folder / SAMPLES
    if path.exists():
        old = _read_run(folder)["config"]
        if old.get(_FIRST) != config.get(_FIRST) and {q.id for q in questions} & {
            q.id for q in stored_questions(folder)
        }:
            old = {**old, _FIRST: config.get(_FIRST)}  # `_brought_up_to_date` names the questions
        differing = _differences(old, config, there=path, here="now")
        if differing and samples.exists() and samples.stat().st_size:
            raise UsageError(f"{differing}; choose another `--out` or give the same values")
        return bool(differing)
    # A run that was killed before its run.json was in place leaves these two files. They do not make the folder foreign.
    if foreign := sorted({entry.name for entry in folder.iterdir()} - {LOCK, _temporary(path).name}):
        message = f"`--out` {folder} is not empty ({foreign[0]}) and has no {RUN}, so it is no run directory"
        raise UsageError(f"{message}; choose a new or empty folder")
    return False


def _brought_up_to_date(
    folder: Path,
    stored: Sequence[PromptedQuestion],
    questions: Sequence[PromptedQuestion],
    completions: Collection[Key],
    *,
    anew: bool = False,
) -> list[PromptedQuestion]:
    """The new lines of questions.jsonl: today's questions, then those asked earlier that have completions.

    Args:
        folder: the run directory, for messages.
        stored: the lines of questions.jsonl so far.
        questions: all questions that are asked now.
        completions: the keys of all completions.
        anew: whether a question may have another kind of answers.

    Raises:
        UsageError: a question that has completions differs from the one that they were drawn for.
    """
    drawn = {question_id for question_id, _, _ in completions}
    before = {asked.id: asked for asked in stored if asked.id in drawn}
    altered = {new.id: changes(before[new.id], new) for new in questions if new.id in before}
    altered = {key: names for key, names in altered.items() if names and not (anew and names == ["kind"])}
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
    """Whether all completions of a question are judged by its present gold answer. old: None if it has no completions."""
    return old is None or (old.judged and old.answer == new.answer and not _another_kind(old, new))


def _differences(old: dict[str, Any], new: dict[str, Any], *, there: Path, here: str) -> str:
    """The settings by which two configs may not share a directory, with both values, as text; empty if there are none.

    Args:
        old: one config.
        new: the other config.
        there: the file that holds `old`.
        here: how a message says where `new` is from, such as "now".
    """
    differing = []
    moved = {  # options that name a file or model by another path, with the same content: these do not differ
        place
        for place, setting in run_settings().items()
        if (content := old.get(setting.content))
        and content == new.get(setting.content)
        and not content.startswith(UNREAD)
    }
    for key in sorted((old.keys() | new.keys()) - moved.union(run_names(Effect.SIZE, Effect.FREE))):
        values = (config.get(key) for config in (old, new))
        before, after = ("not set" if value is None else _canonical(value) for value in values)
        if before != after:
            differing.append(f"{spelled(key)} is {before} in {there} and {after} {here}")
    return "; ".join(differing)


def _acquire(folder: Path) -> int:
    """Locks the directory and returns the lock's file descriptor. Raises InUse if another process holds the lock."""
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        advice = "wait for it or choose another `--out`"
        raise InUse(f"run directory {folder} is in use by another process; {advice}") from error
    return lock


def read_samples(folder: Path, run: Mapping[str, Any]) -> Held:
    """Reads and checks samples.jsonl. A torn last line is skipped.

    Args:
        folder: the run directory.
        run: the content of run.json. With the seed of its config the random stream of each completion is checked, and with
            its id the checksum of each line. A run without a seed or an id is read without that check.

    Raises:
        UsageError: a line is damaged, is of another run, or repeats a completion.
    """
    path, seed, contents, start = folder / SAMPLES, run["config"].get("seed"), Held(), start_of(run.get(ID))
    for number, line, (completion, cost) in whole_lines(path, _with_cost, "completion", _OTHER_OUT, start=start):
        if isinstance(seed, int) and completion.seed != (expected := stream_seed(seed, *completion.key)):
            raise UsageError(
                f"{path} line {number} is of another run: completion {completion.key} of `--seed` {seed} has the stream "
                f"{expected}, and this one {completion.seed}; {_OTHER_OUT}"
            )
        if contents.completions.setdefault(completion.key, completion) is not completion:
            raise UsageError(f"{path} line {number} repeats completion {completion.key}; delete one of the two lines")
        contents.size += len(line)
        contents.costs = added(contents.costs, cost) if cost else contents.costs
    return contents


def _rejudged(line: bytes, judged: Mapping[Key, Completion], timeouts: Mapping[Key, int], start: int) -> bytes:
    """One line of samples.jsonl with its newly judged completion and count of timeouts; unchanged if it has none."""
    fields = parsed(line, start)
    completion, cost = _with_cost(fields)
    if completion.key not in judged:
        return line
    cost = {name: value for name, value in cost.items() if name != TIMEOUTS}
    cost |= {TIMEOUTS: timeouts[completion.key]} if timeouts.get(completion.key) else {}
    return to_json(judged[completion.key], cost=cost, start=start).encode("ascii") + b"\n"


def _with_cost(fields: dict[str, Any]) -> tuple[Completion, Costs]:
    cost = cost_from(fields)  # first: it takes the costs out, so that only the completion's fields are left
    return completion_from(fields), cost


def _costs_in(path: Path, start: int) -> Costs:
    """What all lines of a samples.jsonl together say that the run has cost."""
    costs: Costs = {}
    for _, _, (_, cost) in whole_lines(path, _with_cost, "completion", _OTHER_OUT, start=start):
        costs = added(costs, cost)
    return costs


def _beyond(recorded: Mapping[str, float], costs: Mapping[str, float]) -> Costs:
    """The part of `costs` that is not recorded yet, without what is zero. Seconds are in whole milliseconds.

    Milliseconds are rounded down, so that the lines never record more than the summary that is written after them.
    """
    more: Costs = {}
    for key, value in costs.items():
        known = recorded.get(key, 0)
        beyond = (value if key in PEAKS else value - known) if value > known else 0
        if beyond := beyond if isinstance(beyond, int) else math.floor(beyond * 1000) / 1000:
            more[key] = beyond
    return more


def costs_so_far(folder: Path, told: Mapping[str, float]) -> Costs:
    """What the run in `folder` has cost in total.

    Lines and summary record the same counters at different times, so the larger figure is the later one. It is the
    summary's if the summary was written after the last line, or if version 0.1 wrote the run, whose lines have no costs.

    Args:
        folder: the run directory.
        told: the costs according to the run's lines.

    Raises:
        UsageError: summary.json is damaged.
    """
    noted = _costs_of(load_summary(folder) or {}, folder / SUMMARY)
    return {key: max(noted.get(key, 0), told.get(key, 0)) for key in noted | dict(told)}


def _costs_of(summary: Mapping[str, Any], path: Path) -> Costs:
    """The costs in a run's summary, by the names they have in its lines. Raises UsageError if the summary is damaged."""
    costs: Costs = {}
    parts = [summary.get(name, {}) for name in ("tokens", "engine")]
    if all(isinstance(part, dict) for part in parts):
        figures = {**parts[0], **parts[1], **{key: summary.get(key, 0) for key in ("seconds", "peak_memory_bytes")}}
        costs = {key: 0 if value is None else value for key, value in figures.items()}
        if all(map(is_amount, costs.values())):
            return {key: value for key, value in costs.items() if value and key not in _WORKED_OUT}
    raise UsageError(f"{path} is damaged; restore it, or delete it, and what the run's lines tell of its costs is kept")


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _refuse_constant(name: str) -> None:
    """Raises ValueError. The JSON parser calls it for NaN and infinities, which no run writes."""
    raise ValueError(f"{name} is no JSON")


def _read_json(path: Path, *required: str, nan: bool = False) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
        path: the file.
        required: keys that must hold objects.
        nan: whether NaN and infinities, which no run writes, are accepted.

    Raises:
        UsageError: the file is damaged or lacks a required key.
    """
    try:
        fields = json.loads(path.read_bytes(), parse_constant=None if nan else _refuse_constant)
    except (OSError, ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict) or not all(isinstance(fields.get(key), dict) for key in required):
        raise UsageError(f"{path} is damaged or not written by a run; restore it or choose another folder")
    return fields


def _read_run(folder: Path, *required: str, nan: bool = False) -> dict[str, Any]:
    """Reads and checks run.json; the arguments are those of `_read_json`. Raises UsageError if it is damaged."""
    # Imported here: checking settings needs pydantic, and reading records must not.
    from scaling.records.run_file import refuse_damaged

    run = _read_json(folder / RUN, "config", *required, nan=nan)
    refuse_damaged(run, folder / RUN)
    return run


def _write_run(folder: Path, config: dict[str, Any], environment: dict[str, Any], run_id: str | None) -> None:
    fields = {"config": config, "config_hash": config_hash(config), "environment": environment}
    _write_json(folder / RUN, {**fields, ID: run_id} if run_id else fields)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    _write(path, json.dumps(fields, indent=2, allow_nan=False) + "\n")


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _write_lines(path: Path, records: Iterable[PromptedQuestion | PathCosines]) -> None:
    _write(path, "".join(f"{to_json(record)}\n" for record in records))


def _write(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    try:
        with replaced(path, partial=_temporary(path), sync=True) as new:
            new.write_text(text, encoding="ascii")
    except OSError as error:  # for a full disk, Python's error does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from None


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
