"""Builds the engine on vLLM: from a run's settings to vLLM's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scaling.config import RunConfig
from scaling.engines.base import Engine, Workload
from scaling.engines.embedded import embedded_prompts
from scaling.engines.vllm import engine, process
from scaling.models.loading import LanguageModel
from scaling.models.model_files import locate
from scaling.records.errors import UsageError
from scaling.records.seeds import engine_seed

# tokens; vLLM's longest sequence is a multiple of it, so that a vLLM that is kept serves the next run, too
_CONTEXT = 512


def build(config: RunConfig, backbone: LanguageModel, workload: Workload, tell: Callable[[str], None]) -> Engine:
    """An engine on the vLLM that was kept, if that serves this run, else on a new one."""
    tell(f"starting vLLM with {config.backbone}")
    settings, given, context = _settings(config, backbone, workload)
    seeds = config.engine_seeds or "streams"
    return engine.VllmEngine(
        process.acquire(settings, given, seeds=seeds, sampled=config.temperature > 0),
        embedded_prompts(backbone, dtype=config.dtype, context=context),
        end_tokens=backbone.end_tokens,
        seeds=seeds,
        release=process.keep_or_close,
    )


def refuse_unfit(config: RunConfig, backbone: LanguageModel, workload: Workload) -> None:
    """Raises UsageError for settings that vLLM does not know, or that do not hold the longest request."""
    _settings(config, backbone, workload)


def _settings(
    config: RunConfig, backbone: LanguageModel, workload: Workload
) -> tuple[dict[str, Any], dict[str, Any], int]:
    """Those of vLLM, the ones among them that were asked for, and its longest sequence."""
    given = dict(config.engine_args or {})
    if config.batch_size != "auto":
        replicas = given.get("data_parallel_size")
        if not isinstance(replicas, int) or replicas < 1:  # which vLLM refuses, unless it is left out
            replicas = 1
        given["max_num_seqs"] = max(1, config.batch_size // replicas)
    longest = -(-workload.tokens_per_row // _CONTEXT) * _CONTEXT
    context = given.pop("max_model_len", None) or min(backbone.context, longest)
    if context < workload.tokens_per_row:
        raise UsageError(
            f"`--engine-args` max_model_len must hold the longest prompt and `--max-new-tokens` {config.max_new_tokens}, "
            f"together {workload.tokens_per_row} tokens, and is {context}: raise it, or lower `--max-new-tokens`."
        )
    # with streams it decides nothing, and vLLM takes no larger one
    seed = engine_seed(config.seed, workload.drawn) if config.engine_seeds == "one" else config.seed % 2**32
    settings = process.engine_settings(
        locate(config.backbone),
        dtype=config.dtype,
        context=context,
        soft=workload.slots,
        seed=seed,
        given=given,
        streams=config.engine_seeds != "one",
    )
    return settings, given, context
