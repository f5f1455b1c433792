"""The engine on a vLLM that this process has started. Prompts with soft tokens are given as embeddings, others as token ids.

vLLM schedules, batches and caches prefixes. This module checks prompts, makes requests of them, and repeats those that were
open when vLLM died. Every sample is a request of its own instead of one request with n = M: it then has its own seed, is
written when it is done, and is drawn alone when a run is continued.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

from scaling.engines.base import Counters, Decoding, Generated, Request
from scaling.engines.embedded import EmbeddedPrompts
from scaling.engines.vllm.process import Seeds, VllmProcess, params_of, sampling_params
from scaling.records.errors import MayPass, UsageError, one_line


class VllmEngine:
    """Requests that are open when vLLM dies are repeated on a new one; each has its own seed, hence the same random stream.

    Attributes:
        batch_size: completions decoded together.
        restarts: how often vLLM died and was started again, at most once.
        counters: what it computed.
    """

    def __init__(
        self,
        process: VllmProcess,
        prompts: EmbeddedPrompts,
        *,
        end_tokens: Sequence[int],
        seeds: Seeds,
        release: Callable[[VllmProcess], None] = VllmProcess.close,
    ) -> None:
        """
        Args:
            process: the vLLM that samples.
            prompts: makes embeddings of prompts.
            end_tokens: ids that end a completion.
            seeds: "streams" for a seed of every completion, "one" for the single generator of the engine.
            release: is called with `process` at the end, to close it or to keep it.
        """
        self.counters = Counters()
        self.restarts = 0
        self.batch_size = process.batch_size
        self._process, self._prompts, self._end, self._seeds = process, prompts, frozenset(end_tokens), seeds
        self._release, self._closed = release, False
        self._open: dict[str, str] = {}  # name -> question id; touched only by the background
        self._cancelled: set[str] = set()
        self._replacing, self._lost = asyncio.Lock(), asyncio.Event()  # the latter of the vLLM that is up

    def generate(self, requests: Iterable[Request], decoding: Decoding, *, lookahead: int = 0) -> Iterator[Generated]:
        """Yields every request once, as it finishes. Raises UsageError for prompts that do not fit the backbone, logits
        that are not numbers, and an engine that dies a second time."""

        params_of(sampling_params(decoding, seed=0, end_tokens=self._end))  # refused now rather than in the middle

        async def complete(request: Request) -> Generated | None:
            return await self._complete(request, decoding)

        # those that wait take a free place at once; where samples may prove needless, none waits
        waiting = 0 if lookahead else self.batch_size // 4
        return self._process.background.stream(requests, complete, limit=self.batch_size + waiting)

    def cancel(self, question_id: str) -> None:
        """Gives up what is left of a question."""
        self._cancelled.add(question_id)
        self._process.background.call(self._abort(question_id))

    def close(self) -> None:
        """Gives vLLM back. A second call does nothing."""
        if not self._closed:
            self._closed = True
            self._release(self._process)

    async def _abort(self, question_id: str) -> None:
        if names := [name for name, of in self._open.items() if of == question_id]:
            await self._process.vllm.abort(names)

    async def _complete(self, request: Request, decoding: Decoding) -> Generated | None:
        seed = request.seed if self._seeds == "streams" else None
        params = params_of(sampling_params(decoding, seed=seed, end_tokens=self._end))
        prompt = self._prompt(request)
        while request.prompt.question_id not in self._cancelled:
            vllm, name = self._process.vllm, str(next(self._process.names))
            self._open[name] = request.prompt.question_id
            try:
                final = await self._unless_lost(vllm.generate(prompt, params, name))
                if final is None:
                    await self._replace(vllm, "it is started again")
                    continue
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

    async def _unless_lost(self, outputs: AsyncIterator[Any]) -> Any | None:
        """The last output; None where vLLM dies before, as one that is shut down ends no request."""
        drawing, lost = asyncio.ensure_future(_last_of(outputs)), asyncio.ensure_future(self._lost.wait())
        drawing.add_done_callback(_retrieve_error)
        try:
            await asyncio.wait((drawing, lost), return_when=asyncio.FIRST_COMPLETED)
            return drawing.result() if drawing.done() else None
        finally:
            drawing.cancel()
            lost.cancel()

    async def _replace(self, dead: Any, why: str) -> None:
        """Starts vLLM again, unless that has been done since `dead` failed."""
        async with self._replacing:
            if self._process.vllm is not dead:
                return
            if self.restarts:
                raise MayPass(
                    f"vLLM stopped twice ({why}). What was sampled is kept, and the same command continues the run. Its own "
                    f"messages above may say why it stopped; often memory is short: lower `gpu_memory_utilization` or "
                    f"`max_num_seqs` in `--engine-args`."
                )
            self.restarts += 1
            logging.getLogger(__name__).warning("vLLM stopped (%s) and is started again", why)
            self._lost.set()
            await self._process.restart()
            self._lost = asyncio.Event()

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
        # of a stop string vLLM tells which one it was, of an end token its id
        stopped = isinstance(getattr(drawn, "stop_reason", None), str)
        reason = "end" if stopped or (tokens and tokens[-1] in self._end) else "length"
        return Generated(request, tokens, reason, log_prob=drawn.cumulative_logprob)


async def _last_of(outputs: AsyncIterator[Any]) -> Any:
    async for output in outputs:
        last = output
    return last


def _retrieve_error(task: asyncio.Task[Any]) -> None:
    """Reads a task's error, if there is one: asyncio would otherwise complain of one that nobody has read."""
    if not task.cancelled():
        task.exception()
