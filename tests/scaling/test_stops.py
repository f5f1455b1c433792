"""Completions of models without a chat format end where the next turn would begin, in every engine."""

from __future__ import annotations

import json

import pytest
from transformers import AutoTokenizer

from scaling.cache import cache_folder
from scaling.engines.base import Decoding
from scaling.engines.local.engine import TransformersEngine
from scaling.engines.stops import StopStrings
from scaling.engines.vllm.process import sampling_params
from scaling.prompts import own_words, prompt_identity, stop_strings
from scaling.records.journal import config_hash

PLAIN = Decoding(1.0, 1.0, 0, 16)


def drawn(model, requests, decoding, *, rows, end=()):
    engine = TransformersEngine(model, end_tokens=end, batch_size=rows, max_batch_tokens=10_000)
    return {
        (r.request.prompt.question_id, r.request.prompt.path, r.request.sample): r
        for r in engine.generate(requests, decoding)
    }


@pytest.fixture(scope="module")
def tokenizer(other_model_folder):
    return AutoTokenizer.from_pretrained(other_model_folder)


@pytest.fixture(scope="module")
def model(make_model, tokenizer):
    return make_model("llama", vocab_size=len(tokenizer))


def a_pair(text):
    """Two signs in a row from the middle of the text, of which the second is visible ASCII; None where there are none."""
    places = (at for at in range(4, len(text) - 1) if text[at + 1].isascii() and text[at + 1].isalnum())
    return next((text[at : at + 2] for at in places if "�" not in text[at : at + 2]), None)


def first_end(tokens, tokenizer, strings):
    """Number of tokens up to the one that completes a stop string: read token by token, the slowest way there is."""
    for length in range(1, len(tokens) + 1):
        if any(string in tokenizer.decode(tokens[:length], skip_special_tokens=True) for string in strings):
            return length
    return None


def test_a_completion_ends_with_the_token_that_completes_a_stop_string(model, tokenizer, some_requests):
    """Whatever the batch size, and each token before it is the one drawn without stop strings."""
    requests = some_requests(model, questions=2, samples=4)
    endless = drawn(model, requests, PLAIN, rows=4)
    texts = [tokenizer.decode(result.tokens) for result in endless.values()]
    # two signs in a row of some text, so that they may be parts of one token or of two
    strings = tuple(found for text in texts if (found := a_pair(text)))[:6]
    stop = StopStrings(strings, tokenizer)
    wanted = {key: first_end(result.tokens, tokenizer, strings) for key, result in endless.items()}
    assert {length is None for length in wanted.values()} == {True, False}, "both kinds are tried"
    for rows in (1, 5):
        found = drawn(model, requests, Decoding(1.0, 1.0, 0, 16, stop=stop), rows=rows)
        for key, result in found.items():
            assert result.tokens == endless[key].tokens[: wanted[key]]
            assert result.stop_reason == ("length" if wanted[key] is None else "end")


def test_an_end_token_still_ends_a_completion(model, tokenizer, some_requests):
    requests = some_requests(model, questions=1)
    endless = drawn(model, requests, PLAIN, rows=4)
    end = (endless["q0", 0, 0].tokens[3],)
    stop = StopStrings(("\nQuestion:",), tokenizer)
    with_stop, without = (
        drawn(model, requests, decoding, rows=4, end=end) for decoding in (Decoding(1.0, 1.0, 0, 16, stop=stop), PLAIN)
    )
    assert {key: (r.tokens, r.stop_reason) for key, r in with_stop.items()} == {
        key: (r.tokens, r.stop_reason) for key, r in without.items()
    }


def test_only_tokens_with_the_last_sign_of_a_stop_string_are_looked_at(tokenizer):
    stop = StopStrings(("\nQuestion:",), tokenizer)
    looked_at = stop.last_tokens
    assert looked_at == {i for i in range(len(tokenizer)) if ":" in tokenizer.decode([i])}
    assert 0 < len(looked_at) < 10


def test_vllm_looks_for_them_itself(tokenizer):
    stop = StopStrings(("\nQuestion:",), tokenizer)
    asked = sampling_params(Decoding(1.0, 1.0, 0, 8, stop=stop), seed=1, end_tokens=())
    assert (asked["stop"], asked["detokenize"]) == (["\nQuestion:"], True)
    chat = sampling_params(Decoding(1.0, 1.0, 0, 8), seed=1, end_tokens=())
    assert "stop" not in chat
    assert chat["detokenize"] is False


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (" It is 5.\n\nQuestion: And 6?\nAnswer: 6", " It is 5.\n"),
        (" 5\nAnswer: 6\nQuestion: x", " 5"),
        ("\nQuestion: x", ""),
        (" The Question: what? Answer: 5", " The Question: what? Answer: 5"),
    ],
)
def test_the_text_ends_before_the_first_of_them(tokenizer, tiny_model_folder, text, said):
    assert own_words(text, tokenizer) == said
    assert own_words(text, AutoTokenizer.from_pretrained(tiny_model_folder)) == text


def test_only_models_without_a_chat_format_have_any(tokenizer, tiny_model_folder):
    """Runs of chat models keep their identity: what run.json says of their prompts is what it said before."""
    assert stop_strings(tokenizer) == ("\nQuestion:", "\nAnswer:")
    assert prompt_identity(tokenizer).keys() == {"prompt_version", "stop_strings"}
    chat = AutoTokenizer.from_pretrained(tiny_model_folder)
    assert stop_strings(chat) == ()
    assert prompt_identity(chat) == {"prompt_version": "1"}
    assert config_hash({"prompt_version": "1"}) != config_hash(prompt_identity(tokenizer))


@pytest.mark.parametrize("method", ["cot", "softcot++"])
def test_a_run_of_such_a_model(tmp_path, run, other_model_folder, tokenizer, monkeypatch, generated, method):
    """The stop string is generated and counted, ends the completion as an end token would, and is no part of its text."""
    pair = {"backbone": str(other_model_folder), "assistant": str(other_model_folder), "max_new_tokens": 24}
    pair |= {"method": method, "latent_paths": 1, "samples": 6}
    monkeypatch.setattr("scaling.prompts._NEXT_TURN", ("\0\0never",))
    endless = run(tmp_path / "endless", **pair)
    texts = {key: tokenizer.decode(result.tokens, skip_special_tokens=True) for key, result in generated.items()}
    target = next(found for text in texts.values() if (found := a_pair(text)))
    monkeypatch.setattr("scaling.prompts._NEXT_TURN", (target,))
    kept = {key: result.tokens for key, result in generated.items()}
    lines = run(tmp_path / "run", **pair)
    assert lines == run(tmp_path / "one by one", **pair, batch_size=1)
    ends = {key: first_end(tokens, tokenizer, (target,)) for key, tokens in kept.items()}
    assert any(ends.values())
    for key, line in lines.items():
        length = ends[key] or endless[key]["num_tokens"]
        assert line["num_tokens"] == length
        assert line["text"] == texts[key].split(target)[0].strip()
        assert line["stop_reason"] == ("end" if ends[key] else endless[key]["stop_reason"])
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert config["stop_strings"] == [target]


def test_a_run_of_a_chat_model_names_none(tmp_path, run):
    run(tmp_path / "run", method="cot", latent_paths=1, samples=1, limit=1)
    assert "stop_strings" not in json.loads((tmp_path / "run" / "run.json").read_text())["config"]


def test_hints_of_such_an_assistant_end_there_too(tmp_path, run, other_model_folder, monkeypatch):
    monkeypatch.setenv("SOFTCOTPP_CACHE", str(tmp_path / "cache"))
    settings = {"method": "assist-cot", "latent_paths": 1, "samples": 1, "assistant": str(other_model_folder)}

    def hints(name):
        run(tmp_path / name, **settings)
        [file] = (cache_folder() / "hints").iterdir()
        return {line["prompt"]: line for line in map(json.loads, file.read_text().splitlines())}

    monkeypatch.setattr("scaling.prompts._NEXT_TURN", ("\0\0never",))
    endless = hints("endless")
    target = next(found for line in endless.values() if (found := a_pair(line["text"])))
    monkeypatch.setattr("scaling.prompts._NEXT_TURN", (target,))
    ended = [line for name, line in hints("run").items() if name not in endless]
    assert len(ended) == len(endless), "kept apart from those without"
    assert any(line["num_tokens"] < 64 for line in ended)
    assert all(target not in line["text"] for line in ended)
