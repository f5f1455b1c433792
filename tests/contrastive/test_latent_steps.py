"""Latent steps: what is read with a cache, for many rows at once, is what a model computes for one whole row at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from contrastive.forward import gradient_checkpointing, hidden_states
from contrastive.latent_steps import latent_thoughts, rows_of, think

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "gpt2", "phi")
PREFIXES = [(11, 12, 13), (21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32), (41, 42, 43, 44, 45)]
ALIKE = [(*range(11, 22), *prefix) for prefix in PREFIXES]  # begin with the same tokens, which are read once
TAILS = [(51, 52, 53, 54), (61,), (71, 72)]
STEPS = 4


def naive(model, prefix, steps: int, noise=None) -> Tensor:
    """The thoughts of one row, [n, D], by definition: the whole row is read again for each of them."""
    read = model.get_input_embeddings()(torch.tensor(prefix))
    thoughts = []
    for step in range(steps):
        thought = hidden_states(model, inputs_embeds=read[None], use_cache=False)[0, -1]
        thoughts.append(thought if noise is None else thought + noise(step))
        read = torch.cat([read, thoughts[-1][None]])
    return torch.stack(thoughts) if thoughts else read.new_empty(0, read.shape[1])


def naive_tail(model, prefix, tail, steps: int) -> Tensor:
    """The states of what follows the thoughts of one row, [S, D]."""
    embed = model.get_input_embeddings()
    read = torch.cat([embed(torch.tensor(prefix)), naive(model, prefix, steps), embed(torch.tensor(tail))])
    return hidden_states(model, inputs_embeds=read[None], use_cache=False)[0, -len(tail) :]


def cached_tails(model, steps: int, prefixes=PREFIXES) -> list[Tensor]:
    """The same for all rows at once, of different lengths."""
    rows = rows_of(model, prefixes, more=steps + max(map(len, TAILS)))
    thoughts = think(rows, steps=steps)
    longest = max(map(len, TAILS))
    ids = torch.tensor([[*tail, *[0] * (longest - len(tail))] for tail in TAILS])
    tails = model.get_input_embeddings()(ids)[:, None]
    states = rows.read(torch.cat([thoughts[:, :, -1:], tails], dim=2))[:, 0]
    skipped = min(steps, 1)
    return [row[skipped : skipped + len(tail)] for row, tail in zip(states, TAILS, strict=True)]


def in_float64(model):
    """The model in float64, norms too, which transformers computes in float32 whatever the model's type."""
    for module in [*model.modules()]:
        for name, norm in module.named_children():
            if type(norm).__name__.endswith("RMSNorm"):
                exact = torch.nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                exact.weight = norm.weight
                setattr(module, name, exact)
    return model.double()


@pytest.fixture
def recompute(monkeypatch):
    """Makes every model one that cannot go on from keys and values."""
    monkeypatch.setattr("contrastive.latent_steps.can_extend", lambda *_, **__: False)


@pytest.mark.parametrize("family", FAMILIES)
def test_thoughts_are_those_of_one_row_at_a_time(make_model, family):
    model = make_model(family)
    thoughts = latent_thoughts(model, PREFIXES, steps=STEPS)
    expected = torch.stack([naive(model, prefix, STEPS).detach() for prefix in PREFIXES])[:, None]
    assert thoughts.dtype == torch.float32
    torch.testing.assert_close(thoughts, expected, rtol=1e-4, atol=1e-4)


def test_each_path_has_its_own_noise_at_each_step(make_model):
    model = make_model("llama")
    drawn = torch.randn(STEPS, len(PREFIXES), 3, 32, generator=torch.Generator().manual_seed(1))
    thoughts = latent_thoughts(model, PREFIXES, steps=STEPS, paths=3, noise=lambda step, _: drawn[step])
    for question, prefix in enumerate(PREFIXES):
        for path in range(3):
            row = naive(model, prefix, STEPS, noise=lambda step, q=question, p=path: drawn[step, q, p])
            torch.testing.assert_close(thoughts[question, path], row.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("recompute")
def test_a_model_that_reads_everything_again_has_the_same_thoughts(make_model):
    model = make_model("mistral")
    drawn = torch.randn(STEPS, len(PREFIXES), 2, 32, generator=torch.Generator().manual_seed(1))
    thoughts = latent_thoughts(model, PREFIXES, steps=STEPS, paths=2, noise=lambda step, _: drawn[step])
    row = naive(model, PREFIXES[1], STEPS, noise=lambda step: drawn[step, 1, 1])
    torch.testing.assert_close(thoughts[1, 1], row.detach(), rtol=1e-4, atol=1e-4)
    tails = cached_tails(model, STEPS)
    for states, prefix, tail in zip(tails, PREFIXES, TAILS, strict=True):
        torch.testing.assert_close(states, naive_tail(model, prefix, tail, STEPS), rtol=1e-4, atol=1e-4)


def test_no_steps_are_no_thoughts(make_model):
    assert latent_thoughts(make_model("gpt2"), PREFIXES, steps=0, paths=2).shape == (3, 2, 0, 32)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "computed again"])
@pytest.mark.parametrize("prefixes", [PREFIXES, ALIKE], ids=["apart", "alike"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_gradients_are_those_of_the_naive_loop(make_model, family, again, prefixes):
    """For all weights, embeddings too, through the prefix and the thoughts, with rows of different lengths."""
    model = in_float64(make_model(family))
    weights = dict(model.named_parameters())
    tails = [naive_tail(model, prefix, tail, STEPS) for prefix, tail in zip(prefixes, TAILS, strict=True)]
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(tail.shape, dtype=tail.dtype, generator=generator) for tail in tails]
    expected = torch.autograd.grad(
        sum((tail * way).sum() for tail, way in zip(tails, directions, strict=True)),
        list(weights.values()),
        allow_unused=True,
    )
    with gradient_checkpointing(model, active=again):
        rows = cached_tails(model, STEPS, prefixes)
        actual = torch.autograd.grad(
            sum((tail * way).sum() for tail, way in zip(rows, directions, strict=True)),
            list(weights.values()),
            allow_unused=True,
        )
    for name, one, other in zip(weights, actual, expected, strict=True):
        assert (one is None) == (other is None), name
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")
