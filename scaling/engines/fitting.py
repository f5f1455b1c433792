"""Whether a model can share prefixes: tried on a few tokens against plain batching, rather than believed of its name."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scaling.engines.base import SoftPrompt
from scaling.engines.decoder import Decoder
from scaling.engines.plain import PlainDecoder
from scaling.engines.shared import SharedPrefixDecoder
from scaling.errors import one_line, out_of_memory

_PATHS, _PREFIX, _SUFFIX = 3, 6, 2


def why_not_shared(model: PreTrainedModel) -> str | None:
    """None where shared prefixes give the same logits as plain batching; else why not, and the model is as it was."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of {sorted(other)[0].replace('_', ' ')}"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    before = model.config._attn_implementation
    try:
        expected = _logits(model, PlainDecoder(model, num_rows=_PATHS, max_new_tokens=2))
        found = _logits(model, SharedPrefixDecoder(model, num_rows=_PATHS, max_new_tokens=2))
    except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        model.set_attn_implementation(before)
        return f"its attention does not fit: {one_line(error, limit=100)}"
    # the median row: in half precision a single row may be thrown far off by rounding alone, with or without sharing
    off = float(((found - expected).norm(dim=-1) / expected.norm(dim=-1)).median())
    if off < _tolerance(model.dtype):
        return None
    model.set_attn_implementation(before)
    return f"its logits would differ by {off:.1%}"


def _tolerance(dtype: torch.dtype) -> float:
    """Relative difference of logits that rounding explains."""
    return 0.05 if dtype.itemsize < 4 else 1e-3


@torch.inference_mode()
def _logits(model: PreTrainedModel, decoder: Decoder) -> Tensor:
    """Logits after the prompts of a few paths, and after one token more, [2 * _PATHS, V] float32."""
    ids = torch.arange(3, 90, 5, device=model.device) * (model.config.get_text_config().vocab_size // 100)
    prefix, suffix, following = ids[:_PREFIX], ids[_PREFIX : _PREFIX + _SUFFIX], ids[-_PATHS:]
    embed = model.get_input_embeddings()(ids[-3 * _PATHS : -_PATHS].view(_PATHS, 2)).float()
    prompts = [SoftPrompt("", path, tuple(prefix.tolist()), e, tuple(suffix.tolist())) for path, e in enumerate(embed)]
    decoder.hold(prompts)
    first = decoder.place(range(_PATHS), prompts)
    return torch.cat([first, decoder.step(following)]).float()
