"""Who holds which device when: backbone, assistant, an engine in processes of its own, and what stays between two runs.

The rules are these. With an engine in this process, backbone and assistant are both on the run's device. An engine that
takes the GPUs (vLLM) has them for itself: the assistant is loaded on the CPU, moved to the GPU to think, and taken off it
before the engine starts; only an assistant with a device of its own stays there. While `keeping`, the models and the
engine that a run leaves behind stay for the next run; `release_engine` frees the devices for anything else.
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
    """An engine that holds devices in processes of its own, which can outlast a run."""

    def close(self) -> None:
        """Ends it and frees its devices."""
        ...


Kept = TypeVar("Kept", bound=EngineProcess)

_keeping = False
_engine: EngineProcess | None = None  # is up, and no run uses it


@contextmanager
def keeping(models: int) -> Iterator[None]:
    """While entered, the last `models` models stay loaded, and the engine of the last run stays up."""
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
    """Ends the engine that was kept, if there is one, and frees its devices."""
    global _engine
    engine, _engine = _engine, None
    if engine:
        engine.close()


def take_engine(kind: type[Kept], serves: Callable[[Kept], bool]) -> Kept | None:
    """The engine that was kept, where it is of this kind and serves. Any other is ended, as its devices are needed."""
    global _engine
    if isinstance(_engine, kind) and serves(_engine):
        engine, _engine = _engine, None
        return engine
    release_engine()
    return None


def keep_or_close(engine: EngineProcess) -> None:
    """Keeps the engine for the next run while `keeping`, or ends it."""
    global _engine
    if _keeping:
        _engine = engine
    else:
        engine.close()


def engine_takes_gpus(config: RunConfig) -> bool:
    """Whether the run's engine takes the device that the assistant would be on."""
    return KINDS[config.engine].takes_gpus and not config.assistant_device


def load_backbone(config: RunConfig, dtype: torch.dtype, *, own: bool = False) -> LanguageModel:
    """The backbone, or what is needed here of one that another process runs.

    Args:
        config: settings with device and type chosen.
        dtype: of the weights.
        own: whether it must be an object that nobody else has, as its weights are going to change.
    """
    kind = KINDS[config.engine]
    if kind.in_process:
        source = model_files.locate(config.backbone)
        return loading.load(source, name=config.backbone, device=config.device, dtype=dtype, own=own)
    if kind.local_weights or config.slots:
        return loading.load_embeddings_only(config.backbone, dtype=dtype)
    return loading.load_shapes_only(config.backbone, dtype=dtype)


def assistant_is_backbone(config: RunConfig) -> bool:
    """Whether both names are the same weights in this process, which are then loaded once."""
    same = model_files.locate(config.assistant) == model_files.locate(config.backbone)
    return same and KINDS[config.engine].in_process


def load_assistant(config: RunConfig, dtype: torch.dtype) -> LanguageModel:
    """The assistant where it belongs with the run's engine: on the CPU where it is brought to a GPU only to think."""
    device = "cpu" if _share_gpu(config) else config.thinking_device
    return loading.load(model_files.locate(config.assistant), name=config.assistant, device=device, dtype=dtype)


def move_to_thinking_device(config: RunConfig, *parts: torch.nn.Module) -> Callable[[], None]:
    """What brings the parts of a thinker to where it thinks, after it has ended an engine that holds that device."""

    def move() -> None:
        if _share_gpu(config):
            release_engine()
        for part in parts:
            part.to(torch.device(config.thinking_device))

    return move


def move_off_gpu(model: torch.nn.Module) -> None:
    """Takes a model off its GPU, and frees what else this process has there; on the CPU it stays as it is."""
    model.to(torch.device("cpu"))
    torch.cuda.empty_cache()  # does nothing where there is no GPU


def _share_gpu(config: RunConfig) -> bool:
    """Whether the assistant and the engine take turns on a GPU."""
    return engine_takes_gpus(config) and config.device.startswith("cuda")
