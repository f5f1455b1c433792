"""`sc.train`: trains a thinker or an adapter, and returns an object that `sc.run` takes as `thinker` or `adapter`."""

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
    """Trains as `scale-train` does: a thinker, with `method="lora"` or `"ccot"` adapters, with `"coconut"` the backbone.

    Args:
        quiet: whether to show no progress.
        options: options of `scale-train`, with `_` for `-`. `config` is a YAML file with options.

    Raises:
        UsageError: where the command would print an error.
        KeyboardInterrupt: after Ctrl-C. The same call with `resume=True` continues from the last validation.
    """
    settings = settings_from(options, TrainConfig, call="sc.train")
    from scaling.training.cli import carry_out

    with interruptible():
        result, _ = carry_out(settings, Console(stderr=True, quiet=quiet))
    return Trained(result.folder, result.to_dict(), result.command)


class Trained(os.PathLike[str]):
    """A trained thinker or adapter. Pass it to `sc.run` as `thinker` or `adapter`.

    Attributes:
        folder: of the checkpoint.
        figures: results of the training and its validation.
        command: a `scale-run` command that uses the checkpoint.
    """

    def __init__(self, folder: Path, figures: dict[str, Any], command: str) -> None:
        self.folder, self.figures, self.command = folder, figures, command

    @property
    def history(self) -> pd.DataFrame:
        """The content of metrics.jsonl: a row for each step and validation; of `coconut` with the number of its stage."""
        whole, stages = self.folder / "metrics.jsonl", self.folder.glob("stage-*/metrics.jsonl")
        if whole.is_file():
            return pd.DataFrame(_rows(whole))
        numbered = sorted((int(path.parent.name.removeprefix("stage-")), path) for path in stages)
        return pd.DataFrame([{"stage": number} | row for number, path in numbered for row in _rows(path)])

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"<Trained in {self.folder}, use it with: {self.command}>"


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open() as lines:
        return [json.loads(line) for line in lines]
