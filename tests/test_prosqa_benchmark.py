"""The code of benchmarks/prosqa.py itself: questions, shortcuts, tokens, rows, and that all methods take as many steps."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from scaling.records.records import Question
from scaling.tasks.prosqa import ProsQA
from scaling.training.config import TrainConfig

PLACE = Path(__file__).resolve().parents[1] / "benchmarks" / "prosqa.py"
# Tom -> wupus -> hipus -> lopus; Ann -> mipus -> kupus, and Ann -> kupus; Bob -> hipus
TEXT = (
    "Every wupus is a hipus. Ann is a mipus. Tom is a wupus. Every mipus is a kupus. Every hipus is a lopus. "
    "Bob is a hipus. Ann is a kupus. Is Tom a kupus or lopus?"
)
CHAIN = ("Tom is a wupus.", "Every wupus is a hipus.", "Every hipus is a lopus.")
QUESTION = Question("q", TEXT, "lopus", rationale=CHAIN)


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("prosqa_benchmark", PLACE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("sentences", "kept"), [(1, 4), (5, 5), (7, 7), (99, 7)])
def test_easy_questions_keep_their_chain_and_the_wrong_word(bench, sentences, kept):
    thinned = bench.thinned(QUESTION, sentences, random.Random(0))
    said, asked = bench.split(thinned.text)
    whole, _ = bench.split(TEXT)
    assert asked == "Is Tom a kupus or lopus?"
    assert len(said) == kept
    assert said == [sentence for sentence in whole if sentence in said]  # their order stays
    assert {*CHAIN} < {*said}
    assert any(sentence.endswith("kupus.") for sentence in said)
    assert (thinned.answer, thinned.rationale) == (QUESTION.answer, CHAIN)


def test_what_shortcuts_choose(bench):
    """Of the right word lopus, in one sentence, and the wrong one kupus, in two and named first."""
    found = {name: bench.points(QUESTION, choice) for name, choice in bench.SHORTCUTS.items()}
    assert found == {
        "the word that is named first": 0.0,
        "the word in fewer sentences": 1.0,
        # two steps above lopus are hipus, wupus and Bob, and two above kupus mipus and Ann: of these, one other person each
        "more above it in 2 steps": 1.0,
        "fewer other people 2 steps above": 0.5,
        # three steps lead from Tom to lopus, and none to kupus
        **{f"found in {steps} steps from both ends": 1.0 for steps in (3, 4, 5)},
    }
    assert bench.below(QUESTION, "Tom", 2) == {"Tom", "wupus", "hipus"}
    assert bench.above(QUESTION, "lopus", 1) == {"lopus", "hipus"}


def test_of_two_words_that_are_alike_to_a_shortcut_half_are_right(bench):
    row = bench.of_shortcut(lambda *_: 0, [QUESTION] * 4)
    assert (row["accuracy"], row["questions"]) == (0.5, 4)


def test_a_sentence_is_a_token_and_its_word_is_read_back(bench, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"question": TEXT, "answer": "lopus", "steps": CHAIN}]
    for split in ("train", "valid", "test"):
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(rows))
    bench.make_model(tmp_path / "model", seed=0, symbols=bench.symbols_of(tmp_path / "data"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(TEXT)["input_ids"])
    assert tokens[:3] == ["Every wupus is a hipus", "Ann is a mipus", "Tom is a wupus"]
    assert tokens[-3:] == ["Tom", "kupus", "lopus"]
    assert len(tokens) == 7 + 3
    said = tokenizer.decode(tokenizer(" ".join(CHAIN) + " The answer is lopus.")["input_ids"])
    assert bench.UNKNOWN not in said
    assert ProsQA().read(said, QUESTION).lenient == "lopus"


def test_rows_that_a_table_has_are_not_measured_again(bench, tmp_path, capsys):
    def measure():
        measured.append(1)
        return {"accuracy": 0.5}

    measured = []
    for _ in range(2):
        table = bench.Table(tmp_path / "rows.jsonl")
        for seed in (0, 1):
            table.add({"row": "cot", "test": "whole", "seed": seed}, measure)
    assert len(measured) == 2
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1]
    assert capsys.readouterr().out.splitlines() == lines


def test_all_methods_begin_with_one_model_and_take_as_many_steps(bench, tmp_path, monkeypatch):
    trained: dict[str, tuple[str, int]] = {}
    asked_of: list[tuple[str, str]] = []

    def run(module, *words):
        asked = {word: words[at + 1] for at, word in enumerate(words[:-1]) if word.startswith("--")}
        if module == "scaling.cli":
            asked_of.append((Path(asked["--data"]).name, Path(asked["--backbone"]).name))
            return {"accuracy": 0.75, "num_questions": 4, "tokens": {"generated": 10}}
        options = {word.strip("-").replace("-", "_"): value for word, value in asked.items()}
        given = {key: value for key, value in options.items() if key in TrainConfig.model_fields}
        folder = TrainConfig.model_validate({**given, "curriculum": "--no-curriculum" not in words}).resolved().out
        stages = 1 if "--no-curriculum" in words or asked["--latent-stages"] == "0" else 7
        for stage in range(stages):
            (folder / f"stage-{stage}").mkdir(parents=True)
        trained[folder.name] = asked["--backbone"], stages * int(asked["--max-steps"])
        return {}

    monkeypatch.setattr(bench, "run", run)
    monkeypatch.setattr(bench, "make_model", lambda folder, **_: folder.mkdir())
    monkeypatch.setattr(bench, "symbols_of", lambda _: [])
    seed = bench.Bench(tmp_path, 3, steps=10)
    rows = [seed.measure(name, data) for name in bench.METHODS for data in ("easy-12", "whole")]
    steps, longer = bench.BASE_STEPS + 70, bench.LONGER_STEPS * len(bench.LONGER)
    assert [row["steps"] for row in rows] == [steps, steps + longer + bench.WHOLE_STEPS] * len(bench.METHODS)
    assert {(row["accuracy"], row["new_tokens"]) for row in rows} == {(0.75, 2.5)}
    assert asked_of[:2] == [("easy-12", "cot-easy"), ("whole", "cot")]
    easy = {f"{bench.slug(name)}-easy" for name in bench.METHODS}
    assert len({trained[name][0] for name in easy}) == 1  # the model that all begin with
    for name in map(bench.slug, bench.METHODS):  # longer and longer questions, each from the model before
        ways = [f"{name}-easy", *(f"{name}-{sentences}" for sentences in bench.LONGER), name]
        assert [trained[way][0] for way in ways[1:]] == [str(tmp_path / "seed-3" / way) for way in ways[:-1]]
