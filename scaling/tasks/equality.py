"""Compares an answer with the gold answer: numbers exactly and here, formulas by math-verify in a worker process.

Two numbers are equal in three cases. Their values are the same. Or the answer is the gold number rounded, see `_is_rounded`.
Or one was printed as a floating-point number, and they differ by at most 10**-9 of the larger. The latter means at least 12
significant digits, some of them behind the decimal point. So 0.6666666666666666 is 2/3, and 0.30000000000000004 is 0.3.

math-verify can run forever or use up all memory, and its own time limit is a signal that does not work in threads. So it
runs in one worker process with limits of time and memory. The worker is started when it is first needed. It is replaced
after it has reached a limit. Only the worker imports math-verify. This module knows nothing of questions and votes.
"""

from __future__ import annotations

import logging
import multiprocessing
import re
import resource
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

from scaling.records.errors import UsageError
from scaling.tasks import expressions
from scaling.tasks.numbers import value

_START_SECONDS = 120.0  # longest start of the worker: importing sympy from a cold network disk is slow
_STOP_SECONDS = 1.0  # longest wait for the worker to end by itself
_PATIENCE = 10  # wall-clock seconds to wait for each second of processor time, as other processes may use the processor
_MAX_BYTES = 200 * 2**20  # memory that the worker may take beyond what it has after its start
_PRINTED_DIGITS = 12
_PRINTED_TOLERANCE = Fraction(1, 10**9)


class AnswerChecker:
    """Compares answers. It is a context manager that ends its worker process. Several threads may use it.

    A comparison is given up if the worker has computed for `timeout_seconds`, has taken 200 MB more than at its start, has
    not replied for ten times `timeout_seconds`, or has died twice. Such a pair counts as unequal. Each pair is compared
    only once. No text raises an error; only a worker that cannot start raises UsageError.

    Attributes:
        timeouts: how many different pairs (gold, answer), and formulas asked for their form, were given up.
    """

    def __init__(self, *, timeout_seconds: float = 2.0):
        """Starts nothing yet.

        Args:
            timeout_seconds: processor time for one comparison. It is not wall-clock time, so a busy machine changes no
                verdict.
        """
        self.timeouts = 0
        self._timeout_seconds = timeout_seconds
        self._known: dict[tuple[str, str, bool], bool] = {}
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
        """Whether a number or formula is equal to the gold one. Both are in canonical form."""
        if answer == gold:
            return True
        exact, given = value(gold), value(answer)
        if exact is not None and given is not None:
            rounded = _is_rounded(gold, answer) or _is_rounded_fraction(gold, answer)
            return exact == given or rounded or _is_printed(gold, answer)
        return self._compared(gold, answer, apart=False)

    def equal_expressions(self, gold: str, answer: str) -> bool:
        """Whether an answer of kind `expression` is equal to the gold one: part by part, and numbers without rounding."""
        first, second = expressions.parse(gold), expressions.parse(answer)
        if gold == answer or first is None or second is None:
            return gold == answer
        if expressions.is_plain(first) and expressions.is_plain(second):
            return expressions.same(first, second, _equal_numbers)
        return self._compared(gold, answer, apart=True)

    def form(self, formula: str) -> str | None:
        """One text for all ways to write a formula, see `formula_forms`; None if it has none or takes too long."""
        with self._lock:
            if formula not in self._forms:
                self._forms[formula] = self._ask(None, formula) or None
            return self._forms[formula]

    def close(self) -> None:
        """Ends the worker if there is one. A later comparison starts another."""
        with self._lock:
            self._stop(kill=False)

    def _compared(self, gold: str, answer: str, *, apart: bool) -> bool:
        """Whether the worker finds two formulas equal. apart: they are answers of kind `expression`."""
        with self._lock:
            if (gold, answer, apart) not in self._known:
                self._known[gold, answer, apart] = bool(self._ask(gold, answer, apart=apart))
            return self._known[gold, answer, apart]

    def _ask(self, gold: str | None, answer: str, *, apart: bool = False) -> Any:
        """Asks the worker whether two formulas are equal. If `gold` is None, asks for the form of `answer`.

        All parts of an answer are compared by one request, so that they share its time.

        Returns:
            The worker's reply; None if the comparison is given up.
        """
        for _ in range(2):  # twice, because the worker may have been killed from outside
            process, connection = self._connected()
            try:
                connection.send((gold, answer, apart, self._timeout_seconds))
                reply = connection.recv() if connection.poll(_PATIENCE * self._timeout_seconds) else None
            except (EOFError, OSError):
                process.join(_STOP_SECONDS)
                out_of_time = process.exitcode == -signal.SIGPROF  # the timer of `_serve` ended it
                self._stop(kill=True)
                if out_of_time:
                    break
            except BaseException:  # Ctrl-C: a late reply must not count for the next question
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
        """The worker, started if there is none, and the connection to it."""
        if self._worker is None:
            self._worker = _start(_serve)
        return self._worker

    def _stop(self, *, kill: bool) -> None:
        if self._worker is None:
            return
        process, connection = self._worker
        self._worker = None
        _end(process, connection, patience=0.0 if kill else _STOP_SECONDS)


def _equal_numbers(gold: str, answer: str) -> bool:
    """Whether two numbers are the same, or one of them was printed as a floating-point number."""
    return value(gold) == value(answer) or _is_printed(gold, answer)


def _is_rounded(gold: str, answer: str) -> bool:
    """Whether the answer is the gold number rounded to as many decimals as the answer has.

    The answer must have at least two decimals and two significant digits. So 0.33 is right for 1/3 and for 0.3333, but 0.3
    is not. A whole gold number allows no rounding.
    """
    exact, places = value(gold), _places(answer)
    if exact is None or exact.denominator == 1 or places < 2 or len(answer.strip("-0.").replace(".", "")) < 2:
        return False
    return abs(exact - (value(answer) or 0)) <= Fraction(1, 2 * 10**places)


def _is_rounded_fraction(gold: str, answer: str) -> bool:
    """Whether the answer is a fraction that has no exact decimals, and the gold number is that fraction rounded."""
    return "/" in answer and "/" not in gold and _is_rounded(answer, gold)


def _is_printed(gold: str, answer: str) -> bool:
    """Whether one of two numbers was printed as a floating-point number, and they differ only by its rounding errors."""
    if not (is_printed_float(gold) or is_printed_float(answer)):
        return False
    return differ_by_printing(value(gold) or Fraction(0), value(answer) or Fraction(0))


def is_printed_float(number: str) -> bool:
    """Whether a number in canonical form has at least 12 significant digits, some of them behind the decimal point."""
    return _places(number) > 0 and _digits(number) >= _PRINTED_DIGITS


def differ_by_printing(first: Fraction, second: Fraction) -> bool:
    """Whether two numbers differ by rounding errors only, if one of them was printed as a floating-point number."""
    return abs(first - second) <= _PRINTED_TOLERANCE * max(abs(first), abs(second))


def _digits(number: str) -> int:
    """How many significant digits a decimal number has."""
    return len(re.sub("[^0-9]", "", number).lstrip("0"))


def _places(number: str) -> int:
    """How many digits are behind the decimal point; 0 for a fraction and for a text that is not in canonical form."""
    return len(number.partition(".")[2]) if re.fullmatch(r"-?[0-9]+\.[0-9]+", number) else 0


def _start(serve: Callable[[Connection], None]) -> tuple[BaseProcess, Connection]:
    """Starts a worker and waits until it is ready. Returns it and the connection to it."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the locks and the CUDA state of this process
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), name="answer-checker", daemon=True)
    # Ctrl-C is blocked while the worker is started. The worker inherits that, so it prints no traceback while it imports.
    # The resource tracker is started first, because its start would unblock the signal again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _without_main_module():
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    ready = False
    try:
        ready = ours.poll(_START_SECONDS) and ours.recv()
    except (EOFError, OSError):
        pass  # the worker has ended, and has printed why
    finally:
        if not ready:
            _end(process, ours)
    if ready:
        return process, ours
    raise UsageError(
        "the process that compares formulas must start, but did not; see above why, and check that "
        "`math-verify` is installed."
    )


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Keeps a new process from running the script that this one was started with, which may have no guard against it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _end(process: BaseProcess, connection: Connection, *, patience: float = 0.0) -> None:
    """Ends a worker and frees its resources. patience: how many seconds an idle worker may take to end by itself."""
    connection.close()
    process.join(patience)
    process.kill()
    process.join()
    process.close()


def _serve(connection: Connection) -> None:
    """The worker's loop. It sends True when it is ready, and then replies to requests until the connection is closed.

    A request is (gold, answer, apart, seconds). The reply is whether the two are equal, part by part if `apart` is true. If
    gold is None, it is the form of the answer, or an empty text if that has none. The reply is None if the memory is too
    small. If the time is up, the signal of the timer ends the process. Nothing else could stop a long multiplication.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    logging.disable()  # math-verify warns that it has no time limit, and sympy has warnings of its own
    warnings.simplefilter("ignore")
    from math_verify import parse, verify

    from scaling.tasks.formula_forms import form

    def same(gold: str, answer: str) -> bool:
        return bool(
            verify(*(parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)), timeout_seconds=None)
        )

    def same_leaf(gold: str, answer: str) -> bool:
        numbers = value(gold) is not None and value(answer) is not None
        return _equal_numbers(gold, answer) if numbers else same(gold, answer)

    def same_parts(gold: str, answer: str) -> bool:
        first, second = expressions.parse(gold), expressions.parse(answer)
        return first is not None and second is not None and expressions.same(first, second, same_leaf)

    same("\\frac{\\sqrt{12}}{2}", "\\sqrt{3}")  # loads what the first comparison needs, before limits apply
    form("2\\sqrt{3}")
    _limit_memory()
    connection.send(True)
    while True:
        try:
            gold, answer, apart, seconds = connection.recv()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, seconds)
        reply: bool | str | None
        try:
            reply = form(answer) if gold is None else (same_parts if apart else same)(gold, answer)
        except MemoryError:
            reply = None
        except Exception:  # for a text that is no formula, the libraries may raise anything
            reply = "" if gold is None else False
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send(reply)


def _limit_memory() -> None:
    """Limits the memory of this process to its present size and `_MAX_BYTES` more. Only on Linux, which tells the size."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + _MAX_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
