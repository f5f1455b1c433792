"""The engine on a server with the OpenAI protocol. Prompts are sent as token ids, and those with soft tokens as embeddings,
which vLLM's completions endpoint takes. Completions are yielded as they finish.

The key is read from OPENAI_API_KEY and is never written anywhere.
"""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch

from scaling.config import RunConfig
from scaling.engines.base import Counters, Decoding, Engine, Generated, Request, SoftPrompt, Workload
from scaling.engines.concurrent import Background
from scaling.engines.embedded import PROMPT_BYTES, EmbeddedPrompts, Recent, embedded_prompts
from scaling.engines.engine_args import cannot_be_imported
from scaling.models.loading import LanguageModel
from scaling.records.errors import MayPass, UsageError, one_line

_BUSY = (408, 409, 429)  # answers of a server that is there and has no time
_RETRIES = 8  # of a request that the server had no time for, with growing pauses
_PAUSES = tuple(min(0.5 * 2**number, 8.0) for number in range(_RETRIES))  # seconds, as the openai library's are
_TIMEOUT = 3600.0  # seconds for a completion, its wait in the server's queue included
# what vLLM's server takes from the model's own generation config where a request does not say it
_NEUTRAL = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "min_p": 0.0}


class Server:
    """A server with the OpenAI protocol, and what it says of itself.

    Attributes:
        model: the backbone's name there.
        is_vllm: whether the server is vLLM's.
        context: longest sequence that it takes, in tokens, None where it does not say.
        errors: exceptions that the openai library raises.
    """

    def __init__(self, base_url: str, model: str | None) -> None:
        """Asks the server which models it serves.

        Args:
            base_url: its address.
            model: the backbone's name there, None for the only model.

        Raises:
            UsageError: it does not answer, or does not serve this model.
        """
        openai = _library()
        self.base_url, self._key = base_url.rstrip("/"), _key()
        self.errors: tuple[type[Exception], ...] = (openai.APIError, ValueError)  # the latter of what is no JSON
        # local servers need no key; a server that needs one says so
        self.options = {
            "base_url": self.base_url,
            "api_key": self._key or "none",
            "max_retries": _RETRIES,
            "timeout": _TIMEOUT,
        }
        try:
            with openai.OpenAI(**{**self.options, "max_retries": 1, "timeout": 30}) as client:
                served = {str(listed.id): listed for listed in client.models.list().data if listed.id}
        except self.errors as error:
            raise self.refusal(error) from None
        except (AttributeError, TypeError) as error:  # the library does not check that an answer is a list
            raise self.foreign(error) from None
        if model is None and len(served) == 1:
            model = next(iter(served))
        if model is None or model not in served:
            asked = f"`--served-model` {model}" if model else "no `--served-model`"
            raise UsageError(f"{self.base_url} serves {', '.join(sorted(served)) or 'nothing'}, and there is {asked}.")
        self.model = model
        self.is_vllm = getattr(served[model], "owned_by", None) == "vllm"
        context = getattr(served[model], "max_model_len", None)  # vLLM tells it
        self.context = context if isinstance(context, int) else None

    def refuse_unfit(self, *, slots: bool = False, top_k: int = 0) -> None:
        """Raises UsageError where it is known that this server does not take what will be asked.

        Args:
            slots: whether prompts have soft tokens.
            top_k: 0 where it is not used.
        """
        if slots and not self.is_vllm:
            raise UsageError(f"{self.base_url} is no vLLM server: {_NO_EMBEDDINGS}")
        if top_k and not self.is_vllm:
            raise UsageError(f"`--top-k` is no part of the protocol, and {self.base_url} is no vLLM server.")

    def refusal(self, error: Exception, *, sent: Literal["tokens", "embeddings"] | None = None) -> UsageError:
        """Makes of an error of the openai library one that says what the user can do.

        Args:
            error: as the library has raised it.
            sent: the form of the prompt that was sent, None where the request had none.

        Returns:
            A MayPass for an error that another attempt may not meet, else a UsageError.
        """
        status, whole = getattr(error, "status_code", None), self._without_key(one_line(error, limit=None))
        answer = whole[:300]
        if isinstance(error, ValueError):
            return self.foreign(answer)
        if status in (401, 403):
            problem = "refuses OPENAI_API_KEY" if self._key else "wants a key: set OPENAI_API_KEY"
            return UsageError(f"{self.base_url} {problem}. It says: {answer}")
        if status == 404:
            return UsageError(
                f"{self.base_url} has no such page or model: check `--base-url`, which ends in /v1. {answer}"
            )
        if status is None:
            return MayPass(
                f"{self.base_url} does not answer ({answer}): start the server or check `--base-url`. What was sampled is "
                f"kept, and the same command continues the run."
            )
        if sent == "embeddings" and _speaks_of_embeddings(status, whole):
            return UsageError(f"{self.base_url} takes no prompt embeddings: {_NO_EMBEDDINGS} It says: {answer}")
        if sent == "tokens" and status in _UNFIT and not self.is_vllm:
            return UsageError(
                f"{self.base_url} does not take the prompt, which goes out as token ids, as not every server takes them "
                f"(Ollama's does not): use one that does, as vLLM's and llama.cpp's do. It says: {answer}"
            )
        kind = MayPass if status >= 500 or status in _BUSY else UsageError
        return kind(
            f"{self.base_url} answers with status {status}: {answer}. What was sampled is kept, and the same command "
            f"continues the run."
        )

    def foreign(self, what: object) -> UsageError:
        """The error for an answer that is not of the OpenAI protocol. what: what is wrong with it."""
        return UsageError(
            f"{self.base_url} does not answer as an OpenAI-compatible server ({what}): check `--base-url`, which ends in "
            f"/v1."
        )

    def _without_key(self, text: str) -> str:
        """Takes the key out of a server's message: some repeat it, and the error may be written to disk."""
        return text.replace(self._key, "***") if self._key else text


def _speaks_of_embeddings(status: int, message: str) -> bool:
    """Whether a server has refused a prompt because it is made of embeddings.

    A server that is busy, or whose context is too short for the prompt, would take embeddings.
    """
    named = any(name in message for name in ("prompt_embeds", "prompt-embeds"))
    return status < 500 and (named or (status in _UNFIT and "context length" not in message))


_UNFIT = (400, 422)  # statuses of a request that the server cannot read
_NO_EMBEDDINGS = (
    "soft thoughts need vLLM's completions endpoint, `vllm serve MODEL --enable-prompt-embeds`; other servers can run "
    "methods of text alone (`--method cot` or `assist-cot`)."
)


_STOPS: dict[str, Literal["end", "length"]] = {"stop": "end", "length": "length"}


class _LostError(MayPass):
    """A completion that the server has given up; it is asked for again."""


class OpenAIEngine:
    """The engine on a server. The server decides what is batched, and which prefixes are shared.

    Attributes:
        batch_size: how many requests are open at once.
        counters: what is known of the server's work.
    """

    def __init__(
        self,
        server: Server,
        prompts: EmbeddedPrompts | None,
        *,
        end_tokens: Sequence[int],
        batch_size: int,
        seeds: Literal["streams", "one"],
    ) -> None:
        """
        Args:
            server: where completions come from.
            prompts: makes embeddings of prompts, None where no prompt has soft tokens.
            end_tokens: ids that end a completion.
            batch_size: how many requests are open at once.
            seeds: "streams" to send every completion's own seed, "one" to send none.

        Raises:
            UsageError: prompts have soft tokens, and the server does not take them.
        """
        server.refuse_unfit(slots=prompts is not None)
        self.batch_size, self.counters = batch_size, Counters()
        self._server, self._prompts, self._end, self._seeds = server, prompts, sorted(end_tokens), seeds
        self._encoded = Recent(self._encode, size=len, limit=PROMPT_BYTES)
        self._tasks: dict[asyncio.Task[Any], str] = {}  # -> question id; touched only by the background
        self._cancelled: set[str] = set()
        self._speaks = False  # whether it has answered a prompt as it should
        self._background = Background()
        self._client = self._background.call(self._connect())

    def generate(self, requests: Iterable[Request], decoding: Decoding, *, lookahead: int = 0) -> Iterator[Generated]:  # noqa: ARG002
        """Yields every request once, as it finishes. Raises UsageError where the server does not answer as it should."""
        self._server.refuse_unfit(top_k=decoding.top_k)

        async def complete(request: Request) -> Generated | None:
            return await self._complete(request, decoding)

        return self._background.stream(requests, complete, limit=self.batch_size)

    def cancel(self, question_id: str) -> None:
        """Gives up what is left of a question: open requests are dropped, which ends them at the server."""
        self._cancelled.add(question_id)
        self._background.call(self._drop(question_id))

    def close(self) -> None:
        """Ends the connections. A second call does nothing."""
        client, self._client = self._client, None
        if client:
            self._background.call(client.close())
        self._background.close()

    async def _connect(self) -> Any:
        return _library().AsyncOpenAI(**self._server.options)

    async def _drop(self, question_id: str) -> None:
        for task, of in self._tasks.items():
            if of == question_id:
                task.cancel()

    async def _complete(self, request: Request, decoding: Decoding) -> Generated | None:
        question = request.prompt.question_id
        if question in self._cancelled:
            return None
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = question
        try:
            for pause in _PAUSES:
                try:
                    return await self._draw(request, decoding)
                except _LostError:
                    await asyncio.sleep(pause)
            return await self._draw(request, decoding)
        except asyncio.CancelledError:
            if question in self._cancelled:
                return None
            raise
        finally:
            del self._tasks[task]

    async def _draw(self, request: Request, decoding: Decoding) -> Generated:
        try:
            answer = await self._client.completions.create(**self._asked(request, decoding))
        except self._server.errors as error:
            sent: Literal["tokens", "embeddings"] = "embeddings" if len(request.prompt.thoughts) else "tokens"
            refusal = self._server.refusal(error, sent=sent)
            # no JSON from a server that has sent some: an answer that was cut
            raise (_LostError(str(refusal)) if self._speaks and isinstance(error, ValueError) else refusal) from None
        generated = self._generated(request, answer, decoding)
        self._speaks = True
        return generated

    def _asked(self, request: Request, decoding: Decoding) -> dict[str, Any]:
        """Keywords of the completions endpoint."""
        prompt, more = request.prompt, dict[str, Any]()
        if self._server.is_vllm:
            more = {"return_token_ids": True, "stop_token_ids": self._end, "ignore_eos": True, "top_k": decoding.top_k}
            more |= _NEUTRAL
        asked: dict[str, Any] = {"prompt": [*prompt.prefix, *prompt.suffix]}
        if len(prompt.thoughts):
            asked["prompt"] = None
            more["prompt_embeds"] = self._encoded(prompt)
        if decoding.log_probs:
            asked["logprobs"] = 0
        if decoding.stop:
            asked["stop"] = list(decoding.stop.strings)
        if self._seeds == "streams" and decoding.temperature:
            asked["seed"] = request.seed
        return {
            **asked,
            "model": self._server.model,
            "max_tokens": decoding.max_new_tokens,
            "temperature": decoding.temperature,
            "top_p": decoding.top_p,
            "extra_body": more,
        }

    def _generated(self, request: Request, answer: Any, decoding: Decoding) -> Generated:
        # the library checks nothing: any part may be missing, or anything
        choices, usage = getattr(answer, "choices", None), getattr(answer, "usage", None)
        if not isinstance(choices, list) or not choices:
            raise self._server.foreign("a completion without choices")
        choice = choices[0]
        reason = self._stop_reason(choice)
        self._count(request.prompt, usage)
        text, ids = getattr(choice, "text", None), getattr(choice, "token_ids", None)
        log_prob = _log_prob(choice) if decoding.log_probs else None
        if ids is not None:
            if not isinstance(ids, list) or None in map(_whole, ids):
                raise self._server.foreign("token_ids that are none")
            self._refuse_cut(reason, len(ids), decoding, least=decoding.max_new_tokens)
            return Generated(request, list(ids), reason, log_prob=log_prob)
        if not isinstance(text, str):
            raise self._server.foreign("a completion without text")
        number = getattr(usage, "completion_tokens", None)
        if number is None:
            raise UsageError(
                f"{self._server.base_url} does not say how many tokens it generated: nothing can be counted."
            )
        if _whole(number) is None:
            raise self._server.foreign(f"completion_tokens {number!r}")
        # some servers leave out the last token of those they count
        self._refuse_cut(reason, number, decoding, least=decoding.max_new_tokens - 1)
        return Generated(request, [], reason, log_prob, text=text, num_tokens=number)

    def _stop_reason(self, choice: Any) -> Literal["end", "length"]:
        """Raises _LostError for a completion that was given up, as those of a vLLM that shuts down are, with status 200."""
        told = getattr(choice, "finish_reason", None)
        if not isinstance(told, str):
            raise self._server.foreign("a completion without a finish_reason")
        if told not in _STOPS:
            raise _LostError(
                f"{self._server.base_url} gave up a completion, which ended with {told!r}: its own messages may say why. "
                f"What was sampled is kept, and the same command continues the run."
            )
        return _STOPS[told]

    def _refuse_cut(self, reason: str, number: int, decoding: Decoding, *, least: int) -> None:
        """Raises UsageError for a chain that the server's own limit has cut."""
        if reason == "length" and number < least:
            raise UsageError(
                f"{self._server.base_url} ended a completion after {number} tokens where `--max-new-tokens` asks for "
                f"{decoding.max_new_tokens}: lower that, or raise the server's own limit."
            )

    def _count(self, prompt: SoftPrompt, usage: Any) -> None:
        told = _whole(getattr(usage, "prompt_tokens", None))
        read = len(prompt) if told is None else told
        if len(prompt.thoughts) and read != len(prompt):
            raise UsageError(
                f"{self._server.base_url} read {read} prompt tokens where {len(prompt)} were sent: it passed over the "
                f"prompt embeddings. {_NO_EMBEDDINGS}"
            )
        details = getattr(usage, "prompt_tokens_details", None)
        cached = min(_whole(getattr(details, "cached_tokens", None)) or 0, read)
        self.counters.prefill_avoided += cached
        self.counters.prefill_computed += read - cached

    def _encode(self, prompt: SoftPrompt) -> str:
        assert self._prompts is not None
        buffer = io.BytesIO()
        torch.save(self._prompts.embed(prompt).clone(), buffer)
        return base64.b64encode(buffer.getvalue()).decode("ascii")


def _log_prob(choice: Any) -> float | None:
    """Of all its tokens together; None where the server does not tell that of every one."""
    told = getattr(getattr(choice, "logprobs", None), "token_logprobs", None)
    whole = isinstance(told, list) and all(isinstance(one, int | float) and math.isfinite(one) for one in told)
    return float(sum(told)) if told and whole else None


def _whole(number: Any) -> int | None:
    """A number of tokens, or one's id. None for what is neither: JSON from outside may hold anything."""
    return number if type(number) is int and number >= 0 else None


def _key() -> str:
    """OPENAI_API_KEY, or nothing. Raises UsageError, without the key, for one that no request can carry."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key.isascii() or any(not sign.isprintable() or sign.isspace() for sign in key):
        raise UsageError(
            "OPENAI_API_KEY must be ASCII letters, digits and signs, and holds something else: set it again."
        )
    return key


def _library() -> Any:
    try:
        import openai
    except ImportError as error:
        raise cannot_be_imported("openai", error) from None
    return openai


def build(
    config: RunConfig,
    backbone: LanguageModel,
    workload: Workload,
    tell: Callable[[str], None],  # noqa: ARG001
) -> Engine:
    """The engine of a run; see `scaling.engines.build`."""
    server, context = _server(config, backbone, workload.tokens_per_row)
    return OpenAIEngine(
        server,
        embedded_prompts(backbone, dtype=config.dtype, context=context) if workload.slots else None,
        end_tokens=backbone.end_tokens,
        seeds=config.engine_seeds or "streams",
        batch_size=64 if config.batch_size == "auto" else config.batch_size,
    )


def refuse_unfit(config: RunConfig, backbone: LanguageModel, workload: Workload) -> None:
    """Raises UsageError where the server does not answer, or is known not to take what will be asked."""
    server, _ = _server(config, backbone, workload.tokens_per_row)
    server.refuse_unfit(slots=workload.slots, top_k=config.top_k)


def served_model(config: RunConfig) -> str:
    """The name of the only model that the server has. Raises UsageError where it is down, or has several."""
    return Server(str(config.base_url), None).model


def _server(config: RunConfig, backbone: LanguageModel, tokens_per_row: int) -> tuple[Server, int]:
    """The server, and the longest sequence that it takes."""
    server = Server(str(config.base_url), config.served_model)
    context = server.context or backbone.context
    if context < tokens_per_row:
        raise UsageError(
            f"{server.base_url} takes sequences of at most {context} tokens, and the longest prompt has "
            f"{tokens_per_row} with `--max-new-tokens` {config.max_new_tokens}: lower that, or start the server with a "
            f"larger `--max-model-len`."
        )
    return server, context
