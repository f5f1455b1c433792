"""Completions from vLLM in this process: soft prompts as embeddings, all others as token ids, each a request of its own.

vLLM shares what prompts have in common by its prefix cache, batches and schedules. Here requests are made from soft
prompts, checked, watched, and asked again where the engine was lost. A request for each sample rather than one with n = M:
a sample then has a seed that no other has, is written when it is done, and is drawn alone when a run is continued.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Literal

import psutil

from scaling.engines.base import Counters, Decoding, Generated, Request
from scaling.engines.concurrent import Background
from scaling.engines.embedded import EmbeddedPrompts
from scaling.errors import UsageError, nearest, one_line

Start = Callable[[], Coroutine[Any, Any, Any]]
Seeds = Literal["streams", "one"]

_CPU_MEMORY = 4 << 30  # bytes of keys and values at most, where nothing is asked for
_INSTALL = 'vLLM is not installed here: `pip install ".[vllm]"` on CUDA; on a CPU see "Engines" in the README.'
# set by what they follow from, so they cannot be given
_OURS = {
    **{"model": "--backbone", "tokenizer": "--backbone", "dtype": "--dtype", "seed": "--seed"},
    **{"enable_prompt_embeds": "--method", "max_logprobs": "--method", "logprobs_mode": "--method"},
}


class VllmEngine:
    """batch_size: completions decoded together. restarts: how often vLLM was lost and started again, at most once.

    What was open when it died is asked again of the new one; a completion's own seed gives it the same stream.
    """

    def __init__(self, start: Start, prompts: EmbeddedPrompts, *, end_tokens: Sequence[int], seeds: Seeds) -> None:
        """start: makes vLLM's AsyncLLM, or what behaves like it. end_tokens: ids that stop a completion. seeds: "streams"
        for a seed of every completion, "one" for the engine's."""
        self.counters = Counters()
        self.restarts = 0
        self._start, self._prompts, self._end, self._seeds = start, prompts, frozenset(end_tokens), seeds
        self._names = count()
        self._open: dict[str, str] = {}  # name -> question id; touched only by the background
        self._cancelled: set[str] = set()
        self._replacing = asyncio.Lock()
        self._background = Background()
        try:
            self._vllm: Any = self._background.call(start())
        except BaseException:
            self._background.close()
            raise
        config = self._vllm.vllm_config
        self.batch_size = config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size

    def generate(self, requests: Iterable[Request], decoding: Decoding, *, lookahead: int = 0) -> Iterator[Generated]:
        """Yields every request once, as it finishes. Raises UsageError for prompts that do not fit the backbone, logits
        that are not numbers, and an engine that dies a second time."""

        _params_of(sampling_params(decoding, seed=0, end_tokens=self._end))  # refused now rather than in the middle

        async def complete(request: Request) -> Generated | None:
            return await self._complete(request, decoding)

        # those that wait take a free place at once; where samples may prove needless, none waits
        waiting = 0 if lookahead else self.batch_size // 4
        return self._background.stream(requests, complete, limit=self.batch_size + waiting)

    def cancel(self, question_id: str) -> None:
        """Gives up what is left of a question."""
        self._cancelled.add(question_id)
        self._background.call(self._abort(question_id))

    def close(self) -> None:
        """Ends the engine and frees what it holds. A second call does nothing."""
        if self._vllm is not None:
            self._background.call(self._shutdown())
            self._background.close()

    async def _shutdown(self) -> None:
        """In its own loop, where what listens to the engine can be told first."""
        vllm, self._vllm = self._vllm, None
        vllm.shutdown()

    async def _abort(self, question_id: str) -> None:
        if names := [name for name, of in self._open.items() if of == question_id]:
            await self._vllm.abort(names)

    async def _complete(self, request: Request, decoding: Decoding) -> Generated | None:
        seed = request.seed if self._seeds == "streams" else None
        params = _params_of(sampling_params(decoding, seed=seed, end_tokens=self._end))
        prompt = self._prompt(request)
        while request.prompt.question_id not in self._cancelled:
            vllm, name = self._vllm, str(next(self._names))
            self._open[name] = request.prompt.question_id
            try:
                async for output in vllm.generate(prompt, params, name):
                    final = output
                if final.outputs[0].finish_reason in ("stop", "length"):
                    return self._generated(request, final)
                if request.prompt.question_id in self._cancelled:
                    self.counters.cancelled_tokens += len(final.outputs[0].token_ids)
                    return None
                await self._replace(vllm, f"a completion ended with {final.outputs[0].finish_reason}")
            except Exception as error:
                if type(error).__name__ not in ("EngineDeadError", "EngineGenerateError"):
                    raise
                await self._replace(vllm, one_line(error.__cause__ or error))
            finally:
                del self._open[name]
        return None

    async def _replace(self, dead: Any, why: str) -> None:
        """Starts vLLM again, unless that has been done since `dead` failed."""
        async with self._replacing:
            if self._vllm is not dead:
                return
            if self.restarts:
                raise UsageError(
                    f"vLLM stopped twice ({why}). What was sampled is kept, and the same command continues the run. Its own "
                    f"messages above may say why it stopped; often memory is short: lower `gpu_memory_utilization` or "
                    f"`max_num_seqs` in `--engine-args`."
                )
            self.restarts += 1
            logging.getLogger(__name__).warning("vLLM stopped (%s) and is started again", why)
            dead.shutdown()
            self._vllm = await self._start()

    def _prompt(self, request: Request) -> dict[str, Any]:
        prompt = request.prompt
        if len(prompt.thoughts):
            return {"prompt_embeds": self._prompts.embed(prompt)}
        self._prompts.check(prompt)
        return {"prompt_token_ids": [*prompt.prefix, *prompt.suffix]}

    def _generated(self, request: Request, output: Any) -> Generated:
        drawn, counters = output.outputs[0], self.counters
        cached = output.num_cached_tokens or 0
        counters.prefill_avoided += cached
        counters.prefill_computed += len(request.prompt) - cached
        tokens = list(drawn.token_ids)
        if drawn.cumulative_logprob is not None and math.isnan(drawn.cumulative_logprob):
            raise UsageError(
                "the backbone's logits are not numbers (NaN) in vLLM; try `--dtype float32`, and check the backbone's "
                "weights and the `--thinker` checkpoint."
            )
        reason = "end" if tokens and tokens[-1] in self._end else "length"
        return Generated(request, tokens, reason, log_prob=drawn.cumulative_logprob)


def sampling_params(decoding: Decoding, *, seed: int | None, end_tokens: Iterable[int]) -> dict[str, Any]:
    """vLLM's SamplingParams for one completion, as keywords. seed: of the completion's own stream, 0 <= seed < 2**63; None
    draws from the one generator of the engine, which is faster and depends on what is drawn beside it."""
    return {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k,
        "max_tokens": decoding.max_new_tokens,
        "stop_token_ids": sorted(end_tokens),
        "ignore_eos": True,  # the end tokens above are all that end a completion
        "logprobs": 0 if decoding.log_probs else None,
        "seed": None if decoding.temperature == 0 else seed,
        "detokenize": False,
    }


def _params_of(keywords: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(**keywords, output_kind=RequestOutputKind.FINAL_ONLY)
    except Exception as error:  # what it is depends on the version; nothing but checks happens here
        raise UsageError(f"vLLM does not decode like that: {one_line(error)}") from None


def engine_settings(
    folder: str, *, dtype: str, context: int, soft: bool, seed: int, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Keywords of vLLM's AsyncEngineArgs. given: `--engine-args`, which win. Raises UsageError for one that vLLM lacks, or
    that follows from another option."""
    _installed()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    known = set(AsyncEngineArgs.__dataclass_fields__)
    for key in given:
        if key in _OURS:
            raise UsageError(f"`--engine-args` {key}: vLLM gets it from `{_OURS[key]}`; leave it out.")
        if key not in known:
            raise UsageError(f"`--engine-args` {key}: vLLM has no such setting.{nearest(key, known)}")
    return {
        "model": folder,
        "dtype": dtype,
        "seed": seed,
        "max_model_len": context,
        "enable_prompt_embeds": soft,
        "use_tqdm_on_load": False,
        "generation_config": "vllm",  # nothing of the model's own may change how tokens are chosen
        "disable_log_stats": True,
        **(_on_a_cpu(given) if current_platform.is_cpu() else {}),
        **given,
    }


def _on_a_cpu(given: Mapping[str, Any]) -> dict[str, Any]:
    """What suits a CPU better than vLLM's own defaults: blocks of 128 tokens share little of a prompt, and 32 is the least;
    0.92 of the memory is more than is free; compiling takes a minute and longer."""
    ample = {"gpu_memory_utilization", "kv_cache_memory_bytes"} & given.keys()
    memory = {} if ample else {"kv_cache_memory_bytes": min(_CPU_MEMORY, psutil.virtual_memory().available // 4)}
    return {"block_size": 32, "enforce_eager": True, **memory}


def _installed() -> None:
    # set before vLLM is imported: its workers must not inherit a device that the assistant has used
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise UsageError(f"`--engine vllm`: {_INSTALL} ({one_line(error)})") from None


async def start(settings: Mapping[str, Any], *, seeds: Seeds) -> Any:
    """An AsyncLLM with these settings. Raises UsageError where vLLM does not start, or lacks the seeds."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        vllm = AsyncLLM.from_engine_args(AsyncEngineArgs(**settings))
    except (RuntimeError, ValueError, TypeError) as error:
        raise UsageError(
            f"vLLM did not start, for a reason that its own messages above tell: {one_line(error)}"
        ) from error
    if seeds == "streams":
        await check_seeds(vllm)
    return vllm


async def check_seeds(vllm: Any) -> None:
    """Draws two tokens with a seed. Raises UsageError where that ends the engine, as it does in some builds for CPUs."""
    params = _params_of(sampling_params(Decoding(1.0, 0.9, 20, 2), seed=1, end_tokens=()))
    try:
        async for _ in vllm.generate({"prompt_token_ids": [1, 1]}, params, "seeds"):
            pass
    except Exception as error:
        vllm.shutdown()
        raise UsageError(
            f"this build of vLLM cannot seed single completions ({one_line(error.__cause__ or error)}): add "
            f"`--engine-seeds one`. Completions then depend on what is drawn beside them, and run.json says so."
        ) from error
