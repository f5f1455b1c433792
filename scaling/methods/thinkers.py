"""Finds the thinker of a run, reads it from disk, and checks it against the models and the settings.

A thinker comes from one of four places: the trained default of the bundled model, a checkpoint of `scale-train`, a file that
the papers' authors published, or a new one that was not trained. This module knows nothing of questions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from contrastive import checkpoint
from contrastive.assistant_thinker import AssistantThinker
from contrastive.checkpoint import ThinkerConfig
from contrastive.prompt_tuning import PromptTuning
from contrastive.proposer import ROUNDS, Proposer, Refiner
from contrastive.thinker import Thinker
from scaling.config import DEFAULT_THINKER, UNTRAINED, RunConfig
from scaling.methods.kinds import Trait, kind_of
from scaling.models import model_files
from scaling.models.folders import unfit
from scaling.models.loading import LanguageModel, has_other_weights
from scaling.models.shapes import layers_of
from scaling.prompts import PROMPT_VERSION
from scaling.records.errors import UsageError, nearest
from scaling.records.files import sha256

SOFT_TOKENS = 4  # soft tokens of a thought, as in the papers' evaluation
_OWN: dict[str, type[PromptTuning] | type[Proposer]] = {  # kinds of thinkers without an assistant
    thinker.kind: thinker for thinker in (PromptTuning, Proposer, Refiner)
}
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
            published = checkpoint.import_published(place, prompt_version=PROMPT_VERSION, soft_tokens=SOFT_TOKENS)
            _refuse_other_kind(config, published[1].kind)
            return SavedThinker(*published, sha256(place))
        thinker, saved = checkpoint.load(place)
    except checkpoint.CheckpointError as error:
        raise UsageError(f"`--thinker`: {error}: restore the file, or give another checkpoint.") from None
    _refuse_other_kind(config, saved.kind)
    return SavedThinker(thinker, saved, sha256(place / checkpoint.WEIGHTS_FILE))


def constants(folder: Path, backbone: LanguageModel, num_paths: int, soft_tokens: int) -> PromptTuning:
    """Reads the learned constants of the first N paths from a checkpoint of `scale-train --method prompt-tuning`.

    Args:
        folder: of the checkpoint.
        backbone: the model that is to read them.
        num_paths: N.
        soft_tokens: L.

    Raises:
        UsageError: where there are none, not as many, or those of another backbone.
    """
    advice = "give the folder of a `scale-train --method prompt-tuning` with the same backbone and soft tokens"
    try:
        thinker, saved = checkpoint.load(folder)
    except checkpoint.CheckpointError as error:
        raise UsageError(f"`--constant`: {error}: {advice}.") from None
    if not isinstance(thinker, PromptTuning):
        raise UsageError(f"`--constant` {folder} is a thinker of the kind {saved.kind}: {advice}.")
    if has_other_weights(backbone, "backbone", saved.about):
        raise UsageError(
            f"`--constant` {folder} was trained with another backbone ({saved.about.get('backbone')}) than `--backbone` "
            f"{backbone.name}, to which its constants mean nothing: {advice}."
        )
    if (thinker.width, saved.soft_tokens) != (backbone.width, soft_tokens) or thinker.num_paths < num_paths:
        raise UsageError(
            f"`--constant` {folder} has {thinker.num_paths} paths of {saved.soft_tokens} soft tokens of width "
            f"{thinker.width}, and {num_paths} of {soft_tokens} of width {backbone.width} are needed: {advice}."
        )
    return thinker.first_paths(num_paths).to(backbone.model.device)


def about_constants(folder: Path) -> dict[str, Any]:
    """What the training of a checkpoint of `--constant` says of itself. Raises UsageError where it cannot be read."""
    try:
        return checkpoint.read_config(folder).about
    except checkpoint.CheckpointError as error:
        raise UsageError(f"`--constant`: {error}: restore the file, or give another checkpoint.") from None


def _refuse_other_kind(config: RunConfig, kind: str) -> None:
    """Raises UsageError for a thinker that another method was trained with. kind: that of the checkpoint."""
    needed = kind_of(config.method).trained_as
    if kind != needed:
        raise UsageError(
            f"`--thinker` {config.thinker} was trained by `scale-train --method {kind}`, and `--method {config.method}` "
            f"needs one of `scale-train --method {needed}`: give another checkpoint, or `--method {kind}`."
        )


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
    """Fills in the numbers of soft tokens, of latent paths and of rounds of refinement where the user has not set them.

    They come from the checkpoint. An untrained thinker has the papers' 4 soft tokens.

    Args:
        config: resolved settings.
        saved: the checkpoint, None for an untrained thinker.

    Raises:
        UsageError: the asked number of soft tokens does not fit the checkpoint.
    """
    rounds = saved.config.sizes.get("refine_steps") if saved else ROUNDS
    if kind_of(config.method).has(Trait.REFINED) and config.refine_steps is None:
        config = config.model_copy(update={"refine_steps": rounds})
    if saved is None:
        return config.model_copy(update={"soft_tokens": config.soft_tokens or SOFT_TOKENS})
    trained = saved.config
    of_slots = ("computed_slots", "constants_per_path")  # sizes of thinkers that were made for a number of slots
    of_any_number = trained.vectors_per_path == 1 and not any(map(trained.sizes.get, of_slots))
    if config.soft_tokens and not of_any_number and config.soft_tokens != trained.soft_tokens:
        raise UsageError(
            f"`--soft-tokens` {config.soft_tokens} does not fit `--thinker` {config.thinker}, which was trained with one "
            f"vector for each of {trained.soft_tokens} slots: leave the option out."
        )
    sizes = {"soft_tokens": trained.soft_tokens, "latent_paths": 8 if config.perturbed else trained.num_paths}
    return config.model_copy(update={key: getattr(config, key) or value for key, value in sizes.items()})


def make_thinker(
    config: RunConfig, saved: SavedThinker | None, backbone: LanguageModel, assistant: LanguageModel | None
) -> Thinker:
    """Makes the thinker that the run uses, on the device where it thinks.

    Args:
        config: settings with sizes and devices chosen.
        saved: the checkpoint, None for a new thinker that was not trained.
        backbone: the model that reads the thoughts.
        assistant: the model that makes them; None for a thinker without one.

    Raises:
        UsageError: the checkpoint does not fit the models, or has fewer latent paths than asked for.
    """
    # perturbed paths are drawn around the thought of the first path, so that one suffices
    num_paths = 1 if config.perturbed else config.num_paths
    if saved is None:
        thinker = untrained(config.method, backbone, assistant, num_paths=num_paths, num_slots=config.num_slots)
        return thinker.with_steps(config.refine_steps).to(config.thinking_device)
    check(config, saved, backbone, assistant)
    if has_no_token(saved) and assistant and isinstance(saved.thinker, AssistantThinker):
        saved.thinker.token_sets.vectors.data = placeholder(assistant)[1][None, None]
    with_paths = saved.thinker.first_paths(num_paths).with_steps(config.refine_steps)
    return with_paths.requires_grad_(False).to(config.thinking_device)


def untrained(
    method: str, backbone: LanguageModel, assistant: LanguageModel | None, *, num_paths: int, num_slots: int
) -> Thinker:
    """Makes the thinker of a method before any training.

    Args:
        method: by name.
        backbone: gives the scale and the width of thoughts.
        assistant: the model that makes them; None for a thinker without one.
        num_paths: N.
        num_slots: L.
    """
    scale = backbone.embedding_scale()
    if assistant:
        rows = assistant.rare_rows()
        return AssistantThinker.untrained(rows, num_paths=num_paths, backbone_width=backbone.width, scale=scale)
    kind = _OWN[str(kind_of(method).trained_as)]
    return kind.untrained(backbone.rare_rows(), num_paths=num_paths, num_slots=num_slots, scale=scale)


def check(config: RunConfig, saved: SavedThinker, backbone: LanguageModel, assistant: LanguageModel | None) -> None:
    """Raises UsageError unless the thinker fits the models and has as many paths as asked for.

    No weights of the models are read.
    """
    num_paths = 1 if config.perturbed else config.num_paths
    models = {"backbone": backbone, **({"assistant": assistant} if assistant else {})}
    _check(config, saved.config, num_paths, models)


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
    widths = {"assistant": saved.assistant_width, "backbone": saved.backbone_width}
    for role, model in models.items():
        width = widths[role]
        if model.width != width:
            raise UsageError(
                f"`--thinker` {config.thinker} was trained with {role} width {width}, but `--{role}` {model.name} has "
                f"width {model.width}: give the {role} of the checkpoint, or another checkpoint."
            )
    if "assistant" in models and (layer := saved.sizes.get("layer")):
        refuse_unknown_layer(layer, models["assistant"], option="--thinker")
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


def refuse_unknown_layer(layer: int, assistant: LanguageModel, *, option: str) -> None:
    """Raises UsageError for a layer that the assistant does not have. option: the one that names the layer."""
    count = layers_of(assistant.model.config)
    if not 1 <= abs(layer) <= count:
        raise UsageError(
            f"`{option}` is layer {layer}, and the assistant {assistant.name} has {count} layers: give 1 to {count}, "
            f"or -1 to -{count} from the last."
        )


def mismatches(
    config: RunConfig, saved: SavedThinker, backbone: LanguageModel, assistant: LanguageModel | None
) -> list[str]:
    """Warnings where backbone or assistant are not the models that the checkpoint was trained with."""
    about: dict[str, Any] = saved.config.about
    reasons = []
    for role, model in (("backbone", backbone), ("assistant", assistant)):
        if model and has_other_weights(model, role, about):
            reasons.append(
                f"the thinker {config.thinker} was trained with another {role} ({about.get(role)}) of this width"
            )
    return reasons
