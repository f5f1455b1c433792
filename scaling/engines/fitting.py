"""Whether a model can share prefixes: tried on a few tokens against plain batching, rather than believed of its name."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scaling.engines.base import SoftPrompt
from scaling.engines.decoder import Decoder
from scaling.engines.plain import PlainDecoder
from scaling.engines.shared import SharedPrefixDecoder

_PREFIX, _SUFFIX, _NEXT = (2, 3, 5), (7, 4), 6


def why_not_shared(model: PreTrainedModel) -> str | None:
    """None where shared prefixes give the same logits as plain batching; else why not, and the model is as it was."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if other := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of {sorted(other)[0].replace('_', ' ')}"
    if not getattr(model, "_supports_attention_backend", False):
        return "its attention cannot be replaced"
    before = model.config._attn_implementation
    try:
        expected = _logits(model, PlainDecoder(model, num_rows=2, max_new_tokens=2))
        found = _logits(model, SharedPrefixDecoder(model, num_rows=2, max_new_tokens=2))
    except (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        model.set_attn_implementation(before)
        return f"its attention does not fit: {' '.join(str(error).split())[:100]}"
    off = float((found - expected).norm() / expected.norm())
    if off < _tolerance(model.dtype):
        return None
    model.set_attn_implementation(before)
    return f"its logits would differ by {off:.1%}"


def _tolerance(dtype: torch.dtype) -> float:
    """Relative difference of logits that rounding explains."""
    return 0.05 if dtype.itemsize < 4 else 1e-3


@torch.inference_mode()
def _logits(model: PreTrainedModel, decoder: Decoder) -> Tensor:
    """Logits after two paths' prompts and after one token more, [4, V] float32."""
    embed = model.get_input_embeddings()(torch.tensor([[8, 9], [1, 2]], device=model.device)).float()
    prompts = [SoftPrompt("", path, _PREFIX, thoughts, _SUFFIX) for path, thoughts in enumerate(embed)]
    decoder.hold(prompts)
    first = decoder.place([0, 1], prompts)
    after = decoder.step(torch.full((2,), _NEXT, device=model.device))
    return torch.cat([first, after]).float()
