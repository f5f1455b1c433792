"""A thinker on disk: what is written, and everything that is refused."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from contrastive import checkpoint
from contrastive.assistant_thinker import AssistantThinker
from contrastive.checkpoint import CONFIG_FILE, WEIGHTS_FILE, CheckpointError
from contrastive.projection import new_projection
from contrastive.thinker import Inputs
from contrastive.token_sets import SoftTokenSets

N, D_A, D = 3, 8, 12


def new_thinker(*, per_path=1, normalise=True):
    vectors = torch.randn(N, per_path, D_A, generator=torch.Generator().manual_seed(2))
    return AssistantThinker(SoftTokenSets(vectors), new_projection(D_A, D, scale=0.5), normalise=normalise)


@pytest.fixture
def saved(tmp_path):
    checkpoint.save(new_thinker(), tmp_path / "thinker", soft_tokens=4, prompt_version="7")
    return tmp_path / "thinker"


def change_config(folder, **changes):
    values = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(values | changes))


def change_weights(folder, **changes):
    save_file(load_file(folder / WEIGHTS_FILE) | changes, folder / WEIGHTS_FILE)


@pytest.mark.parametrize("per_path", [1, 4])
@pytest.mark.parametrize("normalise", [True, False])
def test_round_trip(tmp_path, per_path, normalise):
    thinker = new_thinker(per_path=per_path, normalise=normalise)
    checkpoint.save(thinker, tmp_path, soft_tokens=4, prompt_version="7")
    loaded, config = checkpoint.load(tmp_path)
    assert config == checkpoint.read_config(tmp_path)
    assert (config.num_paths, config.soft_tokens, config.vectors_per_path) == (N, 4, per_path)
    assert (config.assistant_width, config.backbone_width, config.prompt_version) == (D_A, D, "7")
    assert loaded.normalise is normalise
    assert config.sizes["normalise"] is normalise
    for name, tensor in thinker.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert all(parameter.dtype == torch.float32 and parameter.requires_grad for parameter in loaded.parameters())


def test_only_what_is_learned_is_written(saved, make_model):
    """Mistake: whole frozen models in every checkpoint."""
    thinker, assistant = checkpoint.load(saved)[0], make_model("llama", hidden_size=D_A)
    thinker(Inputs.of_assistant(assistant, torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.int64)), 4)
    checkpoint.save(thinker, saved, soft_tokens=4, prompt_version="7")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(saved / WEIGHTS_FILE).items()}
    assert shapes == {"token_sets.vectors": (N, 1, D_A), "projection.weight": (D, D_A), "projection.bias": (D,)}
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


def test_saving_again_replaces(saved):
    thinker = new_thinker()
    with torch.no_grad():
        thinker.projection.bias.fill_(3.0)
    checkpoint.save(thinker, saved, soft_tokens=6, prompt_version="8")
    loaded, config = checkpoint.load(saved)
    assert torch.equal(loaded.projection.bias, torch.full((D,), 3.0))
    assert (config.soft_tokens, config.prompt_version) == (6, "8")


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved, missing):
    (saved / missing).unlink()
    with pytest.raises(CheckpointError, match=missing):
        checkpoint.load(saved)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.load(tmp_path / "nowhere")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe\x00", b"[1, 2]", b"null"])
def test_broken_config(saved, content):
    (saved / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=CONFIG_FILE):
        checkpoint.load(saved)


def test_an_unknown_key_is_named(saved):
    change_config(saved, dropout=0.5)
    with pytest.raises(CheckpointError, match="dropout"):
        checkpoint.load(saved)


def test_a_missing_key_is_named(saved):
    values = json.loads((saved / CONFIG_FILE).read_text())
    del values["soft_tokens"]
    (saved / CONFIG_FILE).write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="soft_tokens"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_paths": "3"},
        {"num_paths": None},
        {"num_paths": 0},
        {"assistant_width": -8},
        {"backbone_width": 12.0},
        {"soft_tokens": True},
        {"normalise": "no"},
        {"prompt_version": 7},
    ],
)
def test_a_value_of_the_wrong_type_is_named(saved, changes):
    change_config(saved, **changes)
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        checkpoint.load(saved)


@pytest.mark.parametrize("changes", [{"num_paths": N + 1}, {"assistant_width": D_A + 1}, {"backbone_width": D - 1}])
def test_a_config_that_does_not_fit_the_weights(saved, changes):
    change_config(saved, **changes)
    with pytest.raises(CheckpointError, match="does not fit"):
        checkpoint.load(saved)


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {key: size}
            for key in ("soft_tokens", "num_paths", "vectors_per_path", "assistant_width", "backbone_width")
            for size in (10**9, 10**30)
        ),
        {"num_paths": 10**9, "standardise": True},
        {"backbone_width": 10**9, "path_offset": True},
    ],
)
def test_sizes_are_checked_before_anything_is_made_of_them(saved, changes, monkeypatch):
    """A config that claims terabytes: the shapes in the weights' header are all that is looked at."""
    change_config(saved, **changes)
    for name in ("zeros", "empty", "randn"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("memory was taken"))
    monkeypatch.setattr(checkpoint, "load_file", lambda *_: pytest.fail("the weights were read"))
    with pytest.raises(CheckpointError, match=CONFIG_FILE):
        checkpoint.load(saved)


def test_soft_tokens_are_those_of_the_slots_where_every_slot_has_its_vector(tmp_path):
    checkpoint.save(new_thinker(per_path=4), tmp_path, soft_tokens=4, prompt_version="7")
    change_config(tmp_path, soft_tokens=5)
    with pytest.raises(CheckpointError, match=r"soft_tokens=5.*vectors_per_path=4"):
        checkpoint.load(tmp_path)


def test_a_published_file_whose_tensors_claim_more_than_it_holds(tmp_path):
    """One number, seen a million million times: what a few bytes of a file can say of a tensor."""
    huge = torch.zeros(1).expand(10**6, 10**6)
    torch.save({"weight": huge, "bias": torch.zeros(1).expand(10**6)}, tmp_path / "projection.bin")
    with pytest.raises(CheckpointError, match="claims more values"):
        checkpoint.import_published(tmp_path / "projection.bin", prompt_version="7")


def test_an_unknown_tensor_is_named(saved):
    change_weights(saved, **{"assistant.lm_head": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"assistant\.lm_head"):
        checkpoint.load(saved)


def test_a_missing_tensor_is_named(saved):
    tensors = load_file(saved / WEIGHTS_FILE)
    del tensors["projection.bias"]
    save_file(tensors, saved / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=r"projection\.bias"):
        checkpoint.load(saved)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers(saved, value):
    bias = torch.zeros(D)
    bias[-1] = value
    change_weights(saved, **{"projection.bias": bias})
    with pytest.raises(CheckpointError, match="not finite"):
        checkpoint.load(saved)


def test_a_torn_weights_file(saved):
    content = (saved / WEIGHTS_FILE).read_bytes()
    (saved / WEIGHTS_FILE).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=WEIGHTS_FILE):
        checkpoint.load(saved)


class _Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('a pickle was executed')",)


@pytest.mark.parametrize("write", [lambda trap, path: path.write_bytes(pickle.dumps(trap)), torch.save])
def test_a_pickle_is_refused_unopened(saved, write):
    write(_Trap(), saved / WEIGHTS_FILE)
    with pytest.raises(CheckpointError, match=WEIGHTS_FILE):
        checkpoint.load(saved)


def test_statistics_and_offset_are_part_of_a_checkpoint(tmp_path):
    generator = torch.Generator().manual_seed(4)
    thinker = AssistantThinker(
        SoftTokenSets(torch.randn(N, 1, D_A, generator=generator)),
        new_projection(D_A, D, scale=0.5),
        statistics=torch.rand(2, N, D_A, generator=generator),
        offset=True,
    )
    with torch.no_grad():
        thinker.offset.normal_(generator=generator)
    checkpoint.save(
        thinker, tmp_path, soft_tokens=4, prompt_version="7", about={"task": "sums", "metrics": {"loss": 0.5}}
    )
    loaded, config = checkpoint.load(tmp_path)
    states = torch.randn(2, N, 4, D_A, generator=generator)
    assert torch.equal(loaded.project(states), thinker.project(states))
    assert torch.equal(loaded.first_paths(2).project(states[:, :2]), thinker.project(states)[:, :2])
    assert config.about == {"task": "sums", "metrics": {"loss": 0.5}}


# ---- the Hub, as a local folder


def test_from_pretrained_and_save_pretrained(saved, tmp_path):
    (saved / "README.md").write_text("a card")
    loaded = checkpoint.Checkpoint.from_pretrained(saved)
    loaded.save_pretrained(tmp_path / "copy")
    assert checkpoint.read_config(tmp_path / "copy") == checkpoint.read_config(saved)
    assert (tmp_path / "copy" / "README.md").read_text() == "a card"
    for name, tensor in load_file(saved / WEIGHTS_FILE).items():
        assert torch.equal(load_file(tmp_path / "copy" / WEIGHTS_FILE)[name], tensor)


def test_push_to_hub_sends_config_weights_and_card(saved, monkeypatch):
    sent = {}

    class Hub:
        def __init__(self, *_, **__):
            pass

        def create_repo(self, repo_id, **_):
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id, folder_path, **_):
            sent[repo_id] = {path.name for path in Path(folder_path).iterdir()}

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Hub)
    (saved / "README.md").write_text("a card")
    checkpoint.Checkpoint.from_pretrained(saved).push_to_hub("somebody/thinker")
    assert sent == {"somebody/thinker": {CONFIG_FILE, WEIGHTS_FILE, "README.md"}}


# ---- the published file


def published(path, **tensors):
    generator = torch.Generator().manual_seed(6)
    whole = {"weight": torch.randn(D, D_A, generator=generator), "bias": torch.randn(D, generator=generator)}
    torch.save(whole | tensors, path)
    return whole | tensors


@pytest.mark.parametrize("paths", [0, 3])
def test_a_published_projection_is_plain(tmp_path, paths):
    embedding = {"embedding": torch.randn(paths, D_A)} if paths else {}
    tensors = published(tmp_path / "projection.bin", **embedding)
    thinker, config = checkpoint.import_published(tmp_path / "projection.bin", prompt_version="7")
    assert (config.num_paths, config.backbone_width, config.assistant_width) == (paths or 1, D, D_A)
    assert not config.sizes["normalise"]
    states = torch.randn(2, paths or 1, 4, D_A)
    torch.testing.assert_close(thinker.project(states), states @ tensors["weight"].T + tensors["bias"])
    expected = embedding.get("embedding", torch.zeros(1, D_A))
    assert torch.equal(thinker.token_sets.vectors[:, 0], expected)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"bias": torch.zeros(5)}, "do not fit each other"),
        ({"embedding": torch.zeros(2, 9)}, "do not fit each other"),
        ({"other": torch.zeros(2)}, "weight, bias and perhaps embedding"),
    ],
)
def test_a_published_file_that_makes_no_sense(tmp_path, tensors, message):
    published(tmp_path / "projection.bin", **tensors)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.import_published(tmp_path / "projection.bin", prompt_version="7")


def test_a_pickle_is_never_run(tmp_path):
    """A published file that would run code on loading is refused, and nothing has happened."""

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "run"),))

    (tmp_path / "projection.bin").write_bytes(pickle.dumps(Evil(), protocol=2))
    with pytest.raises(CheckpointError, match=r"projection\.bin"):
        checkpoint.import_published(tmp_path / "projection.bin", prompt_version="7")
    assert not (tmp_path / "run").exists()
