"""Loads backbones and assistants, and says what they are: width, context, costs, fingerprint. Never runs code that comes
with a model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import GatedRepoError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from contrastive.windows import setting
from scaling.models.model_files import locate, quiet, why_incomplete
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

_RARE_ROWS = 1024
_NOT_OF_ONE_MODEL = "they are not of one model; fetch or copy the tokenizer's files again."
_COMPUTES_NOTHING = ("architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")  # of a config


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
        """Names what the model computes, but for its dtype: the fingerprint of its weights, and hex digits over its config.
        Another version of transformers may know more settings, so this is for caches alone."""
        return f"{self.fingerprint}-{_architecture(self.model.config)}"

    @property
    def width(self) -> int:
        """Of an input embedding, which may be less than that of the layers' states."""
        return int(self.model.get_input_embeddings().weight.shape[1])

    @property
    def context(self) -> int:
        """Longest sequence the model takes, in tokens."""
        return context_of(self.model.config)

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
        """What a token costs, from the shapes of the weights. Every matrix counts as used by every token, but of the experts
        only as many as a token goes through."""
        config = self.model.config
        head = getattr(self.model.get_output_embeddings(), "weight", None)
        window = setting(config.get_text_config(), "sliding_window") or 0
        chunk = setting(config.get_text_config(), "attention_chunk_size") or 0
        seen = {"sliding_attention": window, "chunked_attention": chunk}
        return ModelCosts(
            layers=2 * self._products(),
            head=2 * head.numel() if head is not None else 0,
            attention=4 * heads_of(config) * head_width_of(config),
            windows=tuple(seen.get(kind, 0) for kind in attention_layers_of(config)),
            kv_bytes=kv_bytes_of(config, self.model.dtype.itemsize),
        )

    def _products(self) -> int:
        """Multiplications of one token in all layers, those of attention itself apart."""
        embeddings = (self.model.get_output_embeddings(), self.model.get_input_embeddings())
        apart = {id(layer.weight) for layer in embeddings if layer is not None}
        layers = self.model.get_decoder()  # without what reads pictures and sound
        weights = (
            module.weight
            for module in layers.modules()
            if not isinstance(module, torch.nn.Embedding) and getattr(module, "weight", None) is not None
        )
        dense: int = sum(weight.numel() for weight in weights if weight.ndim == 2 and id(weight) not in apart)
        experts = [weight for name, weight in layers.named_parameters() if ".experts." in name and weight.ndim == 3]
        used = experts_per_token_of(self.model.config)
        sparse: int = sum(weight.numel() * min(used, len(weight)) // len(weight) for weight in experts)
        return dense + sparse

    def refuse_unknown(self, ids: Sequence[int]) -> None:
        """Raises UsageError for a token of a text that the model has no embedding of. Tokens beyond the embeddings do no
        harm as long as no text has them."""
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
        return min(int(self.tokenizer.vocab_size), self.rows)


def load_pair(backbone: str, assistant: str, *, device: str, dtype: torch.dtype) -> tuple[LanguageModel, LanguageModel]:
    """Backbone and assistant; where both are the same weights they are one object, loaded once."""
    source, other = locate(backbone), locate(assistant)
    first = load(source, name=backbone, device=device, dtype=dtype)
    return first, first if other == source else load(other, name=assistant, device=device, dtype=dtype)


def load_embeddings_only(name: str, *, dtype: torch.dtype) -> LanguageModel:
    """A backbone that another process runs: its input embeddings on the CPU, and what is computed from all its weights.

    The other weights are then freed. The whole model is read once, so this machine's memory must hold it for a moment.
    """
    return _load_embeddings_only(name, dtype)


def _read_embeddings_only(name: str, dtype: torch.dtype) -> LanguageModel:
    whole = _read(locate(name), name, "cpu", dtype)
    _ = whole.costs  # cached now, as it is computed from the shapes of the weights
    kept = {id(weight) for weight in whole.model.get_input_embeddings().parameters()}
    for weight in whole.model.parameters():
        if id(weight) not in kept:
            weight.data = weight.data.new_empty(0)
    return whole


def load_shapes_only(name: str, *, dtype: torch.dtype) -> LanguageModel:
    """A backbone whose weights are not needed here at all: its tokenizer, and a model of its shapes that holds no values.

    Its fingerprint is of the config, as nothing is known of the weights.
    """
    source = locate(name)
    tokenizer = load_tokenizer(source, name=name)
    with _explained(source, name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    # a model without one has the tokenizer's end token alone
    with _explained(source, name), contextlib.suppress(OSError):
        model.generation_config = GenerationConfig.from_pretrained(source)
    return LanguageModel(name, f"{UNREAD}{_architecture(config)}", model, tokenizer)


def keep_loaded(number: int) -> None:
    """From now on the last `number` models stay in memory: `load` and `load_embeddings_only` return the same object for the
    same arguments."""
    global _load, _load_embeddings_only
    _load, _load_embeddings_only = lru_cache(number)(_read_usable), lru_cache(number)(_read_embeddings_only)


def load(source: str, *, name: str, device: str, dtype: torch.dtype, own: bool = False) -> LanguageModel:
    """Loads a folder or a Hub id, as `locate` returns it, frozen and in evaluation mode.

    Args:
        source: what is loaded.
        name: what the user calls it, for messages.
        device: where it is moved.
        dtype: of its weights.
        own: whether it must be an object that nobody else has, as its weights are going to change.
    """
    found = (_read_usable if own else _load)(source, name, device, dtype)
    found.model.to(torch.device(device))  # a run before may have moved a model that stays loaded
    return found


def _read_usable(source: str, name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    found = _read(source, name, device, dtype)
    if why := why_not_usable(found.model):
        raise UsageError(f"{name} ({type(found.model).__name__}) cannot be used here: {why}. Take another model.")
    tokens = _size_of_vocabulary(found.tokenizer)
    if tokens > found.rows:
        raise UsageError(
            f"`{name}` has a tokenizer of {tokens} tokens and a model that knows {found.rows}: {_NOT_OF_ONE_MODEL}"
        )
    return found


def _size_of_vocabulary(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of embeddings that the tokenizer's own tokens need; those added to it later are not counted."""
    added = tokenizer.get_added_vocab()
    return 1 + max((number for token, number in tokenizer.get_vocab().items() if token not in added), default=-1)


def _read(source: str, name: str, device: str, dtype: torch.dtype) -> LanguageModel:
    tokenizer = load_tokenizer(source, name=name)
    with _explained(source, name):
        # with the attention that the model has: not all have SDPA
        model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, trust_remote_code=False)
    model.to(device).eval().requires_grad_(False)
    return LanguageModel(name, fingerprint_of(model), model, tokenizer)


_load, _load_embeddings_only = _read_usable, _read_embeddings_only  # see `keep_loaded`


def load_tokenizer(source: str, *, name: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone, for what needs no weights."""
    quiet()
    with _explained(source, name):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        tokenizer("a")  # some damage shows only here
    return tokenizer


@contextlib.contextmanager
def _explained(source: str, name: str) -> Iterator[None]:
    """Turns whatever transformers raises for a model's files into a UsageError that says what to do."""
    try:
        yield
    except Exception as error:  # a damaged file may raise anything
        if out_of_memory(error):
            raise
        raise UsageError(_why_not(source, name, error)) from error


def _why_not(source: str, name: str, error: Exception) -> str:
    reason, what = one_line(error, limit=300), "the model folder" if Path(source).is_dir() else "the model"
    if Path(source).is_dir() and (incomplete := why_incomplete(Path(source))):
        return incomplete
    if "trust_remote_code" in str(error):
        return (
            f"{what} {name} comes with code of its own, which is never run here: take a model whose family transformers "
            f"knows by itself."
        )
    if "gated repo" in str(error) or isinstance(error.__cause__, GatedRepoError):
        return (
            f"the model {name} is gated: ask for access at https://huggingface.co/{name}, then log in with `hf auth "
            f"login`, or set HF_TOKEN to a token that may read it."
        )
    if Path(source).is_dir():
        return f"the model folder {source} cannot be loaded: {reason}"
    return (
        f"there is no folder `{name}`, and it could not be fetched from the Hugging Face Hub ({reason}). "
        f"Check the id and the network, or "
        f"give a local model folder or a GGUF file."
    )


@torch.no_grad()
def fingerprint_of(model: PreTrainedModel) -> str:
    """12 hex digits over the shape and a sample of every tensor: a second for any size, not a checksum against tampering."""
    digest = hashlib.sha256(model.config.model_type.encode())
    for name, tensor in sorted(model.state_dict().items()):
        values = tensor.flatten()[:: max(1, tensor.numel() // 64)].float().cpu()
        digest.update(f"{name}{list(tensor.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:12]


def has_other_weights(model: LanguageModel, role: str, about: Mapping[str, Any]) -> bool:
    """Whether something was trained with another model than this one. Where it was trained in another dtype, whose
    rounding changes fingerprints, nothing is known, and the answer is no.

    Args:
        role: `backbone` or `assistant`.
        about: what the training says of itself, with its dtype and the fingerprints of its models.
    """
    before, dtype = about.get(f"{role}_fingerprint"), about.get("dtype")
    in_same_dtype = dtype is None or f"torch.{dtype}" == str(model.model.dtype)
    return before is not None and in_same_dtype and before != model.fingerprint


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
