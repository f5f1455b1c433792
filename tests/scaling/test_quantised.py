"""Models that are published quantised: run and said in run.json, or refused in a sentence."""

from __future__ import annotations

import importlib.util
import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing._internal.two_tensor import TwoTensor

from contrastive.parallel import Processes
from scaling.engines.base import Decoding
from scaling.engines.local.engine import TransformersEngine
from scaling.engines.local.packing import PackedWeights
from scaling.models import loading
from scaling.models.quantised import Quantisation, quantisation_of, refuse_unloadable
from scaling.preview import preview
from scaling.records.errors import UsageError
from scaling.run import execute
from scaling.training.config import TrainConfig
from scaling.training.lora import train_lora
from scaling.training.run import train

with warnings.catch_warnings():  # its import loads the compiler, which uses what torch itself has deprecated
    warnings.simplefilter("ignore")
    from transformers.integrations.bitnet import pack_weights

# how each method is written in a published config.json: its fact in run.json, and the package that it needs, as imported
_GROUP = {"weights": {"num_bits": 4, "type": "int"}, "input_activations": {"num_bits": 8}}
PUBLISHED = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, Quantisation("gptq", 4), "optimum"),
    "gptq-8": ({"quant_method": "gptq", "bits": 8, "group_size": 128}, Quantisation("gptq", 8), "optimum"),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, Quantisation("awq", 4), "gptqmodel"),
    "bitsandbytes-4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        Quantisation("bitsandbytes", 4),
        "bitsandbytes",
    ),
    "bitsandbytes-8": ({"load_in_8bit": True}, Quantisation("bitsandbytes", 8), "bitsandbytes"),
    "compressed-tensors": (
        {"quant_method": "compressed-tensors", "config_groups": {"group_0": {**_GROUP, "targets": ["Linear"]}}},
        Quantisation("compressed-tensors", 4),
        "compressed_tensors",
    ),
    "torchao": (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}},
        Quantisation("torchao", None),
        "torchao",
    ),
    "quanto": ({"quant_method": "quanto", "weights": "int8"}, Quantisation("quanto", 8), "optimum"),
    "auto-round": ({"quant_method": "auto-round", "bits": 4}, Quantisation("auto-round", 4), "auto_round"),
    "hqq": (
        {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
        Quantisation("hqq", 4),
        "hqq",
    ),
}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]}
BITNET = {"quant_method": "bitnet"}
GREEDY = Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=5)


@pytest.fixture(autouse=True)
def _no_compiler():
    """BitNet's layers would be compiled, which takes longer than they save here."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def publish(tiny_model_folder, tmp_path):
    """`publish(config, change)`: the tiny model as if it were published quantised; `change` replaces its weights by name."""

    def make(config, change=lambda name, weight: {name: weight}, *, name="quantised"):
        folder = shutil.copytree(tiny_model_folder, tmp_path / name)
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**fields, **config}))
        file = folder / "model.safetensors"
        linear = ("_proj.weight",)
        changed = {}
        for key, weight in load_file(file).items():
            changed |= change(key, weight) if key.endswith(linear) else {key: weight}
        save_file(changed, file, metadata={"format": "pt"})
        return folder

    return make


def as_bitnet(name, weight):
    """Ternary weights, four to a byte, with their scale."""
    scale = weight.abs().mean()
    ternary = (weight / scale).round().clamp(-1, 1)
    return {name: pack_weights(ternary), f"{name}_scale": scale.reshape(1)}


def blocks(weight):
    """The largest absolute value of each block of 16 x 16, spread over its block."""
    rows, columns = weight.shape
    largest = weight.abs().reshape(rows // 16, 16, columns // 16, 16).amax(dim=(1, 3))
    return largest, largest.repeat_interleave(16, 0).repeat_interleave(16, 1)


def as_fp8(name, weight):
    largest, spread = blocks(weight)
    return {name: (weight / spread * 448).to(torch.float8_e4m3fn), f"{name}_scale_inv": largest / 448}


def through_fp8(name, weight):
    """The same values as `as_fp8`, in plain float32."""
    _, spread = blocks(weight)
    return {name: (weight / spread * 448).to(torch.float8_e4m3fn).float() * (spread / 448)}


def load(folder):
    return loading.load(str(folder), name=str(folder), device="cpu", dtype=torch.float32)


def config_of_model(folder):
    return loading.load_shapes_only(str(folder), dtype=torch.float32).model.config


# ---- recognised and refused before weights are read


@pytest.mark.parametrize("kind", PUBLISHED)
def test_how_a_model_is_quantised_is_read_from_its_config(publish, kind):
    config, expected, _ = PUBLISHED[kind]
    assert quantisation_of(config_of_model(publish({"quantization_config": config}))) == expected


def test_a_plain_model_is_not_quantised(tiny_model_folder):
    config = config_of_model(tiny_model_folder)
    assert quantisation_of(config) is None
    refuse_unloadable(config, name="plain", device="cpu")


@pytest.mark.parametrize("how", [load, None], ids=["run", "dry run"])
@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_missing_package_is_said_before_weights_are_read(publish, config_of, kind, how):
    config, expected, package = PUBLISHED[kind]
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    folder = publish({"quantization_config": config})
    (folder / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(UsageError) as refused:
        how(folder) if how else preview(config_of(backbone=str(folder), method="cot", latent_paths=None))
    said = str(refused.value)
    assert said.startswith(f"`{folder}` is published quantised ({expected}), which cannot be loaded on cpu here: ")
    assert said.endswith("; install what is missing, or take a model that is not quantised.")
    assert "pip install" in said or "http" in said
    assert "\n" not in said


def test_a_command_for_pip_can_be_pasted_into_a_shell(publish):
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    with pytest.raises(UsageError, match=r"`pip install -U 'bitsandbytes>=[0-9.]+'`"):
        load(publish({"quantization_config": {"load_in_4bit": True}}))


@pytest.mark.parametrize(
    ("config", "said"), [({"quant_method": "modelopt"}, "modelopt"), ({"bits": 4}, "unknown, 4 bits")]
)
def test_a_quantisation_that_transformers_would_pass_over_is_refused(publish, config, said):
    with pytest.raises(
        UsageError, match=rf"published quantised \({said}\), which this version of transformers does not"
    ):
        load(publish({"quantization_config": config}))


# ---- run as published


def test_a_packed_model_runs_and_says_so_in_run_json(publish, config_of, silent, tmp_path):
    folder = str(publish({"quantization_config": BITNET}, as_bitnet))
    both = {"backbone": folder, "assistant": folder}
    summary = execute(config_of(**both, thinker="untrained", out=tmp_path / "run"), silent)
    assert summary["num_completions"] == 8
    described = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert described["backbone_quantization"] == described["assistant_quantization"] == {"method": "bitnet"}


def test_run_json_of_a_plain_model_says_nothing_of_it(run, tmp_path):
    run(tmp_path / "run", method="cot", latent_paths=None)
    assert "quantization" not in (tmp_path / "run" / "run.json").read_text()


def test_packed_weights_cost_what_plain_ones_do(publish, tiny_model_folder):
    """In operations, that is: the smaller weights are multiplied as often."""
    folder = publish({"quantization_config": BITNET}, as_bitnet)
    plain = load(tiny_model_folder).costs
    assert load(folder).costs == plain
    assert loading.load_shapes_only(str(folder), dtype=torch.float32).costs == plain


@pytest.mark.parametrize("exact", [False, True])
def test_packed_layers_are_run_as_they_are(publish, some_requests, without_cache, exact):
    model = load(publish({"quantization_config": BITNET}, as_bitnet)).model
    requests = some_requests(model, questions=2, paths=2, samples=1)
    engine = TransformersEngine(model, end_tokens=[1], batch_size=4, max_batch_tokens=4096, exact=exact)
    with PackedWeights(model):
        assert not any("forward" in vars(module) for module in model.modules())
    for generated in engine.generate(requests, GREEDY):
        expected = without_cache(model, generated.request, GREEDY, [1])
        assert generated.tokens == expected.tokens


def test_an_eight_bit_model_computes_what_its_unpacked_weights_do(publish):
    """Without a GPU transformers unpacks fp8 when it loads."""
    packed = load(publish({"quantization_config": FP8}, as_fp8)).model
    plain = load(publish({}, through_fp8, name="plain")).model
    ids = torch.arange(5, 25)[None]
    assert torch.allclose(packed(ids).logits, plain(ids).logits, atol=1e-5)


def test_other_packed_weights_have_another_fingerprint(publish):
    one = load(publish({"quantization_config": BITNET}, as_bitnet))
    other = load(publish({"quantization_config": BITNET}, lambda n, w: as_bitnet(n, -w), name="other"))
    assert one.fingerprint != other.fingerprint


def test_tensors_made_of_several_have_a_fingerprint_of_all(make_model):
    """As torchao's are: values and scales in one tensor."""

    def with_second(value):
        model = make_model("llama")
        layer = model.model.layers[0].mlp.up_proj
        weight = layer.weight.detach()
        layer.weight = torch.nn.Parameter(TwoTensor(weight, torch.full_like(weight, value)))
        return loading.fingerprint_of(model)

    assert with_second(1.0) == with_second(1.0) != with_second(2.0)


def test_an_engine_elsewhere_needs_no_package_for_its_embeddings(publish, tiny_model_folder):
    config, expected, _ = PUBLISHED["gptq"]
    folder = publish({"quantization_config": config}, lambda name, weight: {f"{name[:-7]}.qweight": weight.int()})
    backbone = loading.load_embeddings_only(str(folder), dtype=torch.float32)
    plain = load(tiny_model_folder)
    assert torch.equal(backbone.embeddings(), plain.embeddings())
    assert torch.equal(backbone.rare_rows(), plain.rare_rows())
    assert (backbone.quantisation, backbone.costs, backbone.end_tokens) == (expected, plain.costs, plain.end_tokens)


# ---- what needs plain weights


def train_config(folder, tmp_path, **changes):
    common = {"backbone": str(folder), "limit": 4, "validation": 2, "max_steps": 1, "batch_size": 2, "device": "cpu"}
    return TrainConfig(**{**common, "dtype": "float32", "out": tmp_path / "trained", **changes})


def test_nothing_is_trained_through_weights_that_pass_no_gradient(publish, silent, tmp_path):
    folder = publish({"quantization_config": BITNET}, as_bitnet)
    with pytest.raises(UsageError, match=r"is quantised \(bitnet\) so that nothing can be trained through it"):
        train(train_config(folder, tmp_path, assistant=str(folder)), silent, Processes())
    with pytest.raises(UsageError, match=r"merges its adapter into the weights .* are quantised \(bitnet\)"):
        train_lora(train_config(folder, tmp_path, method="lora"), silent, Processes())


def test_no_adapter_is_merged_into_packed_weights(publish, make_adapter, config_of, silent, tmp_path):
    folder = publish({"quantization_config": BITNET}, as_bitnet)
    config = config_of(
        **{"backbone": str(folder), "method": "lora", "adapter": str(make_adapter()), "latent_paths": None},
        out=tmp_path / "run",
    )
    for begin in (lambda: execute(config, silent), lambda: preview(config)):
        with pytest.raises(UsageError, match=r"are quantised \(bitnet\): take the model that is not"):
            begin()
