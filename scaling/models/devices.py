"""Decides which of backbone, assistant and engine is on which device, and what stays loaded between two runs.

- An engine in this process: backbone and assistant are both on the run's device.
- An engine that takes the GPUs for itself (vLLM): the assistant is loaded on the CPU, moved to the GPU to think, and moved
  off it before the engine starts. Only an assistant with a device of its own (`--assistant-device`) stays there.
- Inside `keeping`: the models and the engine of a run stay for the next run. `release_engine` then frees the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

from scaling.config import RunConfig
from scaling.engines.kinds import KINDS
from scaling.models import loading, model_files
from scaling.models.loading import LanguageModel


class EngineProcess(Protocol):
    """An engine that holds devices in processes of its own, and can stay up after a run."""

    def close(self) -> None:
        """Ends the engine and frees its devices."""
        ...


Kept = TypeVar("Kept", bound=EngineProcess)

_keeping = False
_engine: EngineProcess | None = None  # an engine that is up while no run uses it


@contextmanager
def keeping(models: int) -> Iterator[None]:
    """Inside this context the last `models` models stay loaded, and the engine of the last run stays up."""
    global _keeping
    loading.keep_loaded(models)
    _keeping = True
    try:
        yield
    finally:
        _keeping = False
        release_engine()
        loading.keep_loaded(0)


def release_engine() -> None:
    """Ends the engine that was kept from an earlier run, if there is one, and frees its devices."""
    global _engine
    engine, _engine = _engine, None
    if engine:
        engine.close()


def take_engine(kind: type[Kept], serves: Callable[[Kept], bool]) -> Kept | None:
    """Returns the engine that was kept from an earlier run, if it can be used again, else None.

    An engine that cannot be used is ended, as its devices are needed.

    Args:
        kind: the class that the engine must have.
        serves: says whether an engine of this class fits the new run.
    """
    global _engine
    if isinstance(_engine, kind) and serves(_engine):
        engine, _engine = _engine, None
        return engine
    release_engine()
    return None


def keep_or_close(engine: EngineProcess) -> None:
    """Keeps the engine for the next run where that is inside `keeping`, else ends it."""
    global _engine
    if _keeping:
        _engine = engine
    else:
        engine.close()


def engine_takes_gpus(config: RunConfig) -> bool:
    """Whether the run's engine takes the GPU that the assistant would use, too."""
    return KINDS[config.engine].takes_gpus and not config.assistant_device


def load_backbone(config: RunConfig, dtype: torch.dtype, *, own: bool = False) -> LanguageModel:
    """Loads the backbone. Of a backbone that another process runs, only what this process needs is loaded.

    Args:
        config: settings with device and dtype chosen.
        dtype: of the weights.
        own: True for a new object that nobody else uses, because its weights are going to change, as they do with
            `--quantize`.
    """
    kind = KINDS[config.engine]
    own = own or config.quantize is not None
    if kind.in_process:
        source = model_files.locate(config.backbone)
        return loading.load(source, name=config.backbone, device=config.device, dtype=dtype, own=own)
    if kind.local_weights or config.slots:
        return loading.load_embeddings_only(config.backbone, dtype=dtype)
    return loading.load_shapes_only(config.backbone, dtype=dtype)


def assistant_is_backbone(config: RunConfig) -> bool:
    """Whether backbone and assistant are the same model in this process, which is then loaded once."""
    same = model_files.locate(config.assistant) == model_files.locate(config.backbone)
    return same and KINDS[config.engine].in_process and config.quantize is None  # the assistant keeps its type


def load_assistant(config: RunConfig, dtype: torch.dtype) -> LanguageModel:
    """Loads the assistant: on the CPU where it shares a GPU with the engine by turns, else on the device where it thinks."""
    device = "cpu" if _share_gpu(config) else config.thinking_device
    return loading.load(model_files.locate(config.assistant), name=config.assistant, device=device, dtype=dtype)


def move_to_thinking_device(config: RunConfig, *parts: torch.nn.Module) -> Callable[[], None]:
    """Returns a function that moves these modules to the device where the assistant thinks.

    When it is called, it first ends a kept engine that holds this device.
    """

    def move() -> None:
        if _share_gpu(config):
            release_engine()
        for part in parts:
            part.to(torch.device(config.thinking_device))

    return move


def move_off_gpu(model: torch.nn.Module) -> None:
    """Moves a model to the CPU, and frees the memory that this process has cached on the GPU."""
    model.to(torch.device("cpu"))
    torch.cuda.empty_cache()  # does nothing where there is no GPU


def _share_gpu(config: RunConfig) -> bool:
    """Whether the assistant and the engine use the same GPU by turns."""
    return engine_takes_gpus(config) and config.device.startswith("cuda")
