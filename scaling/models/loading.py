"""Loads backbones and assistants, and tells their properties: width, context, costs, fingerprint.

Code that comes with a model is never run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from contrastive.windows import setting
from scaling.models import model_files
from scaling.models.model_files import locate, not_fetched, quiet, why_incomplete, with_revision
from scaling.models.quantised import Quantisation, quantisation_of, refuse_unloadable
from scaling.models.shapes import (
    attention_layers_of,
    context_of,
    experts_per_token_of,
    head_width_of,
    heads_of,
    kv_bytes_of,
)
from scaling.models.usable import why_not_usable
from scaling.records.costs import ModelCosts
from scaling.records.errors import UsageError, one_line, out_of_memory
from scaling.records.journal import UNREAD

_RARE_ROWS = 1024  # most tokens that `rare_rows` returns
_NOT_OF_ONE_MODEL = "they are not of one model; fetch or copy the tokenizer's files again."
# families that also see and have no class for text alone; without a picture they are causal models as others are
FAMILIES_THAT_SEE = frozenset(
    (
        *("aya_vision", "idefics3", "internvl", "llava", "llava_next", "llava_onevision", "mistral3"),
        *("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "smolvlm"),
    )
)
# keys of a config that do not change what the model computes
_COMPUTES_NOTHING = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


@dataclass(eq=False)
class LanguageModel:
    """A frozen causal language model with its tokenizer.

    Attributes:
        name: as the user gave it.
        fingerprint: 12 hex digits over the weights, to tell two models apart; the same in every version of transformers.
        model: the network, in evaluation mode.
        tokenizer: from the same source as the model.
        quantisation: how its weights are published; None where they are not quantised.
    """

    name: str
    fingerprint: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    quantisation: Quantisation | None = None

    def identity(self, role: str) -> dict[str, Any]:
        """What run.json says of the model. role: `backbone` or `assistant`."""
        quantised = {f"{role}_quantization": self.quantisation.to_dict()} if self.quantisation else {}
        return {f"{role}_fingerprint": self.fingerprint, **quantised}

    @cached_property
    def computes(self) -> str:
        """A text that two models share only if they compute the same, apart from rounding: it is made of weights and config.

        It is for the names of caches alone, as it changes where another version of transformers knows more settings.
        """
        return f"{self.fingerprint}-{_architecture(self.model.config)}"

    @property
    def width(self) -> int:
        """D, the length of an input embedding. The hidden states of the layers may be longer."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def context(self) -> int:
        """Longest sequence the model takes, in tokens."""
        return context_of(self.model.config)

    @cached_property
    def end_tokens(self) -> tuple[int, ...]:
        """Ids of the tokens that end a completion, from the generation config and from the tokenizer."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = set(configured if isinstance(configured, list) else [configured]) | {self.tokenizer.eos_token_id}
        return tuple(sorted(i for i in ids if i is not None))

    @torch.no_grad()
    def embedding_scale(self) -> float:
        """Root mean square of the input embeddings as the first layer receives them."""
        ids = torch.arange(min(4096, self._vocabulary), device=self.model.device)
        return float(self.model.get_input_embeddings()(ids).float().pow(2).mean().sqrt())

    @torch.no_grad()
    def rare_rows(self) -> Tensor:
        """The input embeddings of rarely used tokens, rarest first, [up to 1024, D] float32 on the CPU.

        Byte-pair and unigram vocabularies are numbered by falling frequency, so the last rows are the rarest. Special
        tokens are left out, and so are the padding rows beyond the tokenizer, which were never trained.
        """
        special = set(self.tokenizer.all_special_ids)
        ids = [i for i in range(self._vocabulary - 1, -1, -1) if i not in special][:_RARE_ROWS]
        rows: Tensor = self.model.get_input_embeddings()(torch.tensor(ids, device=self.model.device))
        return rows.float().cpu()

    @torch.no_grad()
    def embeddings(self) -> Tensor:
        """The input embedding of every token of the tokenizer, as the first layer receives it, [V, D] float32 on the CPU."""
        ids = torch.arange(self._vocabulary, device=self.model.device)
        rows: Tensor = self.model.get_input_embeddings()(ids)
        return rows.float().cpu()

    @cached_property
    def costs(self) -> ModelCosts:
        """FLOPs and bytes that a token costs, computed from the shapes of the weights.

        Every matrix counts as used by every token. Of experts only as many count as a token goes through.
        """
        config, plain = self.model.config, self._plain()
        head = getattr(plain.get_output_embeddings(), "weight", None)
        window = setting(config.get_text_config(), "sliding_window") or 0
        chunk = setting(config.get_text_config(), "attention_chunk_size") or 0
        seen = {"sliding_attention": window, "chunked_attention": chunk}
        return ModelCosts(
            layers=2 * _products(plain),
            head=2 * head.numel() if head is not None else 0,
            attention=4 * heads_of(config) * head_width_of(config),
            windows=tuple(seen.get(kind, 0) for kind in attention_layers_of(config)),
            kv_bytes=kv_bytes_of(config, self.model.dtype.itemsize),
        )

    def _plain(self) -> PreTrainedModel:
        """A model whose weights have their mathematical shapes. Packed weights do not: a model without values then has."""
        return _shapes_of(self.model.config, self.model.dtype) if self.quantisation else self.model

    def refuse_unknown(self, ids: Sequence[int]) -> None:
        """Raises UsageError where a text has a token for which the model has no embedding.

        A tokenizer may have such tokens: they do no harm as long as no text uses them.
        """
        number = max(ids, default=0)
        if number >= self.rows:
            raise UsageError(
                f"`{self.name}` has a tokenizer whose token `{self.tokenizer.convert_ids_to_tokens(number)}` is number "
                f"{number}, and a model that knows {self.rows}: {_NOT_OF_ONE_MODEL}"
            )

    @property
    def rows(self) -> int:
        """How many tokens have an input embedding."""
        return int(self.model.get_input_embeddings().weight.shape[0])

    @property
    def _vocabulary(self) -> int:
        """How many tokens both the tokenizer and the model know. Added tokens are not counted."""
        return min(int(self.tokenizer.vocab_size), self.rows)


def _products(model: PreTrainedModel) -> int:
    """Multiplications of one token with the weights of all layers.

    Attention scores, embeddings and the output head are not included.
    """
    embeddings = (model.get_output_embeddings(), model.get_input_embeddings())
    excluded = {id(layer.weight) for layer in embeddings if layer is not None}
    layers = model.get_decoder()  # the part that reads text, without what reads pictures and sound
    weights = (
        module.weight
        for module in layers.modules()
        if not isinstance(module, torch.nn.Embedding) and getattr(module, "weight", None) is not None
    )
    dense: int = sum(weight.numel() for weight in weights if weight.ndim == 2 and id(weight) not in excluded)
    # transformers stacks the matrices of a layer's experts in one tensor of three dimensions
    experts = [weight for name, weight in layers.named_parameters() if ".experts." in name and weight.ndim == 3]
    used = experts_per_token_of(model.config)
    sparse: int = sum(weight.numel() * min(used, len(weight)) // len(weight) for weight in experts)
    return dense + sparse


def _class_for(config: PretrainedConfig) -> Any:
    """The class of transformers that loads a model of this config so that it continues a text."""
    return AutoModelForImageTextToText if config.model_type in FAMILIES_THAT_SEE else AutoModelForCausalLM


def _shapes_of(config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model of this config with shapes but no values, as if its weights were not quantised."""
    with torch.device("meta"):
        model: PreTrainedModel = _class_for(config).from_config(config, dtype=dtype, trust_remote_code=False)
    return model


def load_pair(backbone: str, assistant: str, *, device: str, dtype: torch.dtype) -> tuple[LanguageModel, LanguageModel]:
    """Loads backbone and assistant. Where both are the same model, it is loaded once, and the same object is returned twice.

    Args:
        backbone: as the user names it.
        assistant: as the user names it.
        device: of both models.
        dtype: of their weights.
    """
    source, other = locate(backbone), locate(assistant)
    first = load(source, name=backbone, device=device, dtype=dtype)
    return first, first if other == source else load(other, name=assistant, device=device, dtype=dtype)


def load_embeddings_only(name: str, *, dtype: torch.dtype) -> LanguageModel:
    """Loads a backbone that another process runs: only its input embeddings stay, on the CPU.

    Its fingerprint and its costs are computed from all weights, which are then freed. So this machine's memory must hold the
    whole model for a moment. Of a quantised model only the embeddings are read, as what unpacks the other weights may be
    installed for that process alone; its fingerprint is then made from the config.
    """
    return _load_embeddings_only(name, dtype)


def _read_embeddings_only(name: str, dtype: torch.dtype) -> LanguageModel:
    unread = load_shapes_only(name, dtype=dtype)
    if unread.quantisation:
        return _with_embeddings(unread, locate(name), dtype)
    whole = _read(locate(name), name, "cpu", dtype)
    _ = whole.costs  # cached now, as it is computed from the shapes of the weights
    kept = {id(weight) for weight in whole.model.get_input_embeddings().parameters()}
    for weight in whole.model.parameters():
        if id(weight) not in kept:
            weight.data = weight.data.new_empty(0)
    return whole


def _with_embeddings(unread: LanguageModel, source: str, dtype: torch.dtype) -> LanguageModel:
    """Reads the input embeddings of a model with shapes alone from its safetensors files."""
    with init_empty_weights(include_buffers=False):  # some families scale embeddings by a buffer
        model = _class_for(unread.model.config).from_config(unread.model.config, dtype=dtype, trust_remote_code=False)
    model.generation_config = unread.model.generation_config
    embedding = model.get_input_embeddings()
    name = next(name for name, parameter in model.named_parameters() if parameter is embedding.weight)
    weight = model_files.tensor_of(source, name, shape=embedding.weight.shape)
    if weight is None:
        raise UsageError(
            f"the input embeddings of `{unread.name}` ({name}, {list(embedding.weight.shape)}) are not in its safetensors "
            f"files: take another model."
        )
    embedding.weight = torch.nn.Parameter(weight.to(dtype), requires_grad=False)
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:  # on the CPU, as the model's device is that of any of its weights
                setattr(module, key, torch.nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False))
    return replace(unread, model=model.eval().requires_grad_(False))


def load_shapes_only(name: str, *, dtype: torch.dtype) -> LanguageModel:
    """Loads a backbone whose weights are not needed in this process: its tokenizer, and a model with shapes but no values.

    Its fingerprint is made from the config, because the weights are not read.
    """
    source = locate(name)
    place, revision = with_revision(source)
    tokenizer = load_tokenizer(source, name=name)
    with _explained(source, name):
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
        model = _shapes_of(config, dtype)
    # a model may have no generation config: then the tokenizer's end token is the only one
    with _explained(source, name), contextlib.suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(place, revision=revision)
    return LanguageModel(name, f"{UNREAD}{_architecture(config)}", model, tokenizer, quantisation_of(config))


def keep_loaded(number: int) -> None:
    """Keeps the last `number` models in memory from now on.

    `load` and `load_embeddings_only` then return the same object for the same arguments. 0 keeps none.
    """
    global _load, _load_embeddings_only
    _load, _load_embeddings_only = lru_cache(number)(_read_usable), lru_cache(number)(_read_embeddings_only)


def load(source: str, *, name: str, device: str, dtype: torch.dtype, own: bool = False) -> LanguageModel:
    """Loads a folder or a Hub id, as `locate` returns it, frozen and in evaluation mode.

    Args:
        source: folder or Hub id.
        name: the model as the user named it, for messages.
        device: where the model is moved.
        dtype: of its weights.
        own: True for a new object that nobody else uses, because its weights are going to change.

    Raises:
        UsageError: the model cannot be loaded, or soft tokens cannot be put into its input.
    """
    loaded = (_read_usable if own else _load)(source, name, device, dtype)
    loaded.model.to(torch.device(device))  # an earlier run may have moved a model that stays loaded
    return loaded


def _read_usable(source: str, name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    """Reads a model from disk. Raises UsageError where it takes no soft tokens, or its tokenizer is of another model."""
    loaded = _read(source, name, device, dtype)
    if why := why_not_usable(loaded.model):
        raise UsageError(f"{name} ({type(loaded.model).__name__}) cannot be used here: {why}. Take another model.")
    tokens = _size_of_vocabulary(loaded.tokenizer)
    if tokens > loaded.rows:
        raise UsageError(
            f"`{name}` has a tokenizer of {tokens} tokens and a model that knows {loaded.rows}: {_NOT_OF_ONE_MODEL}"
        )
    return loaded


def _size_of_vocabulary(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many rows of embeddings the tokenizer's own tokens need. Tokens that were added to it later are not counted."""
    added = tokenizer.get_added_vocab()
    return 1 + max((number for token, number in tokenizer.get_vocab().items() if token not in added), default=-1)


def _read(source: str, name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    place, revision = with_revision(source)
    tokenizer = load_tokenizer(source, name=name)
    with _explained(source, name):
        config = AutoConfig.from_pretrained(place, revision=revision, trust_remote_code=False)
        quantisation = quantisation_of(config)
    refuse_unloadable(config, name=name, device=device)
    with _explained(source, name):
        # no attention implementation is asked for, as not all models have SDPA
        model = _class_for(config).from_pretrained(
            place,
            revision=revision,
            dtype=dtype,
            trust_remote_code=False,
            device_map={"": device} if quantisation else None,  # packed weights may not be moved afterwards
        )
    if not quantisation:
        model.to(device)
    model.eval().requires_grad_(False)
    return LanguageModel(name, fingerprint_of(model), model, tokenizer, quantisation)


_load, _load_embeddings_only = _read_usable, _read_embeddings_only  # see `keep_loaded`


def load_tokenizer(source: str, *, name: str) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a model without its weights. source: folder or Hub id. name: for messages."""
    quiet()
    place, revision = with_revision(source)
    with _explained(source, name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            place, revision=revision, trust_remote_code=False
        )
        tokenizer("a")  # some damaged tokenizers load, and fail only at their first text
    return tokenizer


@contextlib.contextmanager
def _explained(source: str, name: str) -> Iterator[None]:
    """Turns any error that transformers raises for a model's files into a UsageError that says what to do."""
    try:
        yield
    except Exception as error:  # a damaged file may raise anything
        if out_of_memory(error):
            raise
        raise UsageError(_why_not(source, name, error)) from error


def _why_not(source: str, name: str, error: Exception) -> str:
    """The message for a model that could not be loaded: why, and what the user can do."""
    reason, what = one_line(error, limit=300), "the model folder" if Path(source).is_dir() else "the model"
    if Path(source).is_dir() and (incomplete := why_incomplete(Path(source))):
        return incomplete
    if "trust_remote_code" in str(error):
        return (
            f"{what} {name} comes with code of its own, which is never run here: take a model whose family transformers "
            f"knows by itself."
        )
    if family := re.search(r"model type `(.+?)` but Transformers does not recognize", str(error)):
        return (
            f"{what} {name} is of the family {family[1]}, which this version of transformers does not know: "
            f"`pip install -U transformers`, or take another model."
        )
    if other := re.search(r"Unrecognized configuration class .*?(\w+)Config'?>", str(error)):
        return (
            f"{what} {name} is of the family {other[1]}, and transformers has no causal language model of it, as it has "
            f"none of encoders, of most encoder-decoders and of some models that see: take one that continues a text."
        )
    if "instantiate the backend tokenizer" in str(error):
        return (
            f"{what} {name} has no tokenizer.json, and no other file of a tokenizer that can be read here: give a folder "
            f"with it, or `pip install sentencepiece tiktoken`, which convert other files."
        )
    if Path(source).is_dir():
        return f"the model folder {source} cannot be loaded: {reason.rstrip('.')}; fetch or copy its files again."
    return not_fetched(name, error, instead="a local model folder or a GGUF file")


@torch.no_grad()
def fingerprint_of(model: PreTrainedModel) -> str:
    """12 hex digits over the shape and about 64 values of every tensor, to tell two models apart.

    It takes a second whatever the size. It is no checksum against tampering.
    """
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, tensor in sorted(_plain_tensors(model.state_dict())):
        values = tensor.flatten()[:: max(1, tensor.numel() // 64)].float().cpu()
        digest.update(f"{name}{list(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:12]


def _plain_tensors(tensors: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors by name; of a quantised one that is made of several, as torchao's are, those that it is made of."""
    for name, tensor in tensors.items():
        if is_traceable_wrapper_subclass(tensor):
            parts, _ = tensor.__tensor_flatten__()
            yield from _plain_tensors({f"{name}.{part}": getattr(tensor, part) for part in parts})
        elif isinstance(tensor, Tensor):
            yield name, tensor


def has_other_weights(model: LanguageModel, role: str, about: Mapping[str, Any]) -> bool:
    """Whether a thinker or an adapter was trained with another model than this one.

    Fingerprints can be compared only in the same dtype, as rounding changes them. In another dtype the answer is False.

    Args:
        model: the model that is used now.
        role: `backbone` or `assistant`.
        about: what the training says of itself, with its dtype and the fingerprints of its models.
    """
    before, dtype = about.get(f"{role}_fingerprint"), about.get("dtype")
    in_same_dtype = dtype is None or f"torch.{dtype}" == str(model.model.dtype)
    return before is not None and in_same_dtype and before != model.fingerprint


def _architecture(config: PretrainedConfig) -> str:
    """12 hex digits over the settings of a config that change what the model computes.

    Names, paths and versions do not count, and neither does the dtype, which the user chooses.
    """
    settings = json.dumps(_computing(json.loads(config.to_json_string())), sort_keys=True)
    return hashlib.sha256(settings.encode()).hexdigest()[:12]


def _computing(values: Any) -> Any:
    """The settings without keys that do not change what the model computes, also in the configs of its parts."""
    if not isinstance(values, dict):
        return values
    kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in _COMPUTES_NOTHING}
    return {key: _computing(value) for key, value in kept.items()}
