"""Properties of the votes: who wins, and what must not matter."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from scaling.records.answer_classes import classes_of
from scaling.records.records import Completion
from scaling.records.votes import flat_vote, hierarchical_vote, majority

ANSWERS = st.sampled_from([None, "1", "2", "18", "C", "yes"])
WORDS = st.text(st.characters(categories=["Lu", "Ll"]), min_size=1)  # and no formulas
VOTES = {"flat": flat_vote, "hierarchical": hierarchical_vote}
grids = st.integers(1, 4).flatmap(lambda m: st.lists(st.lists(ANSWERS, min_size=m, max_size=m), min_size=1, max_size=5))
votes = st.sampled_from(sorted(VOTES))


def completions(grid: list[list[str | None]]) -> list[Completion]:
    return [
        Completion("q", path, sample, "", answer, False, answer, False, 1, "end", 0)
        for path, row in enumerate(grid)
        for sample, answer in enumerate(row)
    ]


@given(grids, votes, st.data())
def test_the_order_of_arrival_does_not_matter(grid, name, data):
    arrived = data.draw(st.permutations(completions(grid)))
    vote = VOTES[name]("q", arrived)
    assert vote == VOTES[name]("q", completions(grid))
    assert list(vote.counts) == sorted(vote.counts)


@given(grids, votes, st.randoms())
def test_the_labels_of_the_paths_do_not_matter(grid, name, random):
    shuffled = random.sample(grid, len(grid))
    assert VOTES[name]("q", completions(shuffled)) == VOTES[name]("q", completions(grid))


@given(grids)
def test_the_flat_winner_has_the_highest_count(grid):
    vote = flat_vote("q", completions(grid))
    counts = Counter(answer for row in grid for answer in row if answer is not None)
    assert vote.counts == counts
    if vote.answer is None:
        assert not counts
        assert not vote.tied
    else:
        top = max(counts.values())
        assert counts[vote.answer] == top
        assert vote.tied == (list(counts.values()).count(top) > 1)


@given(st.lists(ANSWERS, min_size=1, max_size=9))
def test_with_one_sample_a_path_both_votes_agree(answers):
    grid = completions([[answer] for answer in answers])
    assert flat_vote("q", grid) == hierarchical_vote("q", grid)


@given(grids)
def test_hierarchical_counts_are_the_paths_that_have_an_answer(grid):
    vote = hierarchical_vote("q", completions(grid))
    assert sum(vote.counts.values()) == sum(any(answer is not None for answer in row) for row in grid)


@pytest.mark.parametrize("name", sorted(VOTES))
@pytest.mark.parametrize("grid", [[], [[None, None], [None, None]]])
def test_without_an_answer_nobody_wins(name, grid):
    vote = VOTES[name]("q", completions(grid))
    assert (vote.answer, vote.counts, vote.tied) == (None, {}, False)


def test_the_two_votes_can_differ():
    grid = completions([["7", "7", "7"], ["5", "5", "6"], ["5", "5", "7"]])
    assert flat_vote("q", grid).counts == {"5": 4, "6": 1, "7": 4}
    # Flat, 5 and 7 share the top and two paths back each, so the hash decides; among paths, 5 wins 2 to 1.
    assert flat_vote("q", grid).tied
    assert hierarchical_vote("q", grid).answer == "5"
    assert hierarchical_vote("q", grid).counts == {"5": 2, "7": 1}
    assert not hierarchical_vote("q", grid).tied


@given(WORDS, WORDS)
def test_a_tie_goes_to_the_answer_with_more_paths(wide, narrow):
    classes = classes_of([wide, narrow])
    assume(classes[wide] != classes[narrow])
    vote = flat_vote("q", completions([[narrow, narrow], [wide, None], [wide, None]]))
    assert (vote.answer, vote.tied) == (classes[wide].shown, True)


def test_a_full_tie_favours_neither_small_numbers_nor_early_arrivals():
    winners = Counter(majority(f"q{i}", [(0, "1"), (1, "2")]).answer for i in range(1000))
    # A fair coin leaves 400 to 600 with a chance below 1e-9; the hash is fixed, so this cannot flicker.
    assert 400 < winners["1"] < 600


def test_the_tie_rule_is_the_same_on_every_machine():
    # Worked out with `printf 'q%d\0%s' I A | b2sum -l 64`; changing these changes published results.
    winners = "".join(str(majority(f"q{i}", [(0, "1"), (1, "2")]).answer) for i in range(12))
    assert winners == "212122212212"


def test_half_a_surrogate_pair_can_be_voted_on():
    assert majority("q", [(0, "\ud800"), (1, "5")]).tied
