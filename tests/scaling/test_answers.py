"""Reading answers: the mistakes of published parsers one by one, then properties of the canonical form."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaling.tasks.answers import Reading
from scaling.tasks.kinds import KINDS

OPTIONS = ("10", "20", "42", "60", "80")
numbers = st.fractions(max_denominator=10**6) | st.decimals(allow_nan=False, allow_infinity=False, places=4).map(
    Fraction
)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("$1,200.50", "1200.5"),
        ("-3", "-3"),
        ("\u22123", "-3"),
        ("18.0", "18"),
        ("-0", "0"),
        (".5", "0.5"),
        ("007", "7"),
        ("3/4", "0.75"),
        ("2/6", "1/3"),
        ("2 1/2", "2.5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("50%", "50"),
        ("50\\%", "50"),
        ("5 km/h", "5"),
        ("5 cm^2", "5"),
        ("9 (apples)", "9"),
        ("1e3", "1000"),
        ("5e-3", "0.005"),
        ("1.2 \\times 10^{5}", "120000"),
        ("5\\text{ dollars}", "5"),
        ("\\dfrac{1}{2}", "0.5"),
        ("-\\frac{1}{3}", "-1/3"),
        ("2\\frac{1}{2}", "2.5"),
        ("x = -5", "-5"),
        ("10 - 5 = 5", "5"),
        ("2\\sqrt{3}", "2\\sqrt{3}"),
        ("x  +  1", "x + 1"),
        ("2x", "2x"),
        ("\\left(1, 2\\right)", "(1, 2)"),
        ("2x + 1 = 5", "2x + 1 = 5"),
        ("5!", "5!"),
        ("unknown", None),
        ("no", None),
        ("", None),
        ("5:30", None),
        ("1/0", None),
        ("1/2/2020", None),
        ("5 apples and 3 pears", None),
        ("1e999999999", None),
        ("1e-999999999", None),
        ("9" * 101, None),
    ],
)
def test_canonical_number(answer: str, expected: str | None) -> None:
    assert KINDS["number"].canonical(answer) == expected


@pytest.mark.parametrize(
    ("answer", "kind", "expected"),
    [
        ("c", "choice", "C"),
        ("(E)", "choice", "E"),
        ("f", "choice", None),
        ("42", "choice", None),
        ("True", "yes_no", "yes"),
        ("No.", "yes_no", "no"),
        ("maybe", "yes_no", None),
    ],
)
def test_canonical_of_the_other_kinds(answer: str, kind: str, expected: str | None) -> None:
    assert KINDS[kind].canonical(answer, num_choices=5) == expected


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        ("\\boxed{18} dollars for 3 people", "18"),
        ("\\boxed{1} and then \\boxed{2}, or 3", "2"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{\\frac{3}{4}}", "0.75"),
        ("\\boxed{\\frac{\\sqrt{3}}{4}}", "\\frac{\\sqrt{3}}{4}"),
        ("\\boxed{x = 5}", "5"),
        ("\\boxed{\\$1{,}200}", "1200"),
        ("write it in \\boxed{}. The answer is 5.", "5"),
        ("\\boxed{5}. The answer is 6.", "5"),
        ("The answer is -5", "-5"),
        ("The answer is 4. No, the answer is 5.", "5"),
        ("The answer is not 5. The answer is 4. The answer isn't 6.", "4"),
        ("The answer is 18. I hope the answer is clear.", "18"),
        ("the answer is: $18", "18"),
        ("The answer is 18! Thanks for reading, see you in 2 days.", "18"),
        ("**Final Answer:** 18", "18"),
        ("### Final Answer\n\n18 apples", "18"),
        ("The final answer is $2\\sqrt{3}$.", "2\\sqrt{3}"),
        ("The answer is \\(\\frac{1}{2}\\), as said.", "0.5"),
        ("The answer to the question is 18.", "18"),
        ("The answer is 5 apples and 3 pears", "5"),
        ("Answer: 42, because 2 + 40 = 42.", "42"),
        ("9 * 2 = 18\n#### 1,234", "1234"),
        ("#### -7", "-7"),
    ],
)
def test_stated_numbers(text: str, strict: str) -> None:
    assert KINDS["number"].read(text) == Reading(strict, strict)


@pytest.mark.parametrize(
    ("text", "lenient"),
    [
        ("", None),
        ("10-5=5", "5"),
        ("so it is -5", "-5"),
        ("from 3\u20135", "5"),
        ("so \\boxed{12", "12"),
        ("The answer is unknown, but 7 is near", "7"),
        ("The answer is not 5", None),
        ("It has 9.\n1. first\n2. second", "9"),
        ("It has 9.\nStep 3: done", "9"),
        ("She has 9 on the 4th day", "9"),
        ("18.", "18"),
        ("It is 5:30", None),  # a time is no number, and neither is half of it
        ("It costs -$5", "-5"),
        ("$1,200.50 in all", "1200.5"),
        ("half of it, \\frac{3}{4}", "0.75"),
        ("CO2", None),
        ("#### 1. First step\nIt has 9", "9"),
    ],
)
def test_numbers_that_are_not_stated(text: str, lenient: str | None) -> None:
    assert KINDS["number"].read(text) == Reading(None, lenient)


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("The answer is C. That is a good choice.", "C", "C"),
        ("The answer is (C)", "C", "C"),
        ("The answer is **B**, not (A)", "B", "B"),
        ("The answer is option E", "E", "E"),
        ("The answer is C because", "C", "C"),
        ("Answer: c", "C", "C"),
        ("\\boxed{\\text{C}}", "C", "C"),
        ("\\boxed{(C) 42}", "C", "C"),
        ("\\boxed{42}", "C", "C"),
        ("The answer is 42 km.", "C", "C"),
        ("The answer is a good one", None, None),
        ("The answer is B or C", None, None),
        ("The answer is F", None, None),
        ("C", None, "C"),
        ("c.", None, "C"),
        ("(C)", None, "C"),
        ("C) 42", None, "C"),
        ("C) 42 (A) is too small", None, "C"),
        ("(A) is wrong, so take (B)", None, "B"),
        ("The correct option is D", None, "D"),
        ("A cat has nine lives", None, None),
        ("It must be 42.", None, "C"),
        ("It is 10 or 42", None, None),
        ("It is -42", None, None),
        ("It is 142 or 42.5", None, None),
    ],
)
def test_choices(text: str, strict: str | None, lenient: str | None) -> None:
    assert KINDS["choice"].read(text, choices=OPTIONS) == Reading(strict, lenient)


def test_the_number_of_choices_decides_which_letters_exist() -> None:
    assert KINDS["choice"].read("The answer is (F).", choices=[*OPTIONS, "90"]).strict == "F"
    assert KINDS["choice"].read("The answer is (F).", choices=OPTIONS) == Reading(None, None)


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("The answer is no.", "no", "no"),
        ("So the answer is **Yes**.", "yes", "yes"),
        ("Answer: True", "yes", "yes"),
        ("\\boxed{\\text{No}}", "no", "no"),
        ("The answer is no longer known", None, None),
        ("Yes. There is no doubt", None, "yes"),
        ("No, it is not", None, "no"),
        ("No animals were seen", None, None),
        ("there is no evidence", None, None),
        ("Birds can fly, so yes.", None, "yes"),
        ("Is it yes or no?", None, None),
    ],
)
def test_yes_and_no(text: str, strict: str | None, lenient: str | None) -> None:
    assert KINDS["yes_no"].read(text) == Reading(strict, lenient)


@given(st.integers(-(10**99), 10**99))
def test_an_integer_is_its_own_canonical_form(number: int) -> None:
    assert KINDS["number"].canonical(str(number)) == str(number)
    assert KINDS["number"].canonical(f"{number:,}") == str(number)


@given(numbers)
def test_canonical_numbers_are_exact_and_stay(number: Fraction) -> None:
    once = KINDS["number"].canonical(f"{number.numerator}/{number.denominator}")
    assert once is not None
    assert Fraction(once) == number
    assert KINDS["number"].canonical(once) == once


@given(st.text(alphabet="0123456789.,-+*/=$%^{}()\\ frac sqrtxy\n", max_size=30) | st.text(max_size=30))
def test_canonical_is_idempotent(text: str) -> None:
    for kind in KINDS:
        once = KINDS[kind].canonical(text, num_choices=5)
        assert once is None or KINDS[kind].canonical(once, num_choices=5) == once


@given(
    numbers,
    st.sampled_from(
        ["\\boxed{%s}", "The answer is %s.", "answer: **%s**", "#### %s\n", "Final answer: $%s$", "answer is \\(%s\\)"]
    ),
)
def test_every_stated_form_reads_back(number: Fraction, form: str) -> None:
    wanted = KINDS["number"].canonical(str(number))
    assert wanted is not None
    assert KINDS["number"].read("First 2 + 2 = 4.\n" + form % wanted) == Reading(wanted, wanted)


@given(st.text(alphabet=st.sampled_from("ABCabc123 .()\\boxed{}answer is:$-#\n"), max_size=60))
def test_a_strict_answer_is_the_lenient_one_too(text: str) -> None:
    for kind in KINDS:
        reading = KINDS[kind].read(text, choices=OPTIONS)
        assert reading.strict in (None, reading.lenient)


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "(",
            "\\boxed{",
            "{",
            "1",
            "1,",
            "111,",
            "1/",
            "1 ",
            "-",
            " ",
            "#",
            "*",
            "$",
            "answer to ",
            "answer is ",
            "no ",
        ),
        *("#### ", "111 ", "1.111.", "11,", "\n", "5 or ", "(A) or ", "it depends. ", "answer, most likely, ", "½"),
        *(
            "A) B) ",
            "A) 10\nB) 20\n",
            "answer is\n- 5\n- 6",
            "#### x\nQ: ",
            "answer is n't 4 ",
            "I doubt that the answer ",
        ),
        *("if the answer would be ", "answer is 5 or, most likely, ", "answer is 5? No, ", "3.5k ", "1_000_", "0x1F "),
        *("\\text{", "\\begin{matrix}", "\\pm ", "$x$ and ", "3 cm "),
    ],
)
def test_no_text_takes_time_that_grows_with_its_square(piece: str) -> None:
    """Half a second is usual; a regular expression that starts anew at each of 100,000 places takes forty or more."""
    text = piece * (100_000 // len(piece))
    start = time.process_time()
    for kind in KINDS:
        KINDS[kind].read(text, choices=OPTIONS)
    assert time.process_time() - start < 20
