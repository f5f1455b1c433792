"""LoRA adapters in PEFT's form: found, checked, put on a backbone, and merged into its weights. Knows no questions.

Imports `peft` where it is needed, as that takes longer than a dry run.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from scaling.models.folders import unfit
from scaling.models.loading import LanguageModel, fingerprint_of
from scaling.models.model_files import find_folder, sha256
from scaling.prompts import PROMPT_VERSION
from scaling.records.errors import UsageError, one_line

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE, ABOUT_FILE = "adapter_config.json", "adapter_model.safetensors", "train.json"


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter on disk. name: as the user gave it. sha256: of its weights. about: its train.json, if it has one."""

    name: str
    folder: Path
    sha256: str
    about: dict[str, Any]


def find(name: str) -> AdapterFiles:
    """The adapter in a folder or under a Hub id. Raises UsageError where there is none."""
    folder = find_folder(name, option="--adapter", files=[CONFIG_FILE, WEIGHTS_FILE, ABOUT_FILE])
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]
    if missing:
        told = unfit(name, folder, lacking=missing, wanted="give the folder of an adapter")
        raise UsageError(f"`--adapter` {name} {told}")
    return AdapterFiles(name, folder, sha256(folder / WEIGHTS_FILE), read_about(folder))


def read_about(folder: Path) -> dict[str, Any]:
    """What a training wrote about itself beside what it made, empty where there is nothing. Raises UsageError."""
    path = folder / ABOUT_FILE
    try:
        about = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({one_line(error)}): restore it, or delete it.") from None
    if not isinstance(about, dict):
        raise UsageError(f"{path} is damaged, as it holds no settings: restore it, or delete it.")
    return about


def mismatches(found: AdapterFiles, backbone: LanguageModel) -> list[str]:
    """Why the adapter may not do what it was trained for, in plain words."""
    reasons = []
    trained_on = found.about.get("backbone_fingerprint")
    if trained_on and trained_on != backbone.fingerprint:
        reasons.append(
            f"the adapter {found.name} was trained with another backbone ({found.about.get('backbone')}) of these shapes"
        )
    version = found.about.get("prompt_version")
    if version and version != PROMPT_VERSION:
        reasons.append(
            f"the adapter {found.name} was trained on prompts of version {version}, and these are {PROMPT_VERSION}"
        )
    return reasons


def load(found: AdapterFiles, backbone: LanguageModel) -> PeftModel:
    """Puts the adapter on the backbone, whose model changes in place. Raises UsageError unless every tensor fits."""
    config, tensors = read(found)
    try:
        model = put_on(backbone, config)
        wrong = take(model, tensors)
    except Exception as error:  # of a hostile config `peft` raises anything
        raise UsageError(_unfit(found, backbone, one_line(error))) from None
    if wrong:
        raise UsageError(_unfit(found, backbone, f"{len(wrong)} tensors without their like, as {wrong[0]}"))
    return model


def read(found: AdapterFiles) -> tuple[LoraConfig, dict[str, Tensor]]:
    """The adapter's config and weights. Raises UsageError for a damaged one, and for one that is no LoRA adapter."""
    from peft import LoraConfig, PeftConfig

    file = CONFIG_FILE
    try:
        config = PeftConfig.from_pretrained(str(found.folder))
        file = WEIGHTS_FILE
        tensors = load_file(found.folder / WEIGHTS_FILE)
    except Exception as error:  # of a damaged config `peft` raises anything
        raise UsageError(
            f"`--adapter` {found.name} cannot be read: its {file} is damaged ({one_line(error)}): restore it, or give "
            f"another adapter."
        ) from None
    if not isinstance(config, LoraConfig):
        raise UsageError(
            f"`--adapter` {found.name} is of the kind {config.peft_type}, and `--method lora` takes LoRA only."
        )
    # before `peft` makes room for as many
    held = max((tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name), default=0)
    pattern = config.rank_pattern or {}
    ranks = [config.r, *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    wrong = [rank for rank in ranks if not (type(rank) is int and 0 < rank <= held)]
    if wrong:
        raise UsageError(
            f"`--adapter` {found.name} is damaged: its {CONFIG_FILE} says rank {wrong[0]!r}, and its weights have {held}: "
            f"restore it, or give another adapter."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UsageError(
            f"`--adapter` {found.name} holds weights that are not numbers (NaN or infinite): restore it, or give another "
            f"adapter."
        )
    return config, tensors


def put_on(backbone: LanguageModel, config: LoraConfig) -> PeftModel:
    """A new adapter on the backbone, in evaluation mode; the backbone's model changes in place."""
    from peft import get_peft_model

    with _quiet():
        model: PeftModel = get_peft_model(backbone.model, config)
    return model.eval()


def take(model: PeftModel, tensors: dict[str, Any]) -> list[str]:
    """Gives the adapter these tensors. Returns the names that only one of the two has."""
    from peft import set_peft_model_state_dict

    with _quiet():
        told: Any = set_peft_model_state_dict(model, tensors)
    return sorted([*told.unexpected_keys, *(name for name in told.missing_keys if "lora_" in name)])


def merged(model: PeftModel, backbone: LanguageModel) -> LanguageModel:
    """The backbone with the adapter in its weights, rounded to their type; `model` and `backbone` are used up."""
    with _quiet():
        whole = model.merge_and_unload(safe_merge=True)
    whole.eval().requires_grad_(False)
    return replace(backbone, model=whole, fingerprint=fingerprint_of(whole))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without peft's warnings: of what it does by itself, and of a property that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _unfit(found: AdapterFiles, backbone: LanguageModel, reason: str) -> str:
    made_for = f" It was made for {found.about['backbone']}." if found.about.get("backbone") else ""
    return (
        f"`--adapter` {found.name} does not fit `--backbone` {backbone.name} ({reason}): give the backbone that it was "
        f"trained with.{made_for}"
    )
