"""The measures of a probe, on the tiny model and on synthetic states and losses whose structure is known."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from contrastive.assistant_thinker import AssistantThinker
from scaling.models import loading
from scaling.probe import measure
from scaling.probe.answers import alone, answered, gold_chain
from scaling.probe.facts import facts_of
from scaling.probe.measure import NONE, RATIONALE, Estimate, chance, readings, room
from scaling.probe.states import LAST, MEAN, PLACES, SLOTS, read_states
from scaling.tasks.catalogue import load_task
from scaling.training.targets import ExampleBuilder


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return loading.load(str(tiny_model_folder), name="tiny", device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def other(other_model_folder):
    return loading.load(str(other_model_folder), name="other", device="cpu", dtype=torch.float32)


def builder(model, task):
    return ExampleBuilder(model, model, task=task.definition, num_slots=2)


def asked(model, name, limit=20, **options):
    task = load_task(name, limit=limit, split="train", **options)
    build = builder(model, task)
    chains = lambda question: [chain] if (chain := gold_chain(build, question)) else []  # noqa: E731
    return answered(build, task.definition, task.questions, chains)


# ---- the answer's own tokens


@pytest.mark.parametrize("name", ["arithmetic", "countdown", "coin-flip", "last-letters", "hidden-fact"])
@pytest.mark.parametrize("which", ["tiny", "other"])
def test_only_the_answer_is_scored_and_what_leads_to_it_was_read(name, which, request):
    model = request.getfixturevalue(which)
    text = model.tokenizer.decode
    for each in asked(model, name, limit=8):
        task = load_task(name, limit=1).definition
        written = task.answers.written(each.question.answer)
        for example in (each.alone, *each.informed):
            assert text(example.target).strip() == written
        assert all(step in text(each.informed[0].suffix) for step in each.question.rationale)
        bare = text(each.alone.suffix)
        assert not any(step in bare for step in each.question.rationale)
        assert text(each.chains[0].target).count(written) >= 1


def test_a_chain_without_the_answer_is_left_out(tiny):
    task = load_task("arithmetic", limit=2, split="train")
    build = builder(tiny, task)
    first, second = task.questions
    chains = {first.id: ["I do not know.", f"So it is {first.answer}."], second.id: []}
    [each] = answered(build, task.definition, task.questions, lambda question: chains[question.id])
    assert (each.question, len(each.informed), len(each.chains)) == (first, 1, 1)


# ---- room


class Copying:
    """A reader to which a token costs one nat that does not stand in what it has read after the thoughts."""

    def __init__(self, backbone):
        self.backbone = backbone

    def read_prefixes(self, examples):  # noqa: ARG002
        return None

    def losses(self, examples, thoughts, *, before):  # noqa: ARG002
        costs = [sum(token not in example.suffix for token in example.target) for example in examples]
        return torch.tensor(costs, dtype=torch.float32)[:, None].expand(-1, thoughts.shape[1])


def test_there_is_room_where_the_rationale_holds_the_answer(tiny):
    every = asked(tiny, "arithmetic", limit=40)
    losses = room(Copying(tiny.model), every, lambda _: None)
    assert losses.sums[RATIONALE].eq(0).all()  # each rationale ends in the answer
    gain = losses.gain(NONE, RATIONALE, per_token=False)
    assert gain.positive
    assert gain.mean == pytest.approx(losses.per_answer(NONE))
    assert losses.gain(NONE, RATIONALE).mean == pytest.approx(losses.per_token(NONE))


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(-3, 3))
def test_an_interval_moves_with_its_values(values, by):
    first, second = Estimate.of(torch.tensor(values)), Estimate.of(torch.tensor(values).double() + by)
    assert first.low <= first.mean <= first.high
    assert (second.mean - first.mean, second.low - first.low) == pytest.approx((by, by), abs=1e-4)


# ---- states


@pytest.mark.parametrize("which", ["tiny", "other"])
def test_states_are_those_of_each_prompt_alone(which, request):
    model, prompts, layers = request.getfixturevalue(which), [(5, 6, 7, 8, 9), (11, 12), (13, 14, 15)], (0, 1, 2)
    together = read_states(model, prompts, num_slots=2, layers=layers)
    width = model.model.config.hidden_size
    assert {key: tuple(rows.shape) for key, rows in together.items()} == {
        (place, layer): (3, width * (2 if place == SLOTS else 1)) for place in PLACES for layer in layers
    }
    for number, prompt in enumerate(prompts):
        with torch.no_grad():
            hidden = model.model(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        for layer in layers:
            torch.testing.assert_close(together[LAST, layer][number], hidden[layer][0, -1], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(together[MEAN, layer][number], hidden[layer][0].mean(0), rtol=1e-4, atol=1e-4)


def test_a_long_prompt_does_not_change_the_frequencies_of_those_beside_it(tiny_model_folder, tmp_path):
    """LongRoPE has other ones beyond a length, which padding to the longest row must not take a shorter row over."""
    folder = shutil.copytree(tiny_model_folder, tmp_path / "longrope")
    config = json.loads((folder / "config.json").read_bytes())
    config["rope_parameters"] |= {"rope_type": "longrope", "original_max_position_embeddings": 6}
    config["rope_parameters"] |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    (folder / "config.json").write_text(json.dumps(config))
    model = loading.load(str(folder), name="longrope", device="cpu", dtype=torch.float32)
    prompts = [(5, 6, 7, 8, 9), (11, 12, 13)]
    together, one = (read_states(model, some, num_slots=2, layers=[2]) for some in (prompts, prompts[1:]))
    torch.testing.assert_close(together[LAST, 2][1], one[LAST, 2][0], rtol=1e-4, atol=1e-4)


def test_the_slots_are_those_of_an_untrained_thinker(tiny):
    thinker = AssistantThinker.untrained(tiny.rare_rows(), num_paths=1, backbone_width=32, scale=1.0)
    prompt = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected = thinker.states(tiny.model, prompt, torch.ones_like(prompt), 2).flatten()
    found = read_states(tiny, [(5, 6, 7)], num_slots=2, layers=[2])[SLOTS, 2][0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_fact_is_found_where_it_was_planted_and_nowhere_else():
    questions = load_task("hidden-fact", limit=100, split="train").questions
    [fact], _ = facts_of(questions)
    generator = torch.Generator().manual_seed(0)
    states = {(place, layer): torch.randn(100, 20, generator=generator) for place in PLACES for layer in (1, 2)}
    for row, question in enumerate(questions):
        states[LAST, 2][row, int(question.answer)] += 8
    groups = [question.text for question in questions]
    layers, found = readings(states, [fact], groups, lambda _: None)
    assert layers[LAST] == 2
    by_place = found["answer"]
    assert by_place[LAST].score > 0.95
    assert by_place[LAST].gain.low > 0.9
    for place in (SLOTS, MEAN):
        assert by_place[place].score < chance(fact) + 0.2
        assert not by_place[place].gain.low > 0.05


def test_chance_is_the_most_frequent_class():
    [fact], _ = facts_of([SimpleNamespace(answer="yes" if n % 4 else "no", rationale=()) for n in range(40)])
    assert chance(fact) == 0.75


# ---- the oracle and the constant


def test_the_oracle_is_scored_on_another_chain_where_there_is_one(tiny):
    reader = measure.Reader(tiny.model)
    [one, two] = asked(tiny, "arithmetic", limit=2)
    start = torch.zeros(2, tiny.width)
    run = {"steps": 3, "scale": 0.2, "advance": lambda _: None}
    own, unseen, another = measure.oracle(reader, [one, two], start, **run)
    assert not another
    assert unseen.tokens.tolist() == [len(each.alone.target) for each in (one, two)]
    assert own.per_token("own") < own.per_token("constant")
    both = [
        type(each)(each.question, each.alone, each.informed, (each.chains[0], each.informed[0])) for each in (one, two)
    ]
    _, unseen, another = measure.oracle(reader, both, start, **run)
    assert another
    assert unseen.tokens.tolist() == [len(each.informed[0].target) for each in (one, two)]


def test_the_best_constant_learns_from_other_questions(tiny):
    reader, task = measure.Reader(tiny.model), load_task("hidden-fact", limit=16, split="train")
    examples = [alone(builder(tiny, task), task.definition, question) for question in task.questions]
    start, seen = torch.zeros(2, tiny.width), []
    found = measure.best_constant(reader, examples, start, steps=5, scale=0.5, advance=seen.append)
    [before], [after] = (measure.losses(reader, examples, thoughts=thoughts) for thoughts in (start, found))
    assert after.mean() < before.mean()
    assert seen == [1] * 5
