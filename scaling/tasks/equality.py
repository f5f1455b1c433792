"""Whether an answer is the gold answer. Numbers are compared exactly here, formulas by math-verify in a process.

Two numbers are equal if their values are; if one is the other rounded, see `_is_rounded`; or if one was printed with at
least 12 significant digits, some behind the point, and they differ by at most a 10**-9 of the larger: so 0.6666666666666666
is 2/3 and 0.30000000000000004 is 0.3.

math-verify can run for ever or take all memory, and its own time limit is a signal that works in no thread, so it runs in
one worker process with limits of time and memory, which is started when first needed and replaced when it meets one.
Refuses to know questions, texts and votes. Only the worker imports math-verify.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
import resource
import signal
import threading
import warnings
from collections.abc import Callable
from fractions import Fraction
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from scaling.records.errors import UsageError
from scaling.tasks.numbers import value

_START_SECONDS = 120.0  # importing sympy from a cold network disk is slow, and is no fault of the first question
_STOP_SECONDS = 1.0
_PATIENCE = 10  # seconds of waiting for every second of the limit, as other processes may have the processor
_MAX_BYTES = 200 * 2**20  # that a comparison may take
_PRINTED_DIGITS = 12
_PRINTED_TOLERANCE = Fraction(1, 10**9)


class AnswerChecker:
    """Compares answers; a context manager that ends its worker. May be used from several threads.

    timeouts: how many different pairs (gold, answer) were not compared to the end. They count as unequal. The worker gave
    up because it had computed for `timeout_seconds` (of processor time, so that a busy machine changes no verdict), taken
    200 MB, not replied for ten times the limit, or died twice. A pair is compared once, however often it is asked for.

    timeout_seconds: processor time for one comparison. Raises UsageError where the worker cannot start, and nothing else,
    whatever the texts.
    """

    def __init__(self, *, timeout_seconds: float = 2.0):
        self.timeouts = 0
        self._timeout_seconds = timeout_seconds
        self._known: dict[tuple[str, str], bool] = {}
        self._forms: dict[str, str | None] = {}
        self._lock = threading.Lock()
        self._worker: tuple[BaseProcess, Connection] | None = None

    def __enter__(self) -> AnswerChecker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def equal(self, gold: str, answer: str) -> bool:
        """Whether a number or formula in canonical form is the gold one."""
        if answer == gold:
            return True
        exact, given = value(gold), value(answer)
        if exact is not None and given is not None:
            rounded = _is_rounded(gold, answer) or _is_rounded_fraction(gold, answer)
            return exact == given or rounded or _is_printed(gold, answer)
        with self._lock:
            if (gold, answer) not in self._known:
                self._known[gold, answer] = bool(self._ask(gold, answer))
            return self._known[gold, answer]

    def form(self, formula: str) -> str | None:
        """One text for all the ways to write a formula, see `formula_forms`; None where it has none or takes too long."""
        with self._lock:
            if formula not in self._forms:
                self._forms[formula] = self._ask(None, formula) or None
            return self._forms[formula]

    def close(self) -> None:
        """Ends the worker, if there is one. A later comparison would start another."""
        with self._lock:
            self._stop(kill=False)

    def _ask(self, gold: str | None, answer: str) -> Any:
        """Whether the two are equal, or without a gold answer the form of the other; None where the worker gave up."""
        for _ in range(2):  # once more, should the worker have been killed from outside
            process, connection = self._connected()
            try:
                connection.send((gold, answer, self._timeout_seconds))
                reply = connection.recv() if connection.poll(_PATIENCE * self._timeout_seconds) else None
            except (EOFError, OSError):
                process.join(_STOP_SECONDS)
                out_of_time = process.exitcode == -signal.SIGPROF
                self._stop(kill=True)
                if out_of_time:
                    break
            except BaseException:  # Ctrl-C: the reply still to come must not be taken for that of the next question
                self._stop(kill=True)
                raise
            else:
                if reply is not None:
                    return reply
                break
        self._stop(kill=True)
        self.timeouts += 1
        return None

    def _connected(self) -> tuple[BaseProcess, Connection]:
        if self._worker is None:
            self._worker = _start(_serve)
        return self._worker

    def _stop(self, *, kill: bool) -> None:
        if self._worker is None:
            return
        process, connection = self._worker
        self._worker = None
        _end(process, connection, patience=0.0 if kill else _STOP_SECONDS)


def _is_rounded(gold: str, answer: str) -> bool:
    """Whether the answer is the gold number rounded to the answer's own decimals, at least two of them and two digits.

    So 0.33 is right for 1/3 and 0.3333, but 0.3 is not. An integer gold answer allows no rounding.
    """
    exact, places = value(gold), _places(answer)
    if exact is None or exact.denominator == 1 or places < 2 or len(answer.strip("-0.").replace(".", "")) < 2:
        return False
    return abs(exact - (value(answer) or 0)) <= Fraction(1, 2 * 10**places)


def _is_rounded_fraction(gold: str, answer: str) -> bool:
    """Whether the answer is a fraction without exact decimals, and the gold number is that fraction rounded."""
    return "/" in answer and "/" not in gold and _is_rounded(answer, gold)


def _is_printed(gold: str, answer: str) -> bool:
    """Whether one of two numbers was printed as a floating-point number, and they differ by its rounding errors only."""
    if not (is_printed_float(gold) or is_printed_float(answer)):
        return False
    return differ_by_printing(value(gold) or Fraction(0), value(answer) or Fraction(0))


def is_printed_float(number: str) -> bool:
    """Whether a number in canonical form has as many digits as a printed floating-point number, some behind the point."""
    return _places(number) > 0 and _digits(number) >= _PRINTED_DIGITS


def differ_by_printing(first: Fraction, second: Fraction) -> bool:
    """Whether two numbers, one of them printed as a floating-point number, differ by its rounding errors only."""
    return abs(first - second) <= _PRINTED_TOLERANCE * max(abs(first), abs(second))


def _digits(number: str) -> int:
    """How many significant digits a decimal number has."""
    return len(re.sub("[^0-9]", "", number).lstrip("0"))


def _places(number: str) -> int:
    """Behind the decimal point; 0 for fractions and whatever is not written in the canonical way."""
    return len(number.partition(".")[2]) if re.fullmatch(r"-?[0-9]+\.[0-9]+", number) else 0


def _start(serve: Callable[[Connection], None]) -> tuple[BaseProcess, Connection]:
    """A worker that has said it is ready, and the connection to it."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks and the CUDA state of this process
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), name="answer-checker", daemon=True)
    # The worker inherits the blocked signal, so Ctrl-C while it is still importing prints no traceback of its own.
    # The tracker goes first because starting it unblocks the signal.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    ready = False
    try:
        ready = ours.poll(_START_SECONDS) and ours.recv()
    except (EOFError, OSError):
        pass  # it is gone, and has printed why
    finally:
        if not ready:
            _end(process, ours)
    if ready:
        return process, ours
    raise UsageError(
        "the process that compares formulas must start, but did not; see above why, and check that "
        "`math-verify` is installed."
    )


def _end(process: BaseProcess, connection: Connection, *, patience: float = 0.0) -> None:
    """Ends a worker and frees what it held. patience: seconds for an idle one to end by itself."""
    connection.close()
    process.join(patience)
    process.kill()
    process.join()
    process.close()


def _serve(connection: Connection) -> None:
    """The worker: says it is ready, then answers one (gold, answer, seconds) after another until the other side is gone.

    Without a gold answer it tells the form of the other one, empty where there is none. The reply is None where the memory
    does not suffice. Where the time does not, the timer's signal ends the process: in the middle of a long multiplication
    nothing else would.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    logging.disable()  # math-verify warns that it has no time limit, sympy of much else
    warnings.simplefilter("ignore")
    from math_verify import parse, verify

    from scaling.tasks.formula_forms import form

    def same(gold: str, answer: str) -> bool:
        return bool(
            verify(*(parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)), timeout_seconds=None)
        )

    same("\\frac{\\sqrt{12}}{2}", "\\sqrt{3}")  # what the first comparison loads counts in no question's time or memory
    form("2\\sqrt{3}")
    _limit_memory()
    connection.send(True)
    while True:
        try:
            gold, answer, seconds = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply: bool | str | None
        try:
            reply = form(answer) if gold is None else same(gold, answer)
        except MemoryError:
            reply = None
        except Exception:  # the libraries raise whatever they like at texts that are no formulas
            reply = "" if gold is None else False
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(reply)


def _limit_memory() -> None:
    """Lets this process grow by `_MAX_BYTES` and no more, where the system tells its size (Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + _MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
