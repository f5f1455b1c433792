"""`scale-train`: options in, exit code out. Imports nothing heavy before a training begins."""

from __future__ import annotations

import importlib.util
import json as jsonlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from scaling.cli import Version, examples, guarded, panel_option, refuse_small_limit
from scaling.methods.kinds import Trait, kind_of
from scaling.records.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from scaling.training.config import TrainConfig

DATA, MODELS, PATHS, LOSS, LORA, STEPS, OUTPUT = (
    "What to learn from",
    "Models",
    "Paths and thoughts",
    "Loss",
    "With --method lora, instead of paths, thoughts and their loss",
    "Steps",
    "Where and how",
)

EXAMPLES = (
    "scale-train --latent-paths 8 --out my-thinker",
    "scale-train --targets self --limit 256 --out my-thinker",
    "scale-train --data questions --backbone Qwen/Qwen2.5-7B-Instruct --assistant Qwen/Qwen2.5-1.5B-Instruct",
    "scale-train --method lora --merge --out my-adapter",
    "scale-train --latent-paths 8 --out my-thinker --resume",
)

app = typer.Typer(pretty_exceptions_enable=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=examples(EXAMPLES))
def scale_train(
    method: Annotated[
        str | None, panel_option("softcot++ (default), or lora: fine-tune the backbone on the same targets.", DATA)
    ] = None,
    task: Annotated[str | None, panel_option("As in scale-run; arithmetic by default.", DATA)] = None,
    data: Annotated[
        str | None, panel_option("Questions as JSONL: a folder with train.jsonl, or a file.", DATA, metavar="<path>")
    ] = None,
    limit: Annotated[
        int | None, panel_option("Questions to learn from. Default 512 for arithmetic, else all.", DATA)
    ] = None,
    validation: Annotated[
        int | None, panel_option("Questions held out, never of the test split. Default 32.", DATA)
    ] = None,
    difficulty: Annotated[int | None, panel_option("Steps of an arithmetic question, 1 (default) to 4.", DATA)] = None,
    targets: Annotated[
        str | None, panel_option("gold rationales (default), or self: the backbone's own right chains.", DATA)
    ] = None,
    chains: Annotated[
        int | None, panel_option("Chains sampled per question for self targets. Default 4.", DATA)
    ] = None,
    backbone: Annotated[
        str | None, panel_option("Folder, GGUF file, Hub id, or smollm2-135m (default).", MODELS)
    ] = None,
    assistant: Annotated[str | None, panel_option("The same, for the model that thinks.", MODELS)] = None,
    latent_paths: Annotated[int | None, panel_option("Latent paths N. Default 8; 1 is SoftCoT.", PATHS)] = None,
    soft_tokens: Annotated[int | None, panel_option("Soft tokens L. Default 4.", PATHS)] = None,
    vector_per_slot: Annotated[
        bool | None,
        panel_option("A learned vector for each slot, not one repeated in all.", PATHS, "--vector-per-slot"),
    ] = None,
    normalise: Annotated[
        bool | None, panel_option("Without --standardise: assistant states get RMS 1. Papers: off.", PATHS)
    ] = None,
    standardise: Annotated[
        bool | None, panel_option("Assistant states are centred and scaled over a reference set (default).", PATHS)
    ] = None,
    path_offset: Annotated[
        bool | None, panel_option("A learned vector for each path beside W h + b (default).", PATHS)
    ] = None,
    freeze_token_sets: Annotated[
        bool | None,
        panel_option("Train the projection alone, as the published code does.", PATHS, "--freeze-token-sets"),
    ] = None,
    contrastive: Annotated[str | None, panel_option("paper, view (default), uniform or none.", LOSS)] = None,
    contrastive_weight: Annotated[
        float | None, panel_option("Weight of the contrast of paths. Default 1.", LOSS)
    ] = None,
    contrastive_temperature: Annotated[
        float | None, panel_option("Default 1 for paper, 0.05 for view, 0.5 for uniform.", LOSS)
    ] = None,
    question_weight: Annotated[
        float | None, panel_option("Weight of the contrast of questions. Default 0, which is off.", LOSS)
    ] = None,
    rank: Annotated[int | None, panel_option("Rank of the adapter. Default 16; alpha is twice that.", LORA)] = None,
    merge: Annotated[
        bool | None, panel_option("Also write the whole model, with the adapter in it, to OUT/merged.", LORA, "--merge")
    ] = None,
    check_on: Annotated[
        str | None,
        panel_option(
            "Questions of another task as JSONL, a file or a folder: right before and after.", LORA, metavar="<path>"
        ),
    ] = None,
    check_limit: Annotated[int | None, panel_option("First questions of them. Default 50.", LORA)] = None,
    epochs: Annotated[int | None, panel_option("Times through the targets. Default 3.", STEPS)] = None,
    max_steps: Annotated[int | None, panel_option("Optimiser steps, instead of epochs.", STEPS)] = None,
    batch_size: Annotated[int | None, panel_option("Targets of a step. Default 8.", STEPS)] = None,
    grad_accumulation: Annotated[
        int | None, panel_option("Parts of a batch, which take less memory. Default: parts of 8 paths.", STEPS)
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, panel_option("Compute activations twice rather than keep them.", STEPS, "--gradient-checkpointing")
    ] = None,
    lr: Annotated[
        float | None, panel_option("Learning rate, falling linearly. Default 0.002; lora 0.0002.", STEPS)
    ] = None,
    warmup: Annotated[int | None, panel_option("Steps of rising learning rate. Default 0.", STEPS)] = None,
    weight_decay: Annotated[float | None, panel_option("Default 0.", STEPS)] = None,
    clip: Annotated[float | None, panel_option("Largest norm of the gradient. Default 1.", STEPS)] = None,
    validate_every: Annotated[int | None, panel_option("Steps. Default: ten times in all.", STEPS)] = None,
    patience: Annotated[
        int | None, panel_option("Stop after so many validations without a better loss. Default 0: never.", STEPS)
    ] = None,
    seed: Annotated[int | None, panel_option("Order of questions and dropout. Default 0.", STEPS)] = None,
    device: Annotated[str | None, panel_option("auto (default), cpu, cuda, cuda:1 ...", OUTPUT)] = None,
    dtype: Annotated[
        str | None, panel_option("Of the frozen models: auto (default), float32, bfloat16.", OUTPUT)
    ] = None,
    out: Annotated[
        str | None, panel_option("Checkpoint folder. Default: under checkpoints/.", OUTPUT, metavar="<path>")
    ] = None,
    resume: Annotated[bool | None, panel_option("Go on with the training in that folder.", OUTPUT, "--resume")] = None,
    log_with: Annotated[str | None, panel_option("tensorboard, wandb or trackio.", OUTPUT)] = None,
    push_to_hub: Annotated[str | None, panel_option("Repository for the checkpoint: owner/name.", OUTPUT)] = None,
    config: Annotated[
        str | None, panel_option("YAML file with any of these options.", OUTPUT, metavar="<path>")
    ] = None,
    json: Annotated[bool, panel_option("Print the result alone, as JSON.", OUTPUT, "--json")] = False,
    version: Version = False,
) -> None:
    """Learn N initial token sets and a projection, so that every latent path reasons well and the paths differ.

    The checkpoint is the thinker of the best validation: give its folder to `scale-run --thinker`. With --method lora it
    is an adapter of the backbone, for `scale-run --method lora --adapter`.
    """
    given = {key: value for key, value in locals().items() if key not in ("config", "json", "version")}
    given = {key: value for key, value in given.items() if value is not None}
    raise typer.Exit(guarded("scale-train", lambda: _train(config, given, as_json=json)))


def _train(file: str | None, given: dict[str, Any], *, as_json: bool) -> None:
    from rich.console import Console

    from scaling.config import load_config
    from scaling.training.config import TrainConfig

    settings = load_config(file, given, TrainConfig)
    result, first = carry_out(settings, Console(stderr=True))
    if not first:
        return
    if as_json:
        print(jsonlib.dumps(result.to_dict(), indent=2))
    else:
        _of_method(settings.method)[1](Console(), result)


def carry_out(settings: TrainConfig, console: Console) -> tuple[Any, bool]:
    """Trains as the settings say and shows progress on `console`. Raises UsageError and Interrupted.

    Returns:
        The result, and whether this process is the first of those that train, which alone should show it.
    """
    settings.resolved()  # clashes between options are told before torch is imported
    refuse_small_limit()
    if settings.log_with and not importlib.util.find_spec(settings.log_with):
        raise UsageError(f"`--log-with` {settings.log_with} needs a package: `pip install {settings.log_with}`.")
    from accelerate import Accelerator

    from contrastive.parallel import Processes
    from scaling.training.display import TrainWatch
    from scaling.training.run import TRACKED, check_folder, publish

    if settings.out:  # told before models are loaded
        check_folder(settings.out, resume=settings.resume)
    folder = str(settings.out or "checkpoints")
    accelerator = Accelerator(cpu=settings.device == "cpu", log_with=settings.log_with, project_dir=folder)
    if accelerator.num_processes > 1:
        settings = settings.model_copy(update={"device": str(accelerator.device)})
    if settings.log_with:
        accelerator.init_trackers(TRACKED, config=settings.model_dump(mode="json"))
    with TrainWatch(console, accelerator) as watch:
        train, _ = _of_method(settings.method)
        result = train(settings, watch, Processes())
    accelerator.end_training()
    if settings.push_to_hub and accelerator.is_main_process:
        publish(result.folder, settings.push_to_hub)
    return result, accelerator.is_main_process


def _of_method(method: str) -> tuple[Any, Any]:
    """What trains, and what shows its result; `peft` is imported only where it is needed."""
    from scaling.training import display

    if kind_of(method).has(Trait.ADAPTER):
        from scaling.training.lora import train_lora

        return train_lora, display.show_adapter
    from scaling.training.run import train

    return train, display.show_result


def main() -> None:
    """Entry point of the `scale-train` command."""
    app()
