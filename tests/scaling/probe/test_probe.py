"""`scale-probe` on the tiny model: what it prints, what it refuses, and what it says of figures that are known."""

from __future__ import annotations

import json

import pytest
import yaml
from typer.testing import CliRunner

import softcotpp as sc
from scaling.probe.cli import app
from scaling.probe.config import ProbeConfig
from scaling.probe.facts import ANSWER, OPERAND
from scaling.probe.measure import CONSTANT, NONE, OTHER, OWN, RATIONALE, Estimate
from scaling.probe.report import Oracle, Preferred, ProbedFact, Report, Room
from scaling.probe.states import LAST, MEAN, PLACES, SLOTS
from scaling.records.errors import UsageError

QUICK = {"limit": 45, "constant_steps": 2, "oracle_questions": 2, "oracle_steps": 2, "soft_tokens": 2}


@pytest.fixture
def options(tiny_model_folder):
    return {**QUICK, "backbone": str(tiny_model_folder), "assistant": str(tiny_model_folder), "device": "cpu"}


def call(options, *more):
    words = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return CliRunner().invoke(app, [*words, *more], env={"COLUMNS": "150"})


# ---- the command


@pytest.fixture(scope="module")
def printed(tiny_model_folder):
    models = {"backbone": str(tiny_model_folder), "assistant": str(tiny_model_folder), "device": "cpu"}
    done = call({**QUICK, **models, "task": "hidden-fact"}, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_json_has_the_figures_of_all_measures(printed):
    assert printed["questions"] == 45
    assert set(printed["room"]["per_token"]) == {NONE, RATIONALE, CONSTANT}
    assert set(printed["layers"]) == set(PLACES)
    [fact] = printed["facts"]
    assert (fact["kind"], fact["classes"], fact["questions"]) == (ANSWER, 9, 45)
    assert set(fact["scores"]) == set(fact["gains"]) == set(PLACES)
    assert set(printed["oracle"]["unseen"]) == {NONE, CONSTANT, OWN, OTHER}
    assert printed["verdict"][-1].startswith("Verdict: ")
    assert printed["settings"]["oracle_steps"] == QUICK["oracle_steps"]


def test_gains_are_differences_of_losses(printed):
    room = printed["room"]
    assert room["room"]["mean"] == pytest.approx(room["per_token"][NONE] - room["per_token"][RATIONALE])
    assert room["constant"]["mean"] == pytest.approx(room["per_token"][NONE] - room["per_token"][CONSTANT])
    assert room["left"]["mean"] == pytest.approx(room["room"]["mean"] - room["constant"]["mean"])
    assert room["per_answer"][NONE] == pytest.approx(room["per_token"][NONE] * room["tokens"])
    for estimate in (room["room"], room["left"], printed["oracle"]["gain"]):
        assert estimate["low"] <= estimate["mean"] <= estimate["high"]


def test_tables_and_verdict_are_shown(options):
    done = call({**options, "task": "arithmetic", "difficulty": 2, "layers": "1,2"})
    assert done.exit_code == 0, done.output
    for text in ("question alone", "best constant prompt", "own rationale", "own thoughts (oracle)", "chance"):
        assert text in done.stdout
    for text in ("step 1, first operand (R2)", "step 2, operation", "Verdict: "):
        assert text in done.stdout
    assert "loading" not in done.stdout  # progress is on stderr


def test_measures_can_be_left_out(options):
    report = sc.probe(**{**options, "constant_steps": 0, "oracle_questions": 0}, task="hidden-fact", quiet=True)
    assert (report.oracle, report.room.constant, report.room.left) == (None, None, None)
    assert set(report.room.per_token) == {NONE, RATIONALE}


def test_models_with_other_tokenizers_are_a_pair(options, other_model_folder):
    report = sc.probe(**{**options, "assistant": str(other_model_folder)}, task="hidden-fact", quiet=True)
    assert report.assistant == str(other_model_folder)


def test_a_file_gives_half_of_its_questions_at_most(options, tmp_path):
    rows = [{"question": f"What is {n} + {n}?", "answer": f"{n} + {n} = {2 * n}. #### {2 * n}"} for n in range(24)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = sc.probe(**{**options, "constant_steps": 1}, data=tmp_path, quiet=True)
    assert report.questions == 12


def test_the_oracle_of_own_chains_is_scored_on_the_second_one(options, monkeypatch):
    def chains(split, *_):
        return {one.id: [f"It is {one.answer}.", f"So {one.answer}."] for one in split.validation}

    monkeypatch.setattr("scaling.probe.run.own_chains", chains)
    report = sc.probe(**options, task="hidden-fact", targets="self", quiet=True)
    assert report.oracle.scored_on == "another chain of the same question"


# ---- what is refused


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"oracle_questions": 1}, "`--oracle-questions` must be 0 or at least 2, not 1"),
        ({"oracle_questions": 46}, "`--oracle-questions` 46 are taken from the `--limit` 45"),
        (
            {"layers": "2,9"},
            "`--layers` must be layers from 0 (the embeddings) to 2, those of the assistant, with commas",
        ),
        ({"layers": "first"}, "`--layers` must be layers from 0 (the embeddings), with commas between them, not first"),
        ({"limit": 3}, "`--limit` is 3: "),
        ({"task": "arithmetics"}, "Did you mean `arithmetic`?"),
        ({"targets": "own"}, "`--targets` is 'own'"),
    ],
)
def test_a_wrong_option_is_named_in_a_sentence(options, given, sentence):
    done = call({**options, **given})
    assert done.exit_code == 2, done.output
    assert sentence in done.stderr
    assert done.stdout == ""


def test_questions_without_a_rationale_are_refused_with_what_to_do(options, tmp_path):
    rows = [{"question": f"What is {n} + {n}?", "answer": 2 * n} for n in range(24)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UsageError, match=r"^0 of 12 questions have a gold rationale .* add `--targets self`"):
        sc.probe(**options, data=tmp_path, quiet=True)
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows[:10])))
    with pytest.raises(UsageError, match=r"at least 20 questions of the train split, .* there are 10"):
        sc.probe(**options, data=tmp_path, quiet=True)


def test_a_backbone_that_is_never_right_has_no_chains_of_its_own(options, tmp_path, monkeypatch):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match=r"^the backbone answered 0 of 10 questions rightly, .* `--targets gold`"):
        sc.probe(**{**options, "limit": 10, "chains": 1}, task="arithmetic", difficulty=4, targets="self", quiet=True)


@pytest.mark.parametrize("layers", ["8", "[8, 16]", "8,16"])
def test_layers_may_be_a_list_in_yaml(layers):
    config = ProbeConfig(**yaml.safe_load(f"layers: {layers}"))
    assert config.layer_numbers(last=16) == ((8, 16) if "16" in layers else (8,))


@pytest.mark.parametrize(("last", "layers"), [(30, (8, 15, 23, 30)), (2, (1, 2)), (1, (1,))])
def test_the_default_layers_reach_the_last_one(last, layers):
    assert ProbeConfig().layer_numbers(last=last) == layers


# ---- the verdict


def about(mean, *, half=0.05):
    return Estimate(mean, mean - half, mean + half, 100)


def report_of(*, room=1.0, left=0.5, gains=None, preferred=None, oracle=None, information=0.0):
    facts = tuple(
        ProbedFact(f"{kind} fact", kind, 4, 0.25, 100, dict.fromkeys(PLACES, 0.5), dict(zip(PLACES, own, strict=True)))
        for kind, own in (gains or {}).items()
    )
    losses = {NONE: 2.0, RATIONALE: 2.0 - room, CONSTANT: 2.0 - room + left}
    return Report(
        task="t",
        backbone="b",
        assistant="a",
        settings={},
        questions=100,
        room=Room(1.0, losses, losses, about(room), about(room), about(room - left), about(left)),
        layers={},
        facts=facts,
        not_probed=(),
        preferred=Preferred(preferred, about(0.4)) if preferred else None,
        oracle=oracle
        and Oracle(
            "another chain",
            True,
            {},
            {NONE: 2, CONSTANT: 1, OWN: 1 - oracle, OTHER: 1 - oracle + information},
            about(oracle),
            about(information),
        ),
        seconds=1.0,
    )


def test_states_that_hold_what_the_slots_do_not_are_named():
    gains = {ANSWER: (about(0.0), about(1.0), about(0.3)), OPERAND: (about(0.0), about(0.9), about(0.6))}
    sentences = report_of(gains=gains, preferred=LAST, oracle=0.5).verdict()
    assert (
        "The answer: held by the last prompt token, held in part by the mean over the prompt, not held by the slots."
        in sentences
    )
    assert (
        "The operands: held by the last prompt token and the mean over the prompt, not held by the slots." in sentences
    )
    assert any("train with `--states last`" in sentence for sentence in sentences)
    assert sentences[-1].startswith("Verdict: thoughts can help here; begin with `--states last`")


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ({"left": 0.0}, "nothing to gain here that a constant prompt has not"),
        ({"room": 0.0, "left": 0.0}, "nothing to gain here"),
        ({"left": 0.5, "oracle": 0.0001}, "not even thoughts of the question's own chain"),
        ({"left": 0.5, "oracle": -0.5, "information": 1.0}, "thoughts can help here"),
        ({"gains": {ANSWER: (about(0), about(0), about(0))}}, "no linear map finds what is needed"),
        ({"gains": {ANSWER: (about(1), about(1), about(1))}}, f"begin with `--states {SLOTS}`"),
        ({"gains": {ANSWER: (about(0), about(0), about(1))}, "preferred": MEAN}, f"begin with `--states {MEAN}`"),
    ],
)
def test_the_verdict_follows_the_intervals(figures, verdict):
    assert verdict in report_of(**figures).verdict()[-1]
