"""Builds the in-process engine on the backbone that was loaded here."""

from __future__ import annotations

from collections.abc import Callable

from scaling.config import RunConfig
from scaling.engines.base import Engine, Workload
from scaling.engines.local.engine import TransformersEngine, fitted_engine
from scaling.models.loading import LanguageModel


def build(config: RunConfig, backbone: LanguageModel, workload: Workload, tell: Callable[[str], None]) -> Engine:
    """The engine, with what is unusual about this backbone told."""
    engine = engine_of(backbone, config, tokens_per_row=workload.tokens_per_row)
    engine.tell = tell
    if engine.plain_because:
        tell(f"prompts are not shared between completions of {config.backbone}: {engine.plain_because}")
    if engine.block == 1:
        why = (
            "its prompts are not shared"
            if engine.plain_because
            else "here a row's result depends on its place in a batch"
        )
        tell(f"`--exact` decodes {config.backbone} one completion at a time, as {why}")
    return engine


def refuse_unfit(config: RunConfig, backbone: LanguageModel, workload: Workload) -> None:
    """Refuses nothing: which decoder fits a model is tried on its weights."""


def engine_of(backbone: LanguageModel, config: RunConfig, *, tokens_per_row: int) -> TransformersEngine:
    """The backbone's in-process engine, within the limits of the settings."""
    return fitted_engine(
        backbone.model,
        end_tokens=backbone.end_tokens,
        tokens_per_row=tokens_per_row,
        batch_size=None if config.batch_size == "auto" else config.batch_size,
        max_batch_tokens=None if config.max_batch_tokens == "auto" else config.max_batch_tokens,
        exact=bool(config.exact),
    )
