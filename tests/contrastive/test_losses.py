"""Losses against values worked out by hand, their symmetries, and the directions of their gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from contrastive.losses import paper_loss, question_loss, token_losses, uniform_loss, view_loss

B, N, L, D = 3, 4, 2, 5


def thoughts_of(seed=0, *, batch=B, paths=N):
    return torch.randn(batch, paths, L, D, generator=torch.Generator().manual_seed(seed))


def everything(shape):
    return torch.ones(shape, dtype=torch.bool)


FORMS = {
    "paper": paper_loss,
    "view": lambda thoughts: view_loss(thoughts, everything(thoughts.shape)),
    "uniform": uniform_loss,
}
forms = pytest.mark.parametrize("form", FORMS)


# ---- language


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 1030])  # the last one takes several chunks
def test_token_losses_and_their_gradient_equal_the_plain_ones(tokens, biased, cap):
    generator = torch.Generator().manual_seed(1)
    states, head = torch.randn(tokens, D, generator=generator), torch.randn(11, D, generator=generator)
    bias = torch.randn(11, generator=generator) if biased else None
    targets = torch.randint(0, 11, (tokens,), generator=generator)
    weights = torch.rand(tokens, generator=generator)
    ours, plain = states.clone().requires_grad_(), states.clone().requires_grad_()
    actual = token_losses(ours, head, bias, targets, cap=cap)
    logits = torch.nn.functional.linear(plain, head, bias)
    logits = cap * torch.tanh(logits / cap) if cap else logits
    expected = cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(actual, expected)
    (actual * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_a_token_loss_by_hand():
    """Two tokens of equal logits: each is as probable as the other, ln 2."""
    actual = token_losses(torch.ones(1, 3), torch.ones(2, 3), None, torch.tensor([1]))
    assert actual.item() == pytest.approx(math.log(2))


# ---- contrasts


def test_the_paper_form_by_hand():
    """Two paths (1, 0) and (1, 1), one slot: products 1, 1; 1, 2. Losses ln(e + e) - 1 and ln(e + e^2) - 2."""
    thoughts = torch.tensor([[[[1.0, 0.0]], [[1.0, 1.0]]]])
    expected = (math.log(2 * math.e) - 1 + math.log(math.e + math.e**2) - 2) / 2
    assert paper_loss(thoughts).item() == pytest.approx(expected)


def test_the_view_form_by_hand():
    """Orthogonal paths whose views are whole: cosines 1 and 0, so ln(1 + exp(-1 / t)); equal paths: ln 2."""
    orthogonal, equal = torch.eye(2)[None, :, None], torch.ones(1, 2, 1, 2)
    actual = view_loss(orthogonal, everything(orthogonal.shape), temperature=0.5)
    assert actual.item() == pytest.approx(math.log(1 + math.exp(-2)))
    assert view_loss(equal, everything(equal.shape)).item() == pytest.approx(math.log(2))


def test_a_view_is_what_dropout_leaves():
    """The first path loses one of two equal values: its cosine to its own view is 1 / sqrt 2, to the other view 0."""
    thoughts = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    kept = torch.tensor([[[[True, False, True]], [[True, True, True]]]])
    expected = (math.log(1 + math.exp(-1 / math.sqrt(2))) + math.log(1 + math.exp(-1))) / 2
    assert view_loss(thoughts, kept, temperature=1.0).item() == pytest.approx(expected)


def test_the_uniform_forms_by_hand():
    """One direction: 1 / t. Opposite directions: -1 / t, the least of two."""
    same, opposite = torch.ones(1, 2, L, D), torch.stack([torch.ones(L, D), -torch.ones(L, D)])[None]
    assert uniform_loss(same, temperature=0.5).item() == pytest.approx(2.0)
    assert uniform_loss(opposite, temperature=0.5).item() == pytest.approx(-2.0)
    assert question_loss(same.transpose(0, 1), temperature=0.5).tolist() == pytest.approx([2.0])


@forms
def test_one_path_has_nothing_to_differ_from(form):
    thoughts = thoughts_of(paths=1).requires_grad_()
    loss = FORMS[form](thoughts)
    torch.testing.assert_close(loss, torch.zeros(B), atol=1e-6, rtol=0)
    loss.sum().backward()
    assert thoughts.grad.abs().max() < 1e-5


def test_one_question_has_nothing_to_differ_from():
    thoughts = thoughts_of(batch=1).requires_grad_()
    question_loss(thoughts).sum().backward()
    assert not thoughts.grad.any()


@forms
@given(st.permutations(range(N)))
@settings(max_examples=20, deadline=None)
def test_the_order_of_paths_does_not_matter(form, order):
    thoughts = thoughts_of()
    torch.testing.assert_close(FORMS[form](thoughts[:, order]), FORMS[form](thoughts))


@forms
def test_questions_do_not_see_each_other(form):
    """Correct for any batch size: the loss of a batch is that of its questions alone."""
    thoughts = thoughts_of()
    alone = torch.cat([FORMS[form](question[None]) for question in thoughts])
    torch.testing.assert_close(FORMS[form](thoughts), alone)


@forms
def test_the_loss_does_not_grow_with_the_number_of_paths(form):
    """A mean over paths: of N orthogonal unit vectors it lies below ln N, however many there are."""
    for paths in (2, 8, 32):
        orthogonal = torch.eye(paths)[None, :, None]
        assert FORMS[form](orthogonal).item() <= math.log(paths)


@forms
def test_its_gradient_pushes_paths_apart(form):
    """A small step against the gradient lowers the cosine of two nearly equal paths."""
    base, other = thoughts_of(1, batch=1, paths=1), thoughts_of(2, batch=1, paths=1)
    thoughts = torch.cat([base, base + 0.3 * other], dim=1).requires_grad_()
    FORMS[form](thoughts).sum().backward()
    moved = (thoughts - 1e-3 * thoughts.grad).detach().flatten(2)[0]
    before = thoughts.detach().flatten(2)[0]
    assert torch.cosine_similarity(*moved, dim=0) < torch.cosine_similarity(*before, dim=0)


def test_the_question_contrast_pushes_questions_apart():
    base, other = thoughts_of(1, batch=1), thoughts_of(2, batch=1)
    thoughts = torch.cat([base, base + 0.3 * other]).requires_grad_()
    question_loss(thoughts).sum().backward()
    moved, before = (t.detach().flatten(1) for t in (thoughts - 1e-3 * thoughts.grad, thoughts))
    assert torch.cosine_similarity(*moved, dim=0) < torch.cosine_similarity(*before, dim=0)


def test_the_view_form_saturates_and_the_uniform_one_does_not():
    """Known weakness: half of a thought dropped leaves a cosine of 0.71, so others at 0.3 are far enough."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 1, 8, 256, generator=generator)
    own = torch.randn(1, 4, 8, 256, generator=generator)
    thoughts = (0.65 * common + own).requires_grad_()  # cosine 0.65^2 / (1 + 0.65^2) = 0.3
    kept = torch.rand(thoughts.shape, generator=generator) > 0.5
    assert view_loss(thoughts, kept).item() < 0.01
    (by_uniform,) = torch.autograd.grad(uniform_loss(thoughts).sum(), thoughts)
    (by_view,) = torch.autograd.grad(view_loss(thoughts, kept).sum(), thoughts)
    assert by_uniform.norm() > 10 * by_view.norm()


@forms
def test_half_precision_thoughts_are_compared_in_float32(form):
    assert FORMS[form](thoughts_of().bfloat16()).dtype == torch.float32
