"""The in-process engine: draws tokens for many rows at once on a transformers model, soft tokens as input embeddings.

The scheduler says what is decoded, a decoder turns last tokens into logits, and this loop draws the next ones. A row that
finishes is taken by the next request at once. Masks and positions keep a row's result independent of its neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import psutil
import torch
from torch import Tensor
from transformers import PreTrainedModel

from scaling.engines.base import Counters, Decoding, Generated, Request
from scaling.engines.decoder import Decoder
from scaling.engines.fitting import fit
from scaling.engines.packing import PackedWeights
from scaling.engines.sampling import confidences, sample_tokens, sample_tokens_, uniforms
from scaling.engines.scheduler import Scheduler
from scaling.engines.shared import SharedPrefixDecoder
from scaling.errors import UsageError
from scaling.shapes import kv_bytes_of

_TOO_LARGE = "memory ran out with a single completion; lower `--max-new-tokens`, or take a smaller backbone."


class TransformersEngine:
    """end_tokens: ids that stop a row. batch_size: rows decoded together; halved, down to 1, each time memory runs out.

    max_batch_tokens: tokens whose keys and values are held at once, prompts and rows together. plain_because: why prefixes
    are not shared, None where they are. longest: tokens of the longest prompt with its completion, None if not known.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        end_tokens: Sequence[int],
        batch_size: int,
        max_batch_tokens: int,
        longest: int | None = None,
    ) -> None:
        self.batch_size = batch_size
        self.max_batch_tokens = max_batch_tokens
        self.counters = Counters()
        try:
            fitted = fit(model, longest=longest)
        except torch.OutOfMemoryError as error:
            raise UsageError(_TOO_LARGE) from error
        self.plain_because, self._plain = fitted.because, fitted.plain
        self._model = model
        self._end = torch.tensor(sorted(end_tokens), dtype=torch.long, device=model.device)
        self._cancelled: set[str] = set()
        self._packed = PackedWeights(model)

    def generate(self, requests: Iterable[Request], decoding: Decoding, *, lookahead: int = 0) -> Iterator[Generated]:
        """Yields every request once, as it finishes. lookahead: requests to see ahead of time, where the same prompts come
        back after others. Raises UsageError where the model's logits are not numbers.
        """
        source = iter(requests)
        while True:
            work = self._start(source, decoding, lookahead)
            try:
                with self._packed:
                    yield from work.run()
                return
            except RuntimeError as error:
                if not _out_of_memory(error):
                    raise
                if self.batch_size == 1:
                    raise UsageError(_TOO_LARGE) from error
            # the same requests start again, and their own streams give them the same tokens
            source = chain(work.unfinished(), source)
            del work
            self.batch_size = max(1, self.batch_size // 2)
            self.max_batch_tokens //= 2

    def cancel(self, question_id: str) -> None:
        """Gives up what is left of a question; takes effect before the next token."""
        self._cancelled.add(question_id)

    def close(self) -> None:
        """Nothing to end: the model is the caller's."""

    def _start(self, source: Iterator[Request], decoding: Decoding, lookahead: int) -> _Work:
        kind = self._plain if self.plain_because else SharedPrefixDecoder
        decoder = kind(self._model, num_rows=self.batch_size, max_new_tokens=decoding.max_new_tokens)
        scheduler = Scheduler(
            source,
            num_rows=self.batch_size,
            prompt_tokens=self.max_batch_tokens - self.batch_size * decoding.max_new_tokens,
            share_prefix=decoder.share_prefix,
            lookahead=lookahead,
        )
        rows = _Rows(self.batch_size, decoding, self._end)
        return _Work(decoder, scheduler, rows, counters=self.counters, packed=self._packed, cancelled=self._cancelled)


class _Work:
    """One pass over the requests with a fixed number of rows.

    cancelled: questions to give up, looked at before every token.
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
    ) -> None:
        self._decoder, self._scheduler, self._rows = decoder, scheduler, rows
        self._counters, self._packed = counters, packed
        self._cancelled, self._given_up = cancelled, set[str]()
        self._most_rows = self._peak_held = self._peak_flat = 0

    def unfinished(self) -> list[Request]:
        """Requests taken from the source and neither yielded nor cancelled."""
        return [*self._rows.requests.values(), *self._scheduler.open]

    @torch.inference_mode()
    def run(self) -> Iterator[Generated]:
        """Decodes until there are no more requests."""
        yield from self._fill([])
        while used := self._decoder.used:
            self._packed.choose(used)
            logits = self._decoder.step(self._rows.last[:used])
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
            requests = self._scheduler.take(len(available))
            if not requests:
                break
            rows, free = available[: len(requests)], free[len(requests) :]
            logits = self._decoder.place(rows, [request.prompt for request in requests])
            self._rows.start(rows, requests)
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
            computed = self._decoder.hold(new)
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
        flat = self._rows.prompt_tokens + int(self._rows.steps[:used].sum())
        own = flat - self._rows.prompt_tokens if self._decoder.share_prefix else flat
        self._peak_held = max(self._peak_held, self._scheduler.held_tokens + own)
        self._peak_flat = max(self._peak_flat, flat)
        size = self._decoder.bytes_per_token
        counters.kv_bytes_held = max(counters.kv_bytes_held, size * self._peak_held)
        counters.kv_bytes_avoided = max(counters.kv_bytes_avoided, size * (self._peak_flat - self._peak_held))


class _Rows:
    """What is being decoded. seeds, steps, last: [R] int64: random stream, tokens drawn, last token; tokens: [R, most].

    requests: those in rows that are not done, by row.
    """

    def __init__(self, capacity: int, decoding: Decoding, end: Tensor) -> None:
        self.capacity = capacity
        self.requests: dict[int, Request] = {}
        self.prompt_tokens = 0
        self.last, self.steps, self._seeds = torch.zeros(3, capacity, dtype=torch.long, device=end.device)
        self._tokens = torch.zeros(capacity, decoding.max_new_tokens, dtype=torch.long, device=end.device)
        # [2, R]: sums over the tokens of log-probability and self-certainty
        self._confidences = torch.zeros(2, capacity, dtype=torch.float64, device=end.device)
        self._decoding, self._end = decoding, end

    def start(self, rows: list[int], requests: list[Request]) -> None:
        at = torch.tensor(rows, device=self._end.device)
        self._seeds[at] = torch.tensor([request.seed for request in requests], device=at.device)
        self.steps[at] = 0
        self._confidences[:, at] = 0.0
        self.requests.update(zip(rows, requests, strict=True))
        self.prompt_tokens += sum(len(request.prompt) for request in requests)

    def draw(self, rows: list[int], logits: Tensor) -> list[int]:
        """One more token in each of `rows`, from logits [len(rows), V]. Returns the rows that are then done."""
        at = torch.tensor(rows, device=self._end.device)
        draw = sample_tokens if self._decoding.log_probs else sample_tokens_
        chosen = draw(logits, uniforms(self._seeds[at], self.steps[at]), self._decoding)
        if bool((chosen < 0).any()):
            raise UsageError(
                f"the backbone's logits are not numbers (NaN) in {str(logits.dtype).removeprefix('torch.')}; try "
                f"`--dtype float32`, and check the backbone's weights and the `--thinker` checkpoint."
            )
        if self._decoding.log_probs:
            self._confidences[:, at] += torch.stack(confidences(logits, chosen))
        self._tokens[at, self.steps[at]] = chosen
        self.last[at] = chosen
        self.steps[at] += 1
        done = torch.isin(chosen, self._end) | (self.steps[at] == self._decoding.max_new_tokens)
        return [rows[number] for number in done.nonzero().flatten().tolist()]

    def take(self, row: int) -> Generated:
        """The result of a row, which is then nobody's."""
        request = self.requests.pop(row)
        self.prompt_tokens -= len(request.prompt)
        tokens = self._tokens[row, : int(self.steps[row])].tolist()
        ended = bool(torch.isin(self.last[row], self._end))
        stop_reason = "end" if ended else "length"
        if not self._decoding.log_probs:
            return Generated(request, tokens, stop_reason)
        log_prob, certainty = self._confidences[:, row].tolist()
        return Generated(request, tokens, stop_reason, log_prob, certainty / len(tokens))

    def rearrange(self, order: list[int]) -> None:
        """Row number r is from now on what row order[r] was."""
        for states in (self.last, self.steps, self._seeds, self._tokens, self._confidences.T):
            states[: len(order)] = states[order]
        self.requests = {new: self.requests[old] for new, old in enumerate(order)}


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def fitted_engine(
    model: PreTrainedModel,
    *,
    end_tokens: Sequence[int],
    tokens_per_row: int,
    batch_size: int | None = None,
    max_batch_tokens: int | None = None,
) -> TransformersEngine:
    """An engine whose limits fit the memory that is free now; those that are given stay. tokens_per_row: prompt and
    completion of the longest request."""
    free = torch.cuda.mem_get_info()[0] if model.device.type == "cuda" else psutil.virtual_memory().available
    rows, tokens = auto_limits(
        model,
        tokens_per_row=tokens_per_row,
        free_bytes=free,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
    )
    return TransformersEngine(
        model, end_tokens=end_tokens, batch_size=rows, max_batch_tokens=tokens, longest=tokens_per_row
    )


def auto_limits(
    model: PreTrainedModel,
    *,
    tokens_per_row: int,
    free_bytes: int,
    batch_size: int | None,
    max_batch_tokens: int | None,
) -> tuple[int, int]:
    """(batch_size, max_batch_tokens) where None means to choose: tokens fit half of the free memory; rows fit the tokens
    even if no two share a prompt.

    At most 128 rows on a CPU, where a step is bound by arithmetic from there on, and 512 elsewhere.
    """
    config = model.config.get_text_config()
    per_token = max(1, kv_bytes_of(config, model.dtype.itemsize))
    per_row = config.vocab_size * 4 * 4  # the logits' working copies
    largest = batch_size or (128 if model.device.type == "cpu" else 512)
    fitting = max(1, free_bytes // 2 // (per_token * tokens_per_row + per_row))
    tokens = max_batch_tokens or max(tokens_per_row, (free_bytes // 2 - min(largest, fitting) * per_row) // per_token)
    return min(largest, max(1, tokens // tokens_per_row)), tokens
