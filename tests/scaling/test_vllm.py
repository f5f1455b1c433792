"""The engine for vLLM on a stand-in that decodes a tiny model; what real vLLM does is in test_vllm_real."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import re
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from scaling.engines.base import Decoding, Workload
from scaling.engines.build import build_engine
from scaling.engines.concurrent import Background
from scaling.engines.embedded import EmbeddedPrompts
from scaling.engines.local.engine import TransformersEngine
from scaling.engines.vllm import engine as vllm_engine
from scaling.engines.vllm import process as vllm_process
from scaling.engines.vllm.engine import VllmEngine
from scaling.engines.vllm.process import VllmProcess
from scaling.models import devices, loading
from scaling.records.errors import MayPass, UsageError
from scaling.run import execute

END = (7,)
GREEDY = Decoding(0.0, 1.0, 0, 8, log_probs=True)
SAMPLED = replace(GREEDY, temperature=1.0)


class EngineDeadError(Exception):
    """As vLLM names it."""


class FakeVllm:
    """Decodes greedily, whatever the temperature. deaths: completions that are finished before it dies, None for never.
    quiet: it dies as vLLM does that is killed, which hands back what it has as aborted."""

    def __init__(self, model, *, rows=4, deaths=None, quiet=False, log_prob=-1.5):
        self.vllm_config = SimpleNamespace(
            scheduler_config=SimpleNamespace(max_num_seqs=rows), parallel_config=SimpleNamespace(data_parallel_size=1)
        )
        self.model, self.deaths, self.quiet, self.log_prob = model, deaths, quiet, log_prob
        self.prompts, self.params, self.aborted, self.held = [], [], set(), set()
        self.finished = 0
        self.dead = self.closed = self.errored = False
        self.forgotten = 0
        self.wait_for = lambda prompt: False  # noqa: ARG005

    async def generate(self, prompt, params, name):
        self.prompts.append(prompt)
        self.params.append(params)
        await asyncio.sleep(0)
        while name not in self.aborted and self.wait_for(prompt):
            await asyncio.sleep(0.001)
        if self.dead or (self.deaths is not None and self.finished >= self.deaths):
            self.dead = True
            if not self.quiet:
                raise EngineDeadError("EngineCore encountered an issue")
            drawn = SimpleNamespace(token_ids=[5], finish_reason="abort", cumulative_logprob=-1.0)
            yield SimpleNamespace(outputs=[drawn], num_cached_tokens=0)
            return
        self.finished += 1
        tokens = self.decode(prompt, params["max_tokens"], params["stop_token_ids"])
        tokens, reason = (tokens[:1], "abort") if name in self.aborted else (tokens, "stop")
        drawn = SimpleNamespace(token_ids=tokens, finish_reason=reason, cumulative_logprob=self.log_prob)
        yield SimpleNamespace(outputs=[drawn], num_cached_tokens=2)

    @torch.inference_mode()
    def decode(self, prompt, most, stops):
        rows = prompt.get("prompt_embeds")
        if rows is None:
            rows = self.model.get_input_embeddings()(torch.tensor(prompt["prompt_token_ids"]))
        tokens = []
        while len(tokens) < most and not (tokens and tokens[-1] in stops):
            tokens.append(int(self.model(inputs_embeds=rows[None]).logits[0, -1].argmax()))
            rows = torch.cat([rows, self.model.get_input_embeddings()(torch.tensor(tokens[-1:]))])
        return tokens

    async def abort(self, names):
        self.aborted |= set(names)

    async def reset_prefix_cache(self):
        self.forgotten += 1

    def shutdown(self):
        self.closed = True


@pytest.fixture(scope="module")
def model(make_model):
    return make_model("llama")


@pytest.fixture
def start(model, monkeypatch):
    """`start(*fakes, seeds="streams", end=END)`: an engine on these, one after the other as they die."""
    for module in (vllm_engine, vllm_process):
        monkeypatch.setattr(module, "params_of", lambda keywords: keywords)
    engines = []

    def begin(*fakes, seeds="streams", end=END):
        left = iter(fakes)

        async def next_one():
            return next(left)

        prompts = EmbeddedPrompts(model.get_input_embeddings(), width=32, context=200, dtype=torch.float32)
        engines.append(VllmEngine(VllmProcess(next_one), prompts, end_tokens=end, seeds=seeds))
        return engines[-1]

    yield begin
    for engine in engines:
        engine.close()


def by_key(results):
    listed = list(results)
    found = {(one.request.prompt.question_id, one.request.prompt.path, one.request.sample): one for one in listed}
    assert len(found) == len(listed), "a request was yielded twice"
    return found


def without_thoughts(requests):
    return [replace(one, prompt=replace(one.prompt, thoughts=torch.empty(0, 32))) for one in requests]


@pytest.mark.parametrize("text", [False, True], ids=["soft", "text"])
def test_the_tokens_are_those_of_the_in_process_engine(start, model, some_requests, text):
    requests = some_requests(model)
    requests = without_thoughts(requests) if text else requests
    fake = FakeVllm(model)
    endless = by_key(start(FakeVllm(model), end=()).generate(requests, GREEDY))
    end = (endless["q0", 0, 0].tokens[3],)  # one that comes up
    ours = TransformersEngine(model, end_tokens=end, batch_size=4, max_batch_tokens=10_000)
    wanted = by_key(ours.generate(requests, GREEDY))
    found = by_key(start(fake, end=end).generate(requests, GREEDY))
    assert {key: (one.tokens, one.stop_reason) for key, one in found.items()} == {
        key: (one.tokens, one.stop_reason) for key, one in wanted.items()
    }
    assert {one.stop_reason for one in found.values()} == {"end", "length"}, "both kinds are tried"
    assert all(("prompt_token_ids" in prompt) == text for prompt in fake.prompts)
    assert {one.log_prob for one in found.values()} == {-1.5}


class Stopped(FakeVllm):
    """As vLLM where a stop string has come up: its reason is the string, the last token none that ends a completion."""

    async def generate(self, prompt, params, name):
        assert (params["stop"], params["detokenize"]) == (["\nQuestion:"], True)
        async for output in super().generate(prompt, params, name):
            output.outputs[0].token_ids = output.outputs[0].token_ids[:2]
            output.outputs[0].stop_reason = "\nQuestion:"
            yield output


def test_a_stop_string_ends_a_completion_as_an_end_token_does(start, model, some_requests):
    stop = SimpleNamespace(strings=("\nQuestion:",))
    found = by_key(start(Stopped(model), end=()).generate(some_requests(model), replace(GREEDY, stop=stop)))
    assert {(len(one.tokens), one.stop_reason) for one in found.values()} == {(2, "end")}


def test_every_completion_has_its_own_seed_or_none(start, model, some_requests):
    requests = some_requests(model)
    for seeds, decoding, wanted in (
        ("streams", SAMPLED, {one.seed for one in requests}),
        ("one", SAMPLED, {None}),
        ("streams", GREEDY, {None}),
    ):
        fake = FakeVllm(model)
        list(start(fake, seeds=seeds).generate(requests, decoding))
        assert {params["seed"] for params in fake.params} == wanted
        assert len(fake.params) == len(requests)
    assert len({one.seed for one in requests}) == len(requests)


def test_prompts_are_counted_as_computed_or_shared(start, model, some_requests):
    requests = some_requests(model)
    engine = start(FakeVllm(model))
    list(engine.generate(requests, GREEDY))
    total = sum(len(one.prompt) for one in requests)
    assert engine.counters.prefill_avoided == 2 * len(requests)
    assert engine.counters.prefill_computed == total - 2 * len(requests)


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("deaths", [0, 1, 5])
def test_a_lost_engine_is_started_again_and_nothing_is_missing_or_twice(start, model, some_requests, deaths, quiet):
    requests = some_requests(model)
    dying, second = FakeVllm(model, deaths=deaths, quiet=quiet), FakeVllm(model)
    engine = start(dying, second)
    found = by_key(engine.generate(requests, SAMPLED))
    assert len(found) == len(requests)
    assert (engine.restarts, dying.closed) == (1, True)
    assert dying.finished + second.finished == len(requests)
    again = {params["seed"] for params in second.params}
    assert again >= {one.seed for one in requests} - {params["seed"] for params in dying.params}


class Silent(FakeVllm):
    """As vLLM's `shutdown`: who waits for an answer then is not told. The first request alone is answered, as aborted."""

    async def generate(self, prompt, params, name):  # noqa: ARG002
        self.params.append(params)
        while len(self.params) < self.vllm_config.scheduler_config.max_num_seqs:
            await asyncio.sleep(0.001)
        if params is not self.params[0]:
            await asyncio.Event().wait()
        drawn = SimpleNamespace(token_ids=[5], finish_reason="abort", cumulative_logprob=-1.0)
        yield SimpleNamespace(outputs=[drawn], num_cached_tokens=0)


@pytest.mark.parametrize("rows", [1, 2, 18])
def test_completions_that_wait_for_a_vllm_that_is_replaced_are_asked_again(start, model, some_requests, rows):
    requests = some_requests(model)
    silent, second = Silent(model, rows=rows), FakeVllm(model, rows=rows)
    engine = start(silent, second)
    assert len(by_key(engine.generate(requests, SAMPLED))) == len(requests)
    assert (engine.restarts, silent.closed, second.finished) == (1, True, len(requests))


def test_an_engine_that_dies_twice_ends_the_run_with_what_was_drawn(start, model, some_requests):
    engine = start(FakeVllm(model, deaths=3), FakeVllm(model, deaths=2))
    found = []
    with pytest.raises(MayPass, match=r"vLLM stopped twice .*the same command continues"):
        found.extend(engine.generate(some_requests(model), SAMPLED))
    assert 3 <= len(by_key(found)) <= 5


def test_a_question_that_is_given_up_ends_and_the_others_come(start, model, some_requests):
    fake = FakeVllm(model, rows=20)
    requests = some_requests(model)
    first = requests[0].prompt
    fake.wait_for = lambda prompt: torch.equal(prompt["prompt_embeds"][-4:-2], first.thoughts)
    engine = start(fake)
    stream = engine.generate(requests, SAMPLED)
    found = [next(stream)]
    engine.cancel("q0")
    found += stream
    keys = by_key(found)
    assert {key for key in keys if key[0] != "q0"} == {
        (f"q{question}", path, sample) for question in (1, 2) for path in (0, 1) for sample in (0, 1, 2)
    }
    assert not [key for key in keys if key[:2] == ("q0", 0)]
    assert engine.counters.cancelled_tokens >= 3, "a token of each that was open"


def test_later_requests_of_a_question_that_was_given_up_are_not_begun(start, model, some_requests):
    fake = FakeVllm(model, rows=1)
    engine = start(fake)
    engine.cancel("q1")
    assert {key[0] for key in by_key(engine.generate(some_requests(model), SAMPLED))} == {"q0", "q2"}
    assert len(fake.prompts) == 12


@pytest.mark.parametrize(
    ("thoughts", "said"),
    [
        (torch.zeros(2, 31), "shape"),
        (torch.zeros(2, 32, dtype=torch.float64), "must be float32"),
        (torch.full((2, 32), torch.nan), "not numbers"),
    ],
)
def test_unfit_prompts_never_reach_vllm(start, model, some_requests, thoughts, said):
    request = some_requests(model)[0]
    fake = FakeVllm(model)
    with pytest.raises(UsageError, match=said):
        list(start(fake).generate([replace(request, prompt=replace(request.prompt, thoughts=thoughts))], GREEDY))
    assert fake.prompts == []


def test_logits_that_are_not_numbers_are_told(start, model, some_requests):
    with pytest.raises(UsageError, match="NaN"):
        list(start(FakeVllm(model, log_prob=math.nan)).generate(some_requests(model), GREEDY))


def test_a_vllm_that_does_not_start_leaves_nothing_open():
    async def no_start():
        raise UsageError("vLLM did not start")

    before = {*threading.enumerate(), *psutil.Process().children()}
    with pytest.raises(UsageError, match="did not start"):
        VllmProcess(no_start)
    assert {*threading.enumerate(), *psutil.Process().children()} <= before


def test_a_start_that_is_interrupted_ends_at_once_with_what_it_has_begun(monkeypatch):
    """Ctrl-C meets the caller while the loop is held up by a start that waits for processes, some of which come later."""
    started, waits = [], threading.Event()

    async def slow_start():
        for _ in range(2):  # vLLM's ends with an error where its process is gone
            started.append(psutil.Popen([sys.executable, "-c", "import time; time.sleep(600)"]))
            waits.set()
            started[-1].wait()
        raise RuntimeError("Engine core initialization failed")

    def interrupted(self, work):
        asyncio.run_coroutine_threadsafe(work, self._loop)
        waits.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(Background, "call", interrupted)
    before = {*threading.enumerate(), *psutil.Process().children()}
    with pytest.raises(KeyboardInterrupt):
        VllmProcess(slow_start)
    assert [process.poll() is not None for process in started] == [True, True]
    assert {*threading.enumerate(), *psutil.Process().children()} <= before


SETTINGS = {"model": "m", "dtype": "float32", "seed": 0, "max_model_len": 1024, "enable_prompt_embeds": True}


@pytest.fixture
def up(model, monkeypatch):
    """`up(settings, given={}, seeds="streams", sampled=True)`: what a run gets where vLLM is kept. `up.started`: all that
    were. `up.next`: the one that starts next."""

    async def begin(settings):  # noqa: ARG001
        started.append(ask.next or FakeVllm(model))
        return started[-1]

    def ask(settings, given=(), *, seeds="streams", sampled=True):
        return vllm_process.acquire(settings, dict(given), seeds=seeds, sampled=sampled)

    started, ask.next = [], None
    ask.started = started
    monkeypatch.setattr(vllm_process, "params_of", lambda keywords: keywords)
    monkeypatch.setattr(vllm_process, "start", begin)
    with devices.keeping(0):
        yield ask


@pytest.mark.parametrize(
    "wanted",
    [{}, {"seed": 1}, {"max_model_len": 512}, {"enable_prompt_embeds": False}, {"kv_cache_memory_bytes": 7}],
    ids=str,
)
def test_a_vllm_that_was_kept_serves_a_run_that_wants_no_more(up, wanted):
    first = up(SETTINGS)
    vllm_process.keep_or_close(first)
    assert up(SETTINGS | wanted) is first
    assert len(up.started) == 1
    assert up.started[0].forgotten == 1, "or a run would count what the run before has computed"
    first.close()


@pytest.mark.parametrize(
    ("wanted", "given"),
    [
        ({"dtype": "bfloat16"}, {}),
        ({"model": "n"}, {}),
        ({"max_model_len": 2048}, {}),
        ({"max_num_seqs": 8}, {"max_num_seqs": 8}),
        ({"kv_cache_memory_bytes": 7}, {"kv_cache_memory_bytes": 7}),
    ],
    ids=str,
)
def test_a_vllm_that_was_kept_ends_before_another_starts(up, wanted, given):
    vllm_process.keep_or_close(up(SETTINGS))
    second = up(SETTINGS | wanted, given)
    assert [fake.closed for fake in up.started] == [True, False]
    second.close()


def test_a_run_with_one_seed_has_a_vllm_of_its_own(up):
    for first, second in (("one", "one"), ("one", "streams"), ("streams", "one")):
        vllm_process.keep_or_close(up(SETTINGS, seeds=first))
        up(SETTINGS, seeds=second).close()
    assert len(up.started) == 6
    assert all(fake.closed for fake in up.started)


def test_a_vllm_that_is_lost_is_not_kept_for_another_run(up):
    vllm_process.keep_or_close(up(SETTINGS))
    up.started[0].errored = True
    up(SETTINGS).close()
    assert len(up.started) == 2


def test_a_kept_vllm_ends_when_it_is_released_and_at_the_end_of_keeping(up):
    with devices.keeping(0):
        vllm_process.keep_or_close(up(SETTINGS))
        assert not up.started[0].closed
        devices.release_engine()
        assert up.started[0].closed
        vllm_process.keep_or_close(up(SETTINGS))
        assert not up.started[1].closed
    assert up.started[1].closed
    vllm_process.keep_or_close(up(SETTINGS))
    assert up.started[2].closed, "one that is not kept ends with its run"


def test_two_runs_on_one_vllm_are_as_on_two(up, model, some_requests, start):
    requests = some_requests(model)
    prompts = EmbeddedPrompts(model.get_input_embeddings(), width=32, context=200, dtype=torch.float32)
    apart = [by_key(start(FakeVllm(model)).generate(some, GREEDY)) for some in (requests[:9], requests[9:])]
    together = []
    for some in (requests[:9], requests[9:]):
        ask = up(SETTINGS)
        engine = VllmEngine(ask, prompts, end_tokens=END, seeds="streams", release=vllm_process.keep_or_close)
        together.append(by_key(engine.generate(some, GREEDY)))
        assert engine.counters.prefill_avoided == 2 * len(some)
        engine.close()
    assert len(up.started) == 1
    assert [{k: v.tokens for k, v in run.items()} for run in together] == [
        {k: v.tokens for k, v in run.items()} for run in apart
    ]


@pytest.mark.parametrize(("length", "fits"), [(299, False), (300, True), (301, True)])
def test_sequences_that_would_be_cut_are_refused_before_vllm_starts(
    config_of, tiny_model_folder, monkeypatch, length, fits
):
    started = []
    monkeypatch.setattr(vllm_process, "engine_settings", lambda *_, context, **__: {"max_model_len": context})
    monkeypatch.setattr(vllm_process, "acquire", lambda settings, *_, **__: started.append(settings))
    monkeypatch.setattr(vllm_engine, "VllmEngine", lambda *_, **__: "engine")
    config = config_of(engine="vllm", device="auto", engine_args={"max_model_len": length}).resolved()
    backbone = loading.load_embeddings_only(str(tiny_model_folder), dtype=torch.float32)

    def begin():
        return build_engine(config, backbone, Workload(300, slots=False), lambda _: None)

    if not fits:
        with pytest.raises(UsageError, match=r"max_model_len must hold .*`--max-new-tokens` 12, together 300.* is 299"):
            begin()
    assert (begin() if fits else "engine") == "engine"
    assert started == [{"max_model_len": length}] * fits


@pytest.mark.parametrize(
    ("batch", "replicas", "each"),
    [(64, None, 64), (64, 4, 16), (64, 1, 64), (65, 4, 16), (2, 4, 1), (64, "x", 64), (64, 0, 64)],
)
def test_the_batch_is_that_of_all_replicas_together(config_of, tiny_model_folder, monkeypatch, batch, replicas, each):
    found = []
    monkeypatch.setattr(vllm_process, "engine_settings", lambda *_, given, **__: found.append(given["max_num_seqs"]))
    monkeypatch.setattr(vllm_process, "acquire", lambda *_, **__: None)
    monkeypatch.setattr(vllm_engine, "VllmEngine", lambda *_, **__: None)
    asked = {} if replicas is None else {"data_parallel_size": replicas}
    config = config_of(engine="vllm", device="auto", engine_args=asked, batch_size=batch).resolved()
    backbone = loading.load_embeddings_only(str(tiny_model_folder), dtype=torch.float32)
    build_engine(config, backbone, Workload(300, slots=False), lambda _: None)
    assert found == [each]


@pytest.fixture
def run_on(config_of, silent, tiny_model_folder, monkeypatch):
    """`run_on(*fakes, **changes)`: the settings with which a run started each of these, which are made of its backbone."""
    backbone = loading.load(str(tiny_model_folder), name="tiny", device="cpu", dtype=torch.float32).model
    for module in (vllm_engine, vllm_process):
        monkeypatch.setattr(module, "params_of", lambda keywords: keywords)

    def settings(folder, *, seed, context, soft, **_):
        return {"model": folder, "seed": seed, "max_model_len": context, "enable_prompt_embeds": soft}

    monkeypatch.setattr(vllm_process, "engine_settings", settings)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())  # so that it is taken for installed

    def run(*fakes, **changes):
        left, started = iter(fakes), []

        async def begin(settings):
            started.append(settings)
            return next(left)(backbone)

        monkeypatch.setattr(vllm_process, "start", begin)
        execute(config_of(engine="vllm", device="auto", method="cot", latent_paths=None, **changes), silent)
        return started

    return run


def test_every_start_of_a_run_with_one_seed_has_another_seed(run_on, tmp_path):
    """With the same one vLLM draws what it drew: its k-th request gets the k-th number of one generator."""

    def dying(backbone):
        return FakeVllm(backbone, deaths=2)

    asked = {"engine_seeds": "one", "out": tmp_path / "run"}
    first = run_on(dying, FakeVllm, **asked)
    extended = run_on(dying, FakeVllm, **asked, samples=4)
    again = run_on(dying, FakeVllm, **{**asked, "out": tmp_path / "again"})
    seeds = [settings["seed"] for settings in (*first, *extended)]
    assert len(set(seeds)) == len(seeds) == 4
    assert first == again, "the same run has the same seeds"
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert len({tuple({**settings, "seed": 0}.items()) for settings in first}) == 1, "all else stays"


@pytest.mark.parametrize("seed", [-1, 0, 2**32, 2**63])
@pytest.mark.parametrize("seeds", ["streams", "one"])
def test_every_seed_of_a_run_is_one_that_vllm_takes(run_on, tmp_path, seeds, seed):
    (started,) = run_on(FakeVllm, seed=seed, engine_seeds=seeds, out=tmp_path / "run")
    assert 0 <= started["seed"] < 2**32


def test_an_adaptive_run_that_is_done_starts_no_vllm(run_on, tmp_path, monkeypatch):
    monkeypatch.setattr("scaling.reading.read_answer", lambda *_, **__: SimpleNamespace(lenient="5", strict="5"))
    asked = {"adaptive": 0.9, "samples": 40, "out": tmp_path / "run"}
    assert [len(run_on(FakeVllm, **asked)) for _ in range(2)] == [1, 0]


def test_without_vllm_the_installation_is_told():
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed")
    with pytest.raises(UsageError, match=r'pip install "softcotpp\[vllm\]"') as error:
        vllm_process.engine_settings("x", dtype="float32", context=10, soft=True, seed=0, given={})
    ((section, page),) = re.findall(r'see "(.*)" in (docs/[\w-]+\.md)', str(error.value))
    assert f"# {section}\n" in (Path(__file__).parents[2] / page).read_text()


@pytest.fixture
def environment(monkeypatch):
    """Is as it was after the test, whatever vLLM wants set."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("key", ["revision", "tokenizer_revision", "tokenizer", "hf_config_path", "served_model_name"])
def test_what_decides_the_model_is_not_given_to_vllm_alone(monkeypatch, key):
    """Its embeddings and its fingerprint would be another's."""
    fields = SimpleNamespace(__dataclass_fields__={key: None})
    for name in ("vllm", "vllm.engine"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", SimpleNamespace(AsyncEngineArgs=fields))
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=None))
    with pytest.raises(UsageError, match=f"`--engine-args` {key}: vLLM gets it from `--backbone`; leave it out"):
        vllm_process.engine_settings("m", dtype="float32", context=8, soft=False, seed=0, given={key: "x"})


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("known", "streams", "given", "expected"),
    [
        (True, True, {}, True),
        (True, True, {"disable_cascade_attn": False}, False),  # what a user asks for wins
        (True, False, {}, None),
        (False, True, {}, None),  # a version without it has no such attention either
    ],
)
def test_with_streams_no_row_shares_its_attention_with_its_neighbours(monkeypatch, known, streams, given, expected):
    fields = SimpleNamespace(__dataclass_fields__={"disable_cascade_attn": None} if known else {})
    platform = SimpleNamespace(current_platform=SimpleNamespace(is_cpu=lambda: False))
    for name in ("vllm", "vllm.engine"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", SimpleNamespace(AsyncEngineArgs=fields))
    monkeypatch.setitem(sys.modules, "vllm.platforms", platform)
    asked = {"dtype": "float32", "context": 8, "soft": False, "seed": 0, "given": given}
    assert vllm_process.engine_settings("m", **asked, streams=streams).get("disable_cascade_attn") is expected


def test_whatever_vllm_says_of_a_setting_is_told(monkeypatch):
    """`speculative_config=3` is an AttributeError in vLLM 0.32."""

    def refuse(**_):
        raise AttributeError("'int' object has no attribute 'get'")

    for name in ("vllm", "vllm.engine", "vllm.v1", "vllm.v1.engine"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.engine.arg_utils", SimpleNamespace(AsyncEngineArgs=refuse))
    monkeypatch.setitem(
        sys.modules, "vllm.v1.engine.async_llm", SimpleNamespace(AsyncLLM=SimpleNamespace(from_engine_args=None))
    )
    with pytest.raises(UsageError, match=r"vLLM did not start.*'int' object has no attribute"):
        asyncio.run(vllm_process.start({"speculative_config": 3}))


class Unfit(FakeVllm):
    """Fails where a seed is asked for, or always."""

    def __init__(self, model, *, always):
        super().__init__(model)
        self.always = always

    async def generate(self, prompt, params, name):
        if self.always or params["seed"] is not None:
            raise EngineDeadError("died") from RuntimeError("no kernel image for this device")
        async for output in super().generate(prompt, params, name):
            yield output


@pytest.mark.parametrize(
    ("always", "said"),
    [
        (False, "cannot seed single completions .no kernel.*`--engine-seeds one`"),
        (True, "cannot draw a token .no kernel"),
    ],
)
def test_a_vllm_that_cannot_seed_or_cannot_draw_is_told_as_that_and_ends(up, model, always, said):
    up.next = Unfit(model, always=always)
    with pytest.raises(UsageError, match=said):
        up(SETTINGS)
    assert up.started[0].closed


def test_seeds_are_checked_once_and_only_where_they_are_used(up):
    for sampled, checks in ((False, 0), (True, 2), (True, 2)):
        vllm_process.keep_or_close(up(SETTINGS, sampled=sampled))
        assert len(up.started[0].params) == checks, "one with a seed, one without"
    assert [params["seed"] for params in up.started[0].params] == [None, 1]
    up(SETTINGS, seeds="one").close()
    assert up.started[1].params == []
