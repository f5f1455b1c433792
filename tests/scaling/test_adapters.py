"""LoRA adapters in runs: what they change and what they do not, and which are refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from scaling.models import adapters, loading, model_files
from scaling.records.errors import UsageError
from scaling.records.files import sha256
from scaling.run import execute

COT = {"latent_paths": None, "temperature": 1.0}


def loaded(folder):
    return loading.load(str(folder), name=str(folder), device="cpu", dtype=torch.float32)


def test_an_adapter_that_changes_nothing_is_cot_key_by_key(tmp_path, run, make_adapter):
    expected = run(tmp_path / "cot", method="cot", **COT)
    assert run(tmp_path / "lora", method="lora", adapter=make_adapter(), **COT) == expected
    other = run(tmp_path / "changed", method="lora", adapter=make_adapter(name="other", scale=0.3), **COT)
    assert other.keys() == expected.keys()
    assert other != expected


def test_merging_adds_twice_b_a(make_adapter, tiny_model_folder):
    """alpha is twice the rank, so that the change of a weight is alpha / rank * B A = 2 B A."""
    folder, backbone, plain = make_adapter(scale=0.3), loaded(tiny_model_folder), loaded(tiny_model_folder)
    whole = adapters.merged(adapters.load(adapters.find(str(folder)), backbone), backbone)
    tensors, weights = load_file(folder / adapters.WEIGHTS_FILE), whole.model.state_dict()
    changed = {name.removesuffix(".lora_A.weight") for name in tensors if name.endswith("lora_A.weight")}
    names = {f"{name.removeprefix('base_model.model.')}.weight": name for name in changed}
    assert len(names) == 2 * 7  # layers x linear layers in each
    for name, before in plain.model.state_dict().items():
        change = torch.zeros_like(before)
        if name in names:
            change = 2 * tensors[f"{names[name]}.lora_B.weight"] @ tensors[f"{names[name]}.lora_A.weight"]
        torch.testing.assert_close(weights[name], before + change)
    assert whole.fingerprint != plain.fingerprint
    assert not any(parameter.requires_grad for parameter in whole.model.parameters())


@pytest.mark.parametrize("folder", ["tiny_model_folder", "other_model_folder"])
def test_merging_changes_no_logit(make_adapter, request, folder):
    """Of a Llama, and of a GPT-2, whose layers hold their weights transposed."""
    backbone = loaded(source := request.getfixturevalue(folder))
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        plain = backbone.model(input_ids=ids).logits
        adapter = adapters.load(adapters.find(str(make_adapter(scale=0.1, backbone=source))), backbone)
        expected = backbone.model(input_ids=ids).logits
        found = adapters.merged(adapter, backbone).model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (expected - plain).abs().max() > 0.01


def test_run_json_tells_the_adapter_and_the_merged_backbone(tmp_path, config_of, silent, make_adapter):
    folder = make_adapter(scale=0.3)
    execute(config_of(method="lora", adapter=folder, out=tmp_path / "run", latent_paths=None), silent)
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    backbone = loaded(config["backbone"])
    assert config["adapter_sha256"] == sha256(folder / adapters.WEIGHTS_FILE)
    assert config["backbone_fingerprint"] == backbone.fingerprint
    whole = adapters.merged(adapters.load(adapters.find(str(folder)), backbone), backbone)
    assert config["merged_fingerprint"] == whole.fingerprint != config["backbone_fingerprint"]


def test_an_adapter_of_another_width_is_refused(make_adapter, make_model, tiny_model_folder, tmp_path):
    make_model("llama", vocab_size=400, hidden_size=48).save_pretrained(tmp_path / "wide")
    loading.load_tokenizer(str(tiny_model_folder), name="").save_pretrained(tmp_path / "wide")
    folder = make_adapter(backbone=tmp_path / "wide")
    with pytest.raises(UsageError, match=r"does not fit `--backbone`.*size mismatch.*give the backbone"):
        adapters.load(adapters.find(str(folder)), loaded(tiny_model_folder))


def test_an_adapter_of_another_family_is_refused(make_adapter, other_model_folder, tiny_model_folder):
    folder = make_adapter(backbone=other_model_folder)
    with pytest.raises(UsageError, match="does not fit `--backbone`"):
        adapters.load(adapters.find(str(folder)), loaded(tiny_model_folder))


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_tensors_that_have_no_place_are_refused(make_adapter, tiny_model_folder, change):
    """As those of a deeper model would be, which `peft` passes over."""
    folder = make_adapter()
    tensors = load_file(folder / adapters.WEIGHTS_FILE)
    name = next(iter(tensors))
    if change == "more":
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()
    else:
        del tensors[name]
    save_file(tensors, folder / adapters.WEIGHTS_FILE)
    with pytest.raises(UsageError, match=r"does not fit `--backbone`.*1 tensor without their like"):
        adapters.load(adapters.find(str(folder)), loaded(tiny_model_folder))


def test_another_backbone_of_the_same_shapes_is_told(make_adapter, tiny_model_folder):
    folder = make_adapter()
    about = {"backbone": "another/model", "backbone_fingerprint": "0" * 12, "prompt_version": "0"}
    (folder / adapters.ABOUT_FILE).write_text(json.dumps(about))
    found, backbone = adapters.find(str(folder)), loaded(tiny_model_folder)
    said = adapters.mismatches(found, backbone)
    assert "trained with another backbone (another/model)" in said[0]
    assert "prompts of version 0" in said[1]
    (folder / adapters.ABOUT_FILE).write_text(json.dumps({**about, "dtype": "bfloat16"}))
    [said] = adapters.mismatches(adapters.find(str(folder)), backbone)  # in float32, in which fingerprints are others
    assert "prompts of version 0" in said
    (folder / adapters.ABOUT_FILE).unlink()
    assert adapters.mismatches(adapters.find(str(folder)), backbone) == []


def test_a_hub_id_is_fetched(monkeypatch, make_adapter):
    folder, asked = make_adapter(), []
    monkeypatch.setattr(model_files, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    found = adapters.find("somebody/adapter")
    assert (asked, found.folder) == (["somebody/adapter"], folder)


def test_places_without_an_adapter(tmp_path, tiny_model_folder, make_adapter):
    with pytest.raises(UsageError, match="give the folder of an adapter"):
        adapters.find(str(tmp_path))
    with pytest.raises(UsageError, match=f"`--backbone {tiny_model_folder}`"):
        adapters.find(str(tiny_model_folder))
    with pytest.raises(UsageError, match="--method lora --adapter"):
        model_files.locate(str(make_adapter()))


@pytest.mark.parametrize(
    ("about", "method"),
    [('{"method": "coconut"}', "coconut"), ('{"method": "lora"}', "lora"), ("[]", "lora"), ("{", "lora")],
)
def test_an_adapter_in_the_place_of_a_backbone_is_sent_to_the_method_that_trained_it(make_adapter, about, method):
    folder = make_adapter()
    (folder / adapters.ABOUT_FILE).write_text(about)
    with pytest.raises(UsageError, match=f"it is an adapter: use it with `--method {method} --adapter {folder}`"):
        model_files.locate(str(folder))


@pytest.mark.parametrize("part", ["decode", "contemplate"])
def test_a_part_of_contemplation_is_sent_to_the_whole(tmp_path, make_adapter, part):
    for name in ("decode", "contemplate"):
        make_adapter().rename(tmp_path / name)
    (tmp_path / "contemplation.safetensors").write_bytes(b"")
    with pytest.raises(UsageError, match=f"use the whole with `--method ccot --adapter {tmp_path}`"):
        model_files.locate(str(tmp_path / part))


@pytest.mark.parametrize(
    ("changes", "said"), [({"peft_type": "IA3"}, "takes LoRA only"), ({"peft_type": "no such"}, "cannot be read")]
)
def test_other_kinds_of_adapters_are_refused(make_adapter, tiny_model_folder, changes, said):
    folder = make_adapter()
    path = folder / adapters.CONFIG_FILE
    path.write_text(json.dumps({"base_model_name_or_path": "x", "task_type": "CAUSAL_LM", **changes}))
    with pytest.raises(UsageError, match=said):
        adapters.load(adapters.find(str(folder)), loaded(tiny_model_folder))
