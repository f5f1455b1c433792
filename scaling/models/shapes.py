"""Reads a model's sizes from its config. Model families have different names for them, all of which are tried.

`config` is always the model's whole config. Of a model that also sees or hears, the part that reads text is meant.
"""

from __future__ import annotations

from typing import Any

from contrastive.windows import setting

UNLIMITED = 1 << 30  # tokens: the context of a model that names none
_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "max_target_positions", "n_ctx", "context_length")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")


def context_of(config: Any) -> int:
    """Longest sequence that the model takes, in tokens; UNLIMITED where the config names none."""
    return _positive(_text(config), _CONTEXT) or UNLIMITED


def layers_of(config: Any) -> int:
    """Number of layers."""
    return _positive(_text(config), ("num_hidden_layers", "num_layers", "decoder_layers")) or 1


def attention_layers_of(config: Any) -> list[str]:
    """The kind of attention of each layer, by transformers' name. Layers with a recurrent state alone are left out."""
    text = _text(config)
    window = setting(text, "sliding_window")
    default = (
        "sliding_attention" if window else "full_attention"
    )  # configs without `layer_types` have layers of one kind
    kinds = setting(text, "layer_types") or [default] * layers_of(text)
    if not heads_of(text):
        return []
    return [kind for kind in kinds if kind != "linear_attention" and ("attention" in kind or kind.startswith("hybrid"))]


def experts_per_token_of(config: Any) -> int:
    """How many of a layer's experts a token goes through; 1 where the config does not say."""
    return _positive(_text(config), ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k")) or 1


def heads_of(config: Any) -> int:
    """Query heads of a layer; 0 for a model without attention."""
    return _positive(_text(config), ("num_attention_heads", "n_heads", "num_heads")) or 0


def key_heads_of(config: Any) -> int:
    """Key and value heads of a layer, which are fewer than query heads where several of these share them."""
    text = _text(config)
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        return 1
    return _positive(text, _KEY_HEADS) or heads_of(text)


def head_width_of(config: Any) -> int:
    """Length of the query or key vector of one head; 0 for a model without attention."""
    text = _text(config)
    given = _positive(text, ("head_dim", "qk_head_dim", "attention_head_dim"))
    heads = heads_of(text)
    return given or (_positive(text, ("hidden_size", "d_model")) or 0) // heads if heads else 0


def kv_bytes_of(config: Any, itemsize: int) -> int:
    """Bytes of the keys and values of one token in all layers. itemsize: bytes of one number, 2 for bfloat16."""
    return 2 * len(attention_layers_of(config)) * key_heads_of(config) * head_width_of(config) * itemsize


def _text(config: Any) -> Any:
    """The config of the part that reads text; of a model that only reads text its whole config."""
    return config.get_text_config()


def _positive(config: Any, names: tuple[str, ...]) -> int | None:
    """The value of the first attribute that is a number above 0, None where there is none.

    Where an attribute has one number for each layer, the largest counts.
    """
    for name in names:
        value = _largest(config, name)
        if isinstance(value, int) and value > 0:
            return value
    return None


def _largest(config: Any, name: str) -> Any:
    """An attribute of the config as it is, or its largest number where it has one for each layer."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # transformers raises it where layers differ in this attribute
        value = [getattr(layer, name, 0) for layer in config.per_layer_config[:]]
    numbers = [number for number in value if isinstance(number, int)] if isinstance(value, list | tuple) else None
    return value if numbers is None else max(numbers, default=0)
