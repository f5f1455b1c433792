"""Contemplation tokens: what they are trained on, how they are made, when they stop, and what is read after them."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from contrastive.compression import count_of, gold_places, most_of
from contrastive.contemplation import (
    CONTEMPLATE,
    DECODE,
    Contemplation,
    activate,
    as_decoded,
    chain_of,
    gold_tokens,
    joined,
    parameters_of,
    prompt_of,
)
from contrastive.contemplation_train import (
    DecoderTrainer,
    LayerSchedule,
    LayerStates,
    LayerTrainer,
    gold_states,
    regression_losses,
)
from contrastive.forward import decoder_of
from contrastive.layers import layers_of
from contrastive.prefix import extend
from contrastive.target_loss import Example, Reader, UnsupportedModel
from contrastive.train import STATE_FILE, Schedule

FAMILIES = ("llama", "mistral", "gemma3", "gpt2")
RATIO = 0.4


@pytest.fixture
def adapted(make_model):
    """`adapted(family, scale=0.1)`: a model with both adapters, rank 4, whose B are random with that deviation."""

    def make(family="llama", *, scale=0.1):
        model = copy.deepcopy(make_model(family))  # is shared, and gets adapters
        config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft asks for a property that transformers has renamed
            wrapped = get_peft_model(model, config, adapter_name=CONTEMPLATE)
            wrapped.add_adapter(DECODE, config)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in sorted(wrapped.named_parameters()):
            if "lora_" in name:
                deviation = scale if "lora_B" in name else 0.3
                parameter.data = torch.randn(parameter.shape, generator=generator) * deviation
        return model.eval()

    return make


@pytest.fixture
def solved():
    """`solved(3)`: questions with chains of 5, 8, 11 ... tokens and answers of 3, prompts around the window of 8."""

    def make(number=3):
        generator = torch.Generator().manual_seed(2)

        def ids(length):
            return tuple(torch.randint(10, 90, (length,), generator=generator).tolist())

        found = []
        for place in range(number):
            chain = 5 + 3 * place
            target = (*ids(chain), *ids(2), 1)
            found.append(
                Example(f"q{place}", (), ids(3 + 2 * place), ids(2), target, given=chain, answer=(chain + 1, chain + 2))
            )
        return found

    return make


class Watcher:
    def __init__(self, stop_at=None):
        self.rows, self._stop_at = [], stop_at

    def started(self, progress, _schedule):
        self.first = progress.step

    def stepped(self, progress, row):
        self.rows.append(row)
        if progress.step == self._stop_at:
            raise KeyboardInterrupt

    def examined(self, _progress, _health):
        pass


def states_by_layer(model, prefix, inputs):
    """States after each layer, [layers, S, D], of inputs [S, D] after a prefix, by the model's own forward pass."""
    found = []
    hooks = [layer.register_forward_hook(lambda _, __, made: found.append(made[0])) for layer in layers_of(model)]
    length = len(inputs)
    positions = prefix.lengths[:, None] + torch.arange(length)
    extend(model, prefix, inputs[None], positions, torch.ones(length, length, dtype=torch.bool).tril())
    for hook in hooks:
        hook.remove()
    return torch.stack(found)


# ---- gold states


@pytest.mark.parametrize(("chain", "count"), [(1, 1), (7, 1), (7, 3), (7, 7), (30, 4)])
def test_gold_places_cut_a_chain_into_even_parts(chain, count):
    places = gold_places(chain, count)
    sizes = [after - before for before, after in zip([-1, *places], places, strict=False)]
    assert len(places) == count
    assert sum(sizes) == chain
    assert max(sizes) - min(sizes) <= 1


def test_counts_are_rounded_as_the_paper_says():
    assert [count_of(m, 0.1) for m in (0, 1, 10, 11, 30)] == [0, 1, 1, 2, 3]
    assert count_of(100, 0.07) == 7  # and not 8, as 0.07 * 100 is above 7 in floating point
    assert [most_of(r) for r in (0.05, 0.1, 1, 0.004)] == [10, 20, 200, 0]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_gold_states_of_the_whole_chain_lose_nothing(adapted, solved, family):
    """With r = 1 the answer's loss is the one that the frozen model has after the chain itself."""
    model = adapted(family, scale=0.0)
    contemplation, reader = Contemplation(model, 1), Reader(model)
    for example in solved():
        after_chain = replace(as_decoded(example), prefix=(*prompt_of(example), *chain_of(example)))
        expected = reader.whole([after_chain])
        prefix, _ = contemplation.read([prompt_of(example)])
        tokens = gold_tokens(model, prefix, [gold_states(model, example, 1.0)])
        activate(model, DECODE)
        none = torch.zeros(1, 1, 0, 32)
        found = reader.losses([as_decoded(example)], none, before=joined(prefix, tokens))
        assert float(found) == pytest.approx(float(expected), rel=1e-4)


# ---- layer by layer


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_what_is_kept_of_a_layer_is_what_the_whole_model_computes(adapted, solved, family):
    model, examples = adapted(family), solved()
    contemplation = Contemplation(model, 1)
    states = LayerStates(contemplation, examples, RATIO, lambda _: None)
    expected = []
    for example in examples:
        prefix, first = contemplation.read([prompt_of(example)])
        gold = gold_states(model, example, RATIO)
        inputs = torch.cat([first, gold[1, :-1]])  # the states after layer 1
        activate(model, CONTEMPLATE)
        expected.append((states_by_layer(model, prefix, inputs), gold[1:]))
    for layer in range(len(layers_of(model))):
        states.advance()
        tasks = [states.tasks[example] for example in examples]
        made, real = states.run(tasks)
        losses = regression_losses(made, tasks, real)
        for row, (of_model, gold) in enumerate(expected):
            assert torch.allclose(made[row][real[row]], of_model[layer], atol=1e-4)
            off = (of_model[layer] - gold[layer]).pow(2).mean(-1) / gold[layer].var(-1, unbiased=False)
            assert float(losses[row]) == pytest.approx(float(off.mean()), rel=1e-3)


def layer_trainer(model, examples, folder, **changes):
    schedule = LayerSchedule(
        max_steps=20 * len(layers_of(model)), per_layer=20, validate_every=20, lr=0.01, batch_size=2
    )
    settings = {
        **{"train": examples, "validation": examples[:2], "schedule": schedule, "folder": folder, "watcher": Watcher()},
        **{"keep": lambda *_: None, "contemplation": Contemplation(model, 1), "ratio": RATIO, "tell": lambda _: None},
    }
    return LayerTrainer(**{**settings, **changes})


def test_every_layers_loss_falls_and_earlier_layers_stay(adapted, solved, tmp_path):
    model, examples = adapted(scale=0.0), solved(4)
    seen = []

    def keep(figures, step, better):  # noqa: ARG001
        seen.append((figures, [p.detach().clone() for p in parameters_of(layers_of(model)[0], CONTEMPLATE)]))

    trainer = layer_trainer(model, examples, tmp_path, keep=keep)
    trainer.run()
    assert [figures.layer for figures, _ in seen] == [1, 1, 2]
    for figures, _ in seen[1:]:
        assert figures.loss < 0.9 * figures.before
    (_, begun), (_, first), (_, last) = seen
    assert any(not torch.equal(a, b) for a, b in zip(begun, first, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, last, strict=True))


def test_layers_go_on_bit_for_bit(adapted, solved, tmp_path):
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    layer_trainer(adapted(scale=0.0), solved(4), tmp_path / "whole").run()
    with pytest.raises(KeyboardInterrupt):
        layer_trainer(adapted(scale=0.0), solved(4), tmp_path / "torn", watcher=Watcher(stop_at=27)).run()
    watcher = Watcher()
    layer_trainer(adapted(scale=0.0), solved(4), tmp_path / "torn", watcher=watcher).run()
    assert watcher.first == 20
    assert_same_state(tmp_path / "torn", tmp_path / "whole")


def assert_same_state(folder, other):
    found, expected = load_file(folder / STATE_FILE), load_file(other / STATE_FILE)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


# ---- making tokens


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layer", [1, 2])
def test_tokens_are_those_of_a_loop_that_reads_all_of_them_again(adapted, solved, family, layer):
    model = adapted(family)
    contemplation, most = Contemplation(model, layer), 4
    torch.nn.init.constant_(contemplation.stop.bias, -1e3)  # never stop
    for example in solved():
        prefix, first = contemplation.read([prompt_of(example)])
        activate(model, CONTEMPLATE)
        inputs = first
        while len(inputs) < most:
            inputs = torch.cat([inputs, states_by_layer(model, prefix, inputs)[layer - 1, -1:]])
        expected = states_by_layer(model, prefix, inputs)[-1]
        whole, states = contemplation.generate(prompt_of(example), most)
        assert torch.allclose(states, expected, atol=1e-4)
        assert whole.seen.shape == (1, len(prompt_of(example)) + most)
        # what the trainings do: inputs first, then all tokens at once
        made = contemplation.inputs(prefix, first, most)
        assert torch.allclose(made[0], inputs, atol=1e-4)
        tokens = contemplation.tokens(prefix, made, torch.ones(1, most, dtype=torch.bool))
        assert torch.allclose(tokens.states[0], expected, atol=1e-4)
        for one, other in zip(joined(prefix, tokens).keys, whole.keys, strict=True):
            assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_questions_of_a_batch_do_not_see_each_other(adapted, solved, family, tmp_path):
    model, examples = adapted(family), solved()
    trainer = decoder_trainer(model, examples, tmp_path)
    together, _ = trainer.backward(examples, step=0)
    alone = [trainer.backward([example], step=0)[0] for example in examples]
    assert together["language"] == pytest.approx(sum(part["language"] for part in alone) / len(alone), rel=1e-4)
    tokens = [count_of(example.given, RATIO) for example in examples]
    stop = sum(part["stop"] * count for part, count in zip(alone, tokens, strict=True)) / sum(tokens)
    assert together["stop"] == pytest.approx(stop, rel=1e-4)


def test_the_stop_head_ends_contemplation(adapted, solved):
    contemplation = Contemplation(adapted(), 1)
    prompt = prompt_of(solved()[0])
    torch.nn.init.constant_(contemplation.stop.bias, -1.0)
    assert len(contemplation.generate(prompt, 3)[1]) == 3
    torch.nn.init.constant_(contemplation.stop.bias, 1.0)
    assert len(contemplation.generate(prompt, 3)[1]) == 1


def test_pause_tokens_all_have_the_same_input(adapted, solved):
    contemplation = Contemplation(adapted(), 1, pause=True)
    torch.nn.init.normal_(contemplation.pause, generator=torch.Generator().manual_seed(3))
    torch.nn.init.constant_(contemplation.stop.bias, -1.0)
    prompt = prompt_of(solved()[0])
    prefix, first = contemplation.read([prompt])
    activate(contemplation.model, CONTEMPLATE)
    expected = states_by_layer(contemplation.model, prefix, contemplation.pause.detach().expand(3, -1))[-1]
    assert torch.allclose(contemplation.generate(prompt, 3)[1], expected, atol=1e-4)
    tokens = contemplation.tokens(prefix, first[:, None].expand(-1, 3, -1), torch.ones(1, 3, dtype=torch.bool))
    tokens.states.sum().backward()
    assert contemplation.pause.grad.abs().sum() > 0


def test_a_model_that_cannot_be_run_layer_by_layer_is_refused(make_model, monkeypatch):
    model = make_model("llama")
    monkeypatch.setattr("contrastive.contemplation.can_run_layers", lambda _: False)
    with pytest.raises(UnsupportedModel, match="one at a time"):
        Contemplation(model, 1)


# ---- the decoder


def decoder_trainer(model, examples, folder, *, ratio=RATIO, pause=False, **changes):
    schedule = Schedule(max_steps=12, validate_every=4, lr=0.01, batch_size=2)
    contemplation = Contemplation(model, 1, pause=pause)
    settings = {
        **{"train": examples, "validation": examples[:2], "schedule": schedule, "folder": folder, "watcher": Watcher()},
        **{"keep": lambda *_: None, "contemplation": contemplation, "reader": Reader(model), "ratio": ratio},
        **{"micro_batch": 3, "tell": lambda _: None},
    }
    return DecoderTrainer(**{**settings, **changes})


@pytest.mark.parametrize("kind", ["latent", "pause", "none"])
def test_the_decoder_learns_and_what_is_frozen_stays(adapted, solved, tmp_path, kind):
    model, examples = adapted(), solved(4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    figures = []
    trainer = decoder_trainer(
        model,
        examples,
        tmp_path,
        ratio=0 if kind == "none" else RATIO,
        pause=kind == "pause",
        keep=lambda found, *_: figures.append(found),
    )
    trainer.run()
    assert figures[-1].loss < 0.9 * figures[0].loss == 0.9 * figures[0].before
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    # of the last layer only keys and values are read
    contemplated = {"latent": ["layers.1.self_attn.k_proj", "layers.1.self_attn.v_proj"], "none": []}
    contemplated["pause"] = [*contemplated["latent"], "layers.0."]
    expected = {
        name
        for name in before
        if f".{DECODE}." in name or (f".{CONTEMPLATE}." in name and any(part in name for part in contemplated[kind]))
    }
    assert changed == expected
    assert (figures[-1].gold is None) is (kind != "latent")
    assert (figures[-1].stop is None) is (kind == "none")
    if kind != "none":
        assert figures[-1].stop < figures[0].stop


@pytest.mark.parametrize("pause", [False, True])
def test_decoders_go_on_bit_for_bit(adapted, solved, tmp_path, pause):
    for name in ("whole", "torn"):
        (tmp_path / name).mkdir()
    decoder_trainer(adapted(), solved(4), tmp_path / "whole", pause=pause).run()
    with pytest.raises(KeyboardInterrupt):
        decoder_trainer(adapted(), solved(4), tmp_path / "torn", pause=pause, watcher=Watcher(stop_at=6)).run()
    watcher = Watcher()
    decoder_trainer(adapted(), solved(4), tmp_path / "torn", pause=pause, watcher=watcher).run()
    assert watcher.first == 4
    assert_same_state(tmp_path / "torn", tmp_path / "whole")


def test_parts_of_a_batch_and_recomputed_activations_give_the_same_gradient(adapted, solved, tmp_path):
    gradients = []
    for micro, recompute in ((4, False), (1, False), (4, True)):
        trainer = decoder_trainer(adapted(), solved(4), tmp_path, micro_batch=micro, recompute=recompute)
        trainer.backward(solved(4), step=0)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in trainer.trained()]))
    assert gradients[0].abs().max() > 0
    for other in gradients[1:]:
        assert torch.allclose(gradients[0], other, rtol=1e-3, atol=1e-5)


def test_the_gradient_reaches_the_tokens_through_their_keys(adapted, solved, tmp_path):
    """It is the derivative of the loss: a small step along it changes the loss as the gradient says."""
    model, examples = adapted().double(), solved(2)
    trainer = decoder_trainer(model, examples, tmp_path)
    trainer.contemplation.double()
    parts, _ = trainer.backward(examples, step=0)
    chosen = [p for p in parameters_of(layers_of(model)[1], CONTEMPLATE) if p.grad.abs().sum() > 0]
    slope = float(sum(p.grad.pow(2).sum() for p in chosen))
    step = 1e-3  # losses are reported in float32
    with torch.no_grad():
        for parameter in chosen:
            parameter += step * parameter.grad
    moved, _ = trainer.backward(examples, step=0)
    assert slope > 0
    assert (moved["language"] - parts["language"]) / step == pytest.approx(slope, rel=0.03)


def test_the_model_is_read_by_its_decoder(adapted):
    model = adapted()
    assert len(layers_of(model)) == decoder_of(model).config.num_hidden_layers
