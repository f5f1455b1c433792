"""Checks what a fine-tuned backbone has forgotten or learned elsewhere.

It answers questions that it was not trained on, with one greedy chain of thought each, before the training and after it.
Both are ordinary runs with directories of their own: they continue after an interruption and can be reported on. This
module knows nothing of how the backbone was changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scaling.config import RunConfig
from scaling.methods.build import Built
from scaling.methods.cot import ChainOfThought
from scaling.models.loading import LanguageModel
from scaling.records.errors import Interrupted, UsageError, counted
from scaling.records.journal import load
from scaling.records.overlap import digest_of
from scaling.records.settings import Tag, names
from scaling.run import RunObserver, Setup, asked_of, carry_out
from scaling.tasks.catalogue import load_task
from scaling.tasks.formats import holds_split
from scaling.tasks.task import LoadedTask
from scaling.training.config import TrainConfig
from scaling.training.run import TrainingObserver
from scaling.training.targets import Split
from scaling.wording import wording_of

CHECKS = "checks"  # folder of the check's runs, in the folder of the training


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        task: name of the task that was checked on.
        questions: number of questions.
        before: share of right answers before training.
        after: share of right answers after training.
        only_before: questions that were right only before training.
        only_after: questions that were right only after training.
        p: exact two-sided p-value of McNemar's test on the last two.
    """

    task: str
    questions: int
    before: float
    after: float
    only_before: int
    only_after: int
    p: float


def held_out(config: TrainConfig, split: Split) -> LoadedTask | None:
    """Loads the questions of `--check-on`; None without it. Raises UsageError if the training uses any of them."""
    place = config.check_on
    if place is None:
        return None
    if place.is_dir() and not holds_split(place, "test"):
        raise UsageError(f"`--check-on` {place} is a folder without a test split: give a file of questions.")
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


def answers_of_cot(
    config: TrainConfig,
    backbone: LanguageModel,
    task: LoadedTask,
    watcher: TrainingObserver,
    *,
    folder: Path,
    when: str,
) -> dict[str, bool]:
    """The answers of a backbone by chain of thought. Arguments as of `answers`; the backbone may have changed weights."""
    method = ChainOfThought(backbone, task=task.definition, wording=wording_of(config))
    settings = settings_of(config, method="cot", backbone=backbone.name)
    return answers(Built(method, settings), task, watcher, folder=folder, when=when)


def answers(built: Built, task: LoadedTask, watcher: TrainingObserver, *, folder: Path, when: str) -> dict[str, bool]:
    """Answers the questions of the check before or after training.

    Args:
        built: what answers, and its settings.
        task: the questions.
        watcher: is told what happens.
        folder: of the training.
        when: "before" or "after".

    Returns:
        For each question, by id, whether its answer is right.
    """
    watcher.status(f"answering {counted(len(task.questions), 'question')} of {task.name} {when} training")
    return right_answers(built, task, watcher.sampling(), parent=folder / CHECKS)


def settings_of(config: TrainConfig, **method: str) -> RunConfig:
    """Settings of a run of the check: one greedy chain for each question.

    Args:
        config: the settings of the training.
        method: the run's `method`, and `adapter` or `backbone` where it has one that the training has not.
    """
    shared = {"backbone": config.backbone, "seed": config.seed, "device": config.device, "dtype": config.dtype}
    asked_by = {key: getattr(config, key) for key in names(TrainConfig, Tag.WORDING)}
    greedy = {"data": config.check_on, "limit": config.check_limit, "samples": 1, "temperature": 0}
    return RunConfig.model_validate({**shared, **asked_by, **greedy, **method}).resolved()


def right_answers(built: Built, task: LoadedTask, watcher: RunObserver, *, parent: Path) -> dict[str, bool]:
    """Runs a method on the questions of the check.

    Args:
        built: the method and its settings.
        task: the questions.
        watcher: is told how far the run is.
        parent: the folder in which the run's directory lies.

    Returns:
        For each question, by id, whether its answer is right.

    Raises:
        UsageError: where a question fills the backbone's context.
        Interrupted: on Ctrl-C.
    """
    asked, backbone = asked_of(built.method, task, built.config), built.method.backbone
    room = backbone.context - max(question.prompt_tokens for question in asked)
    if room < 1:
        raise UsageError(
            f"a question of `--check-on` fills the backbone's context of {backbone.context} tokens: leave it out."
        )
    # where a question is long, all chains get a lower token limit; a run would be refused
    max_new_tokens = min(built.config.longest, room)
    config = built.config.model_copy(update={"max_new_tokens": max_new_tokens})
    try:
        summary = carry_out(Setup(config, task, built.method, asked), watcher, parent=parent)
    except Interrupted:
        raise Interrupted("stopped in the check; the same command with `--resume` goes on with it.") from None
    ids = {question.id for question in task.questions}
    _, completions = load(Path(summary["run"]))
    return {done.question_id: done.correct for done in completions if done.question_id in ids}


def compare(task: str, before: Mapping[str, bool], after: Mapping[str, bool]) -> Check:
    """Compares right answers before and after training. before, after: by question id, of the same questions."""
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
