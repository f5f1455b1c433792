"""A thinker for fewer slots than it was trained with: its thoughts are the first ones of all, on disk and in costs, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from contrastive import checkpoint
from contrastive.assistant_thinker import AssistantThinker
from contrastive.checkpoint import CONFIG_FILE, CheckpointError
from contrastive.projection import new_projection
from contrastive.prompt_tuning import PromptTuning
from contrastive.proposer import Proposer, Refiner
from contrastive.thinker import Thinker, read
from contrastive.token_sets import SoftTokenSets

N, K, L, WIDTH, SCALE = 2, 5, 2, 32, 0.3
ROWS = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(8))
OWN = {kind.kind: kind for kind in (PromptTuning, Proposer, Refiner)}
COMPUTING_ALL = ("proposer", "refiner")  # their slots see each other
KINDS = ("slots", "slots, a vector each", "last", "mean", "attention", *OWN)


def made(kind: str) -> Thinker:
    """A thinker of this kind with K slots and with constants that are not zero, for models of width 32."""
    if kind in OWN:
        sizes = {"num_paths": N, "num_slots": K, "scale": SCALE}
        return OWN[kind].untrained(ROWS, **sizes, **({"width": 16} if kind in COMPUTING_ALL else {}))
    projection, generator = new_projection(WIDTH, WIDTH, scale=SCALE), torch.Generator().manual_seed(5)
    if kind.startswith("slots"):
        vectors = torch.randn(N, K if "each" in kind else 1, WIDTH, generator=generator) * SCALE
        thinker = AssistantThinker(SoftTokenSets(vectors), projection, offset=True)
    else:
        thinker = AssistantThinker.pooled(kind, projection, num_paths=N, num_slots=K)
    thinker.offset.data.normal_(generator=generator)
    return thinker


@pytest.fixture
def thoughts_of(make_model, some_examples) -> Callable[..., torch.Tensor]:
    """`thoughts_of(thinker, num_slots, family="llama")`: of four questions."""
    examples = some_examples()
    questions, prompts = [e.assistant for e in examples], [e.prefix for e in examples]

    @torch.no_grad()
    def compute(thinker: Thinker, num_slots: int, *, family: str = "llama") -> torch.Tensor:
        models = [make_model(family, seed=seed).requires_grad_(False) for seed in (0, 1)]
        return thinker(read(thinker, *models, questions=questions, prompts=prompts), num_slots)

    return compute


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_slots_have_the_first_thoughts_of_all(kind, thoughts_of, tmp_path):
    """Computing L slots alone is enough where no slot sees a later one; a proposer goes on computing all."""
    thinker = made(kind)
    whole, fewer = thoughts_of(thinker, K), thinker.first_slots(L)
    first = thoughts_of(fewer, L)
    assert first.shape == (4, N, L, WIDTH)
    torch.testing.assert_close(first, whole[:, :, :L], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(thoughts_of(thinker, K), whole, msg="the thinker itself has changed")
    checkpoint.save(fewer, tmp_path / "kept", soft_tokens=L, prompt_version="1")
    loaded, config = checkpoint.load(tmp_path / "kept")
    assert config.soft_tokens == L
    assert torch.equal(thoughts_of(loaded, L), first)


@pytest.mark.parametrize("family", ["mistral", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", ["slots", "slots, a vector each"])
def test_a_slot_of_an_assistant_sees_no_later_one(kind, family, thoughts_of):
    thinker = made(kind)
    first, whole = thoughts_of(thinker.first_slots(L), L, family=family), thoughts_of(thinker, K, family=family)
    torch.testing.assert_close(first, whole[:, :, :L], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", COMPUTING_ALL)
def test_the_slots_of_a_proposer_see_each_other(kind, thoughts_of):
    """Were its queries cut, too, its thoughts would be others than those that were trained."""
    thinker = made(kind)
    cut = thinker.first_slots(L)
    cut.queries = torch.nn.Parameter(cut.queries[:, :L].detach())
    assert not torch.allclose(thoughts_of(cut, L), thoughts_of(thinker, K)[:, :, :L], atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_slots_are_the_same_thinker_and_more_are_refused(kind):
    thinker = made(kind)
    assert thinker.first_slots(K) is thinker
    if thinker.vectors_per_path > 1:
        with pytest.raises(ValueError, match="5 slots a path, fewer than 6"):
            thinker.first_slots(K + 1)
        with pytest.raises(ValueError, match="2 slots a path, fewer than 5"):
            thinker.first_slots(L).first_slots(K)


@pytest.mark.parametrize("kind", COMPUTING_ALL)
@torch.no_grad()
def test_flops_are_of_all_slots_that_are_computed(kind, make_model):
    models, prompt = [make_model("llama", seed=seed) for seed in (0, 1)], tuple(range(10, 40))
    thinker = made(kind).first_paths(1).first_slots(L).requires_grad_(False)
    inputs = read(thinker, *models, questions=[prompt], prompts=[prompt])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        thinker(inputs, L)
    flops, positions = thinker.flops(), len(prompt)
    assert flops.computed_slots == K
    expected = K * (flops.slot + positions * flops.slot_position + K * flops.slot_slot)
    expected += positions * flops.position + positions**2 * flops.pair
    assert counter.get_total_flops() == expected
    assert made(kind).flops().computed_slots == 0


@pytest.mark.parametrize("computed", [0, L, "5"])
def test_a_damaged_number_of_computed_slots_is_refused(computed, tmp_path):
    checkpoint.save(made("proposer").first_slots(L), tmp_path, soft_tokens=L, prompt_version="1")
    config = (tmp_path / CONFIG_FILE).read_text()
    assert '"computed_slots": 5' in config
    written = f'"{computed}"' if isinstance(computed, str) else str(computed)
    (tmp_path / CONFIG_FILE).write_text(config.replace('"computed_slots": 5', f'"computed_slots": {written}'))
    with pytest.raises(CheckpointError, match="computed_slots"):
        checkpoint.load(tmp_path)
