"""Which answers are equal, and that a vote counts them together: properties first, then cases by name."""

from __future__ import annotations

import dataclasses
import itertools
import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scaling.records.adaptive import stop_after
from scaling.records.answer_classes import classes_of, may_be_rounded
from scaling.records.records import Completion, Question
from scaling.records.summary import summarise
from scaling.records.votes import flat_vote, hierarchical_vote, majority, path_votes, tie_hash
from scaling.tasks.equality import AnswerChecker, is_printed_float
from scaling.tasks.numbers import written

VOTES = {"flat": flat_vote, "hierarchical": hierarchical_vote}

# numbers that are close to each other: integers, fractions, their decimals rounded to some places, and neighbours of these
THIRDS = st.builds(Fraction, st.integers(-20, 20), st.sampled_from([3, 7, 8]))
DECIMALS = st.builds(
    lambda number, places, off: round(number, places) + Fraction(off, 10**places),
    THIRDS,
    st.integers(1, 5),
    st.sampled_from([0, 0, 0, -1, 1]),
)
PLAIN = st.one_of(st.integers(-3, 3).map(Fraction), THIRDS, DECIMALS)


def printed(number: Fraction, towards: float) -> Fraction:
    """As computers print it: the same number with an error of floating-point arithmetic."""
    return Fraction(str(math.nextafter(float(number), towards)))


NOT_ZERO = PLAIN.filter(bool)  # whose neighbour has no digits in common with it
DIRECTIONS = st.sampled_from([-math.inf, math.inf])
FLOATS = st.builds(printed, NOT_ZERO, DIRECTIONS)
NUMBERS = st.one_of(PLAIN, FLOATS)
WORDS = st.sampled_from(["A", "B", "C", "yes", "no"])


@st.composite
def spelt(draw, number: Fraction) -> str:
    """One of the ways to write a number, as journals hold them."""
    plain = written(number)
    factor = draw(st.integers(2, 9))
    ways = [plain, f"{number.numerator * factor}/{number.denominator * factor}"]
    if "/" not in plain:
        ways.append(f"{plain}00" if "." in plain else f"{plain}.0")
    return draw(st.sampled_from(ways))


def read(answer: Fraction | str) -> str:
    return written(answer) if isinstance(answer, Fraction) else answer


def parts(answers: Sequence[str | None]) -> set[frozenset[str]]:
    """The classes as sets of answers."""
    classes = classes_of(answers)
    return {frozenset(one for one in classes if classes[one] == own) for own in classes.values()}


def completions(grid: list[list[str | None]]) -> list[Completion]:
    return [
        Completion("q", path, sample, "", answer, False, answer, False, 1, "end", 0)
        for path, row in enumerate(grid)
        for sample, answer in enumerate(row)
    ]


# Classes


@given(st.lists(st.one_of(NUMBERS, WORDS), max_size=8), st.randoms())
def test_classes_are_a_partition_of_the_different_answers(answers, random):
    texts = [read(one) for one in answers]
    found = parts(texts)
    assert sorted(itertools.chain(*found)) == sorted(set(texts))
    more = random.choices(texts, k=5) if texts else []  # neither order nor number matters
    again: list[str | None] = [*random.sample(texts, len(texts)), *more, None]
    assert parts(again) == found


@given(st.lists(NUMBERS, max_size=7), st.data())
def test_another_spelling_is_in_the_same_class_and_changes_no_other(numbers, data):
    texts = [written(number) for number in numbers]
    others = [data.draw(spelt(number)) for number in numbers]
    before, after = classes_of(texts), classes_of([*texts, *others])
    assert {text: after[text] for text in texts} == before
    assert [after[other] for other in others] == [before[text] for text in texts]
    assert [classes_of(others)[other] for other in others] == [before[text] for text in texts]


@given(st.lists(NUMBERS, min_size=1, max_size=7), st.integers(2, 5), st.data())
def test_another_rounding_of_a_number_that_is_there_changes_no_other_class(numbers, places, data):
    rounded = written(round(data.draw(st.sampled_from(numbers)), places))
    texts = [written(number) for number in numbers]
    before, after = classes_of(texts), classes_of([*texts, rounded])
    if after[rounded].key in [own.key for own in before.values()]:
        others = [text for text in texts if not is_printed_float(text)]  # these follow the number that they print
        assert {text: after[text] for text in others} == {text: before[text] for text in others}


@given(st.lists(NOT_ZERO, min_size=1, max_size=7), st.data())
def test_another_printing_of_a_number_that_is_there_is_in_its_class_and_changes_no_other(numbers, data):
    number = data.draw(st.sampled_from(numbers))
    more = written(printed(number, data.draw(DIRECTIONS)))
    texts = [written(number) for number in numbers]
    before, after = classes_of(texts), classes_of([*texts, more])
    assert {text: after[text] for text in texts} == before
    assert after[more] == before[written(number)]


@given(st.lists(st.one_of(PLAIN, WORDS), max_size=8))
def test_words_and_integers_are_equal_to_nothing_else(answers):
    classes = classes_of(map(read, answers))
    for one, other in itertools.combinations(answers, 2):
        plain = any(isinstance(own, str) or own.denominator == 1 for own in (one, other))
        if plain and one != other:
            assert classes[read(one)] != classes[read(other)], (one, other)


@given(NUMBERS, NUMBERS)
def test_of_two_numbers_alone_those_are_equal_that_the_checker_takes_for_each_other(one, other):
    texts = written(one), written(other)
    checker = AnswerChecker()  # no formula, so no process
    equal = any(checker.equal(*pair) for pair in (texts, texts[::-1]))
    assert (len(parts(list(texts))) == 1) == equal


@given(st.lists(NUMBERS, max_size=6), NUMBERS)
def test_only_decimals_that_may_be_rounded_change_their_class_when_more_answers_come(numbers, more):
    texts = [written(number) for number in numbers if not may_be_rounded(written(number))]
    before, after = classes_of(texts), classes_of([*texts, written(more)])
    assert {text: after[text] for text in texts} == before


@pytest.mark.parametrize(
    "classes",
    [
        ["1/3 0.33 0.333 0.33333", "0.3", "0.34", "3"],
        [
            "2/3 0.67 0.667",
            "0.66",
            "0.666",
        ],  # cut off, not rounded; 0.67 would round 0.666 too, but a fraction goes first
        ["0.666", "0.667", "0.67"],  # without the fraction nothing tells whose rounding 0.67 is
        ["0.125 0.13 0.12"],  # a half may be rounded either way
        ["0.335 0.3349", "0.34"],  # rounded twice is not rounded
        ["0.3349", "0.34"],
        ["12 12.0 24/2 12.00", "13", "12.01", "11.99"],
        ["0.05", "0.054"],  # one digit is too few
        ["A", "B", "yes", "no"],
        ["~abc", "1/3 0.33", "=", "\ud800"],
        ["3.14 22/7", "3.142", "3.1"],
        ["18 17.999999999999996 18.000000000000004", "17.9999", "-18"],
        ["0.3 0.30000000000000004 0.29999999999999998", "0.31"],
        ["0.30000000000000004 0.3000000000000001", "0.31"],  # two printings of a number that is not there
        ["2/3 0.6666666666666666 0.6666666667 0.67", "0.66"],
        ["0.67 0.6666666666666666 0.6666666666666667"],
        ["1/3 0.33 0.33000000000000002", "0.34"],  # a printing of what is itself a rounding
        ["1000000000000", "1000000000001", "1000000000000.5"],  # as close to the one as to the other
        ["2k 2000 2.0k 1999.9999999999998"],
        ["-1/3 -0.33", "1/3 0.33"],
    ],
)
def test_classes_worked_out_by_hand(classes):
    assert parts(" ".join(classes).split()) == {frozenset(one.split()) for one in classes}


FORMULAS = [
    ["5 + 7", "{12}", "[12]", "12", "12.0", "\\frac{24}{2}", "\\sqrt{144}"],
    ["\\sqrt{8}", "2\\sqrt{2}", "2.828427", "\\frac{4}{\\sqrt{2}}", "2.8284271247461896"],
    ["2.83"],  # an irrational number is rounded to six places at least
    ["\\frac{\\pi}{2}", "\\pi/2", "0.5\\pi"],
    ["x+1", "1+x", "\\frac{x^2-1}{x-1}"],
    ["y+1"],
    ["(x+1)^2", "x^2 + 2x + 1"],
    ["(3, \\frac{\\pi}{2})", "(3,\\pi/2)"],
    ["(\\frac{\\pi}{2}, 3)"],
    ["[1, 4]"],
    ["(1, 4)"],
    ["\\{1, 2, 3\\}", "\\{3, 2, 1\\}"],
    ["x^2 + y^2 = 9", "2x^2 + 2y^2 = 18"],
    ["x > 2", "2 < x"],
    ["1/0 + \\sqrt{2}"],  # nothing that has a value
    ["0/0 + \\sqrt{2}"],
    ["C"],
    ["yes"],
]


def test_formulas_are_told_by_their_form():
    answers = list(itertools.chain(*FORMULAS))
    assert parts(answers) == {frozenset(own) for own in FORMULAS}
    shown = {own.shown for own in classes_of(answers).values()}
    assert {"12", "\\sqrt{8}", "C", "yes"} <= shown
    # the tie rule's key is that of any of the spellings, so it does not matter which of them are there
    for own in FORMULAS:
        keys = {classes_of([one, "77"])[one].key for one in own if not may_be_rounded(one)}
        assert len(keys) <= 1, own


def test_a_formula_that_takes_too_long_is_equal_to_its_own_text_alone(monkeypatch):
    with AnswerChecker(timeout_seconds=0.5) as checker:
        monkeypatch.setattr("scaling.records.answer_classes._checker", checker)
        assert parts(["10000000!", "$10000000!$", "12"]) == {frozenset(["10000000!", "$10000000!$"]), frozenset(["12"])}
        assert checker.timeouts == 1


def test_plain_answers_need_no_process():
    code = (
        "import multiprocessing; from scaling.records.answer_classes import classes_of;"
        "classes_of(['A', 'B', 'yes', 'no', '12', '-3.5', '1/3', '0.33', '12 apples']);"
        "classes_of(['\\\\sqrt{2}']);"  # alone there is nothing to tell it from
        "assert not multiprocessing.active_children()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Votes


@st.composite
def spelt_grids(draw):
    """The same answers of paths x samples in two spellings."""
    m = draw(st.integers(1, 3))
    pool = draw(st.lists(st.one_of(NUMBERS, WORDS), min_size=1, max_size=5))
    cells = st.lists(st.sampled_from([*pool, None]), min_size=m, max_size=m)
    grid = draw(st.lists(cells, min_size=1, max_size=4))

    def said(answer):
        return draw(spelt(answer)) if isinstance(answer, Fraction) else answer

    return [[[said(answer) for answer in row] for row in grid] for _ in range(2)]


@given(spelt_grids(), st.sampled_from(sorted(VOTES)))
def test_how_an_answer_is_spelt_changes_no_vote(grids, name):
    one, other = (VOTES[name]("q", completions(grid)) for grid in grids)
    assert one == other
    assert path_votes("q", completions(grids[0])) == path_votes("q", completions(grids[1]))


@given(spelt_grids(), st.randoms())
def test_neither_order_nor_labels_change_a_vote_of_classes(grids, random):
    grid = grids[0]
    ballots = [(path, answer) for path, row in enumerate(grid) for answer in row]
    labels = random.sample(range(len(grid)), len(grid))
    turned = [(labels[path], answer) for path, answer in random.sample(ballots, len(ballots))]
    assert majority("q", turned) == majority("q", ballots)


@given(st.lists(NUMBERS, min_size=1, max_size=6), st.data())
def test_further_ballots_count_the_same_however_they_are_spelt(numbers, data):
    ballots = [(path, data.draw(spelt(number))) for path, number in enumerate(numbers)]
    more = data.draw(st.lists(st.sampled_from(numbers), max_size=4))
    same = [(path, written(number)) for path, number in enumerate(more)]
    other = [(path, data.draw(spelt(number))) for path, number in enumerate(more)]
    assert majority("q", [*ballots, *same]) == majority("q", [*ballots, *other])


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["A", "B", "yes", "12", "-3", "1/2", "0.5"])), min_size=1))
def test_answers_without_equals_are_voted_on_as_they_were(ballots):
    """The rule as version 0.1 had it, for answers in canonical form."""
    ballots = [(path, answer) for path, answer in ballots if answer != "1/2"]  # whose canonical form is 0.5
    assume(ballots)
    counts = Counter(answer for _, answer in ballots)
    paths = {answer: len({path for path, own in ballots if own == answer}) for answer in counts}
    winner = min(counts, key=lambda one: (-counts[one], -paths[one], tie_hash("q", one)))
    vote = majority("q", ballots)
    assert (vote.answer, vote.counts) == (winner, dict(sorted(counts.items())))


def test_four_ways_to_write_twelve_win_against_two_thirteens():
    vote = flat_vote("q", completions([["5 + 7", "13", "{12}"], ["[12]", "13", "12"]]))
    assert (vote.answer, vote.counts, vote.tied) == ("12", {"12": 4, "13": 2}, False)


@pytest.mark.parametrize(("whole", "printed"), [("18", "17.999999999999996"), ("0.3", "0.30000000000000004")])
def test_a_printed_float_votes_for_the_number_that_it_prints(whole, printed):
    vote = majority("q", list(enumerate([printed, whole, whole, "20", "20", "20"])))
    assert (vote.counts, vote.tied) == ({whole: 3, "20": 3}, True)
    assert majority("q", [(0, one) for one in [printed, whole, whole, "20", "20"]]).answer == whole


@pytest.mark.parametrize("voter", sorted(VOTES))
def test_a_class_is_right_if_one_of_its_answers_was_judged_right(voter):
    """Each of three spellings leads only together with the others, and one comparison ran out of time."""
    said = [["1/3", "0.5"], ["0.33", "0.5"], ["0.333", "7"]]
    found = {one.key: one for one in completions(said)}
    found = {
        key: dataclasses.replace(one, correct=one.answer == "1/3", correct_strict=one.answer == "0.33")
        for key, one in found.items()
    }
    summary = summarise([Question("q", "", "1/3")], found, num_paths=3, num_samples=2, voter=voter)
    assert summary["accuracy"] == summary["accuracy_strict"] == 1
    assert summary["pass_at_1"] == 3 / 6
    assert summary["ties"] == 0
    plain = {key: dataclasses.replace(one, correct=False) for key, one in found.items()}
    assert summarise([Question("q", "", "1/3")], plain, num_paths=3, num_samples=2, voter=voter)["accuracy"] == 0


# Early stopping


@given(st.lists(NUMBERS, min_size=1, max_size=4), st.data(), st.sampled_from([0.7, 0.95, 1.0]))
def test_how_an_answer_is_spelt_stops_no_question_earlier_or_later(pool, data, confidence):
    ballots = data.draw(st.lists(st.sampled_from([*pool, None]), max_size=12))
    said = [None if one is None else data.draw(spelt(one)) for one in ballots]
    plain = [None if one is None else written(one) for one in ballots]
    assert stop_after(said, total=12, confidence=confidence) == stop_after(plain, total=12, confidence=confidence)


@settings(deadline=None, max_examples=60)  # hundreds of votes an example
@given(st.lists(st.sampled_from(["0.33", "0.333", "1/3", "0.334", "5"]), min_size=5, max_size=6))
def test_nothing_left_changes_a_vote_that_is_decided_at_confidence_1(ballots):
    """Not even answers by which others are no longer equal, or become so: 0.334 takes 0.33 from 0.333."""
    stop = stop_after(ballots, total=len(ballots), confidence=1.0)
    if stop is None:
        return
    leader = Counter(ballots[:stop]).most_common(1)[0][0]
    fills = itertools.product(["0.33", "0.333", "1/3", "0.334", "0.3335", "5", None], repeat=len(ballots) - stop)
    for fill in fills:
        every = [*ballots[:stop], *fill]
        vote = majority("q", [(0, answer) for answer in every])
        assert vote.answer == classes_of(every)[leader].shown
        assert not vote.tied


def test_equal_answers_stop_a_question_together():
    # 1 - 1/32 = 0.969 after four of one class; counted apart none would lead
    assert stop_after(["12", "12.0", "24/2", "5 + 7"], total=8, confidence=0.95) == 4
    assert stop_after(["1/3", "0.33", "0.333", "1/3"], total=8, confidence=0.95) == 4
    assert stop_after(["12", "12.0", "24/2", "12", "36/3"], total=8, confidence=1.0) == 5
