"""From a run's settings to its engine: on the loaded model, on vLLM, or a server's. The only list of engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from scaling.config import RunConfig
from scaling.engines.base import Engine
from scaling.engines.embedded import EmbeddedPrompts
from scaling.engines.transformers import TransformersEngine, fitted_engine
from scaling.models.loading import LanguageModel
from scaling.models.model_files import locate
from scaling.records.errors import UsageError
from scaling.records.seeds import engine_seed

if TYPE_CHECKING:
    from scaling.engines.openai import Server

_CONTEXT = (
    512  # tokens that vLLM's longest sequence is a multiple of, so that one that is kept serves the next run, too
)


def build_engine(
    config: RunConfig,
    backbone: LanguageModel,
    *,
    tokens_per_row: int,
    slots: bool,
    tell: Callable[[str], None],
    drawn: int = 0,
) -> Engine:
    """The engine of a resolved config. tokens_per_row: prompt and completion of the longest request. slots: whether prompts
    have soft tokens. drawn: completions that the run has already. Raises UsageError where it cannot be started."""
    if config.engine == "vllm":
        tell(f"starting vLLM with {config.backbone}")
        return _vllm(config, backbone, tokens_per_row=tokens_per_row, slots=slots, drawn=drawn)
    if config.engine == "openai":
        return _openai(config, backbone, tokens_per_row=tokens_per_row, slots=slots)
    engine = engine_of(backbone, config, tokens_per_row=tokens_per_row)
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


def at_server(config: RunConfig) -> RunConfig:
    """With the backbone's name at the server, where the engine is one that must be asked for it; else as it is. Raises
    UsageError where it is down."""
    if config.engine != "openai" or config.served_model:
        return config
    from scaling.engines.openai import Server

    return config.model_copy(update={"served_model": Server(str(config.base_url), config.served_model).model})


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


def embedded(config: RunConfig, backbone: LanguageModel, *, context: int) -> EmbeddedPrompts:
    """Prompts as rows of the backbone's embedding space, in the run's dtype."""
    dtype: torch.dtype = getattr(torch, config.dtype)
    return EmbeddedPrompts(backbone.model.get_input_embeddings(), width=backbone.width, context=context, dtype=dtype)


def refuse_unfit(config: RunConfig, backbone: LanguageModel, *, tokens_per_row: int, slots: bool) -> None:
    """Raises UsageError where the engine would not take these settings; starts none. Arguments as of `build_engine`."""
    if config.engine == "vllm":
        _vllm_settings(config, backbone, tokens_per_row=tokens_per_row, slots=slots, drawn=0)
    if config.engine == "openai":
        server, _ = _server(config, backbone, tokens_per_row=tokens_per_row)
        server.refuse_unfit(slots=slots, top_k=config.top_k)


def _vllm(config: RunConfig, backbone: LanguageModel, *, tokens_per_row: int, slots: bool, drawn: int) -> Engine:
    from scaling.engines.vllm import VllmEngine
    from scaling.engines.vllm_process import done_with, running

    settings, given, context = _vllm_settings(config, backbone, tokens_per_row=tokens_per_row, slots=slots, drawn=drawn)
    seeds = config.engine_seeds or "streams"
    return VllmEngine(
        running(settings, given, seeds=seeds, sampled=config.temperature > 0),
        embedded(config, backbone, context=context),
        end_tokens=backbone.end_tokens,
        seeds=seeds,
        done=done_with,
    )


def _vllm_settings(
    config: RunConfig, backbone: LanguageModel, *, tokens_per_row: int, slots: bool, drawn: int
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Those of vLLM, the ones among them that were asked for, and its longest sequence."""
    from scaling.engines.vllm_process import engine_settings

    given = dict(config.engine_args or {})
    if config.batch_size != "auto":
        replicas = given.get("data_parallel_size")
        if not isinstance(replicas, int) or replicas < 1:  # which vLLM refuses, unless it is left out
            replicas = 1
        given["max_num_seqs"] = max(1, config.batch_size // replicas)
    longest = -(-tokens_per_row // _CONTEXT) * _CONTEXT
    context = given.pop("max_model_len", None) or min(backbone.context, longest)
    if context < tokens_per_row:
        raise UsageError(
            f"`--engine-args` max_model_len must hold the longest prompt and `--max-new-tokens` {config.max_new_tokens}, "
            f"together {tokens_per_row} tokens, and is {context}: raise it, or lower `--max-new-tokens`."
        )
    # with streams it decides nothing, and vLLM takes no larger one
    seed = engine_seed(config.seed, drawn) if config.engine_seeds == "one" else config.seed % 2**32
    settings = engine_settings(
        locate(config.backbone),
        dtype=config.dtype,
        context=context,
        soft=slots,
        seed=seed,
        given=given,
        streams=config.engine_seeds != "one",
    )
    return settings, given, context


def _openai(config: RunConfig, backbone: LanguageModel, *, tokens_per_row: int, slots: bool) -> Engine:
    from scaling.engines.openai import OpenAIEngine

    server, context = _server(config, backbone, tokens_per_row=tokens_per_row)
    return OpenAIEngine(
        server,
        embedded(config, backbone, context=context) if slots else None,
        end_tokens=backbone.end_tokens,
        seeds=config.engine_seeds or "streams",
        batch_size=64 if config.batch_size == "auto" else config.batch_size,
    )


def _server(config: RunConfig, backbone: LanguageModel, *, tokens_per_row: int) -> tuple[Server, int]:
    """The server, and the longest sequence that it takes."""
    from scaling.engines.openai import Server

    server = Server(str(config.base_url), config.served_model)
    context = server.context or backbone.context
    if context < tokens_per_row:
        raise UsageError(
            f"{server.base_url} takes sequences of at most {context} tokens, and the longest prompt has "
            f"{tokens_per_row} with `--max-new-tokens` {config.max_new_tokens}: lower that, or start the server with a "
            f"larger `--max-model-len`."
        )
    return server, context
