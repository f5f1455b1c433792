"""Who holds which device when, on stand-ins for models and engines: who is moved where, in which order, needs no GPU."""

from __future__ import annotations

import pytest
import torch

from scaling.config import RunConfig
from scaling.models import devices, loading, model_files

SERVER = {"engine": "openai", "base_url": "http://localhost:1/v1"}


def config_on(device, **settings):
    """As a run has it once its device is chosen."""
    return RunConfig(**settings).model_copy(update={"device": device})


class Model:
    """Notes in `events` where it is moved."""

    def __init__(self, events):
        self.events = events

    def to(self, device):
        self.events.append(f"moved to {device}")


class Engine:
    def __init__(self, events):
        self.events = events

    def close(self):
        self.events.append("closed")


class OtherEngine(Engine):
    """Of another kind."""


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({"engine": "vllm"}, "cuda", ["closed", "moved to cuda"]),
        ({"engine": "vllm", "assistant_device": "cuda:1"}, "cuda", ["moved to cuda:1"]),
        ({"engine": "vllm", "assistant_device": "cpu"}, "cuda", ["moved to cpu"]),
        ({"engine": "vllm"}, "cpu", ["moved to cpu"]),
        (SERVER, "cuda", ["moved to cuda"]),
    ],
    ids=str,
)
def test_an_assistant_thinks_on_a_gpu_only_after_the_engine_that_holds_it_has_ended(settings, device, expected):
    events = []
    with devices.keeping(0):
        devices.keep_or_close(Engine(events))
        devices.move_to_thinking_device(config_on(device, **settings), Model(events))()
        assert events == expected


@pytest.mark.parametrize(
    ("settings", "device", "expected"),
    [
        ({"engine": "vllm"}, "cuda", ["cpu"]),
        ({"engine": "vllm", "assistant_device": "cuda:1"}, "cuda", ["cuda:1"]),
        ({"engine": "vllm"}, "cpu", ["cpu"]),
        (SERVER, "cuda", ["cuda"]),
        ({}, "cuda", ["cuda", "cuda"]),
    ],
    ids=str,
)
def test_models_are_loaded_to_where_the_engine_leaves_them_room(monkeypatch, settings, device, expected):
    """A backbone that decodes in this process is beside the assistant; another's weights are not on any GPU."""
    places = []
    monkeypatch.setattr(model_files, "locate", lambda name: name)
    monkeypatch.setattr(loading, "locate", lambda name: name)
    monkeypatch.setattr(loading, "load", lambda *_, device, **__: places.append(device))
    monkeypatch.setattr(loading, "load_embeddings_only", lambda *_, **__: None)
    config = config_on(device, **settings, backbone="a", assistant="b")
    devices.load_backbone(config, torch.float32)
    devices.load_assistant(config, torch.float32)
    assert places == expected


@pytest.mark.parametrize(
    ("settings", "loader"),
    [
        ({}, "load"),
        ({"engine": "vllm", "method": "cot"}, "load_embeddings_only"),
        ({**SERVER, "method": "cot"}, "load_shapes_only"),
        ({**SERVER, "method": "assist-cot"}, "load_shapes_only"),
        ({**SERVER, "method": "cot-unk"}, "load_embeddings_only"),
        ({**SERVER, "method": "softcot"}, "load_embeddings_only"),
    ],
    ids=str,
)
def test_of_a_backbone_that_decodes_elsewhere_no_more_is_loaded_than_prompts_need(monkeypatch, settings, loader):
    called = []
    monkeypatch.setattr(model_files, "locate", lambda name: name)
    for name in ("load", "load_embeddings_only", "load_shapes_only"):
        monkeypatch.setattr(loading, name, lambda *_, loader=name, **__: called.append(loader))
    devices.load_backbone(config_on("cpu", **settings), torch.float32)
    assert called == [loader]


def test_an_engine_is_kept_for_the_next_run_only_while_something_is_kept():
    events = []
    devices.keep_or_close(Engine(events))
    assert events == ["closed"]
    with devices.keeping(0):
        engine = Engine(events)
        devices.keep_or_close(engine)
        assert devices.take_engine(Engine, lambda _: True) is engine
        assert devices.take_engine(Engine, lambda _: True) is None, "it has been taken"
        devices.keep_or_close(engine)
        assert events == ["closed"]
    assert events == ["closed", "closed"]


@pytest.mark.parametrize(("kind", "serves"), [(Engine, False), (OtherEngine, True)])
def test_a_kept_engine_that_does_not_serve_the_next_run_ends(kind, serves):
    events = []
    with devices.keeping(0):
        devices.keep_or_close(Engine(events))
        assert devices.take_engine(kind, lambda _: serves) is None
        assert events == ["closed"]


def test_keeping_ends_with_an_error_too():
    events = []

    def interrupted():
        with devices.keeping(0):
            devices.keep_or_close(Engine(events))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    devices.keep_or_close(Engine(events))
    assert events == ["closed", "closed"]


@pytest.mark.parametrize(
    ("settings", "leaves"),
    [
        ({}, False),
        (SERVER, False),
        ({"engine": "vllm"}, True),
        ({"engine": "vllm", "assistant_device": "cuda:1"}, False),
    ],
    ids=str,
)
def test_only_an_engine_on_this_machines_gpus_wants_the_assistant_away(settings, leaves):
    assert devices.engine_takes_gpus(config_on("cuda", **settings)) is leaves
