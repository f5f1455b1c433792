"""Chooses the decoder for a model: the fastest one whose logits equal those of a forward pass without cache.

Each decoder is tried on a few tokens with the model itself, whatever the model's family is said to support.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from contrastive.forward import MODEL_ERRORS, agree, differences, finely
from contrastive.windows import narrowed
from scaling.engines.base import SoftPrompt
from scaling.engines.embedded import embedded
from scaling.engines.local.decoder import Decoder
from scaling.engines.local.plain import PlainDecoder
from scaling.engines.local.shared import SharedPrefixDecoder
from scaling.engines.local.single import RereadingDecoder, SingleRowDecoder
from scaling.records.errors import one_line, out_of_memory

Kind = type[PlainDecoder] | type[SingleRowDecoder]
# tokens; the first two are the same, and so are shared, the third goes on from there, and the last one ends within a window
# of the trial
_PREFIXES = (10, 10, 16, 2)
_THOUGHTS, _SUFFIX, _STEPS = 2, 2, 2
_TOKENS = 40


@dataclass(frozen=True)
class Fit:
    """The way of decoding that fits a model.

    Attributes:
        plain: the decoder where prefixes are not shared.
        because: why prefixes cannot be shared, None where they can.
    """

    plain: Kind
    because: str | None


def fit(model: PreTrainedModel, *, longest: int | None = None) -> Fit:
    """Finds the fastest way of decoding that gives the right logits. The model is changed only where prefixes are shared.

    Args:
        model: the backbone.
        longest: tokens of the longest prompt with its completion, None if not known. Attention windows that are shorter are
            made small for the trial, so that tokens beyond a window are tried, too.
    """
    with narrowed(model, longest=longest), finely(model):
        expected = _reference(model)
        because = _why_not_shared(model, expected)
        if because is None or not bool(expected.isfinite().all()):
            return Fit(PlainDecoder, because)
        not_batched = _why_not(model, PlainDecoder, expected)
        if not_batched is None:
            return Fit(PlainDecoder, because)
        because += f"; nor can completions be batched ({not_batched})"
        if _why_not(model, SingleRowDecoder, expected) is None:
            return Fit(SingleRowDecoder, f"{because}, so they are decoded one at a time")
        return Fit(
            RereadingDecoder, f"{because}, nor its cache be relied on, so each text is read anew for every token"
        )


def why_not_shared(model: PreTrainedModel) -> str | None:
    """None where shared prefixes give the same logits as a forward pass without cache; else why not."""
    return fit(model).because


def _why_not_shared(model: PreTrainedModel, expected: Tensor) -> str | None:
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of {sorted(other)[0].replace('_', ' ')}"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    before = model.config._attn_implementation
    because = _why_not(model, SharedPrefixDecoder, expected)
    if because is not None:
        model.set_attn_implementation(before)
    return because


def _why_not(model: PreTrainedModel, kind: Kind | type[SharedPrefixDecoder], expected: Tensor) -> str | None:
    """Why a decoder does not give the expected logits for this model; None where it does."""
    try:
        logits = _logits(model, kind(model, num_rows=len(_PREFIXES), max_new_tokens=_STEPS + 1))
    except MODEL_ERRORS as error:
        if out_of_memory(error):
            raise
        return f"its attention does not fit: {one_line(error, limit=100)}"
    if agree(logits, expected):
        return None
    if not bool(logits.isfinite().all() and expected.isfinite().all()):
        return "its logits are not numbers (NaN or infinite)"
    return f"its logits would differ by {float(differences(logits, expected).max()):.1%}"


def _prompts(model: PreTrainedModel) -> tuple[list[SoftPrompt], Tensor]:
    """Prompts of three lengths, and the tokens that follow each, [prompts, _STEPS]."""
    size = model.config.get_text_config().vocab_size
    ids = torch.arange(3, 3 + 5 * _TOKENS, 5, device=model.device) * max(1, size // 250) % size
    embed = model.get_input_embeddings()
    prompts = []
    for path, length in enumerate(_PREFIXES):
        thoughts = embed(ids[10 + 3 * path : 10 + 3 * path + _THOUGHTS]).float()
        prompts.append(
            SoftPrompt("", path, tuple(ids[:length].tolist()), thoughts, tuple(ids[24 : 24 + _SUFFIX].tolist()))
        )
    return prompts, ids[-_STEPS * len(prompts) :].view(len(prompts), _STEPS)


@torch.inference_mode()
def _logits(model: PreTrainedModel, decoder: Decoder) -> Tensor:
    """Logits after each prompt and after each of the tokens that follow it, [prompts, 1 + _STEPS, V]."""
    prompts, following = _prompts(model)
    for held in (prompts[:-1], prompts[-1:]):  # apart, as the last one begins with less than what the others share
        decoder.hold(held)
    logits = [decoder.place(range(len(prompts)), prompts)]
    logits += [decoder.step(tokens) for tokens in following.T]
    return torch.stack(logits, dim=1)


@torch.inference_mode()
def _reference(model: PreTrainedModel) -> Tensor:
    """The same by forward passes without cache, one text at a time."""
    prompts, following = _prompts(model)
    rows: Sequence[Tensor] = [embedded(model, prompt) for prompt in prompts]
    texts = [torch.cat([row, model.get_input_embeddings()(ids)]) for row, ids in zip(rows, following, strict=True)]
    return torch.stack([model(inputs_embeds=text[None], use_cache=False).logits[0, -1 - _STEPS :] for text in texts])
