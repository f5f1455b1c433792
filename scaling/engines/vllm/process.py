"""vLLM itself, as the engine for it needs it: its settings, how it is asked to sample, and a vLLM that is running.

vLLM works in processes of its own, which a loop in a thread of this one talks to. They end with this process, whatever
ends it. While devices are kept between runs (`scaling.models.devices.keeping`), a vLLM outlasts its run, and serves the next
one that wants the same settings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Iterable, Mapping
from itertools import count
from typing import Any, Literal

from scaling.engines.base import Decoding
from scaling.engines.concurrent import Background
from scaling.engines.engine_args import cannot_be_imported
from scaling.engines.vllm.watchdog import Watchdog
from scaling.models import devices
from scaling.models.hardware import available_memory
from scaling.models.model_files import with_revision
from scaling.records.errors import UsageError, nearest, one_line
from scaling.records.seeds import engine_seed

Start = Callable[[], Coroutine[Any, Any, Any]]
Seeds = Literal["streams", "one"]

_STOP_INTERVAL = 0.2  # seconds between two attempts to stop a start that is given up
_CPU_MEMORY = 4 << 30  # bytes of keys and values at most, where nothing is asked for
# vLLM's settings that follow from an option of the run, so that they cannot be given
_FROM_OPTIONS = {
    **{"model": "--backbone", "tokenizer": "--backbone", "dtype": "--dtype", "seed": "--seed"},
    # embeddings and fingerprint are of the model as it is given
    **dict.fromkeys(
        ("revision", "tokenizer_revision", "hf_config_path", "model_weights", "served_model_name"), "--backbone"
    ),
    **{"enable_prompt_embeds": "--method", "max_logprobs": "--method", "logprobs_mode": "--method"},
}
_UPPER_BOUNDS = ("max_model_len", "enable_prompt_embeds")  # a vLLM with more of these serves a run that needs less
_IRRELEVANT = frozenset(("seed", "kv_cache_memory_bytes", *_UPPER_BOUNDS))  # where every completion has its own seed


class VllmProcess:
    """A vLLM that is running, and the event loop that talks to it.

    Attributes:
        vllm: its AsyncLLM.
        settings: those it was started with; None where it serves no other run.
        names: of requests, each used once.
        background: the event loop, in a thread of its own.
    """

    def __init__(self, start: Start, *, settings: Mapping[str, Any] | None = None) -> None:
        """start: makes an AsyncLLM, or what behaves like it. Raises what `start` raises."""
        self.settings, self.names = settings, count()
        self.background = Background()
        self._start, self._watchdog, self._seeds_checked = start, Watchdog(), False
        try:
            self.vllm: Any = self.background.call(self._begin())
        except BaseException:
            self._give_up()
            raise

    @property
    def batch_size(self) -> int:
        """Completions decoded together."""
        config = self.vllm.vllm_config
        return int(config.scheduler_config.max_num_seqs * config.parallel_config.data_parallel_size)

    def serves(self, settings: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
        """Whether it draws what a vLLM with these settings would. given: those of them that a user asked for."""
        have = self.settings
        if have is None or self.vllm.errored or any(have[key] < settings[key] for key in _UPPER_BOUNDS):
            return False
        left_out = _IRRELEVANT - given.keys()
        return _without(have, left_out) == _without(settings, left_out)

    def check_seeds(self) -> None:
        """Raises UsageError where this vLLM cannot draw, or not with a seed of each completion. Asks it once."""
        if not self._seeds_checked:
            self.background.call(check_seeds(self.vllm))
            self._seeds_checked = True

    def clear_prefix_cache(self) -> None:
        """What a run counts must not depend on what the run before has left there."""
        self.background.call(self.vllm.reset_prefix_cache())

    async def restart(self) -> None:
        """Starts vLLM anew. To be called in the loop, where what waits for the old one can be told first."""
        self.vllm.shutdown()
        self.vllm = await self._begin()

    def close(self) -> None:
        """Ends vLLM and frees what it holds."""
        self.background.call(self._shutdown())
        self._end()

    async def _begin(self) -> Any:
        with self._watchdog.watching():
            return await self._start()

    async def _shutdown(self) -> None:
        vllm, self.vllm = self.vllm, None  # held until the interpreter ends, it would fail in its destructor
        vllm.shutdown()

    def _give_up(self) -> None:
        """Ends a start, which gives way only where what it waits for is gone, whenever that was begun."""
        while not self.background.close(patience=_STOP_INTERVAL):
            self._watchdog.kill()
        self._watchdog.close()

    def _end(self) -> None:
        self.background.close()
        self._watchdog.close()


def _without(settings: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in keys}


def acquire(settings: Mapping[str, Any], given: Mapping[str, Any], *, seeds: Seeds, sampled: bool) -> VllmProcess:
    """A vLLM with these settings: the one that was kept, or a new one.

    Args:
        settings: all settings that it must have.
        given: those of them that the user asked for.
        seeds: whose streams a run draws from. A vLLM with one generator for all serves no other run.
        sampled: whether seeds will be used at all.

    Raises:
        UsageError: where it does not start, or lacks the seeds.
    """
    vllm = devices.take_engine(VllmProcess, lambda kept: seeds == "streams" and kept.serves(settings, given))
    if vllm:
        vllm.clear_prefix_cache()
    else:
        vllm = VllmProcess(_starts(settings), settings=settings if seeds == "streams" else None)
    try:
        if seeds == "streams" and sampled:
            vllm.check_seeds()
    except BaseException:
        vllm.close()
        raise
    return vllm


def _starts(settings: Mapping[str, Any]) -> Start:
    """A function that starts vLLM with these settings. A later call starts it again, with another seed."""
    number = count()

    def begin() -> Coroutine[Any, Any, Any]:
        restarts, seed = next(number), settings["seed"]
        return start({**settings, "seed": engine_seed(seed, restarts) if restarts else seed})

    return begin


def keep_or_close(vllm: VllmProcess) -> None:
    """Keeps a vLLM for the next run where this process keeps engines, and ends it elsewhere or if it serves no other run."""
    if vllm.settings is None:
        vllm.close()
    else:
        devices.keep_or_close(vllm)


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
        **({"stop": list(decoding.stop.strings), "detokenize": True} if decoding.stop else {}),
    }


def params_of(keywords: Mapping[str, Any]) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    try:
        return SamplingParams(**keywords, output_kind=RequestOutputKind.FINAL_ONLY)
    except Exception as error:  # what it is depends on the version; nothing but checks happens here
        raise UsageError(f"vLLM does not decode like that: {one_line(error)}") from None


def engine_settings(
    folder: str, *, dtype: str, context: int, soft: bool, seed: int, given: Mapping[str, Any], streams: bool = False
) -> dict[str, Any]:
    """Keywords of vLLM's AsyncEngineArgs. given: `--engine-args`, which win. streams: whether every completion has a seed of
    its own, so that what is decoded beside it should change as little as can be. Raises UsageError for an argument that
    vLLM lacks, or that follows from another option."""
    _import_vllm()
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform

    known = set(AsyncEngineArgs.__dataclass_fields__)
    for key in given:
        if key in _FROM_OPTIONS:
            raise UsageError(f"`--engine-args` {key}: vLLM gets it from `{_FROM_OPTIONS[key]}`; leave it out.")
        if key not in known:
            raise UsageError(f"`--engine-args` {key}: vLLM has no such setting.{nearest(key, known)}")
    place, revision = with_revision(folder)
    at = {} if revision == "main" else {"revision": revision, "tokenizer_revision": revision}
    return {
        "model": place,
        **at,
        "dtype": dtype,
        "seed": seed,
        "max_model_len": context,
        "enable_prompt_embeds": soft,
        "use_tqdm_on_load": False,
        "generation_config": "vllm",  # nothing of the model's own may change how tokens are chosen
        "disable_log_stats": True,
        # which attention a row gets would depend on whether its neighbours share its prefix (vllm#17652, #22103)
        **({"disable_cascade_attn": True} if streams and "disable_cascade_attn" in known else {}),
        **(_on_a_cpu(given) if current_platform.is_cpu() else {}),
        **given,
    }


def _on_a_cpu(given: Mapping[str, Any]) -> dict[str, Any]:
    """What suits a CPU better than vLLM's own defaults: blocks of 128 tokens share little of a prompt, and 32 is the least;
    0.92 of the memory is more than is free; compiling takes a minute and longer."""
    ample = {"gpu_memory_utilization", "kv_cache_memory_bytes"} & given.keys()
    memory = {} if ample else {"kv_cache_memory_bytes": min(_CPU_MEMORY, available_memory() // 4)}
    return {"block_size": 32, "enforce_eager": True, **memory}


def _import_vllm() -> None:
    """Imports vLLM with the environment that it needs. Raises UsageError where it is not installed."""
    # set before vLLM is imported: its workers must not inherit a device that the assistant has used
    # whatever is set: a forked one would also keep the watchdog waiting, as it has a copy of its input
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    try:
        import vllm  # noqa: F401
    except ImportError as error:
        raise cannot_be_imported("vllm", error) from None


async def start(settings: Mapping[str, Any]) -> Any:
    """An AsyncLLM with these settings. Raises UsageError where vLLM does not start."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        return AsyncLLM.from_engine_args(AsyncEngineArgs(**settings))
    except Exception as error:  # of a setting that it cannot use vLLM may say so with any
        raise UsageError(
            f"vLLM did not start, for a reason that its own messages above tell: {one_line(error)}"
        ) from error


async def check_seeds(vllm: Any) -> None:
    """Draws two tokens without a seed, then with one, which ends the engine in some builds for CPUs. Raises UsageError where
    either fails; one that draws nothing at all is not to be blamed on seeds."""
    try:
        await _draw(vllm, seed=None)
    except Exception as error:
        raise UsageError(
            f"vLLM started, and cannot draw a token ({one_line(error.__cause__ or error)}): its own messages above may say "
            f"why. Check that this build of vLLM is for this machine, and `--engine-args`."
        ) from error
    try:
        await _draw(vllm, seed=1)
    except Exception as error:
        raise UsageError(
            f"this build of vLLM cannot seed single completions ({one_line(error.__cause__ or error)}): add "
            f"`--engine-seeds one`. Completions then depend on what is drawn beside them, and run.json says so."
        ) from error


async def _draw(vllm: Any, *, seed: int | None) -> None:
    params = params_of(sampling_params(Decoding(1.0, 0.9, 20, 2), seed=seed, end_tokens=()))
    async for _ in vllm.generate({"prompt_token_ids": [1, 1]}, params, f"check-{seed}"):
        pass
