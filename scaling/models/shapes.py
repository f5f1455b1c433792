"""A model's sizes, read from its config under whichever names its family has for them."""

from __future__ import annotations

from typing import Any

from contrastive.windows import setting

UNLIMITED = 1 << 30  # tokens: the context of a model that names none
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "n_ctx", "context_length")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


def context_of(config: Any) -> int:
    """Longest sequence that the model takes, in tokens. config: the model's own, text and pictures together."""
    return _positive(_text(config), _CONTEXT) or UNLIMITED


def layers_of(config: Any) -> int:
    return _positive(_text(config), ("num_hidden_layers", "num_layers", "decoder_layers")) or 1


def attention_layers_of(config: Any) -> list[str]:
    """The kind of each layer that attends to keys, as transformers calls it; others have a recurrent state alone."""
    text = _text(config)
    window = setting(text, "sliding_window")
    every = "sliding_attention" if window else "full_attention"  # of models whose layers are all alike
    kinds = setting(text, "layer_types") or [every] * layers_of(text)
    if not heads_of(text):
        return []
    return [kind for kind in kinds if kind != "linear_attention" and ("attention" in kind or kind.startswith("hybrid"))]


def experts_per_token_of(config: Any) -> int:
    """How many of a layer's experts a token goes through; 1 where it is not said."""
    return _positive(_text(config), ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k")) or 1


def heads_of(config: Any) -> int:
    """Query heads of a layer; 0 for a model without attention."""
    return _positive(_text(config), ("num_attention_heads", "n_heads", "num_heads")) or 0


def key_heads_of(config: Any) -> int:
    text = _text(config)
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    return _positive(text, _KEY_HEADS) or heads_of(text)


def head_width_of(config: Any) -> int:
    """Numbers of a query or key of one head."""
    text = _text(config)
    given = _positive(text, ("head_dim", "qk_head_dim", "attention_head_dim"))
    heads = heads_of(text)
    return given or (_positive(text, ("hidden_size", "d_model")) or 0) // heads if heads else 0


def kv_bytes_of(config: Any, itemsize: int) -> int:
    """Bytes of the keys and values of one token in all layers. itemsize: bytes of a number."""
    return 2 * len(attention_layers_of(config)) * key_heads_of(config) * head_width_of(config) * itemsize


def _text(config: Any) -> Any:
    """The part that reads text, of a model that also sees or hears."""
    return config.get_text_config()


def _positive(config: Any, names: tuple[str, ...]) -> int | None:
    """The first of the attributes that is a number above 0; of one number for each layer, the largest."""
    for name in names:
        value = _largest(config, name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _largest(config: Any, name: str) -> Any:
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # what a config says whose layers differ in it
        value = [getattr(layer, name, 0) for layer in config.per_layer_config[:]]
    numbers = [number for number in value if isinstance(number, int)] if isinstance(value, list | tuple) else None
    return value if numbers is None else max(numbers, default=0)
