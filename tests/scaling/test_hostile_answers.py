"""Hostile texts: whatever a model writes, reading it gives an answer or none, and comparing it ends in bounded time."""

from __future__ import annotations

import multiprocessing
import random
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scaling.tasks.equality import AnswerChecker
from scaling.tasks.kinds import KINDS

OPTIONS = ("10", "9**9**9**9", "\ud800", "", "(" * 500)
FORMS = (
    "{}",
    "The answer is {}",
    "The answer is {}.",
    "\\boxed{{{}}}",
    "#### {}",
    "A: {}",
    "Answer: most likely {} or {}",
)

Build = Callable[[random.Random], str]


def chosen(*pieces: str, most: int) -> Build:
    """Up to `most` of the pieces, with repetition."""
    return lambda draw: "".join(draw.choices(pieces, k=draw.randint(1, most)))


def repeated(*pieces: str, most: int) -> Build:
    return lambda draw: draw.choice(pieces) * draw.randint(1, most)


def nested(most: int) -> Build:
    def build(draw: random.Random) -> str:
        first, last = draw.choice(
            ["()", "[]", "{}", ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("\\boxed{", "}"), ("-(", ")")]
        )
        depth = draw.randint(1, most)
        return first * depth + "7" + last * draw.choice([depth, depth - 1, 0])

    return build


BUILDERS: dict[str, Build] = {
    "divisions": lambda draw: "/".join(str(draw.randint(0, 9)) for _ in range(draw.randint(2, 12))),
    "towers": lambda draw: draw.choice(["**", "^", "^{"]).join(["9"] * draw.randint(2, 40)),
    "huge powers": lambda draw: f"{draw.randint(0, 99)}^{draw.choice(['', '-'])}{10 ** draw.randint(1, 90)}",
    "exponents": lambda draw: f"{draw.random()}e{draw.choice('+-')}{10 ** draw.randint(0, 12)}",
    "factorials": lambda draw: f"{draw.randint(1, 10**9)}!",
    "nested brackets": nested(60),
    "deeply nested brackets": nested(5_000),
    "many digits": lambda draw: str(draw.randint(1, 9)) * draw.choice([100, 101, 299, 300, 301, 4301, 20_000]),
    "many decimals": lambda draw: "0." + "3" * draw.choice([99, 100, 101, 298, 5000]),
    "no numbers": chosen("NaN", "nan", "inf", "-Infinity", "1e", "e5", "0x1F", "1_000", "None", " ", most=3),
    "other digits": chosen("١٢", "１２", "二", "½", "²", "Ⅻ", "٫", "٬", "/", "\u0b72", "\U0001d7d9", most=5),
    "lone surrogates": chosen("\ud800", "\udfff", "\udc80", "5", "+", "x", "A", "yes ", most=6),
    "control characters": chosen("\0", "\x1b[0m", "\u202e", "\u2028", "\ufeff", "\r", "7", "B", "no", most=8),
    "signs": chosen("-", "+", "\u2212", "$", "%", ".", ",", "0", "1", " ", most=30),
    "operators": chosen("+", "-", "*", "/", "^", "(", ")", "2", "0", " ", "=", "x", most=40),
    "zero divisions": chosen("1/0", "0/0", "1/(1-1)", "0^-1", "\\frac{1}{0}", " + ", "5", most=4),
    "LaTeX": chosen(
        "\\frac", "\\sqrt", "{", "}", "\\left", "(", "\\right", ")", "\\text{", "\\boxed{", "^", "3", "\\", most=20
    ),
    "words": chosen(
        "one ", "hundred ", "and ", "a ", "half ", "point ", "minus ", "dozen ", "million ", "-", ", ", most=25
    ),
    "number words": repeated("hundred ", "one hundred and ", "million ", "twenty-", "half a ", "point five ", most=300),
    "choices of numbers": chosen("5", " or ", "6", " (", ")", ", ", "a) ", "b) ", "x = ", "%", most=15),
    "statements": repeated(
        *(
            "The answer is ",
            "answer: ",
            "#### ",
            "A: \n",
            "Answer to ",
            "\\boxed{",
            "I doubt the answer is n't 5? No, ",
        ),
        *("answer is 5\nQ: ", "If the answer would be ", "answer is\n- ", "A) 10\nB) "),
        most=500,
    ),
    "letters": chosen(
        "(A)",
        "B",
        " or ",
        "option ",
        "choice ",
        "Z",
        "/",
        ", ",
        "(",
        "is the answer ",
        "A) 10\n",
        "B) ",
        "pick ",
        most=20,
    ),
    "yes and no": chosen("yes", "no", " and ", " or ", "/", "it depends", ". ", "not ", "true ", most=15),
    "groups": chosen("1", " 000", ",000", ".000", ",00", "'000", "\u00a0000", "/", " ", most=12),
    "sums": repeated("5 + ", "2*", "1-", "3^", "7 = ", "5 apples x ", most=150),
}
HOSTILE = [BUILDERS[name](random.Random(f"{name} {turn}")) for name in BUILDERS for turn in range(600 // len(BUILDERS))]


def readings(text: str) -> Iterator[tuple[str, str | None]]:
    """Every kind with what is read from the text, for which the rules that hold for all texts are checked."""
    for kind in KINDS:
        reading = KINDS[kind].read(text, choices=OPTIONS, question=text)
        assert reading.strict in (None, reading.lenient)
        for answer in (reading.lenient, KINDS[kind].canonical(text, num_choices=len(OPTIONS))):
            assert answer is None or KINDS[kind].canonical(answer, num_choices=len(OPTIONS)) == answer
            yield kind, answer


def test_there_are_hostile_texts_enough() -> None:
    assert len(HOSTILE) == 600
    assert len(set(HOSTILE)) > 400


@pytest.mark.parametrize("name", BUILDERS)
def test_no_hostile_text_raises(name: str) -> None:
    first = list(BUILDERS).index(name) * (600 // len(BUILDERS))
    for turn, text in enumerate(HOSTILE[first : first + 600 // len(BUILDERS)]):
        list(readings(FORMS[turn % len(FORMS)].format(text, text)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.text(alphabet=st.characters(categories=("L", "N", "P", "S", "Z", "C")), max_size=8)
        | st.sampled_from(
            [*FORMS[1:], "1/2/3/4/0", "9**9**9**9", "\\frac{", "\ud800", " or ", "(0.75)", "١٢", "\n", "dozen"]
        ),
        max_size=8,
    )
)
def test_no_text_raises(pieces: list[str]) -> None:
    list(readings("".join(pieces)))


def test_comparing_what_hostile_texts_hold_ends_and_says_where_it_was_given_up() -> None:
    """Formulas that a reading leaves to math-verify, among them some that it cannot do."""
    formulas = {
        answer for text in HOSTILE[::3] for kind, answer in readings(text) if kind == "number" and answer is not None
    }
    formulas = {answer for answer in formulas if not answer.strip("-0123456789./").isdigit()}
    hardest = sorted(formulas, key=lambda formula: (-len(formula), formula))[:4]
    with AnswerChecker(timeout_seconds=0.5) as checker:
        for formula in ["(((", "\ud800", "\\frac{", "x \ud800", *hardest]:
            assert checker.equal("12", formula) is False
            assert checker.equal_expressions("\\sqrt{2}", formula) is False
        before = checker.timeouts  # several parts share the time of one comparison
        endless = ", ".join(f"10^{{10^{{1{digit}}}}}" for digit in range(5))
        assert checker.equal_expressions(endless, endless.replace("10^{1", "11^{1")) is False
        assert checker.timeouts == before + 1


@pytest.mark.parametrize(
    "text", ["1/2/3/4/0", "1/2/3/4/5/6", "9" * 5000, "\ud800", "$1,200.50", "1e-5", "NaN", "", "١٢"]
)
def test_a_raw_text_is_compared_without_an_exception(text: str) -> None:
    with AnswerChecker() as checker:
        assert KINDS["choice"].equal("1/3", text, checker) is False
        if KINDS["number"].canonical(text) is not None:
            assert checker.equal("1/3", text) is False
            assert checker.equal(text, "0.33") is False


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not tell a process's size")
def test_the_checkers_process_may_grow_by_200_megabytes() -> None:
    def workers() -> set[multiprocessing.process.BaseProcess]:
        return {child for child in multiprocessing.active_children() if child.name == "answer-checker"}

    before = workers()
    with AnswerChecker(timeout_seconds=30.0) as checker:
        assert checker.equal("2\\sqrt{3}", "\\sqrt{12}")
        (worker,) = workers() - before
        assert worker.pid is not None
        most, _ = resource.prlimit(worker.pid, resource.RLIMIT_AS)
        size = int(Path(f"/proc/{worker.pid}/statm").read_text().split()[0]) * resource.getpagesize()
        assert size <= most <= size + 200 * 2**20
