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
        """Starts the engine of a resolved config.

        Args:
            config: resolved settings.
            backbone: as this process has loaded it, which for some engines is without weights.
            workload: what the run will ask of the engine.
            tell: shows the user a line of text.
        """
        ...

    def refuse_unfit(self, config: RunConfig, backbone: LanguageModel, workload: Workload) -> None:
        """Checks the settings, as far as that is possible without starting the engine or reading weights."""
        ...


def build_engine(config: RunConfig, backbone: LanguageModel, workload: Workload, tell: Tell) -> Engine:
    """Starts the engine of a run. Arguments are those of `Builder.build`."""
    builder: Builder = _builder(config)
    return builder.build(config, backbone, workload, tell)


def refuse_unfit(config: RunConfig, backbone: LanguageModel, workload: Workload) -> None:
    """Raises UsageError where the engine would not take these settings; see `Builder.refuse_unfit`."""
    builder: Builder = _builder(config)
    builder.refuse_unfit(config, backbone, workload)


def at_server(config: RunConfig) -> RunConfig:
    """Fills in the name that the backbone has at a server, where no setting gives it.

    Settings of engines without a server are returned unchanged. Raises UsageError where the server does not answer.
    """
    if config.served_model or not KINDS[config.engine].asks_model_name:
        return config
    return config.model_copy(update={"served_model": _builder(config).served_model(config)})


def _builder(config: RunConfig) -> Any:
    """The module that builds this run's engine."""
    return import_module(KINDS[config.engine].builder)
