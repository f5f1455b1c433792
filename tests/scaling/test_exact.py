"""`--exact`: the same tokens, and even log-probabilities, bit for bit, whatever else is decoded, in every type."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from contrastive.assistant_thinker import AssistantThinker
from contrastive.projection import new_projection
from contrastive.thinker import Inputs
from contrastive.token_sets import SoftTokenSets
from scaling.config import RunConfig
from scaling.engines.base import Decoding, Generated, Request
from scaling.engines.local import exact
from scaling.engines.local.engine import TransformersEngine
from scaling.records.errors import UsageError
from scaling.records.journal import config_hash

END = (7,)
SAMPLED = Decoding(temperature=1.0, top_p=0.95, top_k=50, max_new_tokens=12, log_probs=True)
LONG = Decoding(temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=70, log_probs=True)  # beyond the keys of one part
HALF = torch.bfloat16

MakeModel = Callable[..., PreTrainedModel]
SomeRequests = Callable[..., list[Request]]


def exactly(
    model: PreTrainedModel, requests: Sequence[Request], decoding: Decoding, *, batch: int, tokens: int = 10_000
) -> dict[tuple[str, int, int], tuple[list[int], float | None, float | None]]:
    engine = TransformersEngine(model, end_tokens=END, batch_size=batch, max_batch_tokens=tokens, exact=True)
    found = {
        (done.request.prompt.question_id, done.request.prompt.path, done.request.sample): (
            done.tokens,
            done.log_prob,
            done.self_certainty,
        )
        for done in engine.generate(requests, decoding)
    }
    assert len(found) == len(requests)
    return found


@pytest.mark.parametrize(
    ("family", "dtype"), [("llama", torch.float32), ("llama", HALF), ("mistral", HALF), ("gpt2", HALF)]
)
def test_results_do_not_depend_on_what_else_is_decoded(
    make_model: MakeModel, some_requests: SomeRequests, family: str, dtype: torch.dtype
) -> None:
    """Few rows or more than a block, a bound on tokens, the other order, and some requests without the others."""
    model = make_model(family).to(dtype)
    requests = some_requests(model, questions=3, paths=2, samples=6)
    expected = exactly(model, requests, SAMPLED, batch=36)
    assert exactly(model, requests[::-1], SAMPLED, batch=15, tokens=300) == expected
    some = exactly(model, requests[5:11], SAMPLED, batch=3)
    assert some == {key: expected[key] for key in some}


def test_completions_that_are_longer_than_a_part_of_the_keys(
    make_model: MakeModel, some_requests: SomeRequests
) -> None:
    model = make_model("qwen3").to(HALF)
    requests = some_requests(model, questions=2, paths=2, samples=1)
    expected = exactly(model, requests, LONG, batch=4)
    assert any(len(tokens) > 64 for tokens, _, _ in expected.values())
    assert exactly(model, requests, LONG, batch=3) == expected


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_exact_tokens_are_those_of_a_decoder_without_cache(
    make_model: MakeModel, some_requests: SomeRequests, without_cache: Callable[..., Generated], family: str
) -> None:
    model = make_model(family).double()
    requests = some_requests(model, questions=3, paths=1, samples=2)
    found = exactly(model, requests, SAMPLED, batch=6)
    wanted = {(r.prompt.question_id, r.prompt.path, r.sample): without_cache(model, r, SAMPLED, END) for r in requests}
    assert {key: tokens for key, (tokens, _, _) in found.items()} == {key: g.tokens for key, g in wanted.items()}
    assert [told for _, told, _ in found.values()] == pytest.approx([wanted[key].log_prob for key in found])


def test_a_model_that_does_not_share_prompts_is_decoded_row_by_row(
    make_model: MakeModel, some_requests: SomeRequests
) -> None:
    model = make_model("llama").to(HALF)
    model._supports_attention_backend = False
    engine = TransformersEngine(model, end_tokens=END, batch_size=8, max_batch_tokens=10_000, exact=True)
    assert (engine.block, engine.batch_size) == (1, 1)
    requests = some_requests(model, questions=3, paths=2, samples=2)
    expected = exactly(model, requests, SAMPLED, batch=8)
    assert exactly(model, requests[::-1], SAMPLED, batch=3) == expected


def test_where_places_matter_rows_are_decoded_one_by_one(
    make_model: MakeModel, some_requests: SomeRequests, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "places_do_not_matter", lambda *_: False)
    model = make_model("qwen3").to(HALF)
    engine = TransformersEngine(model, end_tokens=END, batch_size=4, max_batch_tokens=10_000, exact=True)
    assert engine.block == 1
    requests = some_requests(model, questions=2, paths=2, samples=2)
    assert exactly(model, requests, SAMPLED, batch=4) == exactly(model, requests[::-1], SAMPLED, batch=8)


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_result_that_depends_on_a_rows_place_is_noticed(make_model: MakeModel, spoilt: bool) -> None:
    """Spoilt by one unit in the last place, in one row of the block."""
    model = make_model("llama")

    def change(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        if len(output) == 8:
            output[3] = torch.nextafter(output[3], torch.tensor(torch.inf))
        return output

    if spoilt:
        model.model.layers[0].mlp.register_forward_hook(change)
    with torch.inference_mode():
        assert exact.places_do_not_matter(model, 8) is not spoilt


def test_a_path_thinks_the_same_however_many_there_are(make_model: MakeModel) -> None:
    assistant = make_model("llama").to(HALF)
    vectors = torch.randn(5, 1, 32, generator=torch.Generator().manual_seed(3))
    thinker = AssistantThinker(SoftTokenSets(vectors), new_projection(32, 48, scale=0.5))
    ids = torch.arange(10, 31)[None]
    with torch.inference_mode():
        together = thinker(Inputs.of_assistant(assistant, ids, torch.ones_like(ids)), 3)
        apart = thinker.paths_apart(Inputs.of_assistant(assistant, ids, torch.ones_like(ids)), 3)
        assert apart.shape == together.shape == (1, 5, 3, 48)
        assert float((apart - together).norm() / together.norm()) < 0.02  # rounding of bfloat16
        for count in (1, 3):
            fewer = thinker.first_paths(count).paths_apart(Inputs.of_assistant(assistant, ids, torch.ones_like(ids)), 3)
            assert torch.equal(fewer, apart[:, :count])


def test_an_extended_run_is_an_undivided_one(tmp_path, run):
    """In bfloat16: begun with one path and one question, extended by the other paths, samples and questions."""
    asked = {"exact": True, "dtype": "bfloat16", "temperature": 1.0}
    whole = run(tmp_path / "whole", **asked, latent_paths=3, samples=3, batch_size=18)
    run(tmp_path / "grown", **asked, latent_paths=1, samples=2, limit=1, batch_size=1)
    assert run(tmp_path / "grown", **asked, latent_paths=3, samples=3, batch_size=5) == whole
    told = json.loads((tmp_path / "grown" / "run.json").read_text())
    assert told["config"]["exact"] is True
    with pytest.raises(UsageError, match="`--exact` is true"):
        run(tmp_path / "grown", **{**asked, "exact": None}, latent_paths=3, samples=3)


def test_not_asked_for_it_changes_no_runs_name():
    unset, no, yes = (RunConfig(exact=value).resolved().model_dump(mode="json") for value in (None, False, True))
    older = {key: value for key, value in unset.items() if key != "exact"}
    assert config_hash(unset) == config_hash(no) == config_hash(older) != config_hash(yes)


@pytest.mark.parametrize("engine", [{"engine": "vllm"}, {"engine": "openai", "base_url": "http://localhost:1/v1"}])
def test_other_engines_cannot_promise_it(engine):
    with pytest.raises(UsageError, match=r"`--exact` is for `transformers`.*leave it out"):
        RunConfig(exact=True, **engine).resolved()
