"""Which device and type of numbers a machine is good at."""

from __future__ import annotations

import pytest
import torch

from scaling.config import RunConfig
from scaling.models.hardware import pick_device, pick_dtype, placed
from scaling.records.errors import UsageError


def test_devices(monkeypatch):
    assert pick_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == "cuda"


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_this_machine_lacks(device):
    with pytest.raises(UsageError, match=f"`--device` {device} is not usable here"):
        pick_device(device)


@pytest.mark.parametrize(
    ("abilities", "expected"),
    [
        ({}, torch.float32),
        ({"avx2": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True, "cpu_name": "AMD EPYC"}, torch.bfloat16),
        ({"avx512_bf16": True, "cpu_name": "Intel Xeon"}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": True, "cpu_name": "Intel Xeon"}, torch.bfloat16),
    ],
)
def test_auto_is_bfloat16_only_where_the_cpu_multiplies_it_faster(monkeypatch, abilities, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert pick_dtype("auto", "cpu") == expected
    assert pick_dtype("auto", "cpu:0") == expected, "one of several processes calls its CPU so"


def test_auto_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert pick_dtype("auto", "cuda:0") == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert pick_dtype("auto", "cuda:0") == torch.float16


def test_a_named_dtype_is_taken():
    for name in ("float32", "bfloat16", "float16"):
        assert pick_dtype(name, "cpu") == getattr(torch, name)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_an_assistants_device_is_told_by_its_own_option(device):
    config = RunConfig(engine="openai", base_url="http://localhost:1/v1", assistant_device=device).resolved()
    with pytest.raises(UsageError, match=f"`--assistant-device` {device} is not usable here"):
        placed(config)


@pytest.mark.parametrize("engine", [{"engine": "vllm"}, {"engine": "openai", "base_url": "http://localhost:1/v1"}])
def test_auto_is_for_an_assistants_device_what_nothing_is(engine):
    configs = [RunConfig(**engine, assistant_device=device).resolved() for device in (None, "auto")]
    assert configs[0] == configs[1]
    config, _ = placed(configs[1])
    assert config.thinking_device == config.device != "auto"
