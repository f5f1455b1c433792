"""Every kind of thinker: what all have in common, and what is particular to pooled states, proposers and refiners."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from contrastive import checkpoint, losses
from contrastive.assistant_thinker import AssistantThinker, state_statistics
from contrastive.checkpoint import CONFIG_FILE, CheckpointError
from contrastive.objective import Objective, backward
from contrastive.parallel import Processes
from contrastive.projection import new_projection
from contrastive.prompt_tuning import PromptTuning
from contrastive.proposer import PENALTY, Proposer, Refiner
from contrastive.target_loss import Example, Reader
from contrastive.thinker import Inputs, Thinker, read

N, L, WIDTH, SCALE = 3, 2, 32, 0.3
POOLED = ("last", "mean", "attention")
OWN = {kind.kind: kind for kind in (PromptTuning, Proposer, Refiner)}
KINDS = (*POOLED, *OWN)
ROWS = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(8))


def made(kind: str, *, num_paths: int = N, num_slots: int = L, **options) -> Thinker:
    """An untrained thinker of this kind for models of width 32; of pooled states, with constants that are not zero."""
    if kind in OWN:
        sizes = {"num_paths": num_paths, "num_slots": num_slots, "scale": SCALE}
        return OWN[kind].untrained(ROWS, **sizes, **({"width": 16} if OWN[kind].uses_prompt else {}))
    projection = new_projection(WIDTH, WIDTH, scale=SCALE)
    thinker = AssistantThinker.pooled(kind, projection, num_paths=num_paths, num_slots=num_slots, **options)
    if thinker.offset is not None:
        for path, constant in enumerate(thinker.offset.data):
            constant.normal_(generator=torch.Generator().manual_seed(path))
    return thinker


@pytest.fixture
def models(make_model):
    """Assistant and backbone, two frozen models."""
    return [make_model("llama", seed=seed).requires_grad_(False) for seed in (0, 1)]


@pytest.fixture
def inputs(models, some_examples) -> Callable[..., Inputs]:
    """`inputs(thinker, first=0, count=4)`: what the thinker reads of these examples."""

    def make(thinker: Thinker, *, first: int = 0, count: int = 4) -> Inputs:
        examples = some_examples()[first : first + count]
        questions, prompts = [e.assistant for e in examples], [e.prefix for e in examples]
        return read(thinker, *models, questions=questions, prompts=prompts)

    return make


# ---- what all kinds have in common


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_path_does_not_depend_on_how_many_there_are(kind, inputs):
    thinker = made(kind, num_paths=5)
    whole = thinker(inputs(thinker), L)
    assert whole.shape == (4, 5, L, WIDTH)
    assert whole.dtype == torch.float32
    apart = thinker.paths_apart(inputs(thinker), L)
    torch.testing.assert_close(apart, whole, atol=1e-5, rtol=1e-5)
    for count in (1, 3):
        fewer = thinker.first_paths(count)
        assert (fewer.num_paths, thinker.num_paths) == (count, 5)
        torch.testing.assert_close(fewer(inputs(fewer), L), whole[:, :count], atol=1e-5, rtol=1e-5)
        assert torch.equal(fewer.paths_apart(inputs(fewer), L), apart[:, :count]), "not to the last bit"
        untrained = made(kind, num_paths=count)
        torch.testing.assert_close(untrained(inputs(untrained), L), whole[:, :count], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_question_does_not_depend_on_the_batch_and_its_padding(kind, inputs):
    thinker = made(kind)
    together = thinker(inputs(thinker), L)
    for number in range(4):
        alone = thinker(inputs(thinker, first=number, count=1), L)
        torch.testing.assert_close(alone[0], together[number], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_thoughts_are_a_constant_and_what_is_computed_of_the_question(kind, inputs):
    thinker = made(kind)
    read_of_it = inputs(thinker)
    residual = thinker.residual(read_of_it, L)
    assert torch.equal(thinker(read_of_it, L), residual + thinker.offset)
    varies = (residual - residual.mean(0)).abs().max() > 1e-4
    assert bool(varies) is (kind != PromptTuning.kind)


@pytest.mark.parametrize("kind", OWN)
@torch.no_grad()
def test_untrained_thoughts_have_the_scale_of_embeddings_and_begin_near_their_constant(kind, inputs):
    thinker = made(kind)
    thoughts = thinker(inputs(thinker), L)
    assert thoughts.square().mean().sqrt().item() == pytest.approx(SCALE, rel=0.1)
    assert (thoughts - thinker.offset).square().mean().sqrt() < 0.3 * SCALE
    constants = thinker.offset.flatten(0, 1)
    cosines = torch.cosine_similarity(constants[:, None], constants[None], dim=-1)
    assert cosines[~torch.eye(len(constants), dtype=torch.bool)].max() < 0.9, "two slots begin alike"


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_the_plain_loss(kind, models, inputs, some_examples):
    """The loss written down and differentiated at once, against the stages of `backward` and its micro-batches."""
    thinker, examples = made(kind), some_examples()
    reader = Reader(models[1])
    objective = Objective(num_slots=L, contrastive="uniform", weight=0.7, temperature=1.0, question_weight=0.3)
    parts = backward(thinker, models[0], reader, examples, objective, step=0, processes=Processes())
    actual = {name: p.grad.clone() for name, p in thinker.named_parameters() if p.grad is not None}
    thinker.zero_grad()
    found = thinker.compute(inputs(thinker), L)
    language = reader.losses(examples, found.thoughts).sum() / (N * sum(len(e.target) for e in examples))
    paths = losses.uniform_loss(found.contrasted, temperature=1.0).mean()
    questions = losses.question_loss(found.contrasted).mean()
    penalty = found.thoughts.new_zeros(()) if found.penalty is None else found.penalty.mean()
    (language + 0.7 * paths + 0.3 * questions + penalty).backward()
    assert parts.language == pytest.approx(language.item(), rel=1e-5)
    assert parts.penalty == pytest.approx(penalty.item(), rel=1e-5)
    assert set(actual) == {name for name, p in thinker.named_parameters() if p.requires_grad}
    for name, parameter in thinker.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad, atol=1e-5, rtol=1e-3, msg=name)
    assert all(p.grad is None for model in models for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_changes_every_tensor_that_is_trained(kind, models, some_examples):
    thinker = made(kind)
    before = {name: tensor.clone() for name, tensor in thinker.state_dict().items()}
    trained = dict(thinker.named_parameters())
    optimiser = torch.optim.AdamW(trained.values(), lr=0.01)
    objective = Objective(num_slots=L, contrastive="uniform")
    backward(thinker, models[0], Reader(models[1]), some_examples(), objective, step=0, processes=Processes())
    optimiser.step()
    for name, tensor in thinker.state_dict().items():
        assert torch.equal(tensor, before[name]) is (name not in trained), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_back_the_same_thoughts(kind, inputs, tmp_path):
    thinker = made(kind)
    if isinstance(thinker, AssistantThinker):
        thinker.statistics = state_statistics([thinker.reference(inputs(thinker, first=2, count=1), L)])
    checkpoint.save(thinker, tmp_path, soft_tokens=L, prompt_version="7")
    loaded, config = checkpoint.load(tmp_path)
    assert type(loaded) is type(thinker)
    assert (config.kind, config.num_paths, config.soft_tokens, config.backbone_width) == (thinker.kind, N, L, WIDTH)
    assert config.vectors_per_path == L
    assert loaded.sizes() == thinker.sizes() == config.sizes
    read_of_it = inputs(thinker)
    assert torch.equal(loaded(read_of_it, L), thinker(read_of_it, L))
    assert loaded.parameter_count() == thinker.parameter_count()


@pytest.mark.parametrize("kind", KINDS)
def test_slots_that_a_thinker_was_not_made_for_are_refused(kind, inputs):
    thinker = made(kind)
    with pytest.raises(ValueError, match=f"cannot fill {L + 1} slots"):
        thinker(inputs(thinker), L + 1)
    single = made(kind, num_slots=1)
    assert single(inputs(single), L).shape == (4, N, L, WIDTH), "one vector fills any number"


@pytest.mark.parametrize(
    ("kind", "changes", "named"),
    [
        ("proposer", {"kind": "guesser"}, "guesser"),
        ("proposer", {"kind": 3}, "kind=3"),
        ("proposer", {"width": 6}, "width=6"),
        ("proposer", {"width": 10**30}, "does not fit"),
        ("proposer", {"states": "last"}, "states"),
        ("refiner", {"refine_steps": 0}, "refine_steps"),
        ("last", {"states": "first"}, "first"),
        ("last", {"layer": "deep"}, "layer"),
        ("attention", {"states": "mean"}, "queries"),
        ("prompt-tuning", {"kind": "proposer"}, "width"),
        ("prompt-tuning", {"soft_tokens": 10**9}, "at most|as many|does not fit"),
    ],
)
def test_a_config_that_fits_no_thinker_is_refused(kind, changes, named, tmp_path):
    checkpoint.save(made(kind), tmp_path, soft_tokens=L, prompt_version="7")
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    (tmp_path / CONFIG_FILE).write_text(json.dumps(values | changes))
    with pytest.raises(CheckpointError, match=named):
        checkpoint.load(tmp_path)


# ---- pooled states


def plain_pooled(thinker: AssistantThinker, assistant, question, kind: str, path: int, slot: int) -> torch.Tensor:
    """T = W (g * h) + b + c by definition, of one question alone; states normalised."""
    states = assistant.base_model(input_ids=torch.tensor([question])).last_hidden_state[0]
    scaled = lambda rows: rows / rows.square().mean(-1, keepdim=True).sqrt()  # noqa: E731
    if kind == "last":
        state = scaled(states[-1])
    elif kind == "mean":
        state = scaled(states.mean(0))
    else:
        states = scaled(states)
        weights = (states @ thinker.queries[path, slot] / WIDTH**0.5).softmax(0)
        state = weights @ states
    gained = thinker.token_sets.vectors[path, slot] * state
    return thinker.projection.weight @ gained + thinker.projection.bias + thinker.offset[path, slot]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("kind", POOLED)
@torch.no_grad()
def test_pooled_thoughts_are_those_of_the_formula(kind, family, make_model, some_examples):
    thinker, assistant, examples = made(kind), make_model(family), some_examples()
    questions = [example.assistant for example in examples]
    thoughts = thinker(read(thinker, assistant, assistant, questions=questions, prompts=questions), L)
    for number, question in enumerate(questions):
        for path in range(N):
            for slot in range(L):
                expected = plain_pooled(thinker, assistant, question, kind, path, slot)
                torch.testing.assert_close(thoughts[number, path, slot], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", POOLED)
def test_statistics_of_pooled_states_centre_and_scale_them(kind, inputs, some_examples):
    thinker = made(kind)
    thinker.offset = None
    states = [thinker.reference(inputs(thinker, first=number, count=1), L) for number in range(4)]
    lengths = [len(example.assistant) for example in some_examples()]
    assert [len(of_question[0]) for of_question in states] == (lengths if kind == "attention" else [1] * 4)
    thinker.statistics = state_statistics(states)
    every = torch.cat(states, dim=1)[0]
    torch.testing.assert_close(thinker.statistics[0, 0], every.mean(0))
    torch.testing.assert_close(thinker.statistics[1, 0], every.std(0, unbiased=False))
    if kind != "attention":  # centred states, whose mean thought is the bias
        mean = thinker(inputs(thinker), L).mean(0)
        torch.testing.assert_close(mean, thinker.projection.bias.expand_as(mean), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("states", "layer"), [("slots", 1), ("last", 1), ("last", -2), ("slots", -1), ("mean", 2)])
@torch.no_grad()
def test_the_states_are_those_of_the_layer(states, layer, make_model, new_thinker, inputs, models):
    """A model cut after that layer, without its final norm, has them as its last ones."""
    of_slots = states == "slots"
    build = (lambda **options: new_thinker(**options)) if of_slots else (lambda **options: made(states, **options))
    thinker = build(layer=layer)
    depth = models[0].config.num_hidden_layers
    found = thinker(inputs(thinker), L)
    last = build()
    if layer in (-1, depth):
        assert torch.equal(found, last(inputs(last), L))
        return
    assistant = make_model("llama", seed=0)
    kept = layer if layer > 0 else depth + 1 + layer
    assistant.model.layers = assistant.model.layers[:kept]
    assistant.model.norm = torch.nn.Identity()
    whole = inputs(last)
    cut = Inputs.of_assistant(assistant, whole.input_ids, whole.attention_mask)
    torch.testing.assert_close(found, last(cut, L), atol=1e-5, rtol=1e-4)


# ---- proposer and refiner


@torch.no_grad()
def test_a_proposer_knows_the_order_of_its_prompt(models):
    thinker = made("proposer")
    one, other = (read(thinker, *models, questions=[()], prompts=[ids]) for ids in ((11, 12, 13), (13, 12, 11)))
    assert (thinker(one, L) - thinker(other, L)).abs().max() > 1e-4


def test_a_refiner_of_no_rounds_is_its_proposer_and_rounds_cost_no_parameters(inputs):
    thinker, proposer = made("refiner"), made("proposer")
    proposer.load_state_dict(thinker.state_dict(), strict=False)
    parameters = thinker.parameter_count()
    thoughts = {steps: thinker.with_steps(steps)(inputs(thinker), L) for steps in (0, 1, 6, 40)}
    torch.testing.assert_close(thoughts[0], proposer(inputs(proposer), L))
    assert all((thoughts[steps] - thoughts[0]).abs().max() > 1e-4 for steps in (1, 6, 40))
    assert thoughts[40].square().mean().sqrt() < 2 * SCALE, "many rounds are stable"
    assert thinker.parameter_count() == parameters
    assert thinker.first_paths(1).refine_steps == 40
    with pytest.raises(ValueError, match="no rounds"):
        proposer.with_steps(2)


def test_the_penalty_is_the_mean_square_of_the_change(inputs):
    thinker = made("refiner")
    found = thinker.compute(inputs(thinker), L)
    proposed = thinker.with_steps(0)(inputs(thinker), L)
    change = found.thoughts - proposed
    torch.testing.assert_close(found.contrasted, change, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        found.penalty, PENALTY * (change / SCALE).square().flatten(1).mean(1), rtol=1e-3, atol=1e-6
    )


def test_the_gradient_flows_through_the_last_round_alone(inputs):
    """With one round it is that of finite differences; with more, what is kept for it does not grow."""
    thinker = made("refiner").double()
    read_of_it = inputs(thinker)
    doubled = Inputs(read_of_it.size, embeddings=read_of_it.embeddings.double(), seen=read_of_it.seen)
    direction = torch.randn(4, N, L, WIDTH, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def value() -> torch.Tensor:
        return (thinker(doubled, L) * direction).sum()

    thinker.with_steps(1).zero_grad()
    value().backward()
    for name, parameter in thinker.named_parameters():
        change = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        slope = float((parameter.grad * change).sum())
        with torch.no_grad():
            parameter += 1e-5 * change
            above = value()
            parameter -= 2e-5 * change
            below = value()
            parameter += 1e-5 * change
        assert float(above - below) / 2e-5 == pytest.approx(slope, rel=1e-4, abs=1e-7), name

    def held(steps: int) -> int:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(1) or tensor, lambda tensor: tensor):
            thinker.with_steps(steps)(doubled, L)
        return len(kept)

    assert held(1) == held(5)


@pytest.mark.parametrize("kind", ["proposer", "refiner", "attention", "last"])
@torch.no_grad()
def test_flops_are_those_that_torch_counts(kind, models):
    """One path: with several, masked pairs are computed and not counted."""
    thinker, prompt = made(kind, num_paths=1).requires_grad_(False), tuple(range(10, 40))
    read_of_it = read(thinker, *models, questions=[prompt], prompts=[prompt])

    def counted(work: Callable[[], object]) -> int:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            work()
        return int(counter.get_total_flops())

    of_assistant = 0
    if isinstance(thinker, AssistantThinker):
        thinker(read_of_it, L)  # the trial of `can_extend` is over
        of_assistant = counted(lambda: thinker.prompt_states(*read_of_it.with_assistant()))
    flops, positions = thinker.flops(), len(prompt)
    expected = L * (flops.slot + positions * flops.slot_position + L * flops.slot_slot)
    expected += positions * flops.position + positions**2 * flops.pair
    assert counted(lambda: thinker(read_of_it, L)) - of_assistant == expected
    assert not flops.slots_read


# ---- a positive control


def fact(number: int) -> Example:
    """The assistant reads a fact that the backbone does not see; the target is the fact. 90 of them are all different."""
    told, place = number % 3, number % 30 + number // 30 % 3
    return Example(f"q{number}", (5, 25 + place, 20 + told, 6, 7), (8, 9, 25 + place), (10,), (60 + told,))


@pytest.mark.parametrize("kind", ["last", "attention"])
def test_thoughts_carry_what_only_the_assistant_reads(kind, make_model):
    assistant, backbone = (make_model("llama", seed=seed).requires_grad_(False) for seed in (0, 1))
    thinker = made(kind, num_paths=1)
    order = torch.randperm(90, generator=torch.Generator().manual_seed(1)).tolist()
    train, test = ([fact(number) for number in part] for part in (order[:60], order[60:]))
    reader, objective = Reader(backbone), Objective(num_slots=L, contrastive="none", micro_batch=20)
    optimiser = torch.optim.AdamW(thinker.parameters(), lr=0.01)
    for step in range(60):
        optimiser.zero_grad()
        batch = train[step % 3 :: 3]
        backward(thinker, assistant, reader, batch, objective, step=step, processes=Processes())
        optimiser.step()
    partner = [next(n for n, b in enumerate(test) if a.target != b.target) for a in test]
    with torch.no_grad():
        questions, prompts = [e.assistant for e in test], [e.prefix for e in test]
        thoughts = thinker(read(thinker, assistant, backbone, questions=questions, prompts=prompts), L)
        own, another = (reader.losses(test, rows)[:, 0] for rows in (thoughts, thoughts[partner]))
    information = another - own
    assert information.mean() > 0.5
    assert information.mean() > 3 * information.std() / len(test) ** 0.5
