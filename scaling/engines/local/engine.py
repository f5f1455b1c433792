"""The in-process engine: samples tokens for many rows at once from a transformers model. Soft tokens are input embeddings.

The scheduler says which request is decoded next, a decoder turns last tokens into logits, and this loop samples the next
tokens. The next request takes a finished row at once. Masks and positions keep a row's result independent of its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scaling.engines.base import Counters, Decoding, Generated, Request
from scaling.engines.local.decoder import Decoder, index_of, on_device
from scaling.engines.local.exact import block_for
from scaling.engines.local.fitting import fit
from scaling.engines.local.packing import PackedWeights
from scaling.engines.local.sampling import confidences, sample_tokens, sample_tokens_, uniforms
from scaling.engines.local.scheduler import Scheduler
from scaling.engines.local.shared import SharedPrefixDecoder
from scaling.models.hardware import available_memory
from scaling.models.shapes import kv_bytes_of
from scaling.records.errors import UsageError, out_of_memory

_TOO_LARGE = (
    "memory ran out with a single completion at a time: lower `--max-new-tokens` or `--max-batch-tokens`, take a smaller "
    "backbone, or give the process more memory (`ulimit`, the container's limit). What is finished is kept."
)


class TransformersEngine:
    """Attributes:
    batch_size: rows decoded together; halved, down to 1, each time memory runs out.
    max_batch_tokens: tokens whose keys and values are held at once, prompts and rows together.
    counters: what has been computed, and what sharing has saved.
    plain_because: why prefixes are not shared; None where they are.
    block: rows of every pass with `exact`, 1 where the model or the processor allows no more; None without.
    tell: is told when memory runs out.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_tokens: Sequence[int],
        batch_size: int,
        max_batch_tokens: int,
        longest: int | None = None,
        exact: bool = False,
    ) -> None:
        """Tries which decoder fits the model. Raises UsageError where memory is too small for a single completion.

        Args:
            model: the backbone.
            end_tokens: ids that end a completion.
            batch_size, max_batch_tokens: see the attributes.
            longest: tokens of the longest prompt with its completion, None if not known.
            exact: whether a request's tokens are the same whatever is decoded beside it, in every type.
        """
        self.batch_size = batch_size
        self.max_batch_tokens = max_batch_tokens
        self.counters = Counters()
        self.tell: Callable[[str], None] = lambda _: None
        self._model = model
        self._end = frozenset(end_tokens)
        self._cancelled: set[str] = set()
        try:
            fitted = fit(model, longest=longest)
            self.plain_because, self._plain = fitted.because, fitted.plain
            self.block, self._packed = self._exact_layout(exact)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UsageError(_TOO_LARGE) from error
        if self.block and self.plain_because:
            self.batch_size = 1

    def generate(self, requests: Iterable[Request], decoding: Decoding, *, lookahead: int = 0) -> Iterator[Generated]:
        """Yields every request once, as it finishes. lookahead: requests to see ahead of time, where the same prompts come
        back after others. Raises UsageError where the model's logits are not numbers.
        """
        source = iter(requests)
        while True:
            work = None
            try:
                work = self._start(source, decoding, lookahead)
                with self._packed:
                    yield from work.run()
                return
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise UsageError(_TOO_LARGE) from error
            # the same requests start again, and their own streams give them the same tokens
            source = chain(work.abandon(), source) if work else source
            del work
            torch.cuda.empty_cache()  # does nothing where there is no GPU
            self.batch_size = max(1, self.batch_size // 2)
            self.max_batch_tokens //= 2
            self.tell(f"memory ran out; going on with {self.batch_size} completions at a time, nothing is lost")

    def cancel(self, question_id: str) -> None:
        """Gives up what is left of a question; takes effect before the next token."""
        self._cancelled.add(question_id)

    def close(self) -> None:
        """Nothing to end: the model is the caller's."""

    def _exact_layout(self, exact: bool) -> tuple[int | None, PackedWeights]:
        """Rows of every pass, None where they may vary, and the weights packed for them. exact: as of the engine."""
        if not exact:
            return None, PackedWeights(self._model)
        # where prompts are not shared, a pass is as long as its rows are, so there is one row
        return (1, PackedWeights(self._model, fixed=1)) if self.plain_because else block_for(self._model)

    def _start(self, source: Iterator[Request], decoding: Decoding, lookahead: int) -> _DecodingPass:
        size = {"num_rows": self.batch_size, "max_new_tokens": decoding.max_new_tokens}
        decoder: Decoder = (
            self._plain(self._model, **size)
            if self.plain_because
            else SharedPrefixDecoder(self._model, **size, block=self.block)
        )
        scheduler = Scheduler(
            source,
            num_rows=self.batch_size,
            prompt_tokens=self.max_batch_tokens - self.batch_size * decoding.max_new_tokens,
            share_prefix=decoder.share_prefix,
            lookahead=lookahead,
        )
        apart = self.block is not None
        rows = _Rows(self.batch_size, decoding, self._end, device=self._model.device, apart=apart)
        return _DecodingPass(
            decoder,
            scheduler,
            rows,
            counters=self.counters,
            packed=self._packed,
            cancelled=self._cancelled,
            apart=apart,
        )


class _DecodingPass:
    """One pass over the requests with a fixed number of rows.

    Args:
        decoder: turns last tokens into logits.
        scheduler: says which request is decoded next.
        rows: what is being decoded.
        counters: are added to.
        packed: weights laid out for a number of rows.
        cancelled: ids of questions to give up, read before every token.
        apart: whether every prompt is computed by itself.
    """

    def __init__(
        self,
        decoder: Decoder,
        scheduler: Scheduler,
        rows: _Rows,
        *,
        counters: Counters,
        packed: PackedWeights,
        cancelled: set[str],
        apart: bool = False,
    ) -> None:
        self._decoder, self._scheduler, self._rows = decoder, scheduler, rows
        self._counters, self._packed = counters, packed
        self._cancelled, self._given_up = cancelled, set[str]()
        self._apart = apart
        self._placing: list[Request] = []  # neither open any more nor in a row yet
        self._most_rows = self._peak_held = self._peak_flat = 0

    def abandon(self) -> list[Request]:
        """Requests taken from the source and neither yielded nor cancelled, as if they had not been begun."""
        begun = list(self._rows.requests.values())
        self._counters.prefill_avoided -= sum(len(request.prompt) for request in begun)
        return [*begun, *self._placing, *self._scheduler.open]

    @torch.inference_mode()
    def run(self) -> Iterator[Generated]:
        """Decodes until there are no more requests."""
        yield from self._fill([])
        while used := self._decoder.used:
            self._packed.choose(used)
            logits = self._decoder.step(self._rows.last[:used])
            self._packed.rest()
            self._count_step(used)
            free = self._rows.draw(list(range(used)), logits)
            yield from self._finish(free)
            yield from self._fill(free)

    def _fill(self, free: list[int]) -> Iterator[Generated]:
        """Puts requests into rows, and closes up what stays free. free: rows in use whose request is done."""
        while True:
            free += self._give_up()
            available = [*free, *range(self._decoder.used, self._rows.capacity)]
            if not available:
                return
            self._prepare(len(available))
            requests = self._placing = self._scheduler.take(len(available))
            if not requests:
                break
            rows, free = available[: len(requests)], free[len(requests) :]
            logits = self._decoder.place(rows, [request.prompt for request in requests])
            self._rows.start(rows, requests)
            self._placing = []
            self._counters.prefill_avoided += sum(len(request.prompt) for request in requests)
            done = self._rows.draw(rows, logits)
            yield from self._finish(done)
            free += done
        if free:
            self._rows.rearrange(self._decoder.remove(free))

    def _prepare(self, free: int) -> None:
        new, dropped = self._scheduler.prepare(free)
        for prompt in dropped:
            self._decoder.drop(prompt)
        if new:
            together = [[prompt] for prompt in new] if self._apart else [new]
            computed = sum(self._decoder.hold(prompts) for prompts in together)
            self._counters.prefill_computed += computed
            self._counters.prefill_avoided -= computed

    def _finish(self, done: list[int]) -> Iterator[Generated]:
        for row in done:
            generated = self._rows.take(row)
            if self._scheduler.finish(generated.request):
                self._decoder.drop(generated.request.prompt)
            yield generated

    def _give_up(self) -> list[int]:
        """Rows that are free because their question has been cancelled."""
        questions = self._cancelled - self._given_up
        self._given_up |= questions
        rows = [row for row, request in self._rows.requests.items() if request.prompt.question_id in questions]
        for row in rows:
            generated = self._rows.take(row)
            self._counters.cancelled_tokens += len(generated.tokens)
            if self._scheduler.finish(generated.request):
                self._decoder.drop(generated.request.prompt)
        for prompt in chain.from_iterable(map(self._scheduler.cancel, questions)):
            self._decoder.drop(prompt)
        return rows

    def _count_step(self, used: int) -> None:
        counters = self._counters
        self._most_rows = max(self._most_rows, used)
        counters.decode_steps += 1
        counters.decoded_rows += used
        counters.row_capacity += self._most_rows
        flat = self._rows.prompt_tokens + sum(map(len, self._rows.tokens[:used]))
        own = flat - self._rows.prompt_tokens if self._decoder.share_prefix else flat
        self._peak_held = max(self._peak_held, self._scheduler.held_tokens + own)
        self._peak_flat = max(self._peak_flat, flat)
        size = self._decoder.bytes_per_token
        counters.kv_bytes_held = max(counters.kv_bytes_held, size * self._peak_held)
        counters.kv_bytes_avoided = max(counters.kv_bytes_avoided, size * (self._peak_flat - self._peak_held))


class _Rows:
    """The completions that are being decoded, one in each of R rows.

    Everything that decides what happens next is on the host, which waits for the device once a token: when it asks which
    tokens were drawn.

    Attributes:
        capacity: R.
        requests: those that are not done, by row.
        prompt_tokens: tokens of the prompts of these requests.
        tokens: those that each row has drawn.
        last: [R] int64, the last token of each row.
    """

    def __init__(
        self,
        capacity: int,
        decoding: Decoding,
        end: frozenset[int],
        *,
        device: torch.device,
        apart: bool = False,
    ) -> None:
        """
        Args:
            capacity: R.
            decoding: how tokens are chosen.
            end: ids of the end tokens.
            device: of the logits.
            apart: whether each row's token is drawn by itself, so that not even the rounding of its probabilities depends on
                the other rows.
        """
        self.capacity, self._apart = capacity, apart
        self.requests: dict[int, Request] = {}
        self.prompt_tokens = 0
        self.tokens: list[list[int]] = [[] for _ in range(capacity)]
        self.last, self._steps, self._seeds = self._states = torch.zeros(3, capacity, dtype=torch.long, device=device)
        # of each row, the sums over its tokens of log-probability and self-certainty
        self._confidences = [(0.0, 0.0)] * capacity
        self._decoding, self._end = decoding, end
        self._stopped: set[int] = set()  # rows that a stop string has ended, until they are taken

    def start(self, rows: list[int], requests: list[Request]) -> None:
        device = self._states.device
        at = index_of(rows, device)
        self._seeds[at] = on_device([request.seed for request in requests], device)
        self._steps[at] = 0
        for row in rows:
            self.tokens[row], self._confidences[row] = [], (0.0, 0.0)
        self.requests.update(zip(rows, requests, strict=True))
        self.prompt_tokens += sum(len(request.prompt) for request in requests)

    def draw(self, rows: list[int], logits: Tensor) -> list[int]:
        """One more token in each of `rows`, from logits [len(rows), V]. Returns the rows that are then done."""
        at = index_of(rows, self._states.device)
        drawn = [self._choose(*part) for part in self._parts(logits, uniforms(self._seeds[at], self._steps[at]))]
        chosen = torch.cat([tokens for tokens, _ in drawn])
        self.last[at] = chosen
        self._steps[at] += 1
        if self._decoding.log_probs:
            # float64 holds every token's id, so that one copy tells all
            measures = torch.cat([measures for _, measures in drawn], dim=1)
            told = torch.cat([chosen.double()[None], measures.double()])
            numbers, log_probs, certainties = told.tolist()
            new = [int(number) for number in numbers]
            self._add(rows, log_probs, certainties)
        else:
            new = chosen.tolist()
        if min(new) < 0:
            raise UsageError(
                f"the backbone's logits are not numbers (NaN) in {str(logits.dtype).removeprefix('torch.')}; try "
                f"`--dtype float32`, and check the backbone's weights and the `--thinker` checkpoint."
            )
        return [row for row, token in zip(rows, new, strict=True) if self._append(row, token)]

    def _append(self, row: int, token: int) -> bool:
        """Adds a row's token. Returns whether the row is then done."""
        tokens, stop = self.tokens[row], self._decoding.stop
        tokens.append(token)
        if stop and token in stop.last_tokens and stop.end(tokens):
            self._stopped.add(row)
        return token in self._end or row in self._stopped or len(tokens) == self._decoding.max_new_tokens

    def _add(self, rows: list[int], log_probs: list[float], certainties: list[float]) -> None:
        """Adds the confidences of one more token in each of `rows`."""
        for row, log_prob, certainty in zip(rows, log_probs, certainties, strict=True):
            before = self._confidences[row]
            self._confidences[row] = (before[0] + log_prob, before[1] + certainty)

    def _parts(self, logits: Tensor, uniform: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
        return zip(torch.split(logits, 1), torch.split(uniform, 1), strict=True) if self._apart else [(logits, uniform)]

    def _choose(self, logits: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """A token of each row, and their confidences [2, R], of no use where they are not asked for."""
        if not self._decoding.log_probs:
            return sample_tokens_(logits, uniform, self._decoding), uniform
        chosen = sample_tokens(logits, uniform, self._decoding)
        return chosen, torch.stack(confidences(logits, chosen.clamp(min=0)))

    def take(self, row: int) -> Generated:
        """Returns the finished completion of a row, and frees the row."""
        request, tokens = self.requests[row], self.tokens[row]
        ended = tokens[-1] in self._end or row in self._stopped
        log_prob, certainty = self._confidences[row]
        measures = (log_prob, certainty / len(tokens)) if self._decoding.log_probs else ()
        generated = Generated(request, tokens, "end" if ended else "length", *measures)
        self._stopped.discard(row)
        del self.requests[row]  # only now: where memory runs out before, it is still to be done
        self.prompt_tokens -= len(request.prompt)
        return generated

    def rearrange(self, order: list[int]) -> None:
        """Moves rows: the completion of row order[r] is in row r from now on."""
        self._states[:, : len(order)] = self._states[:, on_device(order, self._states.device)]
        self.tokens[: len(order)] = [self.tokens[old] for old in order]
        self._confidences[: len(order)] = [self._confidences[old] for old in order]
        self.requests = {new: self.requests[old] for new, old in enumerate(order)}


def fitted_engine(
    model: PreTrainedModel,
    *,
    end_tokens: Sequence[int],
    tokens_per_row: int,
    batch_size: int | None = None,
    max_batch_tokens: int | None = None,
    exact: bool = False,
) -> TransformersEngine:
    """Makes an engine whose limits fit the memory that is free now.

    Args:
        model: the backbone.
        end_tokens: ids that end a completion.
        tokens_per_row: tokens of the longest request, prompt and completion together.
        batch_size, max_batch_tokens: as for `TransformersEngine`; None to choose them here.
        exact: as for `TransformersEngine`.
    """
    free = torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else available_memory()
    rows, tokens = auto_limits(
        model,
        tokens_per_row=tokens_per_row,
        free_bytes=free,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
    )
    return TransformersEngine(
        model,
        end_tokens=end_tokens,
        batch_size=rows,
        max_batch_tokens=tokens,
        longest=tokens_per_row,
        exact=exact,
    )


def auto_limits(
    model: PreTrainedModel,
    *,
    tokens_per_row: int,
    free_bytes: int,
    batch_size: int | None,
    max_batch_tokens: int | None,
) -> tuple[int, int]:
    """Chooses the limits of an engine that are None. Returns batch_size and max_batch_tokens.

    The tokens' keys and values take half of the free memory. There are as many rows as these tokens are enough for, even if
    no two rows share a prompt, but at most 128 on a CPU, where arithmetic limits the speed from there on, and 512 elsewhere.
    """
    config = model.config.get_text_config()
    per_token = max(1, kv_bytes_of(config, model.dtype.itemsize))
    per_row = config.vocab_size * 4 * 4  # the logits' working copies
    largest = batch_size or (128 if model.device.type == "cpu" else 512)
    fitting = max(1, free_bytes // 2 // (per_token * tokens_per_row + per_row))
    tokens = max_batch_tokens or max(tokens_per_row, (free_bytes // 2 - min(largest, fitting) * per_row) // per_token)
    return min(largest, max(1, tokens // tokens_per_row)), tokens
