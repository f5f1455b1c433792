"""The engine for servers, against one on this machine that answers as vLLM does, as others do, or not as it should."""

from __future__ import annotations

import base64
import io
import json
import math
import threading
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from types import SimpleNamespace

import pytest
import torch

from scaling.engines import server as openai_engine
from scaling.engines.base import Decoding
from scaling.engines.embedded import EmbeddedPrompts
from scaling.engines.server import OpenAIEngine, Server
from scaling.records.errors import MayPass, UsageError
from scaling.run import execute

openai = pytest.importorskip("openai")

KEY = "sk-of-the-test"
SAMPLED = Decoding(1.0, 0.9, 0, 8, log_probs=True)
END = (7,)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.server.says is not None:
            self.write(*self.server.says)
            return
        owner = "vllm" if self.server.is_vllm else "someone"
        more = {"max_model_len": self.server.context} if self.server.context else {}
        self.answer({"object": "list", "data": [model(name, owner) | more for name in self.server.models]})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        number = next(self.server.numbers)
        if self.server.says_then is not None:
            self.write(*self.server.says_then)
            return
        if self.server.refuses:
            self.answer({"error": {"message": self.server.because}}, status=self.server.refuses)
            return
        embeddings = asked.get("prompt_embeds") if self.server.is_vllm else None
        read = len(torch.load(io.BytesIO(base64.b64decode(embeddings)), weights_only=True)) if embeddings else 0
        read = 1 if self.server.deaf else read or len(asked["prompt"] or [0])
        finish = self.server.finish if number >= self.server.lost else "abort"
        choice = {"index": 0, "text": "It is 5.", "finish_reason": finish}
        choice["logprobs"] = {"token_logprobs": [-0.5, -0.25], "tokens": ["a", "b"], "text_offset": [0, 1]}
        if asked.get("return_token_ids"):
            choice["token_ids"] = [11] * (self.server.tokens - 1) + [7]
        usage = {"prompt_tokens": read, "completion_tokens": self.server.tokens}
        usage["prompt_tokens_details"] = {"cached_tokens": read if self.server.warm else read - 1}
        body = {"id": "1", "object": "text_completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        if number in self.server.cut:
            self.write(json.dumps(body)[:40])
        else:
            self.answer(body)

    def answer(self, body, status=200):
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            status, body = 401, {"error": {"message": "no such key"}}
        self.write(json.dumps(body), status=status)

    def write(self, text, kind="application/json", status=200):
        text = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        with suppress(ConnectionError):  # who asked may have left
            self.wfile.write(text)


def model(name, owner):
    return {"id": name, "object": "model", "created": 1, "owned_by": owner}


@pytest.fixture
def served(monkeypatch):
    """`served(**changes)`: a server on this machine and its address."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running = []

    def begin(**changes):
        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        standard = {"is_vllm": True, "models": ["m"], "key": None, "refuses": None, "deaf": False, "finish": "stop"}
        standard |= {"context": None, "because": "You must set `--enable-prompt-embeds` to input `prompt_embeds`"}
        standard |= {"tokens": 2, "lost": 0, "warm": False}  # lost: how many are given up before one is drawn
        standard |= {"cut": (), "numbers": count()}  # cut: numbers of the answers that end in the middle
        standard |= {"says": None, "says_then": None}  # in answer to what is served, and to a prompt: text and its kind
        for key, value in {**standard, "asked": [], **changes}.items():
            setattr(server, key, value)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        running.append(server)
        return server, f"http://127.0.0.1:{server.server_address[1]}/v1"

    yield begin
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def embedding(make_model):
    return make_model("llama").get_input_embeddings()


def engine(url, embedding=None, *, seeds="streams"):
    prompts = EmbeddedPrompts(embedding, width=32, context=200, dtype=torch.float32) if embedding else None
    return OpenAIEngine(Server(url, None), prompts, end_tokens=END, batch_size=3, seeds=seeds)


def text_of(requests):
    return [replace(one, prompt=replace(one.prompt, thoughts=torch.empty(0, 32))) for one in requests]


def drawn(engine, requests):
    try:
        return list(engine.generate(requests, SAMPLED))
    finally:
        engine.close()


def test_soft_prompts_arrive_as_their_embeddings(served, embedding, some_requests, make_model):
    server, url = served()
    requests = some_requests(make_model("llama"))
    one = engine(url, embedding)
    found = drawn(one, requests)
    assert sorted(map(id, (result.request for result in found))) == sorted(map(id, requests))
    assert {(tuple(r.tokens), r.stop_reason, r.log_prob, r.text) for r in found} == {((11, 7), "end", -0.75, None)}
    assert {asked["seed"] for asked in server.asked} == {request.seed for request in requests}
    sent = {asked["seed"]: asked for asked in server.asked}
    prompts = EmbeddedPrompts(embedding, width=32, context=200, dtype=torch.float32)
    for request in requests:
        asked = sent[request.seed]
        rows = torch.load(io.BytesIO(base64.b64decode(asked["prompt_embeds"])), weights_only=True)
        assert torch.equal(rows, prompts.embed(request.prompt))
        assert (asked["prompt"], asked["stop_token_ids"], asked["ignore_eos"]) == (None, [7], True)
        assert (asked["temperature"], asked["top_p"], asked["max_tokens"]) == (1.0, 0.9, 8)
    total = sum(len(request.prompt) for request in requests)
    assert one.counters.prefill_computed == len(requests)
    assert one.counters.prefill_avoided == total - len(requests)


@pytest.mark.parametrize("decoding", [SAMPLED, replace(SAMPLED, temperature=0.0, top_p=1.0)], ids=["sampled", "greedy"])
def test_nothing_of_the_models_own_generation_config_is_used(served, some_requests, make_model, decoding):
    """vLLM's `get_diff_sampling_param` names what a request that does not say it gets from there."""
    own = {"repetition_penalty", "presence_penalty", "frequency_penalty", "temperature", "top_k", "top_p", "min_p"}
    server, url = served()
    one = engine(url)
    list(one.generate(text_of(some_requests(make_model("llama"), questions=1)), decoding))
    one.close()
    for asked in server.asked:
        assert asked.keys() >= own | {"max_tokens"}
        assert [asked[key] for key in sorted(own - {"temperature", "top_p"})] == [0.0, 0.0, 0.0, 1.0, 0], "off"


@pytest.mark.parametrize("is_vllm", [True, False])
def test_stop_strings_are_part_of_the_protocol(served, some_requests, make_model, is_vllm):
    server, url = served(is_vllm=is_vllm)
    requests = text_of(some_requests(make_model("llama"), questions=1))
    for stop, sent in ((None, {None}), (SimpleNamespace(strings=("\nQuestion:",)), {("\nQuestion:",)})):
        server.asked.clear()
        one = engine(url)
        found = list(one.generate(requests, replace(SAMPLED, stop=stop)))
        one.close()
        assert {tuple(asked["stop"]) if "stop" in asked else None for asked in server.asked} == sent
        assert {result.stop_reason for result in found} == {"end"}


def test_text_goes_out_as_token_ids_and_another_server_tells_text(served, some_requests, make_model):
    server, url = served(is_vllm=False, finish="length", tokens=8)
    requests = text_of(some_requests(make_model("llama"), questions=1))
    found = drawn(engine(url, seeds="one"), requests)
    assert {(r.text, r.num_tokens, r.stop_reason, tuple(r.tokens)) for r in found} == {("It is 5.", 8, "length", ())}
    for asked in server.asked:
        assert asked["prompt"] == [*requests[0].prompt.prefix, *requests[0].prompt.suffix]
        assert not asked.keys() & {"seed", "prompt_embeds", "return_token_ids", "stop_token_ids", "ignore_eos", "top_k"}
        assert not asked.keys() & {"min_p", "repetition_penalty"}, "no part of the protocol"


def test_a_question_that_is_given_up_is_not_asked_again(served, some_requests, make_model):
    server, url = served()
    one = engine(url)
    one.cancel("q1")
    found = drawn(one, text_of(some_requests(make_model("llama"))))
    assert {result.request.prompt.question_id for result in found} == {"q0", "q2"}
    assert len(server.asked) == 12


@pytest.mark.parametrize("status", [400, 422, 501])
def test_a_server_without_embeddings_is_told_with_its_own_words(served, embedding, some_requests, make_model, status):
    said = "answers with status 501" if status == 501 else "takes no prompt embeddings.*--method cot.*You must set"
    _, url = served(refuses=status)
    quick = engine(url, embedding)
    quick._client = quick._client.with_options(max_retries=0)
    with pytest.raises(UsageError, match=said):
        drawn(quick, some_requests(make_model("llama"), questions=1))


LONG = "This model's maximum context length is 256 tokens. However, your prompt contains 300 input tokens."


@pytest.mark.parametrize(
    ("status", "because"), [(408, "slow"), (409, "lock"), (413, "large"), (429, "rate limit"), (400, LONG)]
)
def test_a_server_that_refuses_embeddings_for_another_reason_is_not_said_to_take_none(
    served, embedding, some_requests, make_model, status, because
):
    _, url = served(refuses=status, because=because)
    quick = engine(url, embedding)
    quick._client = quick._client.with_options(max_retries=0)
    with pytest.raises(UsageError, match=rf"answers with status {status}: .*{because}.*the same command") as error:
        drawn(quick, some_requests(make_model("llama"), questions=1))
    assert "takes no prompt embeddings" not in str(error.value)


@pytest.mark.parametrize(("is_vllm", "said"), [(False, "goes out as token ids"), (True, "answers with status 400")])
def test_a_server_that_takes_text_alone_is_told(served, some_requests, make_model, is_vllm, said):
    _, url = served(refuses=400, because="invalid type for field prompt", is_vllm=is_vllm)
    with pytest.raises(UsageError, match=f"{said}.*invalid type for field prompt"):
        drawn(engine(url), text_of(some_requests(make_model("llama"), questions=1)))


@pytest.mark.parametrize("method", ["cot", "softcot"])
def test_a_server_without_room_for_the_longest_prompt_is_told_before_it_is_asked(
    served, config_of, silent, tmp_path, method
):
    asked = {"engine": "openai", "device": "auto", "method": method, "latent_paths": None}
    server, url = served(context=511)
    execute(config_of(**asked, base_url=url, out=tmp_path / "run"), silent)
    questions = [json.loads(line) for line in (tmp_path / "run" / "questions.jsonl").read_text().splitlines()]
    parts = ("prefix_tokens", "soft_tokens", "suffix_tokens")
    longest = 12 + max(sum(question[part] for part in parts) for question in questions)
    for context in (longest, longest - 1):
        server, url = served(context=context)
        out = tmp_path / str(context)
        if context == longest:
            assert execute(config_of(**asked, base_url=url, out=out), silent)["num_completions"] == 4
            continue
        with pytest.raises(UsageError, match=rf"at most {context} tokens, .* has {longest} with `--max-new-tokens` 12"):
            execute(config_of(**asked, base_url=url, out=out), silent)
        assert server.asked == []


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(openai_engine, "_PAUSES", (0.0, 0.0))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("is_vllm", [True, False])
def test_a_completion_that_the_server_gave_up_is_asked_again(served, some_requests, make_model, is_vllm):
    """As vLLM's are where it shuts down: with status 200."""
    requests = text_of(some_requests(make_model("llama"), questions=1))
    server, url = served(lost=2, is_vllm=is_vllm)
    one = engine(url)
    found = drawn(one, requests)
    assert (len(found), len(server.asked)) == (len(requests), len(requests) + 2)
    assert {result.stop_reason for result in found} == {"end"}
    assert one.counters.prefill_computed == len(requests), "what was given up is not counted"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("finish", ["abort", "error", "content_filter"])
def test_a_server_that_gives_up_all_completions_ends_the_run_and_nothing_of_them_is_written(
    served, config_of, silent, tmp_path, finish
):
    asked = {"engine": "openai", "device": "auto", "method": "cot", "latent_paths": None, "out": tmp_path / "run"}
    server, url = served(finish=finish)
    with pytest.raises(UsageError, match=rf"gave up a completion.*'{finish}'.*the same command continues"):
        execute(config_of(**asked, base_url=url), silent)
    assert (tmp_path / "run" / "samples.jsonl").read_text() == ""
    server.finish = "stop"
    assert execute(config_of(**asked, base_url=url), silent)["num_completions"] == 4


@pytest.mark.parametrize(
    ("is_vllm", "tokens", "fits"), [(True, 8, True), (True, 7, False), (False, 7, True), (False, 6, False)]
)
def test_chains_that_the_servers_own_limit_cuts_are_refused(served, some_requests, make_model, is_vllm, tokens, fits):
    """A server that tells no ids may count one token less than it drew."""
    requests = text_of(some_requests(make_model("llama"), questions=1))
    _, url = served(is_vllm=is_vllm, finish="length", tokens=tokens)
    if fits:
        assert {result.stop_reason for result in drawn(engine(url), requests)} == {"length"}
        return
    with pytest.raises(UsageError, match=rf"after {tokens} tokens where `--max-new-tokens` asks for 8: lower that"):
        drawn(engine(url), requests)


def test_an_engine_that_is_closed_leaves_no_connection_and_may_be_closed_again(served):
    one = engine(served()[1])
    client = one._client
    one.close()
    one.close()
    assert client.is_closed()


def test_a_server_that_passes_over_embeddings_is_found_out(served, embedding, some_requests, make_model):
    _, url = served(deaf=True)
    with pytest.raises(UsageError, match="read 1 prompt tokens where 7 were sent"):
        drawn(engine(url, embedding), some_requests(make_model("llama"), questions=1))


def test_a_server_that_is_not_vllm_gets_no_soft_prompts(served, embedding):
    server, url = served(is_vllm=False)
    with pytest.raises(UsageError, match="is no vLLM server: soft thoughts need"):
        engine(url, embedding)
    assert server.asked == []


def test_top_k_is_refused_where_it_would_be_passed_over(served, some_requests, make_model):
    _, url = served(is_vllm=False)
    with pytest.raises(UsageError, match="`--top-k` is no part of the protocol"):
        engine(url).generate(text_of(some_requests(make_model("llama"))), replace(SAMPLED, top_k=5))


FOREIGN = [("<html>", "text/html"), ("oops",), ("null",), ("[]",), ("{}",)]


@pytest.mark.parametrize("says", [*FOREIGN, ('{"data": null}',), ('{"data": [1]}',)], ids=str)
def test_what_is_no_server_of_the_protocol_is_told(served, says):
    _, url = served(says=says)
    with pytest.raises(UsageError, match=r"does not answer as an OpenAI-compatible server .*check `--base-url`"):
        Server(url, None)


def test_models_without_names_are_none(served):
    with pytest.raises(UsageError, match="serves nothing"):
        Server(served(says=('{"data": [{"object": "model"}]}',))[1], None)


WORDLESS = {"text": None, "finish_reason": "stop"}
STRANGE = [
    {"choices": []},
    {"choices": [1]},
    {"choices": [WORDLESS]},
    {"choices": [{"text": "5"}]},
    {"choices": "none"},
]


@pytest.mark.parametrize("is_vllm", [True, False])
@pytest.mark.parametrize("says", [*FOREIGN, *((json.dumps(body),) for body in STRANGE)], ids=str)
def test_completions_that_are_none_are_told(served, some_requests, make_model, says, is_vllm):
    _, url = served(says_then=says, is_vllm=is_vllm)
    with pytest.raises(UsageError, match="does not answer as an OpenAI-compatible server"):
        drawn(engine(url), text_of(some_requests(make_model("llama"), questions=1)))


@pytest.mark.usefixtures("impatient")
def test_an_answer_that_is_cut_in_the_middle_of_a_run_is_asked_again(served, some_requests, make_model):
    requests = text_of(some_requests(make_model("llama")))
    server, url = served(cut=(5, 9))
    assert len(drawn(engine(url), requests)) == len(requests) == len(server.asked) - 2
    _, url = served(cut=range(5, 99))
    with pytest.raises(UsageError, match="does not answer as an OpenAI-compatible server"):
        drawn(engine(url), requests)


def answering(served, choice=(), usage=()):
    """The address of a server that is no vLLM and whose answers all have these parts."""
    choice = {"text": "It is 5.", "finish_reason": "stop", **dict(choice)}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, **dict(usage)}
    return served(says_then=(json.dumps({"choices": [choice], "usage": usage}),), is_vllm=False)[1]


@pytest.mark.parametrize("number", ["2", -3, 2.5, True, [2]], ids=str)
def test_numbers_of_tokens_that_are_none_are_told(served, some_requests, make_model, number):
    requests = text_of(some_requests(make_model("llama"), questions=1))
    for strange in ({"usage": {"completion_tokens": number}}, {"choice": {"token_ids": [7, number]}}):
        with pytest.raises(UsageError, match=r"does not answer as an OpenAI-compatible server \((completion_|)token"):
            drawn(engine(answering(served, **strange)), requests)


@pytest.mark.parametrize("ids", [5, "7", {"7": 7}], ids=str)
def test_token_ids_that_are_none_are_told(served, some_requests, make_model, ids):
    with pytest.raises(UsageError, match="token_ids that are none"):
        drawn(engine(answering(served, {"token_ids": ids})), text_of(some_requests(make_model("llama"), questions=1)))


@pytest.mark.parametrize("number", [-3, 2.5, None, "many"], ids=str)
def test_prompt_tokens_that_are_not_known_are_those_that_were_sent(served, some_requests, make_model, number):
    requests = text_of(some_requests(make_model("llama"), questions=1))
    one = engine(answering(served, usage={"prompt_tokens": number, "prompt_tokens_details": {"cached_tokens": number}}))
    drawn(one, requests)
    total = sum(len(request.prompt) for request in requests)
    assert (one.counters.prefill_computed, one.counters.prefill_avoided) == (total, 0)


def test_a_run_that_is_done_asks_no_server(served, config_of, silent, tmp_path):
    server, url = served()
    asked = {"engine": "openai", "device": "auto", "method": "cot", "latent_paths": None, "served_model": "m"}
    done = execute(config_of(**asked, base_url=url, out=tmp_path / "run"), silent)
    server.key = "another"
    assert execute(config_of(**asked, base_url=url, out=tmp_path / "run"), silent) == done
    with pytest.raises(UsageError, match="wants a key"):
        execute(config_of(**asked, base_url=url, samples=3, out=tmp_path / "run"), silent)


def test_no_more_is_shared_than_was_read(served, some_requests, make_model):
    one = engine(answering(served, usage={"prompt_tokens_details": {"cached_tokens": 99}}))
    requests = text_of(some_requests(make_model("llama"), questions=1))
    drawn(one, requests)
    assert (one.counters.prefill_computed, one.counters.prefill_avoided) == (0, 5 * len(requests))


def test_a_run_whose_prompts_the_server_has_all_read_before_takes_time(served, config_of, silent, tmp_path):
    _, url = served(warm=True)
    asked = {"engine": "openai", "device": "auto", "method": "cot", "latent_paths": None, "base_url": url}
    summary = execute(config_of(**asked, out=tmp_path / "run"), silent)
    assert summary["tokens"]["prefill_computed"] == 0
    assert summary["seconds"] > 0


@pytest.mark.parametrize(
    "told", [[-0.5, None], [], None, [-0.5, -0.25], [math.nan], [-0.5, -math.inf], ["small"], -0.5], ids=str
)
def test_log_probabilities_are_told_of_all_tokens_or_not_at_all(served, some_requests, make_model, told):
    choice = {"text": "It is 5.", "finish_reason": "stop", "logprobs": {"token_logprobs": told}}
    usage = {"prompt_tokens": 5, "completion_tokens": 2}
    _, url = served(says_then=(json.dumps({"choices": [choice], "usage": usage}),), is_vllm=False)
    found = drawn(engine(url), text_of(some_requests(make_model("llama"), questions=1)))
    assert {result.log_prob for result in found} == {-0.75 if told == [-0.5, -0.25] else None}


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 5}], ids=str)
def test_a_server_that_counts_no_tokens_is_told(served, some_requests, make_model, usage):
    body = {"choices": [{"text": "It is 5.", "finish_reason": "stop"}], "usage": usage}
    _, url = served(says_then=(json.dumps(body),), is_vllm=False)
    with pytest.raises(UsageError, match="does not say how many tokens it generated"):
        drawn(engine(url), text_of(some_requests(make_model("llama"), questions=1)))


def test_a_server_that_is_down_is_told():
    with pytest.raises(MayPass, match=r"http://127.0.0.1:9/v1 does not answer .*check `--base-url`"):
        Server("http://127.0.0.1:9/v1/", None)


def test_a_server_that_stops_in_the_middle_keeps_what_was_drawn(served, some_requests, make_model):
    server, url = served()
    one = engine(url)
    one._client = one._client.with_options(max_retries=0)
    stream = one.generate(text_of(some_requests(make_model("llama"))), SAMPLED)
    next(stream)
    server.refuses = 503
    with pytest.raises(MayPass, match=r"status 503.*the same command continues"):
        list(stream)
    one.close()


def test_a_missing_or_wrong_key_is_told_and_the_right_one_is_used(served, monkeypatch):
    _, url = served(key=KEY)
    with pytest.raises(UsageError, match="wants a key: set OPENAI_API_KEY"):
        Server(url, None)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    with pytest.raises(UsageError, match="refuses OPENAI_API_KEY") as error:
        Server(url, None)
    assert "wrong" not in str(error.value)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert Server(url, None).model == "m"


@pytest.mark.parametrize("length", [10, 295, 400])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 503])
def test_a_key_that_the_server_repeats_is_not_passed_on(served, monkeypatch, status, length):
    """Wherever it stands in what the server says: also where the message is cut."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Server(served()[1], None)
    error = openai.OpenAIError(f"{'x' * length} {KEY} and Bearer {KEY}")
    error.status_code = status
    for sent in (None, "tokens", "embeddings"):
        said = str(server.refusal(error, sent=sent))
        assert KEY[:4] not in said
        assert ("***" in said) == (length < 300)


def test_a_key_is_used_without_the_line_break_of_its_file(served, monkeypatch):
    _, url = served(key=KEY)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    assert Server(url, None).model == "m"


@pytest.mark.parametrize("key", ["sk-schlüssel", "sk-one\ntwo", "sk one", "sk-\x7f"])
def test_a_key_that_no_request_can_carry_is_told_and_not_shown(served, monkeypatch, key):
    _, url = served()
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UsageError, match="OPENAI_API_KEY must be ASCII") as error:
        Server(url, None)
    assert key not in str(error.value)


@pytest.mark.parametrize(
    ("models", "asked", "said"),
    [(["a", "b"], None, "serves a, b, and there is no `--served-model`"), (["a"], "b", "serves a.*`--served-model` b")],
)
def test_the_model_must_be_one_that_is_served(served, models, asked, said):
    _, url = served(models=models)
    with pytest.raises(UsageError, match=said):
        Server(url, asked)


@pytest.mark.parametrize("method", ["cot", "softcot++"])
def test_a_whole_run_writes_no_key_and_continues(served, config_of, silent, tmp_path, monkeypatch, method):
    server, url = served(key=KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    paths = {"latent_paths": 2 if method == "softcot++" else None}
    asked = {"engine": "openai", "base_url": url, "device": "auto", "method": method, **paths}
    summary = execute(config_of(out=tmp_path / "run", **asked), silent)
    number = 2 * 2 * (paths["latent_paths"] or 1)
    assert summary["num_completions"] == len(server.asked) == number
    assert summary["tokens"]["generated"] == 2 * number
    assert summary["peak_memory_bytes"] is None, "of a process that is not this one"
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (run["config"]["engine_seeds"], run["config"]["served_model"]) == ("streams", "m")
    assert all(KEY not in file.read_text() for file in (tmp_path / "run").iterdir())
    execute(config_of(out=tmp_path / "run", **asked, samples=3), silent)
    assert len(server.asked) == number * 3 // 2, "only the third samples are new"


@pytest.mark.parametrize(("status", "passes"), [(429, True), (500, True), (503, True), (400, False), (404, False)])
def test_what_may_pass_by_itself_is_told_from_what_must_be_mended(served, status, passes):
    server = Server(served()[1], None)
    error = openai.OpenAIError("no")
    error.status_code = status
    assert isinstance(server.refusal(error), MayPass) == passes
