"""Recognises what a folder holds (a thinker, an adapter, a run, a model), to tell a user who gave it for something else how
it is used. Standard library only.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from scaling.records.errors import nearest

_THINKER = ("config.json", "thinker.safetensors")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def is_thinker(folder: Path) -> bool:
    return _holds(folder, _THINKER)


def _holds(folder: Path, files: Sequence[str]) -> bool:
    return all((folder / file).is_file() for file in files)


def unfit(name: str, folder: Path, *, lacking: Sequence[str], wanted: str) -> str:
    """What is wrong with a place that lacks these files, and what to do, as the end of a sentence. name: as it was given.
    wanted: what to give instead, where the place is nothing that is known."""
    if not folder.exists():
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        return f"does not exist: {wanted}.{nearest(folder.name, siblings)}"
    return f"holds no {' and no '.join(lacking)}: {advice(name, folder, wanted=wanted)}"


def advice(name: str, folder: Path, *, wanted: str) -> str:
    """How to use a place that is not what an option wants, as the end of a sentence."""
    name = shlex.quote(name)
    if is_thinker(folder):
        return f"it holds a thinker: use it as `--thinker {name}`."
    if _holds(folder, _ADAPTER):
        return f"it is an adapter: use it with `--method lora --adapter {name}`."
    if (folder / "run.json").is_file():
        return f"it is the folder of a run, which `scale-report {name}` reads: {wanted}."
    if (folder / "train.json").is_file() and not (folder / "config.json").is_file():
        return (
            f"it is a training that has kept nothing yet: go on with it by `scale-train` and `--resume`, or {wanted}."
        )
    if (folder / "config.json").is_file():
        return f"it is a whole model: use it as `--backbone {name}`."
    published = sorted(folder.glob("*.bin"))
    return f"give the file itself, {published[0]}." if "thinker" in wanted and published else f"{wanted}."
