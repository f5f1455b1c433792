"""`--quantize int8`: how near its layers are to plain ones, whatever the batch, and what a run says of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from contrastive.forward import finely
from scaling.config import RunConfig
from scaling.engines.base import Decoding, Request
from scaling.engines.local.engine import TransformersEngine
from scaling.engines.local.fitting import fit
from scaling.methods.build import build
from scaling.models import devices, hardware, int8, loading
from scaling.models.int8 import Int8Linear
from scaling.models.quantised import Quantisation
from scaling.records.errors import UsageError
from scaling.records.journal import config_hash
from scaling.records.names import called
from scaling.run import begin, execute

MakeModel = Callable[..., PreTrainedModel]

FAMILIES = ("llama", "phi", "gpt2", "gemma3")  # plain; with biases; with layers that are transposed; with windows
SAMPLED = Decoding(temperature=1.0, top_p=0.95, top_k=50, max_new_tokens=12, log_probs=True)
COT = {"method": "cot", "latent_paths": None, "quantize": "int8"}

# asked of the processor, as a layer that is wrong must not leave out its own tests
_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8")
pytestmark = pytest.mark.skipif(
    not any(torch.cpu.get_capabilities().get(name) for name in _INSTRUCTIONS),
    reason="this processor has no instructions for int8",
)


def language_model(model: PreTrainedModel) -> loading.LanguageModel:
    return loading.LanguageModel("tiny", "0" * 12, model, tokenizer=None)  # type: ignore[arg-type]


def quantised(model: PreTrainedModel) -> PreTrainedModel:
    int8.quantise(language_model(model))
    return model


def layer_of(width: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(width, outputs, bias=bias)
    torch.nn.init.normal_(layer.weight, generator=torch.Generator().manual_seed(0))
    return layer


def inputs_of(rows: int, width: int) -> Tensor:
    """Rows of very different sizes, with one large value each."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(rows, width, generator=generator) * 10 ** torch.randn(rows, 1, generator=generator)
    values[:, 3] *= 20
    return values


# ---- how near


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "outputs"), [(7, 3), (32, 100), (300, 64)])
def test_a_layer_is_wrong_by_no_more_than_its_rounding(width: int, outputs: int, dtype: torch.dtype) -> None:
    """Each weight by 1/254 of the largest of its output, each input by 1/254 of the largest of its row."""
    layer, inputs = layer_of(width, outputs).to(dtype), inputs_of(9, width).to(dtype)
    weight, values = layer.weight.detach().double(), inputs.double()
    largest = weight.abs().amax(1)
    by_weights = values.abs().sum(1)[:, None] * largest / 254
    by_inputs = values.abs().amax(1)[:, None] / 254 * (weight.abs() + largest[:, None] / 254).sum(1)
    exact = values @ weight.T + layer.bias.detach().double()
    with torch.inference_mode():
        found = Int8Linear(layer)(inputs)
    assert found.dtype == dtype
    own = torch.finfo(dtype).eps * (exact.abs() + values.abs() @ weight.abs().T)  # of the result's own type
    assert ((found.double() - exact).abs() <= by_weights + by_inputs + own).all()


def test_integers_up_to_the_largest_are_multiplied_exactly() -> None:
    """Scales are then 1, and nothing is rounded: also where all values are the largest, and pairs exceed 16 bits."""
    generator = torch.Generator().manual_seed(0)
    layer = layer_of(64, 48, bias=False)
    layer.weight.data = torch.randint(-127, 128, (48, 64), generator=generator).float()
    inputs = torch.randint(-127, 128, (5, 64), generator=generator).float()
    layer.weight.data[:, 0] = inputs[:, 0] = 127
    inputs[1], layer.weight.data[1] = 127, 127
    with torch.inference_mode():
        assert torch.equal(Int8Linear(layer)(inputs), inputs @ layer.weight.T)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_near_those_of_the_plain_model(make_model: MakeModel, family: str) -> None:
    """A layer's weights and inputs are rounded by 1/254 at most, and by 1/254/sqrt(3) as a root of mean squares, each
    relative to the largest value, which is some 3 times the others' size; there are fewer than 20 layers in a row."""
    model = make_model(family)
    ids = torch.arange(10, 34)[None]
    with torch.inference_mode():
        plain = model(ids).logits
        rounded = quantised(model)(ids).logits
        with finely(model):
            fine = model(ids).logits
    off = [float((found - plain).norm() / plain.norm()) for found in (rounded, fine)]
    assert 0 < off[0] < 3 * (2 * 20) ** 0.5 / 254 / 3**0.5
    assert 0 < off[1] < off[0] * 1.2  # what is left is the rounding of weights


def test_finely_only_weights_are_rounded() -> None:
    layer, inputs = layer_of(64, 32), inputs_of(4, 64)
    rounded = Int8Linear(layer)
    with torch.inference_mode():
        weight = rounded(torch.eye(64)) - layer.bias  # rows of one value are not rounded
        rounded.fine = True
        found = rounded(inputs)
        expected = inputs @ weight + layer.bias
    assert float(((found - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-5


def test_what_is_no_number_stays_none() -> None:
    inputs = inputs_of(3, 32)
    inputs[1, 5] = torch.nan
    with torch.inference_mode():
        found = Int8Linear(layer_of(32, 8))(inputs)
    assert found.isnan().all(dim=1).tolist() == [False, True, False]
    assert found[[0, 2]].isfinite().all()


# ---- whatever the batch


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_beside_any_others(dtype: torch.dtype) -> None:
    layer = Int8Linear(layer_of(96, 70).to(dtype))
    inputs = inputs_of(130, 96).to(dtype)
    with torch.inference_mode():
        expected = layer(inputs)
        for rows in (slice(0, 1), slice(5, 13), slice(64, 129), slice(None, None, 3)):
            assert torch.equal(layer(inputs[rows]), expected[rows])
        assert torch.equal(layer(inputs.view(2, 65, 96)), expected.view(2, 65, -1))


def exactly(model: PreTrainedModel, requests: Sequence[Request], *, batch: int) -> dict[Any, Any]:
    engine = TransformersEngine(model, end_tokens=(7,), batch_size=batch, max_batch_tokens=10_000, exact=True)
    found = engine.generate(requests, SAMPLED)
    told = {(done.request.prompt, done.request.sample): (done.tokens, done.log_prob) for done in found}
    assert len(told) == len(requests)
    return told


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exact_holds(make_model: MakeModel, some_requests: Callable[..., Any], dtype: torch.dtype) -> None:
    model = quantised(make_model("llama").to(dtype))
    requests = some_requests(model, questions=3, paths=2, samples=6)
    expected = exactly(model, requests, batch=36)
    assert exactly(model, requests[::-1], batch=5) == expected
    some = exactly(model, requests[5:11], batch=3)
    assert some == {key: expected[key] for key in some}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_shared_where_those_of_the_plain_model_are(
    make_model: MakeModel, family: str, dtype: torch.dtype
) -> None:
    """The trial of decoders rounds finely: otherwise a last bit decides how a state is rounded, and the logits differ."""
    model = make_model(family).to(dtype)
    before = fit(model)
    assert fit(quantised(model)) == before
    assert all(not module.fine for module in model.modules() if isinstance(module, Int8Linear))


# ---- what is replaced


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_weights_are_not_held_besides(make_model: MakeModel, family: str) -> None:
    model = quantised(make_model(family))
    assert isinstance(model.get_output_embeddings(), Int8Linear)
    left = {name for name, weight in model.named_parameters() if weight.ndim > 1}
    assert all("embed" in name or "wte" in name or "wpe" in name for name in left), left
    int8.quantise(language_model(model))  # once more does nothing
    assert not any(isinstance(part, Int8Linear) for part in model.get_output_embeddings().children())


def test_costs_and_fingerprint_stay(tiny_model_folder: Any) -> None:
    source = str(tiny_model_folder)
    plain, rounded = (loading.load(source, name=source, device="cpu", dtype=torch.float32, own=True) for _ in range(2))
    int8.quantise(rounded)
    assert rounded.costs == plain.costs
    assert rounded.fingerprint == plain.fingerprint


# ---- runs


def test_an_extended_run_is_an_undivided_one(tmp_path, run):
    """With thoughts, in bfloat16, begun with one path and one question; without the option the run is another one."""
    asked = {"exact": True, "dtype": "bfloat16", "quantize": "int8"}
    whole = run(tmp_path / "whole", **asked, latent_paths=3, samples=3, batch_size=18)
    run(tmp_path / "grown", **asked, latent_paths=1, samples=2, limit=1, batch_size=1)
    assert run(tmp_path / "grown", **asked, latent_paths=3, samples=3, batch_size=5) == whole
    told = json.loads((tmp_path / "grown" / "run.json").read_text())
    assert told["config"]["quantize"] == "int8"
    with pytest.raises(UsageError, match=r'`--quantize` is "int8" in .* and not set now'):
        run(tmp_path / "grown", **{**asked, "quantize": None}, latent_paths=3, samples=3)


def test_the_runs_tokens_and_log_probabilities_are_those_of_the_rounded_model(
    tmp_path, run, generated, without_cache, tiny_model_folder
):
    run(tmp_path / "run", **COT, samples=1, temperature=0.0, exact=True)
    source = str(tiny_model_folder)
    model = quantised(loading.load(source, name=source, device="cpu", dtype=torch.float32, own=True).model)
    for done in generated.values():
        expected = without_cache(model, done.request, Decoding(0.0, 1.0, 0, 12, log_probs=True), [1])
        assert done.tokens == expected.tokens
        assert done.log_prob == pytest.approx(expected.log_prob, rel=0.02)


def test_not_asked_for_it_changes_no_runs_name():
    plain, rounded = (RunConfig(quantize=value).resolved().model_dump(mode="json") for value in (None, "int8"))
    older = {key: value for key, value in plain.items() if key != "quantize"}
    assert config_hash(plain) == config_hash(older) != config_hash(rounded)
    assert (called({"method": "cot"}), called({"method": "cot", "quantize": "int8"})) == ("CoT", "CoT [int8]")


def test_the_assistant_keeps_its_type(config_of, silent):
    """Though it is the same model as the backbone."""
    config, task, dtype, _ = begin(config_of(thinker="untrained", quantize="int8"))
    built = build(config, task, dtype, silent.status)
    assert int8.is_int8(built.method.backbone.model)
    assert not int8.is_int8(built.assistant.model)


def test_the_next_run_of_a_worker_gets_plain_weights(config_of, silent):
    with devices.keeping(2):
        for quantize in ("int8", None, "int8"):
            config, task, dtype, _ = begin(config_of(method="cot", latent_paths=None, quantize=quantize))
            built = build(config, task, dtype, silent.status)
            assert int8.is_int8(built.method.backbone.model) is bool(quantize)


@pytest.mark.parametrize("method", ["lora", "ccot"])
def test_an_adapter_is_merged_before(config_of, silent, make_adapter, make_contemplation, tmp_path, method):
    folder = make_adapter(scale=0.3) if method == "lora" else make_contemplation()
    asked = {"method": method, "adapter": str(folder), "latent_paths": None}
    told = {}
    for quantize in ("int8", None):
        execute(config_of(**asked, quantize=quantize, out=tmp_path / str(quantize)), silent)
        told[quantize] = json.loads((tmp_path / str(quantize) / "run.json").read_text())["config"]
    plain = {**told[None], "quantize": "int8", "out": told["int8"]["out"]}
    assert told["int8"] == plain, "the same merged weights"


@pytest.mark.parametrize("control", [None, "mean"])  # which is made before the first question is asked
def test_a_backbone_thinks_in_its_rounded_states(config_of, silent, control):
    asked = {"method": "coconut", "latent_paths": 1, "latent_steps": 2, "latent_tokens": "<|im_start|> <|im_end|>"}
    thoughts = []
    for quantize in (None, "int8"):
        config, task, dtype, _ = begin(config_of(**asked, control=control, quantize=quantize))
        method = build(config, task, dtype, silent.status).method
        thoughts.append(method.prompts(task.questions[0], [0])[0].thoughts)
    assert 0 < float((thoughts[0] - thoughts[1]).norm() / thoughts[0].norm()) < 0.2


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"engine": "vllm"}, r"`--quantize` is for `transformers`, and `--engine` is `vllm`: give vLLM's own"),
        ({"engine": "openai", "base_url": "http://localhost:1/v1"}, r"`--quantize` is for `transformers`.*serve a"),
    ],
)
def test_other_engines_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        RunConfig(quantize="int8", **changes).resolved()


def test_other_devices_and_processors_are_refused(config_of, monkeypatch):
    with pytest.raises(UsageError, match=r"is for a CPU, and `--device` is cuda:1: leave it out"):
        int8.refuse_unfit("cuda:1")
    monkeypatch.setattr(hardware, "pick_device", lambda device, option="--device": "cuda")  # noqa: ARG005
    with pytest.raises(UsageError, match=r"`--quantize int8` is for a CPU, and `--device` is cuda"):
        begin(config_of(**COT))
    monkeypatch.undo()
    monkeypatch.setattr(int8, "multiplies_int8", lambda: False)
    with pytest.raises(UsageError, match=r"needs a processor with int8 instructions"):
        begin(config_of(**COT))


def test_a_processor_whose_sums_overflow_is_noticed(monkeypatch):
    forward = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda self, inputs: forward(self, inputs) * 0.5)
    assert not int8.multiplies_int8()

    def missing(*_: Any) -> Tensor:
        raise NotImplementedError

    monkeypatch.setattr(Int8Linear, "forward", missing)
    assert not int8.multiplies_int8()


def test_weights_that_are_quantised_already_are_refused(make_model):
    model = language_model(make_model("llama"))
    model.quantisation = Quantisation("gptq", 4)
    with pytest.raises(UsageError, match=r"those of `--backbone` tiny are quantised \(gptq, 4 bits\): leave it out"):
        int8.quantise(model)
    assert not int8.is_int8(model.model)


def test_a_model_without_linear_layers_is_refused(make_model):
    model = make_model("llama")
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                setattr(parent, name, type("Own", (nn.Linear,), {})(layer.in_features, layer.out_features))
    with pytest.raises(UsageError, match="has no linear layers of the usual kind; leave it out"):
        int8.quantise(language_model(model))
