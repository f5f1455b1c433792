"""Ridge probes: a planted linear code is read, noise is not, and no question is tested by a map that has seen it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from contrastive.ridge import cross_validated, folds_of


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explained(values, predicted, plain):
    return float(1 - (values - predicted).square().sum() / (values - plain).square().sum())


@given(groups=st.lists(st.integers(0, 12), max_size=60), number=st.integers(1, 6))
def test_parts_hold_each_question_once_and_split_no_group(groups, number):
    parts = folds_of(groups, number)
    assert sorted(place for part in parts for place in part) == list(range(len(groups)))
    assert len(parts) == number
    for group in set(groups):
        assert sum(any(groups[place] == group for place in part) for part in parts) == 1


@given(number=st.integers(1, 6), size=st.integers(0, 40))
def test_parts_of_single_questions_are_of_one_size(number, size):
    sizes = [len(part) for part in folds_of(range(size), number)]
    assert max(sizes) - min(sizes) <= 1


def test_a_planted_linear_code_is_read_among_many_more_features_than_questions():
    code, states = normal(100, 3, seed=0), normal(100, 400, seed=1)
    states[:, :300] += 6 * code @ normal(3, 300, seed=2)
    predicted, plain = cross_validated(states, code, folds_of(range(100), 5))
    assert explained(code, predicted, plain) > 0.95


def test_noise_is_at_chance():
    states, values = normal(150, 300, seed=3), normal(150, 1, seed=4)
    predicted, plain = cross_validated(states, values, folds_of(range(150), 5))
    assert -0.1 < explained(values, predicted, plain) < 0.1
    classes = torch.arange(150) % 3
    predicted, _ = cross_validated(states, torch.nn.functional.one_hot(classes), folds_of(range(150), 5))
    assert abs(float((predicted.argmax(1) == classes).double().mean()) - 1 / 3) < 4 * (2 / 9 / 150) ** 0.5


def test_without_states_the_most_frequent_class_is_said():
    classes = torch.tensor([0] * 30 + [1] * 10)
    _, plain = cross_validated(torch.zeros(40, 5), torch.nn.functional.one_hot(classes), folds_of(range(40), 4))
    assert plain.argmax(1).eq(0).all()


@given(tested=st.integers(0, 4))
def test_what_is_predicted_does_not_depend_on_the_values_that_are_tested(tested):
    states, values, folds = normal(40, 60, seed=5), normal(40, 2, seed=6), folds_of(range(40), 5)
    changed = values.clone()
    changed[folds[tested]] += 100
    before, after = (cross_validated(states, own, folds)[0][folds[tested]] for own in (values, changed))
    assert torch.equal(before, after)


def test_repeated_questions_are_not_recognised():
    """Each group has its own states and its own value, so that a map which has seen the group would know the value."""
    groups = [place // 4 for place in range(120)]
    states, values = normal(30, 200, seed=7)[groups], normal(30, 1, seed=8)[groups]
    split, _ = cross_validated(states, values, folds_of(range(120), 5))
    kept, plain = cross_validated(states, values, folds_of(groups, 5))
    assert explained(values, split, plain) > 0.9
    assert explained(values, kept, plain) < 0.2
