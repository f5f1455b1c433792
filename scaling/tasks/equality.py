"""Whether an answer is the gold answer. Numbers are compared exactly here, formulas by math-verify in a process.

math-verify can run for ever, and its own time limit is a signal that works in no thread, so it runs in one worker
process that is started when first needed and killed when it takes too long. Refuses to know questions, texts and votes.
Only the worker imports math-verify.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import warnings
from collections.abc import Callable
from fractions import Fraction
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from scaling.errors import UsageError
from scaling.tasks.numbers import value

_START_SECONDS = 120.0  # importing sympy from a cold network disk is slow, and is no fault of the first question
_STOP_SECONDS = 1.0


class AnswerChecker:
    """Compares answers; a context manager that ends its worker. May be used from several threads.

    timeouts: comparisons that the worker did not finish, because it took too long or died twice. They count as
    unequal. Raises UsageError where the worker cannot start.
    """

    def __init__(self, *, timeout_seconds: float = 5.0):
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

    def equal(self, gold: str, answer: str | None, *, kind: str) -> bool:
        """Whether a canonical answer is the gold one. No answer (None) is never right."""
        if answer is None or answer == gold or kind != "number":
            return answer == gold
        numbers = value(gold), value(answer)
        if numbers[0] is not None and numbers[1] is not None:
            return numbers[0] == numbers[1] or _is_rounded(gold, answer) or _is_rounded_fraction(gold, answer)
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
            connection = self._connection()
            try:
                connection.send((gold, answer))
                if not connection.poll(self._timeout_seconds):
                    break
                return connection.recv()
            except (EOFError, OSError):
                self._stop(kill=True)
            except BaseException:  # Ctrl-C: the reply still to come must not be taken for that of the next question
                self._stop(kill=True)
                raise
        self._stop(kill=True)
        self.timeouts += 1
        return None

    def _connection(self) -> Connection:
        if self._worker is None:
            self._worker = _start(_serve)
        return self._worker[1]

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
    return abs(exact - Fraction(answer)) <= Fraction(1, 2 * 10**places)


def _is_rounded_fraction(gold: str, answer: str) -> bool:
    """Whether the answer is a fraction without exact decimals, and the gold number is that fraction rounded."""
    return "/" in answer and "/" not in gold and _is_rounded(answer, gold)


def _places(number: str) -> int:
    return 0 if "/" in number else len(number.partition(".")[2])


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
    """The worker: says it is ready, then answers one pair (gold, answer) after another until the other side is gone.

    Without a gold answer it tells the form of the other one, empty where there is none.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()  # math-verify warns that it has no time limit, sympy of much else
    warnings.simplefilter("ignore")
    from math_verify import parse, verify

    from scaling.tasks.formula_forms import form

    connection.send(True)
    while True:
        try:
            gold, answer = connection.recv()
        except EOFError:
            return
        if gold is None:
            connection.send(_form_or_nothing(form, answer))
            continue
        parsed = [parse(f"${text}$", parsing_timeout=None) for text in (gold, answer)]
        connection.send(verify(*parsed, timeout_seconds=None))


def _form_or_nothing(form: Callable[[str], str], formula: str) -> str:
    try:
        return form(formula)
    except Exception:  # the libraries raise whatever they like at texts that are no formulas
        return ""
