"""The command `scale-train`. It imports no heavy package such as torch before a training begins."""

from __future__ import annotations

import importlib.util
import json as jsonlib
from typing import TYPE_CHECKING, Any

import typer

from scaling.cli import AsJson, ConfigFile, LocalFilesOnly, Revision, Version, examples, guarded, refuse_small_limit
from scaling.collection import imports_without_collection
from scaling.config import load_config
from scaling.methods.kinds import Trait, kind_of
from scaling.options import takes
from scaling.records.errors import UsageError
from scaling.training.config import TrainConfig

if TYPE_CHECKING:
    from rich.console import Console

EXAMPLES = (
    "scale-train --latent-paths 8 --out my-thinker",
    "scale-train --targets self --limit 256 --out my-thinker",
    "scale-train --states slots --stage at-once --out my-thinker",
    "scale-train --data questions --backbone Qwen/Qwen2.5-7B-Instruct --assistant Qwen/Qwen2.5-1.5B-Instruct",
    "scale-train --method lora --merge --out my-adapter",
    "scale-train --method coconut --latent-stages 4 --thoughts-per-step 1 --out my-backbone",
    "scale-train --latent-paths 8 --out my-thinker --resume",
)

app = typer.Typer(pretty_exceptions_enable=False)


@app.command(context_settings={"help_option_names": ["-h", "--help"]}, epilog=examples(EXAMPLES))
@takes(TrainConfig)
def scale_train(
    config: ConfigFile = None,
    json: AsJson = False,
    local_files_only: LocalFilesOnly = False,  # noqa: ARG001  (takes effect before the command begins)
    revision: Revision = None,  # noqa: ARG001  (is refused)
    version: Version = False,  # noqa: ARG001  (answers before the command begins)
    **given: Any,
) -> None:
    """Learn the soft thoughts of N latent paths, so that every path reasons well and the paths differ.

    Two stages by default, of --max-steps or --epochs each: constants for all questions, which are kept in OUT/constant, and
    on top of them what the assistant's states say of each question. The papers' form is --states slots --stage at-once.

    The checkpoint is the thinker of the best validation: give its folder to `scale-run --thinker`. That of the last one is
    in the folder `last` in it. With --method lora it is an adapter of the backbone, for `scale-run --method lora --adapter`;
    with --method coconut a backbone, for `scale-run --method coconut --backbone`; and with --method ccot a module that
    contemplates in the place of gold chains, and its decoder.
    """
    given = {key: value for key, value in given.items() if value is not None}
    raise typer.Exit(guarded("scale-train", lambda: _train(config, given, as_json=json)))


def _train(file: str | None, given: dict[str, Any], *, as_json: bool) -> None:
    """Trains and prints the result. file: YAML file of options. given: options of the command line."""
    from rich.console import Console

    settings = load_config(file, given, TrainConfig)
    result, first = carry_out(settings, Console(stderr=True))
    if not first:
        return
    if as_json:
        print(jsonlib.dumps(result.to_dict(), indent=2))
    else:
        _of_method(settings.method)[1](Console(), result)


def carry_out(settings: TrainConfig, console: Console) -> tuple[Any, bool]:
    """Trains as the settings say, and shows progress on the console.

    Args:
        settings: the settings, not yet resolved.
        console: where progress is shown.

    Returns:
        The result, and whether this is the first of the processes that train together: only that one should show it.

    Raises:
        UsageError: where the settings, or what they name, cannot be used.
        Interrupted: on Ctrl-C.
    """
    settings.resolved()  # conflicts between options are reported before torch is imported
    refuse_small_limit()
    if settings.log_with and not importlib.util.find_spec(settings.log_with):
        raise UsageError(f"`--log-with` {settings.log_with} needs a package: `pip install {settings.log_with}`.")
    with imports_without_collection():
        from accelerate import Accelerator

        from contrastive.parallel import Processes
        from scaling.models.hardware import device_type
        from scaling.training.display import TrainingProgress
        from scaling.training.run import TRACKED, check_folder, publish
    if settings.out:  # a problem with the folder is reported before models are loaded
        check_folder(settings.out, resume=settings.resume)
    folder = str(settings.out or "checkpoints")
    accelerator = Accelerator(cpu=device_type(settings.device) == "cpu", log_with=settings.log_with, project_dir=folder)
    if accelerator.num_processes > 1:
        settings = settings.model_copy(update={"device": str(accelerator.device)})
    if settings.log_with:
        accelerator.init_trackers(TRACKED, config=settings.model_dump(mode="json"))
    with TrainingProgress(console, accelerator) as progress:
        train, _ = _of_method(settings.method)
        result = train(settings, progress, Processes())
    accelerator.end_training()
    if settings.push_to_hub and accelerator.is_main_process:
        publish(result.folder, settings.push_to_hub)
    return result, accelerator.is_main_process


def _of_method(method: str) -> tuple[Any, Any]:
    """The function that trains with a method, and the one that shows its result. `peft` is only imported for adapters."""
    from scaling.training import display

    if kind_of(method).has(Trait.LATENT):
        from scaling.training.coconut import train_coconut

        return train_coconut, display.show_backbone
    if kind_of(method).has(Trait.CONTEMPLATION):
        from scaling.training.ccot import train_ccot

        return train_ccot, display.show_contemplation
    if kind_of(method).has(Trait.ADAPTER):
        from scaling.training.lora import train_lora

        return train_lora, display.show_adapter
    from scaling.training.run import train

    return train, display.show_result


def main() -> None:
    """Entry point of the `scale-train` command."""
    app()
