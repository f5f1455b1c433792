"""`sc.train`: a training as a call, and what it made as an object that `sc.run` takes for `thinker` or `adapter`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from scaling.training.config import TrainConfig
from softcotpp.options import interruptible, settings_from, with_options_of


@with_options_of(TrainConfig)
def train(*, quiet: bool = False, **options: Any) -> Trained:
    """Trains a thinker, or with `method="lora"` an adapter of the backbone, as `scale-train` does.

    Stopped by Ctrl-C it raises KeyboardInterrupt; the same call with `resume=True` goes on from the last validation.

    Args:
        quiet: show no progress.
        options: those of `scale-train`, with `_` for `-`; `config` is a YAML file of them.

    Raises:
        UsageError: what the command would print.
    """
    settings = settings_from(options, TrainConfig, call="sc.train")
    from scaling.training.cli import carry_out

    with interruptible():
        result, _ = carry_out(settings, Console(stderr=True, quiet=quiet))
    return Trained(result.folder, result.to_dict(), result.command)


class Trained(os.PathLike[str]):
    """A trained thinker or adapter. Give it to `sc.run` as `thinker` or `adapter`.

    folder: of the checkpoint. figures: what validation said of it. command: the `scale-run` that uses it.
    """

    def __init__(self, folder: Path, figures: dict[str, Any], command: str) -> None:
        self.folder, self.figures, self.command = folder, figures, command

    @property
    def history(self) -> pd.DataFrame:
        """A row for each step and each validation, from metrics.jsonl."""
        with (self.folder / "metrics.jsonl").open() as lines:
            return pd.DataFrame([json.loads(line) for line in lines])

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"<Trained in {self.folder}, use it with: {self.command}>"
