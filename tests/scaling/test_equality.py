"""Equality of answers: exact numbers, documented rounding, and a worker process that may hang or die."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.records.errors import UsageError
from scaling.tasks import equality
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.kinds import KINDS

ENDLESS = "10^{10^{10}}"  # ten thousand million digits


def workers() -> list[multiprocessing.process.BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.name == "answer-checker"]


@pytest.fixture(scope="module")
def checker() -> Iterator[AnswerChecker]:
    with AnswerChecker() as shared:
        yield shared
    assert not workers()


@pytest.mark.parametrize(
    ("gold", "answer", "kind", "expected"),
    [
        ("C", "C", "choice", True),
        ("C", "D", "choice", False),
        ("C", None, "choice", False),
        ("yes", "yes", "yes_no", True),
        ("yes", "no", "yes_no", False),
        ("18", None, "number", False),
        ("18", "18", "number", True),
        ("18", "-18", "number", False),
        ("0.50", "1/2", "number", True),
        ("1/3", "0.33", "number", True),
        ("0.3333", "0.33", "number", True),
        ("0.3333", "1/3", "number", True),  # the gold answer is this fraction rounded
        ("2/3", "0.67", "number", True),
        ("2/3", "0.66", "number", False),
        ("1/3", "0.3", "number", False),  # fewer than two decimals
        ("0.005", "0.01", "number", False),  # fewer than two digits
        ("0.33", "0.3333", "number", False),  # more decimals than the gold answer claims
        ("18", "18.001", "number", False),  # an integer is never rounded
        ("2.5", "3", "number", False),
        # printed as floating-point numbers: at least 12 significant digits, some behind the point, equal within 1e-9
        ("0.6666666666666666", "2/3", "number", True),
        ("2/3", "0.6666666666666666", "number", True),
        ("0.30000000000000004", "0.3", "number", True),
        ("0.3", "0.30000000000000004", "number", True),
        ("18", "17.999999999999996", "number", True),
        ("-18", "17.999999999999996", "number", False),
        ("18", "18.0000001", "number", False),  # nine digits
        ("18", "18.0000001000000", "number", False),  # further off than 1e-9
        ("123456789012", "123456789013", "number", False),  # whole numbers are exact
        ("0.000000000001", "0.000000000002", "number", False),  # one significant digit
        ("0", "0.00000000000000005", "number", False),
    ],
)
def test_without_a_worker(gold: str, answer: str | None, kind: str, expected: bool) -> None:
    with AnswerChecker() as fresh:
        before = workers()
        assert (answer is not None and KINDS[kind].equal(gold, answer, fresh)) is expected
        assert workers() == before


@pytest.mark.parametrize(
    ("gold", "answer", "expected"),
    [
        ("2\\sqrt{3}", "\\sqrt{12}", True),
        ("2\\sqrt{3}", "\\sqrt{13}", False),
        ("x + 1", "1+x", True),
        ("100000", "10^5", True),
        ("(1, 2)", "(1,2)", True),
        ("5", "5x", False),
        ("5", "\\frac{", False),
    ],
)
def test_formulas(checker: AnswerChecker, gold: str, answer: str, expected: bool) -> None:
    assert checker.equal(gold, answer) is expected


@given(st.fractions(max_denominator=1000), st.fractions(max_denominator=1000))
def test_fractions_are_equal_only_to_themselves(first: Fraction, second: Fraction) -> None:
    forms = [KINDS["number"].canonical(f"{number.numerator}/{number.denominator}") for number in (first, second)]
    assert forms[0] is not None
    with AnswerChecker() as fresh:
        assert fresh.equal(forms[0], str(first))
        if abs(first - second) > Fraction(1, 200):  # more than rounding to two decimals can bridge
            assert not fresh.equal(forms[0], forms[1])


def test_one_worker_serves_every_thread_and_is_replaced_when_killed() -> None:
    with AnswerChecker(timeout_seconds=60.0) as own:
        answers: list[bool] = []
        threads = [
            threading.Thread(target=lambda n=n: answers.append(own.equal(str(n), f"{n - 1}+1"))) for n in range(4)
        ]
        before = set(workers())
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [True] * 4
        (worker,) = set(workers()) - before

        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)  # Ctrl-C reaches the whole process group
        assert own.equal("7", "3+4")
        assert worker.is_alive()
        os.kill(worker.pid, signal.SIGKILL)
        assert own.equal("8", "4+4")
        assert own.timeouts == 0
    assert set(workers()) == before


def test_an_endless_comparison_is_unequal_counted_and_remembered() -> None:
    before = set(workers())
    with AnswerChecker(timeout_seconds=3.0) as own:
        assert own.equal("8", "4+4")
        start = time.perf_counter()
        assert not own.equal("8", ENDLESS)
        assert time.perf_counter() - start >= 3.0
        assert own.timeouts == 1
        assert set(workers()) == before

        assert own.equal("8", "4+4")
        assert not own.equal("8", ENDLESS)
        assert own.timeouts == 1
        assert set(workers()) == before  # both were known, so no worker was started

        assert own.equal("9", "4+5")
        assert set(workers()) != before
    assert set(workers()) == before


def test_a_worker_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equality, "_serve", id)  # ends at once without saying ready
    before = set(workers())
    with AnswerChecker() as own, pytest.raises(UsageError, match="math-verify"):
        own.equal("5", "2+3")
    assert set(workers()) == before


def test_a_script_without_a_guard_is_not_run_again_by_the_process_that_compares(tmp_path):
    """A new process of Python usually runs the script that its parent runs, which would begin the same run once more."""
    script = tmp_path / "script.py"
    script.write_text(
        "from scaling.tasks.equality import AnswerChecker\n"
        "print('begun')\n"
        "with AnswerChecker() as checker:\n"
        "    print(checker.equal('2*sqrt(2)', 'sqrt(8)'), checker.equal(r'\\sqrt{8}', r'2\\sqrt{2}'))\n"
    )
    path = {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=os.environ | path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "begun"
    assert done.stdout.count("begun") == 1
    assert done.stdout.split()[-1] == "True"
