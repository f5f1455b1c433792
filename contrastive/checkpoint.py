"""A thinker on disk: `config.json` and `thinker.safetensors`, never a frozen model, never a pickle. Strict on loading."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from contrastive.projection import new_projection
from contrastive.thinker import Thinker
from contrastive.token_sets import SoftTokenSets

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "thinker.safetensors", "README.md"
IMPORTED, EMBEDDED = "imported_from", "has_embedding"  # in `about` of a published file: its name, whether it has tokens
MOST_SOFT_TOKENS = 1 << 16  # more fill the context of any model


class Checkpoint(ModelHubMixin):
    """A thinker with its config, for the Hugging Face Hub: `from_pretrained`, `save_pretrained`, `push_to_hub`.

    The Hub's plain mixin and not its PyTorch one, as that one names the weights' file itself.
    """

    def __init__(self, thinker: Thinker, config: ThinkerConfig, *, files: dict[str, bytes] | None = None) -> None:
        """files: others that belong to it, such as the model card, by name."""
        self.thinker, self.thinker_config, self._files = thinker, config, files or {}

    def _save_pretrained(self, save_directory: Path) -> None:
        config = self.thinker_config
        save(
            self.thinker,
            save_directory,
            soft_tokens=config.soft_tokens,
            prompt_version=config.prompt_version,
            about=config.about,
        )
        for name, content in self._files.items():
            (save_directory / name).write_bytes(content)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Checkpoint:
        folder = Path(model_id)
        if not folder.is_dir():
            known = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            wanted = {key: options[key] for key in known if key in options}
            folder = Path(snapshot_download(model_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE], **wanted))
        card = folder / CARD_FILE
        return cls(*load(folder), files={CARD_FILE: card.read_bytes()} if card.is_file() else {})


class CheckpointError(Exception):
    """A checkpoint that cannot be used; the message says why, in the user's words."""


@dataclass(frozen=True)
class ThinkerConfig:
    """What a checkpoint says of itself.

    num_paths: N. soft_tokens: L it was trained with. vectors_per_path: K, 1 or L. normalise, standardise, path_offset: see
    `Thinker`. prompt_version: version of the prompts it was trained on. about: how it came to be, for people and for
    warnings: models with their fingerprints, task, losses, metrics.
    """

    num_paths: int
    soft_tokens: int
    assistant_width: int
    backbone_width: int
    vectors_per_path: int
    normalise: bool
    standardise: bool
    path_offset: bool
    prompt_version: str
    about: dict[str, Any]


def describe(thinker: Thinker, *, soft_tokens: int, prompt_version: str, about: dict[str, Any]) -> ThinkerConfig:
    """The config of a thinker, as its shapes are."""
    num_paths, per_path, assistant_width = thinker.token_sets.vectors.shape
    return ThinkerConfig(
        num_paths=num_paths,
        soft_tokens=soft_tokens,
        assistant_width=assistant_width,
        backbone_width=thinker.projection.out_features,
        vectors_per_path=per_path,
        normalise=thinker.normalise,
        standardise=thinker.statistics is not None,
        path_offset=thinker.offset is not None,
        prompt_version=prompt_version,
        about=about,
    )


def save(
    thinker: Thinker, folder: Path, *, soft_tokens: int, prompt_version: str, about: dict[str, Any] | None = None
) -> None:
    """Writes the thinker to `folder`. Each file replaces its predecessor in one step."""
    config = describe(thinker, soft_tokens=soft_tokens, prompt_version=prompt_version, about=about or {})
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in thinker.state_dict().items()}
    save_file(tensors, folder / f"{WEIGHTS_FILE}.tmp")
    (folder / f"{WEIGHTS_FILE}.tmp").replace(folder / WEIGHTS_FILE)
    (folder / f"{CONFIG_FILE}.tmp").write_text(json.dumps(asdict(config), indent=2) + "\n")
    (folder / f"{CONFIG_FILE}.tmp").replace(folder / CONFIG_FILE)


def read_config(folder: Path) -> ThinkerConfig:
    """The checkpoint's config. Raises CheckpointError where it is missing, broken, or not of our keys and types."""
    path = folder / CONFIG_FILE
    if not path.is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} holds no checkpoint: {CONFIG_FILE} and {WEIGHTS_FILE} are required")
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    known = {field.name for field in fields(ThinkerConfig)}
    if not isinstance(values, dict) or set(values) != known:
        different = sorted(set(values) ^ known) if isinstance(values, dict) else sorted(known)
        raise CheckpointError(f"{path} has missing or unknown keys: {', '.join(different)}")
    wrong = [name for name, value in values.items() if not _is_valid(ThinkerConfig.__annotations__[name], value)]
    if wrong:
        raise CheckpointError(f"{path} has values that make no sense: {', '.join(f'{n}={values[n]!r}' for n in wrong)}")
    config = ThinkerConfig(**values)
    # other sizes are those of tensors; this one would only be missed where thoughts are made
    per_slot = config.vectors_per_path > 1
    if config.soft_tokens != config.vectors_per_path if per_slot else config.soft_tokens > MOST_SOFT_TOKENS:
        most = f"as many as vectors_per_path={config.vectors_per_path}" if per_slot else f"at most {MOST_SOFT_TOKENS}"
        raise CheckpointError(f"{path} has soft_tokens={config.soft_tokens}, and there can be {most}")
    return config


def _is_valid(kind: str, value: object) -> bool:
    """Whether a JSON value is of the annotated type; numbers here are counts and start at one."""
    return type(value).__name__ == kind.split("[")[0] and (kind != "int" or (isinstance(value, int) and value > 0))


def load(folder: Path) -> tuple[Thinker, ThinkerConfig]:
    """The thinker in `folder`, float32 on the CPU. Raises CheckpointError unless every tensor fits the config."""
    config = read_config(folder)
    _check_sizes(folder, config)
    statistics = torch.zeros(2, config.num_paths, config.assistant_width) if config.standardise else None
    thinker = Thinker(
        SoftTokenSets(torch.zeros(config.num_paths, config.vectors_per_path, config.assistant_width)),
        new_projection(config.assistant_width, config.backbone_width, scale=1.0),
        normalise=config.normalise,
        statistics=statistics,
        offset=config.path_offset,
    )
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        thinker.load_state_dict(tensors, strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {error}") from None
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise CheckpointError(f"{folder / WEIGHTS_FILE} holds values that are not finite")
    return thinker, config


def _check_sizes(folder: Path, config: ThinkerConfig) -> None:
    """Compares the config with the shapes in the weights' header, so that nothing is allocated by what one of them claims.

    Raises CheckpointError.
    """
    path = folder / WEIGHTS_FILE
    paths, width, out = config.num_paths, config.assistant_width, config.backbone_width
    wanted = {
        "token_sets.vectors": [paths, config.vectors_per_path, width],
        "projection.weight": [out, width],
        "projection.bias": [out],
        **({"statistics": [2, paths, width]} if config.standardise else {}),
        **({"offset": [paths, 1, out]} if config.path_offset else {}),
    }
    try:
        with safe_open(path, framework="pt") as file:
            held = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    for name in sorted({*wanted, *held}):
        if wanted.get(name) != held.get(name):
            raise CheckpointError(
                f"{path} does not fit its {CONFIG_FILE}: {name} has shape {held.get(name, 'none')}, and by the config "
                f"{wanted.get(name, 'none')}"
            )


def import_published(path: Path, *, prompt_version: str, soft_tokens: int = 4) -> tuple[Thinker, ThinkerConfig]:
    """The thinker of a `projection.bin` as the papers' authors publish it: tensors weight [D, D_a], bias [D] and, where
    there are several paths, embedding [N, D_a]. Never runs what a pickle may contain. Raises CheckpointError.

    Without an embedding it was trained with the assistant's placeholder token in the slots, which is not in the file: the
    single path's initial token is then a zero vector that the caller replaces, and `about` says so under EMBEDDED.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    weight, bias, embedding = _published(path, tensors)
    thinker = Thinker(
        SoftTokenSets(embedding[:, None]), new_projection(weight.shape[1], weight.shape[0], scale=1.0), normalise=False
    )
    thinker.projection.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    about = {IMPORTED: path.name, EMBEDDED: "embedding" in tensors}
    return thinker, describe(thinker, soft_tokens=soft_tokens, prompt_version=prompt_version, about=about)


def _published(path: Path, tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    """weight, bias and embedding, checked against each other."""
    known = isinstance(tensors, dict) and {"weight", "bias"} <= set(tensors) <= {"weight", "bias", "embedding"}
    if not known or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        found = ", ".join(map(str, tensors)) if isinstance(tensors, dict) else type(tensors).__name__
        raise CheckpointError(f"{path} must hold the tensors weight, bias and perhaps embedding, and holds: {found}")
    if any(tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes() for tensor in tensors.values()):
        raise CheckpointError(f"{path} is damaged: a tensor claims more values than the file holds")
    weight, bias = tensors["weight"], tensors["bias"]
    embedding = tensors.get("embedding", weight.new_zeros(1, weight.shape[-1]))
    if (
        weight.ndim != 2
        or bias.shape != weight.shape[:1]
        or embedding.ndim != 2
        or embedding.shape[1] != weight.shape[1]
    ):
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise CheckpointError(f"{path} holds tensors that do not fit each other: {shapes}")
    return weight, bias, embedding
