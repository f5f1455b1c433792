"""One job carried out in this process: a training, a run or the part of one, or the merge of a run's parts."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from contrastive.parallel import Processes
from contrastive.train import STATE_FILE
from contrastive.train import Progress as Training
from scaling.methods.kinds import Trait, kind_of
from scaling.records.errors import UsageError
from scaling.records.journal import RUN, SUMMARY, Journal, costs_so_far, load, load_questions, load_summary, merge
from scaling.records.records import Completion, Costs, Key, added
from scaling.records.summary import run_summary
from scaling.run import COUNTERS, Setup, carry_out, digest, prepare
from scaling.sampler import Grid
from scaling.training.config import TrainConfig
from sweeps.plan import Extent, Job, config_of

Tell = Callable[[dict[str, Any]], None]
_TOLD = {"tokens", "engine", "seconds", "peak_memory_bytes"}  # what a run's summary says of its costs
_MERGING, _BEFORE = ".merging", ".before"  # end names of folders that are only there while a merge is written


class ProgressReporter:
    """What runs and trainings tell their watcher, as a few figures. tell: gets them, and may raise KeyboardInterrupt."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._figures: dict[str, Any] = {}

    def _say(self, **figures: Any) -> None:
        self._figures |= figures
        self._tell(dict(self._figures))

    def status(self, text: str) -> None:
        self._say(doing=text)

    def sampling(self) -> ProgressReporter:
        return self

    def start(self, grid: Grid, done: dict[Key, Completion], folder: Path) -> None:  # noqa: ARG002
        wanted = sum(len(grid.missing(question, ())) for question in grid.questions)
        missing = sum(len(grid.missing(question, done)) for question in grid.questions)
        self._say(doing="sampling", unit="samples", done=wanted - missing, of=wanted, tokens=0, since=time.time())

    def completion(self, completion: Completion) -> None:
        self._say(done=self._figures["done"] + 1, tokens=self._figures["tokens"] + completion.num_tokens)

    def started(self, progress: Training, schedule: Any) -> None:
        self._say(doing="training", unit="steps", done=progress.step, of=schedule.max_steps)

    def stepped(self, progress: Training, row: dict[str, Any]) -> None:
        self._say(done=progress.step, loss=row.get("language"))

    def examined(self, progress: Training, health: Any) -> None:  # noqa: ARG002
        self._say(validation=health.loss)


def perform(job: Job, root: Path, tell: Tell) -> dict[str, Any]:
    """Carries the job out, or goes on with it, and returns what the ledger keeps. Raises UsageError and Interrupted."""
    kinds = {"train": _train, "run": _run, "merge": _merge}
    return kinds[job.kind](job, root, ProgressReporter(tell))


def _train(job: Job, root: Path, following: ProgressReporter) -> dict[str, Any]:
    folder = root / job.folder
    # a training that was stopped before its first validation has nothing to go on from
    config = TrainConfig(**{**job.settings, "out": folder, "resume": (folder / STATE_FILE).is_file()})
    if kind_of(config.method).has(Trait.ADAPTER):
        from scaling.training.lora import train_lora as train
    else:
        from scaling.training.run import train  # type: ignore[assignment]
    result = train(config, following, Processes())
    return {"steps": result.progress.step, "seconds": result.progress.seconds, "loss": result.progress.best}


def _run(job: Job, root: Path, following: ProgressReporter) -> dict[str, Any]:
    summary: dict[str, Any] = {}
    for box in job.boxes:
        if job.part and box[0] is not None and box[0] <= job.part[0]:
            continue  # none of its questions are in this part
        setup = prepare(config_of(job, _in_part(box, job), trained=checkpoint_of(job, root)), following)
        here: dict[str, Any] = {"out": root / job.folder}
        if job.part:
            setup, here = _only(setup, *job.part), {**here, "limit": box[0]}
        summary = carry_out(replace(setup, config=setup.config.model_copy(update=here)), following)
    return costs_of(summary, root / job.folder)


def checkpoint_of(job: Job, root: Path) -> str | None:
    """The folder of the checkpoint that is trained for a run, None where none is."""
    trained = next((need for need in job.needs if need.startswith("train-")), None)
    method = "lora" if kind_of(job.settings["method"]).has(Trait.ADAPTER) else "softcot++"
    return str(root / "checkpoints" / f"{method}-{trained.removeprefix('train-')}") if trained else None


def _in_part(box: Extent, job: Job) -> Extent:
    """The box as far as it lies before the end of the part, so that no more questions are read than needed."""
    if job.part is None:
        return box
    limit = job.part[1] if box[0] is None else min(box[0], job.part[1])
    return (limit, box[1], box[2])


def _only(setup: Setup, start: int, stop: int) -> Setup:
    """The same run as if it were asked only these questions of its own."""
    whole = setup.task.questions
    details = {**setup.details, "first_question": digest(whole[0])}  # of the run, so that its parts can be merged
    task = replace(setup.task, questions=whole[start:stop])
    return replace(setup, task=task, asked=setup.asked[start:stop], details=details)


def costs_of(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What the ledger keeps of the run in `folder`: tokens, seconds, and completions, not those of its last box alone."""
    tokens = summary.get("tokens", {})
    told = {key: tokens.get(key, 0) for key in ("prefill_computed", "generated")}
    return {**told, "completions": len(load(folder)[1]), "seconds": summary.get("seconds", 0.0)}


def _merge(job: Job, root: Path, following: ProgressReporter) -> dict[str, Any]:
    """One run directory from those of the parts, put in place in one step: a kill leaves the old one or the new one."""
    following.status("merging")
    folder, shards = root / job.folder, root / "shards" / job.folder.rsplit("-", 1)[1]
    new, old = (folder.with_name(folder.name + end) for end in (_MERGING, _BEFORE))
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    parts = [shards / need.rsplit(".", 1)[1] for need in job.needs]
    parts = [part for part in parts if (part / RUN).is_file()]
    for part in parts:
        _refuse_incomplete(part, job.boxes)
    merge(parts, new)
    summary = _finished(parts, new, folder)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
    return costs_of(summary, folder)


def _refuse_incomplete(part: Path, boxes: Sequence[Extent]) -> None:
    """Raises UsageError where a part of a run that was drawn lacks completions: its journal was damaged since."""
    start = int(part.name.partition("-")[0])
    asked = [question.id for question in load_questions(part)]
    held = {completion.key for completion in load(part)[1]}
    wanted = {
        (question, path, sample)
        for limit, paths, samples in boxes
        for question in asked[: None if limit is None else max(0, limit - start)]
        for path in range(paths)
        for sample in range(samples)
    }
    if lacking := len(wanted - held) + len({question for question, _, _ in held}.difference(asked)):
        raise UsageError(
            f"{part} is damaged, as it lacks {lacking} completions or questions that it held: {_again(part)}"
        )


def _again(part: Path) -> str:
    return f"delete that folder, and `scale-sweep run --retry-failed` with the grid file draws {part.name} again"


def _finished(parts: list[Path], merged: Path, folder: Path) -> dict[str, Any]:
    """The merged directory gets what it lacks: a summary, and what the run in `folder` held besides. Returns the summary."""
    run, completions = load(merged)
    config = run["config"]
    named = [_cost_of(part) for part in parts]
    costs: Costs = {}
    for _, own in named:
        costs = added(costs, own)
    questions = load_questions(merged)
    summary = run_summary(
        questions,
        {completion.key: completion for completion in completions},
        costs,
        counters=COUNTERS,
        **named[0][0],
        folder=folder,
        num_paths=config.get("latent_paths") or 1,
        num_samples=config["samples"],
        voter=config.get("voter") or "flat",
    )
    with Journal.open(merged, config=config, environment=run["environment"], questions=questions) as journal:
        journal.write_summary(summary)
        _keep(folder, journal)
    return summary


def _cost_of(part: Path) -> tuple[dict[str, Any], Costs]:
    """Task and method of a part of a run, and what it has cost. Raises UsageError where its summary is damaged."""
    with suppress(UsageError):
        summary = load_summary(part) or {}
        names = {key: summary.get(key) for key in ("task", "method")}
        if summary.keys() >= _TOLD and all(isinstance(name, str) for name in names.values()):
            return names, costs_so_far(part, {})
    raise UsageError(f"{part / SUMMARY} is damaged: {_again(part)}")


def _keep(before: Path, journal: Journal) -> None:
    """Adds the completions that the run held and its parts do not, as of one that was drawn whole and is split now."""
    for completion in load(before)[1] if (before / RUN).is_file() else ():
        if completion.key not in journal.completions:
            journal.append(completion)
