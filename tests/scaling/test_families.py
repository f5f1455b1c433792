"""Every causal family that transformers knows, as a tiny random model: the right tokens and two steps of training, or one
sentence that refuses it.

The list is the registry of transformers itself, so that a family that is new there is tried, too.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from contrastive.assistant_thinker import AssistantThinker
from contrastive.objective import Objective, backward
from contrastive.parallel import Processes
from contrastive.projection import new_projection
from contrastive.target_loss import Example, Reader
from contrastive.thinker import Inputs
from contrastive.token_sets import SoftTokenSets
from scaling.engines.base import Decoding, Request, SoftPrompt
from scaling.engines.local.engine import TransformersEngine
from scaling.models.loading import FAMILIES_THAT_SEE
from scaling.models.shapes import context_of, kv_bytes_of
from scaling.models.usable import why_not_usable

FAMILIES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY, WIDTH, HEADS, CONTEXT, WINDOW = 120, 32, 4, 128, 8
GREEDY = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=6)
SLOTS, PATHS = 2, 2

# families of which no model can be made here, and why
NOT_MADE = {
    "gemma4_assistant": "a draft model, which reads the keys of another one",
    "gemma4_unified_assistant": "a draft model, which reads the keys of another one",
    "gemma3n": "its vision tower needs the package timm",
    "musicgen": "its causal class takes the config of the decoder alone, which is no family of its own",
    "musicgen_melody": "its causal class takes the config of the decoder alone, which is no family of its own",
}

_NOT_CAUSAL = "it is not causal"
_IDS_TOO = "it cannot be read from the embeddings of a text alone"
_MORE = "it makes more of a token than its embedding"
_OVERWRITES = "it overwrites the embeddings"
# families that are refused, and what the sentence says
REFUSED = {
    "bert, not a decoder": _NOT_CAUSAL,
    "blt": _IDS_TOO,
    "cpmant": "it takes token ids alone",
    "ctrl": _OVERWRITES,
    "deepseek_v4": _IDS_TOO,
    "gemma3n_text": _MORE,
    "gemma4": _IDS_TOO,
    "gemma4_text": _IDS_TOO,
    "git": _OVERWRITES,
    "prophetnet": _NOT_CAUSAL,
    "reformer": "its states have width",
    "xlnet": _NOT_CAUSAL,
}


def _each(value: Any, *names: str) -> dict[str, Any]:
    return dict.fromkeys(names, value)


# sizes under all the names that the families have for them; a config takes those that it knows
SIZES: dict[str, Any] = {
    **_each(VOCABULARY, "vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input", "audio_vocab_size"),
    **_each(WIDTH, "hidden_size", "d_model", "n_embd", "dim", "embed_dim", "emb_dim", "embedding_size", "dim_model"),
    **_each(WIDTH, "word_embed_proj_dim", "input_embedding_size", "output_embedding_size", "out_hidden_size"),
    **_each(WIDTH, "attention_hidden_size", "lru_width", "projection_dim", "embedding_dim"),
    **_each(WIDTH, "moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"),
    **_each(WIDTH, "shared_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size"),
    **_each(2 * WIDTH, "intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "dim_ff"),
    **_each(2 * WIDTH, "dff", "intermediate_size_mlp", "mlp_hidden_size", "d_ff", "d_inner"),
    **_each(2, "num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers", "depth"),
    **_each(2, "num_decoder_layers", "num_encoder_layers", "num_blocks"),
    **_each(HEADS, "num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    **_each(HEADS, "encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"),
    **_each(HEADS, "linear_num_value_heads", "mamba_num_heads", "mamba_n_heads", "linear_num_heads"),
    **_each(2, "num_key_value_heads", "linear_num_key_heads", "mamba_n_groups", "n_groups", "num_attention_groups"),
    **_each(2, "swa_num_key_value_heads"),
    **_each(8, "head_dim", "dim_head", "linear_key_head_dim", "linear_value_head_dim", "global_head_dim", "rotary_dim"),
    **_each(8, "q_lora_rank", "kv_lora_rank", "o_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    **_each(8, "index_head_dim", "swa_head_dim", "attention_head_dim", "query_pre_attn_scalar", "linear_head_dim"),
    **_each(8, "hidden_size_per_layer_input", "gated_norm_rank", "mamba_d_state", "ssm_state_size"),
    **_each(16, "index_n_heads"),  # with few heads scores are often all zero, and their order is anybody's
    **_each(16, "mamba_d_head", "mamba_head_dim", "mamba_chunk_size", "chunk_size", "image_size"),
    **_each(4, "time_step_rank", "mamba_dt_rank", "patch_size"),
    **_each(4, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"),
    **_each(2, "num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "topk_group", "n_group", "zero_expert_num"),
    **_each(1, "first_k_dense_replace", "n_shared_experts"),
    **_each(CONTEXT, "max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "max_target_positions"),
    **_each(CONTEXT, "max_source_positions"),
    **_each(WINDOW, "sliding_window", "attention_chunk_size", "attention_window_size", "index_topk", "window_size"),
    **_each(WINDOW, "local_attention"),
    **_each(VOCABULARY - 1, "image_token_id", "video_token_id", "audio_token_id", "boi_token_id", "eoi_token_id"),
    **_each(VOCABULARY - 1, "boa_token_id", "eoa_token_id", "eoa_token_index", "image_token_index"),
    **{
        "initializer_range": 0.2,
        "init_std": 0.2,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "decoder_start_token_id": 2,
    },
    "is_decoder": True,
}
# what a family wants beside, by the config's model type; LEFT_OUT takes its default
LEFT_OUT = object()
_ALTERNATING = {"layers_block_type": ["hybrid", "linear_attention", "hybrid"], "num_hidden_layers": 3}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
OWN: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 50},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": WIDTH, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"o_groups": 2},
    "dots3_note": {
        "vision_config": {"mlp_layer_types": ["dense", "sparse"], "adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH},
        "audio_config": {"adapter_input_size": WIDTH, "adapter_out_dim": WIDTH},
    },
    "dots3_note_text": {
        **{"num_key_value_heads": HEADS, "layer_types": LEFT_OUT, "use_sliding_window": False},
        "shared_experts_intermediate_size": WIDTH,
    },
    "falcon_h1": {"mamba_d_ssm": 2 * WIDTH},
    "gemma3n_text": {"num_kv_shared_layers": 0, "laurel_rank": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "llama4_text": {"no_rope_layers": [1, 0], "floor_scale": WINDOW},
    "mamba2": {"num_heads": HEADS, "head_dim": 16, "state_size": 8},
    "qwen4_exp_text": {
        **{"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8},
        **{"indexer_compress_ratio": 2, "hc_lowrank": 8},
    },
    **_each({"rope_parameters": {**_ROPE, "mrope_section": [1, 1, 2]}}, "qwen2_vl_text", "qwen2_5_vl_text"),
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (8, 16), "attn_layers": ["local", "lsh"]},
    "roc_bert": {"shape_vocab_size": VOCABULARY, "pronunciation_vocab_size": VOCABULARY},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {**_ALTERNATING, "attention_hidden_size": LEFT_OUT, "attention_head_dim": LEFT_OUT},
    "zamba2": {**_ALTERNATING, "attention_hidden_size": LEFT_OUT, "attention_head_dim": LEFT_OUT},
    "zaya": {"num_experts_per_tok": 1},
}


# what a family can be beside its defaults
_SWITCH = 18  # tokens: the longer prompts begin within it and end beyond
_LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": _SWITCH}
_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert, not a decoder": ("bert", {"is_decoder": False}),
    "falcon, ALiBi": ("falcon", {"alibi": True, "new_decoder_architecture": False}),
    "gemma4, no embeddings of each layer": ("gemma4_text", {"hidden_size_per_layer_input": 0}),
    "opt, narrow embeddings": ("opt", {"word_embed_proj_dim": WIDTH // 2}),
    "phi3, LongRoPE": (
        "phi3",
        {
            "rope_parameters": {**_LONGROPE, **_FACTORS},
            "original_max_position_embeddings": _SWITCH,
            "head_dim": LEFT_OUT,
        },
    ),
}


def _tiny_fields(kind: type[PretrainedConfig], own: dict[str, Any]) -> dict[str, Any]:
    """Arguments for a config of this class: small sizes, the parts' configs small, too, and one layer of each kind."""
    default = kind()
    known = {*default.to_dict(), *getattr(kind, "attribute_map", {})}
    fields = {name: value for name, value in SIZES.items() if name in known}
    # what is off by default stays off
    optional = ("sliding_window", "n_group", "topk_group", "q_lora_rank")
    fields = {n: v for n, v in fields.items() if n not in optional or getattr(default, n, None) is not None}
    if "qk_rope_head_dim" in fields:
        fields["num_key_value_heads"] = HEADS
    layers = list(dict.fromkeys(getattr(default, "layer_types", None) or []))
    if len(layers) > 1 and "layer_types" in default.to_dict():
        fields |= {"layer_types": layers, "num_hidden_layers": len(layers)}
    for name in {**getattr(kind, "sub_configs", {}), **getattr(kind, "sub_configs_defaults", {})}:
        part = getattr(default, name, None)
        if part is not None:
            stated: Any = own.get(name)
            given = stated if isinstance(stated, dict) else {}
            fields[name] = _tiny_fields(type(part), {**OWN.get(part.model_type, {}), **given})
            own = own if own.get(name) is LEFT_OUT else {n: v for n, v in own.items() if n != name}
    return {name: value for name, value in {**fields, **own}.items() if value is not LEFT_OUT}


@functools.cache
def tiny(case: str) -> PreTrainedModel:
    """A model of a family or variant with random weights, float32, frozen, of two layers or one of each kind."""
    family, changes = VARIANTS.get(case, (case, {}))
    kind = CONFIG_MAPPING[family]
    config = kind(**_tiny_fields(kind, {**OWN.get(family, {}), **changes}))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the families themselves
        torch.manual_seed(0)
        kind_of_model = AutoModelForImageTextToText if family in FAMILIES_THAT_SEE else AutoModelForCausalLM
        model = kind_of_model.from_config(config).float().eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):  # as no trained one is
                parameter.add_(torch.randn_like(parameter) * 0.1)
        # an output layer of its own: where it is that of the input, the last token would just be said again and again
        if (layer := model.get_output_embeddings()) is not None:
            layer.weight = torch.nn.Parameter(torch.randn_like(layer.weight), requires_grad=False)
        return model


def width_of(model: PreTrainedModel) -> int:
    return int(model.get_input_embeddings().weight.shape[1])


def prompts_for(model: PreTrainedModel) -> list[SoftPrompt]:
    """Two paths of two questions; the first ends within the window, the second begins beyond it."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for question, length in enumerate((3, 11)):
        prefix = tuple(torch.randint(5, 90, (length,), generator=generator).tolist())
        for path in range(PATHS):
            thoughts = torch.randn(SLOTS, width_of(model), generator=generator) * 0.3
            found.append(SoftPrompt(f"q{question}", path, prefix, thoughts, (11, 12 + question)))
    return found


@torch.inference_mode()
def without_cache(model: PreTrainedModel, prompt: SoftPrompt) -> list[int]:
    """Greedy tokens by the whole sequence again for each of them, one row."""
    embed = model.get_input_embeddings()
    before, after = (embed(torch.tensor(ids)) for ids in (prompt.prefix, prompt.suffix))
    inputs = torch.cat([before, prompt.thoughts, after])[None]
    tokens: list[int] = []
    while len(tokens) < GREEDY.max_new_tokens:
        tokens.append(int(model(inputs_embeds=inputs, use_cache=False).logits[0, -1].argmax()))
        inputs = torch.cat([inputs, embed(torch.tensor([tokens[-1:]]))], dim=1)
    return tokens


def check_tokens(model: PreTrainedModel) -> TransformersEngine:
    prompts = prompts_for(model)
    expected = {prompt: without_cache(model, prompt) for prompt in prompts}
    assert len(set(map(tuple, expected.values()))) > 1, "nothing is compared"
    engine = TransformersEngine(model, end_tokens=(), batch_size=3, max_batch_tokens=1000)
    found = {
        result.request.prompt: result.tokens for result in engine.generate([Request(p, 0, 1) for p in prompts], GREEDY)
    }
    assert list(found.values()) == [expected[prompt] for prompt in found], engine.plain_because
    return engine


CASES = pytest.mark.parametrize("case", [family for family in (*FAMILIES, *VARIANTS) if family not in NOT_MADE])
pytestmark = pytest.mark.filterwarnings("ignore")  # of the families themselves; our own are errors in every other test


@CASES
def test_greedy_tokens_are_those_of_a_loop_without_cache_or_a_sentence_refuses(case: str) -> None:
    model = tiny(case)
    refused = why_not_usable(model)
    if refused or case in REFUSED:
        assert refused
        assert case in REFUSED
        assert refused.startswith(REFUSED[case])
        return
    check_tokens(model)
    assert context_of(model.config) >= CONTEXT
    assert kv_bytes_of(model.config, 4) >= 0


@pytest.mark.parametrize("family", sorted(FAMILIES_THAT_SEE))
def test_a_family_that_sees_continues_a_text(family: str) -> None:
    assert family not in FAMILIES, "transformers has a class for its text now: leave it out of FAMILIES_THAT_SEE"
    model = tiny(family)
    assert why_not_usable(model) is None
    assert check_tokens(model).plain_because is None
    # pictures cost nothing here: of their part no weight is counted
    text = model.get_decoder()
    assert not any("vision" in name or "visual" in name for name, _ in text.named_modules())


def examples() -> list[Example]:
    """Two questions, whose prompts have a beginning in common that is longer than the window."""
    generator = torch.Generator().manual_seed(2)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(5, 90, (length,), generator=generator).tolist())

    both = ids(WINDOW + 1)
    return [
        Example(f"q{n}", (*both, *ids(4 + 7 * n)), (*both, *ids(5 + 8 * n)), ids(2), (*ids(2 + n), 1)) for n in range(2)
    ]


def plain_loss(thinker: AssistantThinker, model: PreTrainedModel, batch: Sequence[Example]) -> Tensor:
    """Mean over paths and target tokens by the definition: every path's whole sequence alone, without cache."""
    embed, losses = model.get_input_embeddings(), []
    for example in batch:
        ids = torch.tensor([example.assistant])
        thoughts = thinker(Inputs.of_assistant(model, ids, torch.ones_like(ids)), SLOTS)[0]
        before, after = (torch.tensor(ids) for ids in (example.prefix, (*example.suffix, *example.target[:-1])))
        for path in thoughts:
            inputs = torch.cat([embed(before), path, embed(after)])[None]
            logits = model(inputs_embeds=inputs, use_cache=False).logits[0, -len(example.target) :]
            losses.append(cross_entropy(logits, torch.tensor(example.target), reduction="none"))
    return torch.cat(losses).mean()


@CASES
def test_two_training_steps(case: str) -> None:
    """The loss is that of every path's whole sequence, and a gradient reaches all that is trained."""
    if case in REFUSED:
        pytest.skip(REFUSED[case])
    model, generator = tiny(case), torch.Generator().manual_seed(3)
    vectors = torch.randn(PATHS, 1, width_of(model), generator=generator) * 0.3
    thinker = AssistantThinker(SoftTokenSets(vectors), new_projection(width_of(model), width_of(model), scale=0.3))
    objective = Objective(num_slots=SLOTS, micro_batch=2, recompute=False)
    optimizer = torch.optim.SGD(thinker.parameters(), lr=0.1)
    reader = Reader(model)
    for step in range(2):
        with torch.no_grad():
            expected = float(plain_loss(thinker, model, examples()))
        optimizer.zero_grad()
        parts = backward(thinker, model, reader, examples(), objective, step=step, processes=Processes())
        assert parts.language == pytest.approx(expected, rel=1e-3)
        for name, parameter in thinker.named_parameters():
            assert parameter.grad is not None, name
            assert 0 < float(parameter.grad.abs().max()) < float("inf"), name
        optimizer.step()


@pytest.mark.parametrize("family", NOT_MADE)
def test_what_is_said_to_be_impossible_is(family: str) -> None:
    assert family in FAMILIES
    with pytest.raises((ImportError, AttributeError, ValueError, StrictDataclassError)):
        tiny(family)
