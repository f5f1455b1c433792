"""Recognises what a folder holds: a thinker, an adapter, a run, a training or a model.

Where a user gives a folder to the wrong option, the error message can then say which option takes it. Needs the standard
library only.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from scaling.records.errors import UsageError, nearest
from scaling.records.files import sha256
from scaling.records.names import TITLES

_TENSORS = "thinker.safetensors"
_THINKER = ("config.json", _TENSORS)
_CONTEMPLATION = ("contemplation.safetensors", "decode/adapter_config.json")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")


def is_thinker(folder: Path) -> bool:
    return _holds(folder, _THINKER)


def checksum_of_constant(folder: Path) -> str:
    """The checksum of the tensors of `--constant`, which decide a training. Raises UsageError where there are none."""
    if not (folder / _TENSORS).is_file():
        raise UsageError(f"`--constant` {folder} has no {_TENSORS}: give the folder of a checkpoint.")
    return sha256(folder / _TENSORS)


def _holds(folder: Path, files: Sequence[str]) -> bool:
    return all((folder / file).is_file() for file in files)


def _method_of(folder: Path) -> str:
    """The method that takes an adapter: the one that its training names, else LoRA, as for adapters of others."""
    try:
        about = json.loads((folder / "train.json").read_bytes())
    except (OSError, ValueError, RecursionError):  # there is none, or it is damaged, which is told where it is used
        return "lora"
    said = about.get("method") if isinstance(about, dict) else None
    return said if isinstance(said, str) and said in TITLES else "lora"


def unfit(name: str, folder: Path, *, lacking: Sequence[str], wanted: str) -> str:
    """Says what is wrong with a folder that lacks files, and what to do, as the end of a sentence.

    Args:
        name: the folder as the user gave it.
        folder: the same as a path.
        lacking: names of the files that are not there.
        wanted: advice for a folder that is not recognised.
    """
    if not folder.exists():
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        return f"does not exist: {wanted}.{nearest(folder.name, siblings)}"
    return f"holds no {' and no '.join(lacking)}: {advice(name, folder, wanted=wanted)}"


def advice(name: str, folder: Path, *, wanted: str) -> str:
    """Says how to use a folder that does not fit an option, as the end of a sentence. Arguments are those of `unfit`."""
    name = shlex.quote(name)
    if is_thinker(folder):
        return f"it holds a thinker: use it as `--thinker {name}`."
    if _holds(folder.parent, _CONTEMPLATION) and _holds(folder, _ADAPTER):
        whole = shlex.quote(str(folder.parent))
        return f"it is a part of contemplation with its decoder: use the whole with `--method ccot --adapter {whole}`."
    if _holds(folder, _ADAPTER):
        return f"it is an adapter: use it with `--method {_method_of(folder)} --adapter {name}`."
    if _holds(folder, _CONTEMPLATION):
        return f"it is contemplation with its decoder: use it with `--method ccot --adapter {name}`."
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
