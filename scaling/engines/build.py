"""Builds the engine that a run's settings name. Every engine has a builder module, which `scaling.engines.kinds` lists."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from scaling.config import RunConfig
from scaling.engines.base import Engine, Workload
from scaling.engines.kinds import KINDS
from scaling.models.loading import LanguageModel

Tell = Callable[[str], None]


class Builder(Protocol):
    """The functions of an engine's builder module. Both raise UsageError where the engine does not fit the run."""

    def build(self, config: RunConfig, backbone: LanguageModel, workload: Workload, tell: Tell) -> Engine:
        """Starts the engine of a resolved config. tell: is told what takes time, and what a user may want to know."""
        ...

    def refuse_unfit(self, config: RunConfig, backbone: LanguageModel, workload: Workload) -> None:
        """Checks the settings as far as that takes no start of the engine, nor weights of the backbone."""
        ...


def build_engine(config: RunConfig, backbone: LanguageModel, workload: Workload, tell: Tell) -> Engine:
    """The engine of a run, started; see `Builder.build`."""
    builder: Builder = _builder(config)
    return builder.build(config, backbone, workload, tell)


def refuse_unfit(config: RunConfig, backbone: LanguageModel, workload: Workload) -> None:
    """Raises UsageError where the engine would not take these settings; see `Builder.refuse_unfit`."""
    builder: Builder = _builder(config)
    builder.refuse_unfit(config, backbone, workload)


def at_server(config: RunConfig) -> RunConfig:
    """With the backbone's name at the server, where the engine is one that must be asked for it; else as it is. Raises
    UsageError where it is down."""
    if config.served_model or not KINDS[config.engine].asks_model_name:
        return config
    return config.model_copy(update={"served_model": _builder(config).served_model(config)})


def _builder(config: RunConfig) -> Any:
    """The module that builds this run's engine."""
    return import_module(KINDS[config.engine].builder)
