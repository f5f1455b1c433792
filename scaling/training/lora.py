"""One LoRA training from its settings to its adapter: the backbone itself learns the targets that a thinker would.

A baseline for thoughts: the same questions, split and targets, the prompts of chain of thought, and low-rank changes to
all linear layers (arXiv 2106.09685) by `peft`. Knows no terminal: what happens is told to a `Watcher`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from peft import PeftModel
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file

from contrastive.parallel import Processes
from contrastive.target_loss import Example
from contrastive.train import STATE_FILE, Progress
from scaling.config import RunConfig, decided
from scaling.methods.build import Built
from scaling.methods.cot import ChainOfThought
from scaling.methods.lora import with_adapter
from scaling.models import adapters, hardware, loading, model_files
from scaling.models.loading import LanguageModel
from scaling.records.errors import UsageError
from scaling.run import environment
from scaling.tasks.task import LoadedTask
from scaling.training.adapter import Figures, LoraTrainer, new_adapter, save_adapter, save_merged
from scaling.training.card import write_lora_card
from scaling.training.check import Check, compare, held_out, right_answers, settings_of
from scaling.training.config import TrainConfig
from scaling.training.hint import command_for, command_for_merged
from scaling.training.run import (
    CONFIG,
    RESTORE,
    Watcher,
    describe,
    digests_of_split,
    examples,
    micro_batch,
    open_folder,
    read_about,
    reader_of,
    run_steps,
    schedule_of,
    told_split,
    write_about,
)
from scaling.training.targets import ExampleBuilder

MERGED, CHECKS = "merged", "checks"  # folders in the training's own


@dataclass(frozen=True, eq=False)
class LoraResult:
    """folder: of the adapter of the best validation, whose figures these are. parameters: how many were trained.

    check: None without `--check-on`. merged: folder of the whole model, None without `--merge`.
    command, merged_command: the `scale-run` that uses either.
    """

    folder: Path
    progress: Progress
    figures: Figures
    parameters: int
    check: Check | None
    merged: Path | None
    command: str
    merged_command: str | None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {
            "folder": str(self.folder),
            **vars(self.progress),
            **vars(self.figures),
            "parameters": self.parameters,
            "merged": str(self.merged) if self.merged else None,
            "check": asdict(self.check) if self.check else None,
        }


@dataclass(frozen=True, eq=False)
class _Training:
    """What all parts of a training need. described: what decides its result."""

    config: TrainConfig
    backbone: LanguageModel
    folder: Path
    described: dict[str, Any]
    watcher: Watcher
    processes: Processes


def train_lora(config: TrainConfig, watcher: Watcher, processes: Processes) -> LoraResult:
    """Trains as `config` says, or goes on with it. Raises UsageError and Interrupted."""
    config, dtype = hardware.placed(config.resolved())
    split = told_split(config, watcher)
    held = held_out(config, split)
    for line in model_files.before_loading(config.backbone):
        watcher.status(line)
    source = model_files.locate(config.backbone)
    backbone = loading.load(source, name=config.backbone, device=config.device, dtype=dtype, own=True)
    described = describe(config, split, {"backbone": backbone})
    folder = open_folder(config, described, processes=processes)
    if (folder / STATE_FILE).is_file():
        _refuse_damaged(folder)
    training = _Training(config, backbone, folder, described, watcher, processes)
    before = _before(training, held) if held and processes.rank == 0 else {}
    processes.wait()
    build = ExampleBuilder(backbone, None, task=split.task.definition, num_slots=0)
    learn, validate = examples(config, split, build, backbone, watcher, processes)
    trainer = _trainer(training, learn, validate, digests_of_split(config, split, learn, validate))
    progress = run_steps(trainer)
    processes.wait()
    if processes.rank == 0:
        _finish(training, trainer.model, held, before)
    processes.wait()
    return _result(training, progress)


def _trainer(
    training: _Training, learn: Sequence[Example], validate: Sequence[Example], digests: dict[str, Any]
) -> LoraTrainer:
    config, folder = training.config, training.folder
    reader = reader_of(training.backbone)
    model = new_adapter(training.backbone, rank=decided(config, "rank"), seed=config.seed)
    versions = environment(training.backbone.model.device)
    versions["versions"]["peft"] = version("peft")

    def keep(figures: Figures) -> None:
        about = {**training.described, **digests, "metrics": asdict(figures), "environment": versions}
        save_adapter(model, folder, backbone=config.backbone)
        write_about(folder, about)
        write_lora_card(folder, about)

    return LoraTrainer(
        train=learn,
        validation=validate,
        schedule=schedule_of(config, len(learn)),
        folder=folder,
        keep=keep,
        watcher=training.watcher,
        processes=training.processes,
        model=model,
        reader=reader,
        micro_batch=micro_batch(config, paths=1),
        recompute=config.gradient_checkpointing,
    )


def _before(training: _Training, held: LoadedTask) -> dict[str, bool]:
    training.watcher.status(f"answering {len(held.questions)} questions of {held.name} before training")
    method = ChainOfThought(training.backbone, task=held.definition)
    settings = settings_of(training.config, method="cot")
    built = Built(method, settings)
    return right_answers(built, held, training.watcher.sampling(), parent=training.folder / CHECKS)


def _finish(training: _Training, model: PeftModel, held: LoadedTask | None, before: dict[str, bool]) -> None:
    """What needs the best adapter in the backbone's weights: `--merge` and the check's second half."""
    if held is None and not training.config.merge:
        return
    adapters.set_weights(model, load_file(training.folder / adapters.WEIGHTS_FILE))
    whole = adapters.merged(model, training.backbone)
    if training.config.merge:
        training.watcher.status(f"writing {training.folder / MERGED}")
        save_merged(whole, training.folder / MERGED)
        write_about(training.folder / MERGED, read_about(training.folder))
    if held:
        after = _after(training, held, whole)
        about = read_about(training.folder)
        about["metrics"]["check"] = asdict(compare(held.name, before, after))
        write_about(training.folder, about)
        write_lora_card(training.folder, about)


def _after(training: _Training, held: LoadedTask, whole: LanguageModel) -> dict[str, bool]:
    training.watcher.status(f"answering {len(held.questions)} questions of {held.name} after training")
    settings: RunConfig = settings_of(training.config, method="lora", adapter=str(training.folder))
    digest_of_weights = model_files.sha256(training.folder / adapters.WEIGHTS_FILE)
    method = with_adapter(
        whole, task=held.definition, fingerprint=training.backbone.fingerprint, sha256=digest_of_weights
    )
    return right_answers(Built(method, settings), held, training.watcher.sampling(), parent=training.folder / CHECKS)


def _result(training: _Training, progress: Progress) -> LoraResult:
    figures, check = _figures_of(training.folder)
    tensors = load_file(training.folder / adapters.WEIGHTS_FILE).values()
    merged = training.folder / MERGED if training.config.merge else None
    return LoraResult(
        folder=training.folder,
        progress=progress,
        figures=figures,
        parameters=sum(tensor.numel() for tensor in tensors),
        check=check if training.config.check_on else None,
        merged=merged,
        command=command_for(training.config, training.folder),
        merged_command=command_for_merged(training.config, merged) if merged else None,
    )


def _figures_of(folder: Path) -> tuple[Figures, Check | None]:
    """What validation and the check said of the adapter. Raises UsageError where train.json does not hold it."""
    try:
        metrics = read_about(folder)["metrics"]
        check = metrics.get("check")
        return TypeAdapter(Figures).validate_python(metrics), check and TypeAdapter(Check).validate_python(check)
    except (KeyError, AttributeError, ValidationError):
        raise UsageError(f"{folder / CONFIG} holds no figures of a validation: {RESTORE}.") from None


def _refuse_damaged(folder: Path) -> None:
    """Raises UsageError where the best adapter so far, which lies in the folder alone, cannot be read."""
    _figures_of(folder)
    try:
        adapters.read(adapters.find(str(folder)))
    except UsageError as error:
        raise UsageError(f"the best adapter so far is damaged: {error} Then {RESTORE}.") from None
