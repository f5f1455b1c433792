"""One training from its settings to its checkpoint: questions, targets, examples, thinker, steps, checkpoint.

The story of `scale-train`, top to bottom. Knows no terminal: what happens is told to a `Watcher`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from huggingface_hub import HfApi
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from contrastive import checkpoint
from contrastive.health import Health
from contrastive.objective import Objective
from contrastive.parallel import Processes
from contrastive.target_loss import Example, Reader, UnsupportedModel
from contrastive.thinker import Thinker, state_statistics
from contrastive.token_sets import SoftTokenSets
from contrastive.train import METRICS_FILE, STATE_FILE, DamagedFile, Loop, NotFinite, Progress, Schedule, Trainer
from contrastive.train import Watcher as StepWatcher
from scaling.config import decided, option
from scaling.methods.kinds import Trait, kind_of
from scaling.models import adapters, hardware, loading, model_files
from scaling.models.loading import LanguageModel
from scaling.prompts import PROMPT_VERSION
from scaling.provenance import name_of
from scaling.records.errors import WARNING, Interrupted, UsageError, one_line
from scaling.records.files import replaced
from scaling.records.journal import config_hash
from scaling.records.overlap import KEY as DIGESTS
from scaling.records.overlap import digests_of
from scaling.records.settings import Effect, names
from scaling.run import Watcher as RunWatcher
from scaling.run import environment
from scaling.tasks.task import ask
from scaling.training.card import write_card
from scaling.training.config import TrainConfig
from scaling.training.hint import command_for
from scaling.training.targets import ExampleBuilder, Split, examples_of, own_chains, split_of

CONFIG = "train.json"
TRACKED = "softcotpp"  # the name that trackers know a training by, and the folder where TensorBoard's files are
FOUND = ("metrics", "environment", DIGESTS)  # in it besides what decides a training
RESTORE = "restore the file, or begin again with another `--out`"  # what to do where a training's file is damaged
_REFERENCE = 64  # questions over which states are standardised
ROWS = 8  # targets x paths that go through the backbone together, unless asked for otherwise
_VALIDATIONS = 10  # of a training, unless asked for otherwise


class Watcher(StepWatcher, Protocol):
    """Is told what happens; a progress bar, plain lines or nothing."""

    def status(self, text: str) -> None: ...
    def sampling(self) -> RunWatcher: ...


@dataclass(frozen=True, eq=False)
class Result:
    """folder: of the checkpoint. health: of the thinker that was kept, the best that there was. command: the
    `scale-run` that uses it."""

    folder: Path
    progress: Progress
    health: Health
    command: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"folder": str(self.folder), **vars(self.progress), **vars(self.health)}


def train(config: TrainConfig, watcher: Watcher, processes: Processes) -> Result:
    """Trains as `config` says, or goes on with it. Raises UsageError and Interrupted."""
    config, dtype = hardware.placed(config.resolved())
    split = told_split(config, watcher)
    for line in model_files.before_loading(config.backbone, config.assistant):
        watcher.status(line)
    backbone, assistant = loading.load_pair(config.backbone, config.assistant, device=config.device, dtype=dtype)
    described = describe(config, split, {"backbone": backbone, "assistant": assistant})
    folder = open_folder(config, described, processes=processes)
    if (folder / STATE_FILE).is_file():
        _health_of(folder)  # the best thinker so far lies there alone: a damaged one is told before training goes on
    build = ExampleBuilder(backbone, assistant, task=split.task.definition, num_slots=config.soft_tokens)
    learn, validate = examples(config, split, build, backbone, watcher, processes)
    thinker = new_thinker(config, backbone, assistant, learn)
    digests = digests_of_split(config, split, learn, validate)

    def keep(health: Health) -> None:
        about = {**described, **digests, "metrics": asdict(health), "environment": environment(backbone.model.device)}
        checkpoint.save(thinker, folder, soft_tokens=config.soft_tokens, prompt_version=PROMPT_VERSION, about=about)
        write_card(folder, about)

    trainer = Trainer(
        thinker=thinker,
        assistant=assistant.model,
        reader=reader_of(backbone),
        train=learn,
        validation=validate,
        schedule=schedule_of(config, len(learn)),
        objective=_objective(config),
        folder=folder,
        keep=keep,
        watcher=watcher,
        processes=processes,
    )
    progress = run_steps(trainer)
    processes.wait()
    return Result(folder, progress, _health_of(folder), command_for(config, folder))


def told_split(config: TrainConfig, watcher: Watcher) -> Split:
    """The questions of a training; what is wrong with them is told."""
    split = split_of(config)
    for warning in split.warnings(config.data):
        watcher.status(f"{WARNING}{warning}")
    return split


def digests_of_split(
    config: TrainConfig, split: Split, learn: Sequence[Example], validate: Sequence[Example]
) -> dict[str, Any]:
    """What the checkpoint keeps of the questions that it was made from: of those that gave a target."""
    used = [{example.question for example in examples} for examples in (learn, validate)]
    parts = zip((split.train, split.validation), used, strict=True)
    return digests_of(name_of(split.task, config.data), *([one for one in own if one.id in ids] for own, ids in parts))


def run_steps(trainer: Loop[Any]) -> Progress:
    """Trains to the end. Raises Interrupted on Ctrl-C, and UsageError where the folder is damaged or cannot be written."""
    folder = trainer.folder
    try:
        return trainer.run()
    except DamagedFile as error:
        raise UsageError(f"{error}: {RESTORE}.") from None
    except NotFinite as error:
        raise UsageError(f"{error}: try `--dtype float32` or a lower `--lr`, and check the models' files.") from None
    except (OSError, SafetensorError) as error:  # safetensors says in an error of its own that a disk is full
        raise UsageError(
            f"the training in {folder} could not be written ({one_line(error)}): make that possible, and the same command "
            f"with `--resume` goes on from the last validation."
        ) from None
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped; `--resume` with the same command goes on from the last validation in {folder}."
        ) from None


def _health_of(folder: Path) -> Health:
    """What validation said of the checkpoint. Raises UsageError for a damaged one."""
    try:
        _, config = checkpoint.load(folder)
        return TypeAdapter(Health).validate_python(config.about["metrics"])
    except checkpoint.CheckpointError as error:
        raise UsageError(f"{error}: {RESTORE}.") from None
    except (KeyError, ValidationError):
        raise UsageError(f"{folder / checkpoint.CONFIG_FILE} holds no figures of a validation: {RESTORE}.") from None


def describe(config: TrainConfig, split: Split, used: dict[str, LanguageModel]) -> dict[str, Any]:
    """What decides a training's result: settings, models by role, questions; nothing that is of another method alone."""
    adapted = kind_of(config.method).has(Trait.ADAPTER)  # folders of earlier trainings of thinkers say no method
    of_others = names(TrainConfig, Trait.THINKER) if adapted else ("method", *names(TrainConfig, Trait.ADAPTER))
    settings = config.model_dump(mode="json", exclude={*names(TrainConfig, Effect.FREE), *of_others})
    ids = "\0".join(question.id + question.text for question in (*split.train, *split.validation))
    return {
        **settings,
        "task": split.task.name,
        **split.task.identity,
        "prompt_version": PROMPT_VERSION,
        **{f"{role}_fingerprint": model.fingerprint for role, model in used.items()},
        "questions": config_hash({"ids": ids}),
    }


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raises UsageError for a folder that holds something else than a training, and where `--resume` finds none.

    A training's folder is one with a train.json, which is written before all else.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise UsageError(f"`--out` {folder} is no folder, and a training needs one: give another name.")
    for name in (CONFIG, STATE_FILE, METRICS_FILE):
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise UsageError(f"{folder / name} is no file, and a training keeps one there: {RESTORE}.")
    if (folder / CONFIG).is_file():
        _refuse_lost_state(folder)
        return
    if resume:
        raise UsageError(
            f"`--resume` goes on with a training, and {folder} holds none (no {CONFIG}): leave `--resume` out to begin one, "
            f"or give the `--out` and the settings that it was begun with."
        )
    left = (f"{CONFIG}.tmp", TRACKED)  # of a training that ended before its train.json was there
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in left) if folder.exists() else []
    if foreign:
        raise UsageError(
            f"`--out` {folder} is not empty ({foreign[0]}) and has no {CONFIG}, so it is no training's folder: choose a new "
            f"or empty one."
        )


def _refuse_lost_state(folder: Path) -> None:
    """Raises UsageError where a training has taken steps and what it goes on from is gone: it would begin anew, and replace
    what it had learned. The state is written before the first step."""
    metrics = folder / METRICS_FILE
    if not (folder / STATE_FILE).is_file() and metrics.is_file() and metrics.read_bytes().count(b"\n") > 1:
        raise UsageError(
            f"{folder} holds a training whose {STATE_FILE} is gone, so that it cannot go on: {RESTORE}. What it learned is "
            f"as it was."
        )


def open_folder(config: TrainConfig, described: dict[str, Any], *, processes: Processes) -> Path:
    """Makes the training's folder, or checks that what is in it is this very training. Raises UsageError."""
    folder = folder_of(config, described)
    check_folder(folder, resume=config.resume)
    if (folder / CONFIG).is_file():
        other = read_about(folder)
        different = sorted(
            key for key in {*other, *described}.difference(FOUND) if other.get(key) != described.get(key)
        )
        if different:
            listed = ", ".join(
                f"`{option(key)}` was {other.get(key)!r}, now {described.get(key)!r}" for key in different
            )
            raise UsageError(f"{folder} holds another training: {listed}; give another `--out`.")
        if (folder / STATE_FILE).is_file() and not config.resume:
            raise UsageError(f"{folder} holds this training already: add `--resume` to go on, or give another `--out`.")
    processes.wait()
    if processes.rank == 0:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / CONFIG).is_file():
                write_about(folder, described)
        except OSError as error:
            raise UsageError(
                f"`--out` {folder} cannot be written ({error.strerror}): give a folder that can."
            ) from None
    processes.wait()
    return folder


def folder_of(config: TrainConfig, described: dict[str, Any]) -> Path:
    """Where the training lies: `--out`, else a folder that is named by what decides its result."""
    return config.out or Path("checkpoints") / f"{described['task']}-{config_hash(described)}"


def read_about(folder: Path) -> dict[str, Any]:
    """What is in train.json. Raises UsageError where it is damaged."""
    try:
        about = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError):
        about = None
    if not isinstance(about, dict):
        raise UsageError(
            f"{folder / CONFIG} is damaged, so nothing tells which training this is: restore it, or give another `--out`."
        )
    return about


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """train.json, replaced in one step."""
    with replaced(folder / CONFIG, partial=folder / f"{CONFIG}.tmp") as partial:
        partial.write_text(json.dumps(about, indent=2) + "\n")


def examples(
    config: TrainConfig,
    split: Split,
    build: ExampleBuilder,
    backbone: LanguageModel,
    watcher: Watcher,
    processes: Processes,
) -> tuple[list[Example], list[Example]]:
    """Those to learn from and those to validate on. Raises UsageError where there is nothing to learn from."""
    texts: Callable[[Any], Sequence[str]] = lambda question: [ask(split.task.definition, "solution", question)]  # noqa: E731
    if config.targets == "self":
        if processes.rank == 0:
            watcher.status("sampling the backbone's own chains")
            own_chains(split, config, backbone, watcher.sampling())
        processes.wait()
        chains = own_chains(split, config, backbone, watcher.sampling())
        texts = lambda question: chains[question.id]  # noqa: E731
    learn, validate = examples_of(split.train, texts, build), examples_of(split.validation, texts, build)
    if not learn or not validate:
        raise UsageError(
            "the backbone answered no question rightly, so there is no chain to learn from: raise `--limit`, `--validation` "
            "or `--chains`, or use `--targets gold`."
        )
    watcher.status(f"{len(learn)} targets to learn from, {len(validate)} to validate on")
    return learn, validate


@torch.no_grad()
def new_thinker(
    config: TrainConfig, backbone: LanguageModel, assistant: LanguageModel, examples: Sequence[Example]
) -> Thinker:
    """The thinker before its first step; standardised over the first questions where that is wanted."""
    scale = backbone.embedding_scale()
    start = Thinker.untrained(
        assistant.rare_rows(), num_paths=config.latent_paths, backbone_width=backbone.width, scale=scale
    )
    vectors = start.token_sets.vectors.detach()
    if config.vector_per_slot:
        vectors = vectors.expand(-1, config.soft_tokens, -1)
    thinker = Thinker(
        SoftTokenSets(vectors), start.projection, normalise=config.normalise, offset=config.path_offset
    ).to(config.device)
    if config.standardise:
        reference = list({example.question: example for example in examples}.values())[:_REFERENCE]
        states = [_states(thinker, assistant, example, config.soft_tokens) for example in reference]
        thinker.statistics = state_statistics(torch.cat(states))
    thinker.token_sets.requires_grad_(not config.freeze_token_sets)
    return thinker


def _states(thinker: Thinker, assistant: LanguageModel, example: Example, num_slots: int) -> torch.Tensor:
    ids = torch.tensor([example.assistant], device=assistant.model.device)
    return thinker.states(assistant.model, ids, torch.ones_like(ids), num_slots)


def reader_of(backbone: LanguageModel) -> Reader:
    """Raises UsageError for a backbone whose losses cannot be worked out."""
    try:
        return Reader(backbone.model)
    except UnsupportedModel as error:
        raise UsageError(f"`--backbone` {backbone.name} cannot be trained for: {error}.") from None


def schedule_of(config: TrainConfig, num_examples: int) -> Schedule:
    """Steps and optimiser as the settings say."""
    per_epoch = math.ceil(num_examples / config.batch_size)
    max_steps = config.max_steps or decided(config, "epochs") * per_epoch
    every = config.validate_every or max(1, math.ceil(max_steps / _VALIDATIONS))
    same = config.model_dump(include={one.name for one in fields(Schedule)})
    return Schedule(**{**same, "max_steps": max_steps, "validate_every": every})


def _objective(config: TrainConfig) -> Objective:
    return Objective(
        num_slots=config.soft_tokens,
        contrastive=config.contrastive,
        weight=config.contrastive_weight,
        temperature=config.contrastive_temperature,
        question_weight=config.question_weight,
        micro_batch=micro_batch(config, paths=config.latent_paths),
        recompute=config.gradient_checkpointing,
        seed=config.seed,
    )


def micro_batch(config: TrainConfig, *, paths: int) -> int:
    """Targets that go through the backbone together: fewer rows than `ROWS` leave the products slow."""
    parts = config.grad_accumulation
    return math.ceil(config.batch_size / parts) if parts else math.ceil(ROWS / paths)


def publish(folder: Path, repository: str) -> None:
    """Puts the checkpoint's files, or those of an adapter, on the Hub. Raises UsageError where the Hub refuses."""
    adapter = [adapters.CONFIG_FILE, adapters.WEIGHTS_FILE, adapters.ABOUT_FILE, checkpoint.CARD_FILE]
    try:
        if (folder / adapters.WEIGHTS_FILE).is_file():
            hub = HfApi()
            hub.create_repo(repository, exist_ok=True)
            hub.upload_folder(repo_id=repository, folder_path=folder, allow_patterns=adapter)
        else:
            checkpoint.Checkpoint.from_pretrained(folder).push_to_hub(repository)
    except (OSError, ValueError) as error:
        raise UsageError(f"`--push-to-hub` {repository}: {one_line(error)}. The checkpoint is in {folder}.") from None
