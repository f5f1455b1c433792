"""Measures of difference on thoughts whose differences are known."""

from __future__ import annotations

import math

import pytest
import torch

from contrastive.diversity import dead_paths, effective_rank, mean_off_diagonal, path_cosine, question_cosine


def orthogonal(batch=2, paths=4):
    """[B, N, 2, N]: path k has only direction k."""
    return torch.eye(paths)[None, :, None].expand(batch, paths, 2, paths).clone()


def test_orthogonal_paths():
    thoughts = orthogonal()
    torch.testing.assert_close(path_cosine(thoughts), torch.eye(4))
    assert mean_off_diagonal(path_cosine(thoughts)) == pytest.approx(0.0)
    assert effective_rank(thoughts) == pytest.approx(4.0)
    assert dead_paths(path_cosine(thoughts)) == []


def test_equal_paths():
    thoughts = torch.ones(2, 3, 2, 5)
    assert mean_off_diagonal(path_cosine(thoughts)) == pytest.approx(1.0)
    assert effective_rank(thoughts) == pytest.approx(1.0, abs=1e-3)
    assert dead_paths(path_cosine(thoughts)) == [1, 2]


def test_a_dead_path_among_others_is_named():
    thoughts = orthogonal()
    thoughts[:, 2] = 3 * thoughts[:, 0]
    assert dead_paths(path_cosine(thoughts)) == [2]


def test_the_rank_of_unequal_lengths_by_hand():
    """Singular values 3 and 1: shares 3/4 and 1/4."""
    thoughts = torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]]])
    assert effective_rank(thoughts) == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)))


def test_cosine_of_questions_by_hand():
    """Three questions at 0, 90 and 180 degrees: cosines 0, -1, 0."""
    thoughts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])[:, None, None]
    assert question_cosine(thoughts) == pytest.approx(-1 / 3)
    assert question_cosine(torch.ones(4, 2, 1, 3)) == pytest.approx(1.0)


def test_one_of_a_kind_has_no_cosine():
    assert mean_off_diagonal(path_cosine(torch.ones(3, 1, 2, 4))) is None
    assert question_cosine(torch.ones(1, 3, 2, 4)) is None


@pytest.mark.parametrize("factor", [0.1, 7.0])
def test_only_directions_count(factor):
    thoughts = torch.randn(3, 4, 2, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(path_cosine(factor * thoughts), path_cosine(thoughts))
    assert question_cosine(factor * thoughts) == pytest.approx(question_cosine(thoughts), abs=1e-5)
    assert effective_rank(factor * thoughts) == pytest.approx(effective_rank(thoughts), rel=1e-4)
