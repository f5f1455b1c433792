"""Finds LoRA adapters in PEFT's format, checks them, attaches them to a backbone, and merges them into its weights.

`peft` is imported inside the functions that need it, because the import alone takes longer than a dry run.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from scaling.models.folders import unfit
from scaling.models.latent_tokens import add_tokens
from scaling.models.loading import LanguageModel, fingerprint_of, has_other_weights, load_tokenizer
from scaling.models.model_files import file_on_hub, find_folder
from scaling.prompts import PROMPT_VERSION
from scaling.records.errors import UsageError, counted, one_line
from scaling.records.files import sha256
from scaling.records.names import TITLES

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor

CONFIG_FILE, WEIGHTS_FILE, ABOUT_FILE = "adapter_config.json", "adapter_model.safetensors", "train.json"
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk.

    Attributes:
        name: as the user gave it.
        folder: the folder of its files.
        sha256: checksum of its weights file.
        about: what its training wrote about itself into train.json, empty where there is no such file.
    """

    name: str
    folder: Path
    sha256: str
    about: dict[str, Any]


def find(name: str) -> Adapter:
    """Finds the adapter in a folder or under a Hub id. Raises UsageError where there is none."""
    return in_folder(name, find_folder(name, option="--adapter", files=[CONFIG_FILE, WEIGHTS_FILE, ABOUT_FILE]))


def in_folder(name: str, folder: Path) -> Adapter:
    """The adapter in a folder. name: as the user gave it. Raises UsageError where there is none."""
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / file).is_file()]
    if missing:
        why = unfit(name, folder, lacking=missing, wanted="give the folder of an adapter")
        raise UsageError(f"`--adapter` {name} {why}")
    return Adapter(name, folder, sha256(folder / WEIGHTS_FILE), read_about(folder))


def about_of(name: str) -> dict[str, Any]:
    """What the training of `--adapter` wrote about itself, whatever its folder holds besides. Raises UsageError."""
    return read_about(find_folder(name, option="--adapter", files=[ABOUT_FILE]))


def about_of_model(name: str) -> dict[str, Any]:
    """What the training of a whole model wrote about itself, in its folder or beside it on the Hub; empty if it did not.

    Raises UsageError where the file is damaged. name: of the model, as the user gave it.
    """
    place = Path(name).expanduser()
    file = place / ABOUT_FILE if place.is_dir() else file_on_hub(name, ABOUT_FILE)
    return read_about(file.parent) if file else {}


def read_about(folder: Path) -> dict[str, Any]:
    """Reads what a training wrote about itself beside the adapter. Empty where there is no such file.

    Raises UsageError where the file is damaged.
    """
    path = folder / ABOUT_FILE
    try:
        about = json.loads(path.read_bytes()) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({one_line(error)}): restore it, or delete it.") from None
    if not isinstance(about, dict):
        raise UsageError(f"{path} is damaged, as it holds no settings: restore it, or delete it.")
    return about


def mismatches(adapter: Adapter, backbone: LanguageModel) -> list[str]:
    """Warnings where the adapter was trained with another backbone, or with prompts of another version."""
    differences = []
    if has_other_weights(backbone, "backbone", adapter.about):
        differences.append(
            f"the adapter {adapter.name} was trained with another backbone ({adapter.about.get('backbone')}) of these shapes"
        )
    version = adapter.about.get("prompt_version")
    if version and version != PROMPT_VERSION:
        differences.append(
            f"the adapter {adapter.name} was trained on prompts of version {version}, and these are {PROMPT_VERSION}"
        )
    return differences


def refuse_other_method(adapter: Adapter, method: str) -> None:
    """Raises UsageError for an adapter that `scale-train` trained for another method. method: by name."""
    trained = adapter.about.get("method")
    if isinstance(trained, str) and trained != method and trained in TITLES:
        raise UsageError(
            f"`--adapter` {adapter.name} was trained by `scale-train --method {trained}`, and `--method` is {method}: give "
            f"`--method {trained}`, or another adapter."
        )


def refuse_quantised(backbone: LanguageModel, *, method: str = "lora") -> None:
    """Raises UsageError for a quantised backbone: an adapter is merged into plain weights here. method: by name."""
    if how := backbone.quantisation:
        raise UsageError(
            f"`--method {method}` merges its adapter into the weights of the backbone, and those of `--backbone` "
            f"{backbone.name} are quantised ({how}): take the model that is not, or `--method softcot++`."
        )


def add_tokens_of(adapter: Adapter, backbone: LanguageModel, names: Sequence[str]) -> None:
    """Gives a backbone the tokens that an adapter was trained with. Its model and its tokenizer change in place.

    Rows that are new are zero: those that a training has learned come with the adapter.

    Args:
        adapter: the adapter. A tokenizer in its folder takes the place of the backbone's.
        backbone: the backbone.
        names: of tokens that are needed.

    Raises:
        UsageError: neither the backbone nor the adapter knows one of these tokens.
    """
    if (adapter.folder / TOKENIZER_FILE).is_file():
        backbone.tokenizer = load_tokenizer(str(adapter.folder), name=adapter.name)
    tokenizer, known = backbone.tokenizer, set(backbone.tokenizer.get_vocab())
    learned = read(adapter)[0].trainable_token_indices or []
    rows = {row for part in (learned.values() if isinstance(learned, dict) else [learned]) for row in part}
    for name, number in zip(names, add_tokens(tokenizer, names), strict=True):
        if name not in known and number not in rows:
            raise UsageError(
                f"`--adapter` {adapter.name} brings no embedding of the token `{name}`, which `--backbone` {backbone.name} "
                f"lacks: name others by `--latent-tokens`, or give the backbone that it was trained with."
            )
    before, needed = backbone.rows, 1 + max(tokenizer.added_tokens_decoder, default=-1)
    if needed > before:
        backbone.model.resize_token_embeddings(needed, mean_resizing=False)
        for layer in (backbone.model.get_input_embeddings(), backbone.model.get_output_embeddings()):
            if layer is not None:
                layer.weight.data[before:] = 0
        backbone.model.requires_grad_(False)


def load(adapter: Adapter, backbone: LanguageModel, *, name: str = "default") -> PeftModel:
    """Puts the adapter on the backbone, whose model changes in place. Raises UsageError unless every tensor fits.

    name: of the adapter on the backbone.
    """
    config, tensors = read(adapter)
    try:
        model = attach(backbone, config, name=name)
        unmatched = set_weights(model, tensors, name=name)
    except Exception as error:  # of a hostile config `peft` raises anything
        raise UsageError(_unfit(adapter, backbone, one_line(error))) from None
    if unmatched:
        raise UsageError(
            _unfit(adapter, backbone, f"{counted(len(unmatched), 'tensor')} without their like, as {unmatched[0]}")
        )
    return model


def read(adapter: Adapter) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Reads the adapter's config and weights. Raises UsageError where it is damaged, or is no LoRA adapter."""
    from peft import LoraConfig, PeftConfig

    file = CONFIG_FILE
    try:
        config = PeftConfig.from_pretrained(str(adapter.folder))
        file = WEIGHTS_FILE
        tensors = load_file(adapter.folder / WEIGHTS_FILE)
    except Exception as error:  # of a damaged config `peft` raises anything
        raise UsageError(
            f"`--adapter` {adapter.name} cannot be read: its {file} is damaged ({one_line(error)}): restore it, or give "
            f"another adapter."
        ) from None
    if not isinstance(config, LoraConfig):
        raise UsageError(
            f"`--adapter` {adapter.name} is of the kind {config.peft_type}, and the toolkit takes LoRA only."
        )
    # checked here, because `peft` would allocate memory for whatever rank a damaged config says
    rank_of_weights = max((tensor.shape[0] for name, tensor in tensors.items() if "lora_A" in name), default=0)
    pattern = config.rank_pattern or {}
    ranks = [config.r, *(pattern.values() if isinstance(pattern, dict) else [pattern])]
    wrong = [rank for rank in ranks if not (type(rank) is int and 0 < rank <= rank_of_weights)]
    if wrong:
        raise UsageError(
            f"`--adapter` {adapter.name} is damaged: its {CONFIG_FILE} says rank {wrong[0]!r}, and its weights have "
            f"{rank_of_weights}: restore it, or give another adapter."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise UsageError(
            f"`--adapter` {adapter.name} holds weights that are not numbers (NaN or infinite): restore it, or give another "
            f"adapter."
        )
    return config, tensors


def attach(backbone: LanguageModel, config: LoraConfig, *, name: str = "default") -> PeftModel:
    """Puts a new adapter on the backbone, in evaluation mode. The backbone's model changes in place. name: the adapter's."""
    from peft import get_peft_model

    with _quiet():
        model: PeftModel = get_peft_model(backbone.model, config, adapter_name=name)
    return model.eval()


def attach_another(model: PeftModel, config: LoraConfig, *, name: str) -> None:
    """Puts one more adapter on a backbone that has one, in place. name: the new adapter's."""
    with _quiet():
        model.add_adapter(name, config)
    model.eval()


def set_weights(model: PeftModel, tensors: dict[str, Any], *, name: str = "default") -> list[str]:
    """Copies tensors into an adapter that is on a backbone.

    Args:
        model: the backbone with the adapter.
        tensors: the adapter's weights by name, as PEFT saves them.
        name: of the adapter.

    Returns:
        The names that only the tensors or only the adapter have; empty where all fit.
    """
    from peft import set_peft_model_state_dict

    with _quiet():
        outcome: Any = set_peft_model_state_dict(model, tensors, adapter_name=name)
    return sorted([*outcome.unexpected_keys, *(name for name in outcome.missing_keys if "lora_" in name)])


def merged(model: PeftModel, backbone: LanguageModel) -> LanguageModel:
    """Merges an adapter into the weights of its backbone. Sums are rounded to the weights' dtype.

    Args:
        model: the backbone with the adapter on it. It cannot be used any more afterwards.
        backbone: the backbone, whose name and tokenizer are kept. It cannot be used any more either.

    Raises:
        UsageError: an adapter of this kind cannot be merged, or the merged weights are NaN.
    """
    with _quiet():
        try:
            whole = model.merge_and_unload(safe_merge=True)
        except (NotImplementedError, ValueError) as error:
            raise UsageError(
                f"an adapter is merged into the backbone, and this one cannot be ({one_line(error)}): "
                f"give another adapter."
            ) from None
    whole.eval().requires_grad_(False)
    return replace(backbone, model=whole, fingerprint=fingerprint_of(whole))


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides peft's warnings: they are about what it does by itself, and about a property that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _unfit(adapter: Adapter, backbone: LanguageModel, reason: str) -> str:
    made_for = f" It was made for {adapter.about['backbone']}." if adapter.about.get("backbone") else ""
    return (
        f"`--adapter` {adapter.name} does not fit `--backbone` {backbone.name} ({reason}): give the backbone that it was "
        f"trained with.{made_for}"
    )
