"""Saves a thinker to a folder and loads it again.

The folder holds `config.json` and `thinker.safetensors`. It never holds a frozen model, and nothing in it is a pickle.
Loading is strict: a file that does not fit the other one exactly is refused.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from contrastive.assistant_thinker import AssistantThinker
from contrastive.projection import new_projection
from contrastive.prompt_tuning import PromptTuning
from contrastive.proposer import Proposer, Refiner
from contrastive.thinker import Thinker
from contrastive.token_sets import SoftTokenSets

CONFIG_FILE, WEIGHTS_FILE, CARD_FILE = "config.json", "thinker.safetensors", "README.md"
# keys of `about` for a thinker imported from a published file: the file's name, and whether it held initial tokens
IMPORTED, EMBEDDED = "imported_from", "has_embedding"
MOST_SOFT_TOKENS = 1 << 16  # more than that would fill the context of any model
THINKERS: dict[str, type[Thinker]] = {
    thinker.kind: thinker for thinker in (AssistantThinker, PromptTuning, Proposer, Refiner)
}
_KIND = "kind"
_COMMON = {"num_paths": "int", "soft_tokens": "int", "backbone_width": "int", "prompt_version": "str", "about": "dict"}


class Checkpoint(ModelHubMixin):
    """A thinker with its config, for the Hugging Face Hub: `from_pretrained`, `save_pretrained`, `push_to_hub`.

    It is built on the Hub's plain mixin. The Hub's PyTorch mixin would choose the name of the weights' file itself.
    """

    def __init__(self, thinker: Thinker, config: ThinkerConfig, *, files: dict[str, bytes] | None = None) -> None:
        """Joins a thinker and its config.

        Args:
            thinker: the thinker.
            config: what `describe` says of it.
            files: other files to save beside it, such as the model card; their content by name.
        """
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
            # the mixin passes on more options than `snapshot_download` takes
            download_options = {key: options[key] for key in known if key in options}
            folder = Path(
                snapshot_download(model_id, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE, CARD_FILE], **download_options)
            )
        card = folder / CARD_FILE
        return cls(*load(folder), files={CARD_FILE: card.read_bytes()} if card.is_file() else {})


class CheckpointError(Exception):
    """A checkpoint that cannot be used. The message tells the user why."""


@dataclass(frozen=True)
class ThinkerConfig:
    """The content of a checkpoint's `config.json`.

    Attributes:
        num_paths: N, the latent paths.
        soft_tokens: L, the soft tokens that it was trained with.
        backbone_width: D, the width of the backbone's embeddings.
        vectors_per_path: K, learned vectors of each path: 1 for any number of soft tokens, else L.
        prompt_version: version of the prompts that it was trained with.
        about: how it was made, for readers and for warnings: models and their fingerprints, task, losses, metrics.
        kind: of the thinker; the file has it only where it is not the first one of THINKERS.
        sizes: what only this kind has, see `Thinker.sizes`.
    """

    num_paths: int
    soft_tokens: int
    backbone_width: int
    vectors_per_path: int
    prompt_version: str
    about: dict[str, Any]
    kind: str = AssistantThinker.kind
    sizes: dict[str, Any] = field(default_factory=dict)

    @property
    def assistant_width(self) -> int | None:
        """D_a, the width of the assistant's hidden states; None for a thinker without an assistant."""
        return self.sizes.get("assistant_width")

    def to_dict(self) -> dict[str, Any]:
        """The content of the file."""
        kind = {} if self.kind == AssistantThinker.kind else {_KIND: self.kind}
        common = {"num_paths": self.num_paths, "soft_tokens": self.soft_tokens, "backbone_width": self.backbone_width}
        return {**kind, **common, **self.sizes, "prompt_version": self.prompt_version, "about": self.about}


def describe(thinker: Thinker, *, soft_tokens: int, prompt_version: str, about: dict[str, Any]) -> ThinkerConfig:
    """Makes the config of a thinker from the shapes of its tensors. The arguments are those of `ThinkerConfig`."""
    return ThinkerConfig(
        num_paths=thinker.num_paths,
        soft_tokens=soft_tokens,
        backbone_width=thinker.width,
        vectors_per_path=thinker.vectors_per_path,
        prompt_version=prompt_version,
        about=about,
        kind=thinker.kind,
        sizes=thinker.sizes(),
    )


def save(
    thinker: Thinker, folder: Path, *, soft_tokens: int, prompt_version: str, about: dict[str, Any] | None = None
) -> None:
    """Writes a thinker to a folder, which is created where it is missing.

    Each file replaces the one before it in one step, so that an interruption never leaves half a file.

    Args:
        thinker: what is saved.
        folder: where it is saved.
        soft_tokens: L, the soft tokens that it was trained with.
        prompt_version: version of the prompts that it was trained with.
        about: how it was made, see `ThinkerConfig`.
    """
    config = describe(thinker, soft_tokens=soft_tokens, prompt_version=prompt_version, about=about or {})
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in thinker.state_dict().items()}
    save_file(tensors, folder / f"{WEIGHTS_FILE}.tmp")
    (folder / f"{WEIGHTS_FILE}.tmp").replace(folder / WEIGHTS_FILE)
    (folder / f"{CONFIG_FILE}.tmp").write_text(json.dumps(config.to_dict(), indent=2) + "\n")
    (folder / f"{CONFIG_FILE}.tmp").replace(folder / CONFIG_FILE)


def read_config(folder: Path) -> ThinkerConfig:
    """Reads a checkpoint's config. Raises CheckpointError where it is missing or damaged, or has other keys or types."""
    path = folder / CONFIG_FILE
    if not path.is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise CheckpointError(f"{folder} holds no checkpoint: {CONFIG_FILE} and {WEIGHTS_FILE} are required")
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} has missing or unknown keys: {', '.join(_COMMON)}")
    kind = values.pop(_KIND, AssistantThinker.kind)
    if not isinstance(kind, str) or kind not in THINKERS:
        raise CheckpointError(f"{path} is of a kind that this release does not know: {_KIND}={kind!r}")
    own = _own_sizes(kind)
    required = {*_COMMON, *(name for name, size in own.items() if size.default is Parameter.empty)}
    different = sorted((required - set(values)) | (set(values) - {*_COMMON, *own}))
    if different:
        raise CheckpointError(f"{path} has missing or unknown keys: {', '.join(different)}")
    types = {**_COMMON, **{name: str(size.annotation) for name, size in own.items()}}
    wrong = [name for name, value in values.items() if not _is_valid(types[name], value)]
    if wrong:
        raise CheckpointError(f"{path} has values that make no sense: {', '.join(f'{n}={values[n]!r}' for n in wrong)}")
    config = _config_of(kind, values)
    # The other sizes are compared with the tensors' shapes. No tensor has L in its shape unless K = L, so that a wrong
    # value would only be noticed when thoughts are computed.
    per_slot = config.vectors_per_path > 1
    if config.soft_tokens != config.vectors_per_path if per_slot else config.soft_tokens > MOST_SOFT_TOKENS:
        most = f"as many as vectors_per_path={config.vectors_per_path}" if per_slot else f"at most {MOST_SOFT_TOKENS}"
        raise CheckpointError(f"{path} has soft_tokens={config.soft_tokens}, and there can be {most}")
    return config


def _own_sizes(kind: str) -> dict[str, Parameter]:
    """The sizes that only this kind of thinker has, as the parameters of its `shapes`."""
    parameters = signature(THINKERS[kind].shapes).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in _COMMON}


def _config_of(kind: str, values: dict[str, Any]) -> ThinkerConfig:
    """The config that these checked values are of."""
    own = {name: values[name] for name in _own_sizes(kind) if name in values}
    common = {name: values[name] for name in _COMMON}
    vectors = own.get("vectors_per_path", common["soft_tokens"])
    return ThinkerConfig(**common, vectors_per_path=vectors, kind=kind, sizes=own)


def _is_valid(kind: str, value: object) -> bool:
    """Whether a JSON value has the annotated type. An `int` is a count, so that it starts at one."""
    if kind.endswith("| None"):
        return value is None or type(value).__name__ == kind.split()[0]
    return type(value).__name__ == kind and (kind != "int" or (isinstance(value, int) and value > 0))


def load(folder: Path) -> tuple[Thinker, ThinkerConfig]:
    """Loads the thinker in `folder`, float32 on the CPU. Raises CheckpointError unless every tensor fits the config."""
    config = read_config(folder)
    _check_sizes(folder, config)
    thinker = THINKERS[config.kind].empty(config.num_paths, config.soft_tokens, config.backbone_width, **config.sizes)
    try:
        tensors = load_file(folder / WEIGHTS_FILE)
        thinker.load_state_dict(tensors, strict=True)
    except (RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS_FILE} does not fit its {CONFIG_FILE}: {error}") from None
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise CheckpointError(f"{folder / WEIGHTS_FILE} holds values that are not finite")
    return thinker, config


def _check_sizes(folder: Path, config: ThinkerConfig) -> None:
    """Compares the config with the shapes in the header of the weights' file.

    This comes before any tensor is made: a damaged file may claim sizes that no memory can hold. Raises CheckpointError.
    """
    path = folder / WEIGHTS_FILE
    try:
        expected_shapes = THINKERS[config.kind].shapes(
            config.num_paths, config.soft_tokens, config.backbone_width, **config.sizes
        )
    except ValueError as error:
        raise CheckpointError(f"{folder / CONFIG_FILE} has values that make no sense: {error}") from None
    try:
        with safe_open(path, framework="pt") as file:
            stored_shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    for name in sorted({*expected_shapes, *stored_shapes}):
        if expected_shapes.get(name) != stored_shapes.get(name):
            raise CheckpointError(
                f"{path} does not fit its {CONFIG_FILE}: {name} has shape {stored_shapes.get(name, 'none')}, "
                f"and by the config {expected_shapes.get(name, 'none')}"
            )


def import_published(
    path: Path, *, prompt_version: str, soft_tokens: int = 4
) -> tuple[AssistantThinker, ThinkerConfig]:
    """Imports a thinker from a `projection.bin` as the papers' authors publish it.

    The file holds the tensors weight [D, D_a], bias [D] and, where there are several paths, embedding [N, D_a]. It is read
    without running any code that a pickle may contain.

    A file without an embedding was trained with the assistant's placeholder token in the slots, and that token is not in
    the file. The initial token of its single path is then a zero vector, which the caller has to replace; `about` says
    under EMBEDDED whether there was an embedding.

    Args:
        path: the file.
        prompt_version: version of the prompts that the thinker will be used with.
        soft_tokens: L, which the file does not say.

    Raises:
        CheckpointError: for a file that cannot be read, or holds other tensors.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    weight, bias, embedding = _published(path, tensors)
    thinker = AssistantThinker(
        SoftTokenSets(embedding[:, None]), new_projection(weight.shape[1], weight.shape[0], scale=1.0), normalise=False
    )
    thinker.projection.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    about = {IMPORTED: path.name, EMBEDDED: "embedding" in tensors}
    return thinker, describe(thinker, soft_tokens=soft_tokens, prompt_version=prompt_version, about=about)


def _published(path: Path, tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Weight [D, D_a], bias [D] and embedding [N, D_a] of a published file; zeros [1, D_a] where it has no embedding.

    Raises CheckpointError where they do not fit each other.
    """
    known = isinstance(tensors, dict) and {"weight", "bias"} <= set(tensors) <= {"weight", "bias", "embedding"}
    if not known or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        content = ", ".join(map(str, tensors)) if isinstance(tensors, dict) else type(tensors).__name__
        raise CheckpointError(f"{path} must hold the tensors weight, bias and perhaps embedding, and holds: {content}")
    # a damaged file can describe a large tensor over a small storage: reading it would take all memory
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
