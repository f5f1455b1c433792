"""The run directory: run.json, questions.jsonl, samples.jsonl and thoughts.jsonl (append-only), and summary.json.

Safe against kill -9 always.

One line of samples.jsonl is one completion, and it is there when its newline is there: a last line without one, or
unreadable, is torn and cut on the next open. Even a last line that lacks nothing but its newline is cut: its completion
is drawn again from its own seed, whereas completing the line would mean guessing that nothing else was lost. Damage
anywhere else is never repaired, only reported. Knows nothing of tasks, votes or models, and waits for no lock.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaling.errors import InUse, UsageError
from scaling.records import Asked, Completion, Key, Thoughts, asked_from, completion_from, thoughts_from, to_json

RUN, QUESTIONS, SAMPLES, SUMMARY, LOCK = "run.json", "questions.jsonl", "samples.jsonl", "summary.json", ".lock"
THOUGHTS = "thoughts.jsonl"  # only where there are several latent paths
EXTENDABLE = ("latent_paths", "samples", "limit")  # how much of the run: may grow or shrink on the same directory
# How the run is carried out: changes no completion, at most whether it is drawn.
FREE = (
    *("out", "batch_size", "max_batch_tokens", "device", "voter", "adaptive"),
    *("assistant_device", "base_url", "engine_args"),
)
UNREAD = "config-"  # how a model's fingerprint begins where its weights were not read: many have the same
# Where something lies, and the key that says what it holds: two places that hold the same are one.
_CONTENT = {
    **{"backbone": "backbone_fingerprint", "assistant": "assistant_fingerprint"},
    **{"thinker": "thinker_sha256", "adapter": "adapter_sha256"},
}


class Journal:
    """An open run directory, held by one process at a time. Open with `Journal.open`, use as a context manager."""

    def __init__(self, folder: Path, *, completions: dict[Key, Completion], size: int, samples: int, lock: int) -> None:
        """size: length of samples.jsonl in bytes. samples, lock: open file descriptors, which the journal closes."""
        self.folder = folder
        self.completions = completions
        self._size = size
        self._samples = samples
        self._lock = lock
        self._thoughts = load_thoughts(folder)

    @classmethod
    def open(
        cls, folder: Path, *, config: dict[str, Any], environment: dict[str, Any], questions: Sequence[Asked] = ()
    ) -> Journal:
        """Start the run in `folder`, or continue the one there if its config agrees but for EXTENDABLE and FREE keys. One
        that has drawn nothing gives way to another config.

        questions: those that are asked now, all of them; they replace the ones in questions.jsonl.
        Raises UsageError for a directory in use, another config, foreign files or a damaged journal, changing nothing.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"`--out` {folder} cannot be created ({error.strerror}); choose another folder") from error
        # Twice: before the lock, so that a refusal leaves no lock file; under it, as another may have been first.
        _refuse_unfit(folder, config)
        lock = _acquire(folder)
        try:
            if _refuse_unfit(folder, config):
                for name in (SUMMARY, THOUGHTS):
                    (folder / name).unlink(missing_ok=True)
            completions, size = _read_samples(folder / SAMPLES)
            run = {"config": config, "config_hash": config_hash(config), "environment": environment}
            _write_json(folder / RUN, run)
            _write(folder / QUESTIONS, "".join(f"{to_json(asked)}\n" for asked in questions))
            samples = os.open(folder / SAMPLES, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(samples, size)
            if (folder / THOUGHTS).exists():  # written anew: without a torn last line
                _write(folder / THOUGHTS, "".join(f"{to_json(one)}\n" for one in load_thoughts(folder).values()))
        except BaseException:
            os.close(lock)
            raise
        return cls(folder, completions=completions, size=size, samples=samples, lock=lock)

    def append(self, completion: Completion) -> None:
        """Add one line, handed to the operating system before this returns. Raises ValueError for a known key."""
        if completion.key in self.completions:
            raise ValueError(f"{completion.key} is already in {self.folder / SAMPLES}")
        line = to_json(completion).encode("ascii") + b"\n"
        # One write of a whole line: a killed process leaves at most a torn last line, never two halves.
        if os.write(self._samples, line) != len(line):
            # A full disk takes part of a line. Were it left there, the next append would bury it in the middle.
            os.ftruncate(self._samples, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder / SAMPLES))
        self._size += len(line)
        self.completions[completion.key] = completion

    def record_thoughts(self, thoughts: Thoughts) -> None:
        """Add a question's line to thoughts.jsonl, unless the same stands there."""
        if self._thoughts.get(thoughts.question_id) != thoughts:
            self._thoughts[thoughts.question_id] = thoughts
            with (self.folder / THOUGHTS).open("a", encoding="ascii") as handle:
                handle.write(f"{to_json(thoughts)}\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Replace summary.json in one step: a reader sees the old one or the new one, never a part."""
        _write_json(self.folder / SUMMARY, summary)

    def read_summary(self) -> dict[str, Any] | None:
        """The summary last written, or None before the first."""
        path = self.folder / SUMMARY
        return _read_json(path) if path.exists() else None

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
    fixed = {key: value for key, value in config.items() if key not in EXTENDABLE + FREE and value is not None}
    return hashlib.sha256(_canonical(fixed).encode("ascii")).hexdigest()[:12]


def load(folder: Path) -> tuple[dict[str, Any], list[Completion]]:
    """run.json and the completions, read-only: a torn last line is passed over and left as it is."""
    if not (folder / RUN).is_file():
        raise UsageError(f"{folder} is no run directory: it has no {RUN}; give the folder that a run was written to")
    completions, _ = _read_samples(folder / SAMPLES)
    return _read_json(folder / RUN, "config", "environment"), list(completions.values())


def load_questions(folder: Path) -> list[Asked]:
    """The questions of a run as they were asked; none where the directory has no questions.jsonl."""
    path = folder / QUESTIONS
    if not path.exists():
        return []
    try:
        return [asked_from(json.loads(line)) for line in path.read_text(encoding="ascii").splitlines()]
    except (ValueError, TypeError):
        raise UsageError(f"{path} is damaged or not written by a run; the same run again writes it anew") from None


def load_thoughts(folder: Path) -> dict[str, Thoughts]:
    """The lines of thoughts.jsonl by question, the last one of each; a torn line is passed over."""
    path = folder / THOUGHTS
    found: dict[str, Thoughts] = {}
    for line in path.read_text(encoding="ascii", errors="replace").splitlines() if path.exists() else []:
        try:
            thoughts = thoughts_from(json.loads(line))
        except (ValueError, TypeError, KeyError):
            continue
        found[thoughts.question_id] = thoughts
    return found


def merge(folders: Sequence[Path], into: Path) -> int:
    """Merge the shards of one run into a new directory; returns the number of completions.

    A completion that several shards hold must be the same in each. Every shard is read before anything is written.
    """
    if not folders:
        raise UsageError("a merge needs at least one run directory, none was given; name the shards to merge")
    runs, found = _read_shards(folders)
    if (into / RUN).exists():
        raise UsageError(f"{into} already holds a run; merge into a new or empty folder")
    environments = [run["environment"] for run in runs]
    # Said of the whole only where it is true of every shard.
    shared = {key: value for key, value in environments[0].items() if all(e.get(key) == value for e in environments)}
    config = _merged_config([run["config"] for run in runs], into)
    asked = {question.id: question for folder in folders for question in load_questions(folder)}
    environment = {**shared, "shards": environments}
    with Journal.open(into, config=config, environment=environment, questions=list(asked.values())) as journal:
        for completion in found.values():
            journal.append(completion)
        for folder in folders:
            for thoughts in load_thoughts(folder).values():
                journal.record_thoughts(thoughts)
    return len(found)


def _read_shards(folders: Sequence[Path]) -> tuple[list[dict[str, Any]], dict[Key, Completion]]:
    runs: list[dict[str, Any]] = []
    found: dict[Key, Completion] = {}
    for folder in folders:
        run, completions = load(folder)
        runs.append(run)
        differing = _differences(run["config"], runs[0]["config"], there=folder / RUN, here=f"in {folders[0] / RUN}")
        if differing:
            raise UsageError(f"{differing}; merge only shards of one run")
        for completion in completions:
            if found.setdefault(completion.key, completion) != completion:
                raise UsageError(f"{folder} and an earlier shard differ in completion {completion.key}; leave one out")
    return runs, found


def _merged_config(configs: Sequence[dict[str, Any]], into: Path) -> dict[str, Any]:
    """The first shard's config, widened to hold every shard's completions. A `limit` of None is no limit."""
    merged = {**configs[0], "out": str(into)}
    for key in EXTENDABLE:
        if key in merged:
            values: list[Any] = [config.get(key) for config in configs]
            merged[key] = None if None in values else max(values)
    return merged


def _refuse_unfit(folder: Path, config: dict[str, Any]) -> bool:
    """Whether a run with another config is there that has drawn nothing, as one whose engine did not start."""
    path, samples = folder / RUN, folder / SAMPLES
    if path.exists():
        differing = _differences(_read_json(path, "config")["config"], config, there=path, here="now")
        if differing and samples.exists() and samples.stat().st_size:
            raise UsageError(f"{differing}; choose another `--out` or give the same values")
        return bool(differing)
    # What a run leaves that was killed before its run.json was in place is no foreign file.
    if foreign := sorted({entry.name for entry in folder.iterdir()} - {LOCK, _temporary(path).name}):
        message = f"`--out` {folder} is not empty ({foreign[0]}) and has no {RUN}, so it is no run directory"
        raise UsageError(f"{message}; choose a new or empty folder")
    return False


def _differences(old: dict[str, Any], new: dict[str, Any], *, there: Path, here: str) -> str:
    """Every key that forbids sharing a directory, with both values; empty where none does."""
    differing = []
    moved = {
        place
        for place, content in _CONTENT.items()
        if (known := old.get(content)) and known == new.get(content) and not known.startswith(UNREAD)
    }
    for key in sorted((old.keys() | new.keys()) - moved.union(EXTENDABLE, FREE)):
        values = (config.get(key) for config in (old, new))
        before, after = ("not set" if value is None else _canonical(value) for value in values)
        if before != after:
            differing.append(f"`--{key.replace('_', '-')}` is {before} in {there} and {after} {here}")
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


def _read_samples(path: Path) -> tuple[dict[Key, Completion], int]:
    """The completions in the file, and the length in bytes of the lines that hold them."""
    if not path.exists():
        return {}, 0
    found: dict[Key, Completion] = {}
    size = torn = 0
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if torn:
                raise UsageError(f"{path} line {torn} is no completion; restore the file or choose another `--out`")
            completion = _parse(line)
            if completion is None:
                torn = number
                continue
            if found.setdefault(completion.key, completion) is not completion:
                raise UsageError(
                    f"{path} line {number} repeats completion {completion.key}; delete one of the two lines"
                )
            size += len(line)
    return found, size


def _parse(line: bytes) -> Completion | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return completion_from(json.loads(line))
    except (ValueError, TypeError):
        return None


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _read_json(path: Path, *required: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or not fields.keys() >= set(required):
        raise UsageError(f"{path} is damaged or not written by a run; restore it or choose another folder")
    return fields


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    _write(path, json.dumps(fields, indent=2, allow_nan=False) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        with _temporary(path).open("w", encoding="ascii") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:  # a full disk does not say where it is
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.replace(_temporary(path), path)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + ".tmp")
