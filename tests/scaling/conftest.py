"""Whole runs with the tiny model: in this process through `execute`, or as a command in a process of its own."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from contrastive import checkpoint
from contrastive.assistant_thinker import AssistantThinker
from contrastive.contemplation import CONTEMPLATE, DECODE, Contemplation
from contrastive.projection import new_projection
from contrastive.token_sets import SoftTokenSets
from scaling.config import RunConfig
from scaling.engines.base import Decoding, Generated, Request, SoftPrompt
from scaling.engines.local.engine import TransformersEngine
from scaling.engines.local.sampling import sample_tokens, uniforms
from scaling.models import loading
from scaling.prompts import PROMPT_VERSION
from scaling.records import answer_classes
from scaling.records.records import Completion, Key
from scaling.records.seeds import stream_seed
from scaling.run import execute
from scaling.tasks.equality import AnswerChecker
from scaling.training.adapter import new_adapter, new_adapters, save_adapter
from scaling.training.ccot import save

REPOSITORY = Path(__file__).resolve().parents[2]


class Silent:
    """A watcher that only remembers."""

    def __init__(self) -> None:
        self.completions: list[Completion] = []

    def status(self, text: str) -> None:
        pass

    def start(self, grid: Any, done: Any, folder: Path) -> None:
        pass

    def completion(self, completion: Completion) -> None:
        self.completions.append(completion)


@pytest.fixture(scope="module")
def checker() -> Iterator[AnswerChecker]:
    """Compares answers of a whole module with one process, which votes use, too."""
    with AnswerChecker(timeout_seconds=30.0) as shared, pytest.MonkeyPatch.context() as patch:
        patch.setattr(answer_classes, "_checker", shared)
        yield shared


@pytest.fixture
def silent() -> Silent:
    return Silent()


@pytest.fixture
def config_of(tiny_model_folder: Path) -> Callable[..., RunConfig]:
    """`config_of(**changes)`: 2 questions x 2 paths x 2 samples of at most 12 tokens at temperature 1."""
    model = str(tiny_model_folder)
    standard = {
        **{"backbone": model, "assistant": model, "device": "cpu", "dtype": "float32", "temperature": 1.0},
        **{"limit": 2, "latent_paths": 2, "samples": 2, "max_new_tokens": 12},
    }
    return lambda **changes: RunConfig(**{**standard, **changes})


@pytest.fixture
def run(config_of: Callable[..., RunConfig]) -> Callable[..., dict[Key, dict[str, Any]]]:
    """`run(out, **changes)`: executes and returns the lines of samples.jsonl by key."""

    def run_and_read(out: Path, **changes: Any) -> dict[Key, dict[str, Any]]:
        execute(config_of(out=out, **changes), Silent())
        return read_lines(out)

    return run_and_read


def read_lines(out: Path) -> dict[Key, dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    found = {(line["question_id"], line["path"], line["sample"]): line for line in lines}
    for line in lines:  # equal only up to rounding; see `Completion`
        assert line.pop("log_prob") <= 0
        assert line.pop("self_certainty") >= 0
        line.pop("cost", None)  # of the session, and so is the checksum
        assert len(line.pop("crc")) == 8
    assert len(found) == len(lines), "a key stands twice in samples.jsonl"
    return found


@pytest.fixture
def lines_of() -> Callable[[Path], dict[Key, dict[str, Any]]]:
    """`lines_of(out)`: the parsed lines of samples.jsonl by key."""
    return read_lines


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> dict[Key, Generated]:
    """What the engine yields from here on, by key, token ids included."""
    seen: dict[Key, Generated] = {}
    original = TransformersEngine.generate

    def spy(self: TransformersEngine, requests: Any, decoding: Any) -> Iterator[Generated]:
        for result in original(self, requests, decoding):
            prompt = result.request.prompt
            seen[prompt.question_id, prompt.path, result.request.sample] = result
            yield result

    monkeypatch.setattr(TransformersEngine, "generate", spy)
    return seen


@pytest.fixture(scope="session")
def some_requests() -> Callable[..., list[Request]]:
    """`some_requests(model, questions=3, paths=2, samples=3)`: prompts of different lengths, the longest beyond the
    families' sliding window of 8: prefixes of 3, 10, 17 ... tokens, 2 soft tokens, a suffix of 2."""

    def make(model: PreTrainedModel, *, questions: int = 3, paths: int = 2, samples: int = 3) -> list[Request]:
        generator = torch.Generator().manual_seed(1)
        width = model.config.hidden_size
        requests = []
        for question in range(questions):
            name = f"q{question}"
            prefix = tuple(torch.randint(10, 90, (3 + 7 * question,), generator=generator).tolist())
            for path in range(paths):
                prompt = SoftPrompt(name, path, prefix, torch.randn(2, width, generator=generator) * 0.3, (11, 12))
                requests += [Request(prompt, s, stream_seed(0, name, path, s)) for s in range(samples)]
        return requests

    return make


@pytest.fixture(scope="session")
def without_cache() -> Callable[..., Generated]:
    """`without_cache(model, request, decoding, end)`: the plainest possible decoder, one row, and the whole sequence again
    for every token."""

    @torch.inference_mode()
    def decode(model: PreTrainedModel, request: Request, decoding: Decoding, end: Sequence[int]) -> Generated:
        embed = model.get_input_embeddings()
        prompt = request.prompt
        before, after = (embed(torch.tensor(ids, dtype=torch.long)) for ids in (prompt.prefix, prompt.suffix))
        inputs = torch.cat([before, prompt.thoughts.to(before.dtype), after])[None]
        tokens: list[int] = []
        log_prob = certainty = 0.0
        while len(tokens) < decoding.max_new_tokens and not (tokens and tokens[-1] in end):
            logits = model(inputs_embeds=inputs, use_cache=False).logits[:, -1]
            uniform = uniforms(torch.tensor([request.seed]), torch.tensor([len(tokens)]))
            tokens.append(int(sample_tokens(logits.clone(), uniform, decoding)))
            own = logits[0].double().log_softmax(-1)
            log_prob += float(own[tokens[-1]])
            certainty += float(-own.mean() - math.log(len(own)))
            inputs = torch.cat([inputs, embed(torch.tensor([tokens[-1:]]))], dim=1)
        stop_reason = "end" if tokens[-1] in end else "length"
        told = (log_prob, certainty / len(tokens)) if decoding.log_probs else ()
        return Generated(request, tokens, stop_reason, *told)

    return decode


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """`make_checkpoint(**changes)`: the folder of a random thinker, 2 paths and 3 soft tokens, that fits the tiny model."""

    def make(
        *,
        assistant_width: int = 32,
        backbone_width: int = 32,
        per_path: int = 1,
        prompt_version: str = PROMPT_VERSION,
    ) -> Path:
        vectors = torch.randn(2, per_path, assistant_width, generator=torch.Generator().manual_seed(3))
        thinker = AssistantThinker(SoftTokenSets(vectors), new_projection(assistant_width, backbone_width, scale=0.5))
        checkpoint.save(thinker, tmp_path / "checkpoint", soft_tokens=3, prompt_version=prompt_version)
        return tmp_path / "checkpoint"

    return make


@pytest.fixture
def make_adapter(tmp_path: Path, tiny_model_folder: Path) -> Callable[..., Path]:
    """`make_adapter(name="adapter", scale=0.0, backbone=...)`: the folder of a LoRA adapter of rank 4 for the tiny model, or
    another; A is random, B too with `scale` as its deviation, and zero without."""

    def make(*, name: str = "adapter", scale: float = 0.0, backbone: Path = tiny_model_folder) -> Path:
        source = str(backbone)
        model = loading.load(source, name=source, device="cpu", dtype=torch.float32)
        adapter = new_adapter(model, rank=4, seed=0)
        generator = torch.Generator().manual_seed(1)
        for key, parameter in adapter.named_parameters():
            if "lora_B" in key:
                parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        (tmp_path / name).mkdir()
        save_adapter(adapter, tmp_path / name, backbone=source)
        return tmp_path / name

    return make


@pytest.fixture
def make_contemplation(tmp_path: Path, tiny_model_folder: Path) -> Callable[[], Path]:
    """`make_contemplation()`: the folder of untrained contemplation, r 0.1, and its decoder, for the tiny model."""

    def make() -> Path:
        source = str(tiny_model_folder)
        backbone = loading.load(source, name=source, device="cpu", dtype=torch.float32, own=True)
        model = new_adapters(backbone, {CONTEMPLATE: 4, DECODE: 2}, seed=0)
        folder = tmp_path / "contemplation"
        save(model, Contemplation(backbone.model, 1), folder, backbone=source)
        about = {"method": "ccot", "thought": "latent", "ratio": 0.1, "feedback_layer": 1}
        (folder / "train.json").write_text(json.dumps(about))
        return folder

    return make


def heeds_ctrl_c() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, and that is inherited: also by tests run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`command(*arguments)`: a started `scale-run` in a process group of its own; whatever is left is killed."""
    started: list[subprocess.Popen[str]] = []
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def start(*arguments: Any, python: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, *python, "-c", "from scaling.cli import main; main()", *map(str, arguments)],
                cwd=tmp_path,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
                preexec_fn=heeds_ctrl_c,
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
