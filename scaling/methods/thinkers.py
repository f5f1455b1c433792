"""Finds the thinker of a run, reads it from disk, and checks it against the models and the settings.

A thinker is one of four things: the trained default of the bundled model, a checkpoint of `scale-train`, a file that the
papers' authors published, or a new one that was not trained. This module knows nothing of questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive import checkpoint
from contrastive.checkpoint import ThinkerConfig
from contrastive.thinker import Thinker
from scaling.config import DEFAULT_THINKER, UNTRAINED, RunConfig
from scaling.methods.kinds import kind_of
from scaling.models import model_files
from scaling.models.folders import unfit
from scaling.models.loading import LanguageModel, has_other_weights
from scaling.prompts import PROMPT_VERSION
from scaling.records.errors import UsageError, nearest

SOFT_TOKENS = 4  # soft tokens of a thought, as in the papers' evaluation
_TRAINED = Path(__file__).parents[1] / "trained"  # thinkers that come with the package


@dataclass(frozen=True, eq=False)
class SavedThinker:
    """A thinker that was read from disk.

    Attributes:
        thinker: the module with its learned tensors.
        config: its sizes, and what its training says of itself.
        sha256: checksum of the file of its tensors.
    """

    thinker: Thinker
    config: ThinkerConfig
    sha256: str


def find(config: RunConfig) -> SavedThinker | None:
    """Reads the thinker that a resolved config names; None for an untrained one. Raises UsageError if it cannot be used."""
    if config.thinker in (None, UNTRAINED):
        return None
    place = _place(config)
    try:
        if place.is_file():
            thinker, saved = checkpoint.import_published(place, prompt_version=PROMPT_VERSION, soft_tokens=SOFT_TOKENS)
            return SavedThinker(thinker, saved, model_files.sha256(place))
        thinker, saved = checkpoint.load(place)
    except checkpoint.CheckpointError as error:
        raise UsageError(f"`--thinker`: {error}: restore the file, or give another checkpoint.") from None
    return SavedThinker(thinker, saved, model_files.sha256(place / checkpoint.WEIGHTS_FILE))


def about(config: RunConfig) -> dict[str, Any] | None:
    """Reads what a thinker's training says of itself, without reading its weights; None for an untrained thinker.

    Raises UsageError where the thinker cannot be read.
    """
    if config.thinker in (None, UNTRAINED):
        return None
    place = _place(config)
    if place.is_file():
        return {checkpoint.IMPORTED: place.name}
    try:
        return checkpoint.read_config(place).about
    except checkpoint.CheckpointError as error:
        raise UsageError(f"`--thinker`: {error}.") from None


def _place(config: RunConfig) -> Path:
    """The folder or file of a trained thinker. Raises UsageError where something else is there, or nothing."""
    name = str(config.thinker)
    if name == DEFAULT_THINKER:
        return _TRAINED / ("softcot++" if kind_of(config.method).trains_paths else "softcot")
    place = model_files.find_folder(name, option="--thinker", files=[checkpoint.CONFIG_FILE, checkpoint.WEIGHTS_FILE])
    lacking = [file for file in (checkpoint.CONFIG_FILE, checkpoint.WEIGHTS_FILE) if not (place / file).is_file()]
    if lacking and not place.is_file():
        known = nearest(name, [UNTRAINED, DEFAULT_THINKER]) if not place.exists() else ""
        why = unfit(name, place, lacking=lacking, wanted="give the folder of a thinker that `scale-train` wrote")
        raise UsageError(f"`--thinker` {name} {why}{known}")
    return place


def with_checkpoint(config: RunConfig, saved: SavedThinker | None) -> RunConfig:
    """Fills in the number of soft tokens and of latent paths where the user has not set them.

    They come from the checkpoint. An untrained thinker has the papers' 4 soft tokens.

    Args:
        config: resolved settings.
        saved: the checkpoint, None for an untrained thinker.

    Raises:
        UsageError: the asked number of soft tokens does not fit the checkpoint.
    """
    if saved is None:
        return config.model_copy(update={"soft_tokens": config.soft_tokens or SOFT_TOKENS})
    trained = saved.config
    if config.soft_tokens and trained.vectors_per_path not in (1, config.soft_tokens):
        raise UsageError(
            f"`--soft-tokens` {config.soft_tokens} does not fit `--thinker` {config.thinker}, which was trained with one "
            f"vector for each of {trained.vectors_per_path} slots: leave the option out."
        )
    sizes = {"soft_tokens": trained.soft_tokens, "latent_paths": 8 if config.perturbed else trained.num_paths}
    return config.model_copy(update={key: getattr(config, key) or value for key, value in sizes.items()})


def make_thinker(
    config: RunConfig, saved: SavedThinker | None, backbone: LanguageModel, assistant: LanguageModel
) -> Thinker:
    """Makes the thinker that the run uses, on the device where it thinks.

    Args:
        config: settings with sizes and devices chosen.
        saved: the checkpoint, None for a new thinker that was not trained.
        backbone: the model that reads the thoughts.
        assistant: the model that makes them.

    Raises:
        UsageError: the checkpoint does not fit the models, or has fewer latent paths than asked for.
    """
    # perturbed paths are drawn around the thought of the first path, so that one suffices
    num_paths = 1 if config.perturbed else config.num_paths
    if saved is None:
        thinker = Thinker.untrained(
            assistant.rare_rows(),
            num_paths=num_paths,
            backbone_width=backbone.width,
            scale=backbone.embedding_scale(),
        )
        return thinker.to(config.thinking_device)
    check(config, saved, backbone, assistant)
    if has_no_token(saved):
        saved.thinker.token_sets.vectors.data = placeholder(assistant)[1][None, None]
    with_paths: Thinker = saved.thinker.first_paths(num_paths).requires_grad_(False).to(config.thinking_device)
    return with_paths


def check(config: RunConfig, saved: SavedThinker, backbone: LanguageModel, assistant: LanguageModel) -> None:
    """Raises UsageError unless the thinker fits the models and has as many paths as asked for.

    No weights of the models are read.
    """
    num_paths = 1 if config.perturbed else config.num_paths
    _check(config, saved.config, num_paths, {"assistant": assistant, "backbone": backbone})


def has_no_token(saved: SavedThinker | None) -> bool:
    """Whether a published thinker has no initial tokens of its own, as it was trained with placeholders in the slots."""
    return saved is not None and saved.config.about.get(checkpoint.EMBEDDED) is False


@torch.no_grad()
def placeholder(assistant: LanguageModel) -> tuple[str, Tensor]:
    """The token that fills the slots of a thinker without learned initial tokens.

    It is the tokenizer's unknown token. Byte-level vocabularies have none of their own; there it is the rarest token.

    Returns:
        The token's name for messages, and its input embedding, [D_a] float32 on the CPU.
    """
    tokenizer = assistant.tokenizer
    token = tokenizer.unk_token_id
    if token is None or token == tokenizer.eos_token_id:
        return "rarest token", assistant.rare_rows()[0]
    embed = assistant.model.get_input_embeddings()
    row: Tensor = embed(torch.tensor([token], device=assistant.model.device))[0]
    return str(tokenizer.unk_token), row.float().cpu()


def _check(config: RunConfig, saved: ThinkerConfig, num_paths: int, models: dict[str, LanguageModel]) -> None:
    """As `check`. models: backbone and assistant by those names."""
    for role, width in (("assistant", saved.assistant_width), ("backbone", saved.backbone_width)):
        model = models[role]
        if model.width != width:
            raise UsageError(
                f"`--thinker` {config.thinker} was trained with {role} width {width}, but `--{role}` {model.name} has "
                f"width {model.width}: give the {role} of the checkpoint, or another checkpoint."
            )
    if saved.num_paths < num_paths:
        raise UsageError(
            f"`--thinker` {config.thinker} holds {saved.num_paths} latent paths, fewer than `--latent-paths` {num_paths}: "
            f"ask for at most {saved.num_paths}, train a checkpoint with more, or take `--thinker {UNTRAINED}`."
        )
    if saved.prompt_version != PROMPT_VERSION:
        raise UsageError(
            f"`--thinker` {config.thinker} was trained on prompts of version {saved.prompt_version}, and this release has "
            f"version {PROMPT_VERSION}: train it again, or install the release it was made with."
        )


def mismatches(config: RunConfig, saved: SavedThinker, backbone: LanguageModel, assistant: LanguageModel) -> list[str]:
    """Warnings where backbone or assistant are not the models that the checkpoint was trained with."""
    about: dict[str, Any] = saved.config.about
    reasons = []
    for role, model in (("backbone", backbone), ("assistant", assistant)):
        if has_other_weights(model, role, about):
            reasons.append(
                f"the thinker {config.thinker} was trained with another {role} ({about.get(role)}) of this width"
            )
    return reasons
