"""Does a fine-tuned backbone forget? Greedy chains of thought on questions it never learned from, before and after.

Both are ordinary runs with directories of their own, so they go on after an interruption and can be reported on. Knows
nothing of how the backbone was changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scaling.config import RunConfig
from scaling.methods.build import Built
from scaling.records.errors import Interrupted, UsageError
from scaling.records.journal import load
from scaling.records.overlap import digest_of
from scaling.run import Setup, Watcher, asked_of, carry_out
from scaling.tasks.catalogue import load_task
from scaling.tasks.task import LoadedTask
from scaling.training.config import TrainConfig
from scaling.training.targets import Split


@dataclass(frozen=True)
class Check:
    """before, after: shares of the questions answered rightly. only_before, only_after: questions that are right in one
    of the two alone; p: exact two-sided p-value of McNemar's test on these."""

    task: str
    questions: int
    before: float
    after: float
    only_before: int
    only_after: int
    p: float


def held_out(config: TrainConfig, split: Split) -> LoadedTask | None:
    """The questions of `--check-on`, None without it. Raises UsageError where any of them decides the training."""
    place = config.check_on
    if place is None:
        return None
    if place.is_dir() and not (place / "test.jsonl").is_file():
        raise UsageError(f"`--check-on` {place} is a folder without test.jsonl: give a file of questions.")
    try:
        task = load_task(None, data=place, limit=config.check_limit)
    except UsageError as error:
        raise UsageError(str(error).replace("--data", "--check-on")) from None
    trained = {digest_of(question) for question in (*split.train, *split.validation)}
    shared = [question.id for question in task.questions if digest_of(question) in trained]
    if shared:
        raise UsageError(
            f"`--check-on` {place} is to hold questions that are not trained on, and {len(shared)} of its "
            f"{len(task.questions)} are (as {shared[0]}): give a file of another task."
        )
    return task


def settings_of(config: TrainConfig, **method: str) -> RunConfig:
    """Of the check's runs: one greedy chain a question. method: `method`, and `adapter` where it has one."""
    same = {"backbone": config.backbone, "seed": config.seed, "device": config.device, "dtype": config.dtype}
    greedy = {"data": config.check_on, "limit": config.check_limit, "samples": 1, "temperature": 0}
    return RunConfig.model_validate({**same, **greedy, **method}).resolved()


def right_answers(built: Built, task: LoadedTask, watcher: Watcher, *, parent: Path) -> dict[str, bool]:
    """Whether each question is answered rightly, by id; the run's directory lies in `parent`. Raises Interrupted."""
    asked, backbone = asked_of(built.method, task), built.method.backbone
    room = backbone.context - max(one.prompt_tokens for one in asked)
    if room < 1:
        raise UsageError(
            f"a question of `--check-on` fills the backbone's context of {backbone.context} tokens: leave it out."
        )
    longest = min(built.config.longest, room)
    config = built.config.model_copy(update={"max_new_tokens": longest})
    try:
        summary = carry_out(Setup(config, task, built.method, asked), watcher, parent=parent)
    except Interrupted:
        raise Interrupted("stopped in the check; the same command with `--resume` goes on with it.") from None
    ids = {question.id for question in task.questions}
    _, completions = load(Path(summary["run"]))
    return {done.question_id: done.correct for done in completions if done.question_id in ids}


def compare(task: str, before: Mapping[str, bool], after: Mapping[str, bool]) -> Check:
    """before, after: by question id, of the same questions."""
    from scipy.stats import binomtest  # here, as importing it takes longer than all the rest

    only_before = sum(before[key] and not after[key] for key in before)
    only_after = sum(after[key] and not before[key] for key in before)
    differing = only_before + only_after
    return Check(
        task=task,
        questions=len(before),
        before=sum(before.values()) / len(before),
        after=sum(after.values()) / len(after),
        only_before=only_before,
        only_after=only_after,
        p=float(binomtest(only_before, differing).pvalue) if differing else 1.0,
    )
