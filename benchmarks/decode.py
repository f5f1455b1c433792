"""Tokens per second of the engine, `--engine vllm`, transformers' `generate`, vLLM and llama.cpp, on the same soft prompts.

usage: decode.py [--backbone NAME] [--questions 2] [--latent-paths 8] [--samples 4] [--new-tokens 128] [--scaling] ...

JSON lines on stdout, one a case; progress on stderr. Every case decodes every completion to the full length greedily, so
that all do the same work, and runs in a process of its own, one after the other, so that its peak memory is its own.
One tiny job warms a case up, then `--repeats` repetitions are timed in the same process.

seconds: of each repetition, prompts included. tokens_per_second: generated tokens by the median of them.
first_token_seconds: from the start until the first completion has its first token. The engine and `generate` do their
first batch with one new token, vLLM the first question's prompts with one new token. All completions of such a batch
get theirs together.
decode_tokens_per_second (engine): the tokens after each completion's first one, by the median less the seconds of the
whole job with one new token. share_of_floor is that rate by the floor's.
cpu_seconds (engine, llama-cpp): of each repetition, of all threads: to compare cases on a machine that does other work.
engine-float32, engine-int8: the engine in float32 whatever `--dtype`, and with `--quantize int8`.
peak_memory_mb: of the whole process. held_memory_mb (engine): resident at the end, when what loading took is given back.
llama-cpp: two rows, of the backbone as `--llama-gguf FILE` has it, and of the same weights at 16 bits (llama-cpp-float16).
`llama_cpp_case.py` says what it does, and what its own fields are; `--llama-python` has llama-cpp-python.
counters: prompt tokens computed, and avoided because completions share them.
same_start: share of completions whose first 8 tokens are those of the run's first case.
floor: the least time of a decoding step of all completions together (256 at most), as measured on this machine: weights
read once at memory's speed, or their products at the speed of the matrix product, whichever takes longer.
--scaling: the engine alone on one question, from 1 to 512 completions.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from floor import floor, timed
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, PreTrainedModel
from vllm_case import peak_memory, watch_memory

from scaling.config import RunConfig
from scaling.engines.base import Counters, Decoding, Request, SoftPrompt
from scaling.engines.embedded import embedded, embedded_prompts
from scaling.engines.local.engine import TransformersEngine, auto_limits
from scaling.engines.vllm import process as vllm_process
from scaling.engines.vllm.engine import VllmEngine
from scaling.methods.softcot import SoftCoT
from scaling.methods.thinkers import make_thinker
from scaling.methods.thoughts import Thinking
from scaling.models import int8, loading, model_files
from scaling.models.hardware import available_memory, cpu_name, pick_device, pick_dtype
from scaling.records.errors import UsageError
from scaling.tasks.catalogue import load_task

_SCALING = ((1, 1), (8, 1), (8, 4), (8, 16), (64, 8))  # latent paths, samples
_BATCH_SIZES = (8, 16, 32, 64, 128)  # of `generate`
_HEAD = 8  # tokens of each completion that are compared between cases
_OF_VLLM = ("vllm", "vllm-engine")  # cases that run in vLLM's own environment
_OF_LLAMA = ("llama-cpp", "llama-cpp-float16")  # rows of the case `llama-cpp`, in llama.cpp's own environment

Prompt = dict[str, Any]
Row = dict[str, Any]


def main() -> None:
    asked = arguments()
    try:
        if asked.case == "prompts":
            make_prompts(asked)
        elif asked.case:
            prompts = [
                prompt for prompt in torch.load(asked.job, map_location="cpu") if prompt["path"] < asked.latent_paths
            ]
            row = _CASES[asked.case](asked, prompts)
            print(json.dumps({"case": asked.case, **row, **circumstances(asked, prompts)}))
        else:
            sys.exit(compare(asked))
    except UsageError as error:
        sys.exit(f"error: {error}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m", help="bundled name, folder or Hub id")
    parser.add_argument("--assistant", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k"), help="file or folder of questions")
    for name, default in (("questions", 2), ("latent-paths", 8), ("samples", 4), ("new-tokens", 128), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float16"))
    parser.add_argument("--batch-size", default="auto", help="of the engine; `generate` picks its own")
    parser.add_argument("--vllm-python", type=Path, default=Path(".venv-vllm/bin/python"))
    parser.add_argument("--llama-python", type=Path, default=Path(".venv-llama/bin/python"))
    parser.add_argument("--llama-gguf", type=Path, help="the backbone as a GGUF file, for the case llama-cpp")
    parser.add_argument("--cases", default="engine,generate,vllm,vllm-engine")
    parser.add_argument("--scaling", action="store_true", help="the engine alone, one question, 1 to 512 completions")
    for hidden in ("--case", "--job"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    known = ("engine", "engine-float32", "engine-int8", "generate", *_OF_VLLM, "llama-cpp")
    if unknown := set(asked.cases.split(",")) - {*known}:
        parser.error(f"--cases: there is no case {', '.join(sorted(unknown))}; give some of {','.join(known)}")
    if "llama-cpp" in asked.cases.split(","):
        if not (asked.llama_gguf and asked.llama_gguf.is_file()):
            parser.error("--cases llama-cpp takes the backbone as a GGUF file: give `--llama-gguf FILE`")
        if not asked.llama_python.is_file():
            parser.error(f"--llama-python: {asked.llama_python} does not exist; give a Python with llama-cpp-python")
    return asked


def compare(asked: argparse.Namespace) -> int:
    """All cases, one after the other, each in its own process. Returns the exit status: 1 where a case failed."""
    cells = _SCALING if asked.scaling else ((asked.latent_paths, asked.samples),)
    named = ["engine"] if asked.scaling else asked.cases.split(",")
    cases = [row for case in named for row in (_OF_LLAMA if case == "llama-cpp" else (case,))]
    if {*_OF_VLLM} & {*cases} and not asked.vllm_python.is_file():
        say(f"vLLM: left out, as {asked.vllm_python} does not exist; `make test-vllm` builds it")
        cases = [case for case in cases if case not in _OF_VLLM]
    failed = False
    say(f"on {device_name()}")
    with TemporaryDirectory() as folder:
        job = ["--job", str(Path(folder) / "prompts.pt"), "--questions", str(1 if asked.scaling else asked.questions)]
        # made in a process of their own: on Linux a child's peak memory starts at that of its parent
        if "failed" in child("prompts", [*job, "--latent-paths", str(max(paths for paths, _ in cells))]):
            return 1
        for paths, samples in cells:
            for row in measured(asked, cases, [*job, "--latent-paths", str(paths), "--samples", str(samples)]):
                failed = failed or "failed" in row
                print(json.dumps(row), flush=True)
    return int(failed)


def measured(asked: argparse.Namespace, cases: list[str], options: list[str]) -> Iterator[Row]:
    """The floor's line, then each case's, with what takes two cases to know."""
    yield (floor := child("floor", options))
    heads = None
    for case in cases:
        if case in (*_OF_VLLM, *_OF_LLAMA):
            names = ["backbone", "device", "completions", "prompt_tokens", *(["dtype"] if case in _OF_VLLM else [])]
            row = {"case": case, **child(case, options, asked), **{name: floor.get(name) for name in names}}
        elif case == "generate":
            row = child(
                case, [*options, "--rows", str(child("batch-size", options).get("batch_size", _BATCH_SIZES[0]))]
            )
        else:
            row = child(case, options)
        start = row.pop("heads", None)
        heads = heads or start
        if start and heads:
            row["same_start"] = round(sum(a == b for a, b in zip(start, heads, strict=True)) / len(heads), 3)
        if "decode_tokens_per_second" in row and "tokens_per_second" in floor:
            row["share_of_floor"] = round(row["decode_tokens_per_second"] / floor["tokens_per_second"], 3)
        yield row


def child(case: str, options: list[str], asked: argparse.Namespace | None = None) -> Row:
    """The row that a case's own process prints. asked: the run's options, where another environment runs the case."""
    say(f"{case} {' '.join(options[4:])}")
    command = [sys.executable, __file__, *sys.argv[1:], *options, "--case", case]
    if asked and case == "vllm-engine":
        command[0] = str(asked.vllm_python)
    elif asked:
        command = foreign_command(case, asked) + options
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        say(f"{case}: failed with exit status {done.returncode}")
        return {"case": case, "failed": done.returncode}
    lines = done.stdout.strip().splitlines()
    row: Row = json.loads(lines[-1]) if lines else {}
    return row


def foreign_command(case: str, asked: argparse.Namespace) -> list[str]:
    """What runs a case whose script imports nothing of this project."""
    own: list[object]
    if case == "vllm":
        own = [asked.vllm_python, beside("vllm_case.py"), "--model", model_files.locate(asked.backbone)]
        own += ["--dtype", asked.dtype]
    else:
        own = [asked.llama_python, beside("llama_cpp_case.py"), "--gguf", asked.llama_gguf]
        own += ["--threads", torch.get_num_threads(), *(["--float16"] if case == "llama-cpp-float16" else [])]
    return [str(word) for word in (*own, "--new-tokens", asked.new_tokens, "--repeats", asked.repeats)]


def beside(name: str) -> Path:
    return Path(__file__).with_name(name)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def make_prompts(asked: argparse.Namespace) -> None:
    """Writes the soft prompts of the job, with all their embeddings [T, D] for whoever knows no soft prompts."""
    device, dtype = place(asked)
    backbone, assistant = loading.load_pair(asked.backbone, asked.assistant, device=device, dtype=dtype)
    data = asked.data if asked.data.exists() else None
    if data is None:
        say(f"{asked.data} does not exist: taking the project's own arithmetic questions")
    task = load_task("gsm8k" if data else "arithmetic", data=data, limit=asked.questions)
    untrained = RunConfig.model_validate({"latent_paths": asked.latent_paths, "soft_tokens": 4, "device": device})
    thinker = make_thinker(untrained, None, backbone, assistant)
    method = SoftCoT(
        backbone,
        Thinking(assistant, backbone, thinker, task=task.definition, num_tokens=4),
        task=task.definition,
        num_slots=4,
    )
    prompts = [prompt for question in task.questions for prompt in method.prompts(question, range(asked.latent_paths))]
    with torch.inference_mode():
        saved = [{**vars(prompt), "embeddings": embedded(backbone.model, prompt).cpu()} for prompt in prompts]
    torch.save(saved, asked.job)
    rows = [prompt["embeddings"].float().numpy() for prompt in saved]
    numbers = {question.id: number for number, question in enumerate(task.questions)}
    np.savez(  # for an environment without torch
        Path(asked.job).with_suffix(".npz"),
        embeddings=np.concatenate(rows),
        lengths=[len(row) for row in rows],
        questions=[numbers[prompt.question_id] for prompt in prompts],
    )


def place(asked: argparse.Namespace) -> tuple[str, torch.dtype]:
    device = pick_device("auto")
    return device, pick_dtype(asked.dtype, device)


def load(asked: argparse.Namespace) -> PreTrainedModel:
    return load_backbone(asked).model


def load_backbone(asked: argparse.Namespace) -> loading.LanguageModel:
    device, dtype = place(asked)
    return loading.load(model_files.locate(asked.backbone), name=asked.backbone, device=device, dtype=dtype)


def device_name() -> str:
    return torch.cuda.get_device_name() if pick_device("auto") == "cuda" else cpu_name()


def circumstances(asked: argparse.Namespace, prompts: list[Prompt]) -> Row:
    device, dtype = place(asked)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    on_device = {"peak_device_memory_mb": torch.cuda.max_memory_allocated() >> 20} if device == "cuda" else {}
    return {
        "peak_memory_mb": peak >> 20,
        **on_device,
        "backbone": asked.backbone,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "completions": len(prompts) * asked.samples,
        "prompt_tokens": sum(len(prompt["embeddings"]) for prompt in prompts) * asked.samples,
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"cuda": torch.version.cuda},
    }


def timings(asked: argparse.Namespace, work: Callable[[], list[list[int]]]) -> Row:
    """The timed repetitions of a job that returns the tokens of each completion."""
    began = [time.process_time()]

    def measured() -> list[list[int]]:
        done = work()
        began.append(time.process_time())
        return done

    seconds, tokens = zip(*(timed(measured) for _ in range(asked.repeats)), strict=True)
    generated = sum(map(len, tokens[-1]))
    return {
        "tokens": generated,
        "seconds": [round(took, 3) for took in seconds],
        "cpu_seconds": [round(after - before, 3) for before, after in pairwise(began)],
        "tokens_per_second": round(generated / statistics.median(seconds), 1),
        "heads": [ids[:_HEAD] for ids in tokens[-1]],
    }


def make_engine(model: PreTrainedModel, batch_size: str, *, tokens_per_row: int) -> TransformersEngine:
    """The engine as `scale-run` makes it, but for end tokens."""
    free = torch.cuda.mem_get_info()[0] if model.device.type == "cuda" else available_memory()
    rows, tokens = auto_limits(
        model,
        tokens_per_row=tokens_per_row,
        free_bytes=free,
        batch_size=None if batch_size == "auto" else int(batch_size),
        max_batch_tokens=None,
    )
    return TransformersEngine(model, end_tokens=(), batch_size=rows, max_batch_tokens=tokens)


def engine_float32_case(asked: argparse.Namespace, prompts: list[Prompt]) -> Row:
    asked.dtype = "float32"
    return engine_case(asked, prompts)


def engine_int8_case(asked: argparse.Namespace, prompts: list[Prompt]) -> Row:
    int8.refuse_unfit(place(asked)[0])
    backbone = load_backbone(asked)
    int8.quantise(backbone)
    return {**engine_case(asked, prompts, backbone.model), "quantize": "int8"}


def engine_case(asked: argparse.Namespace, prompts: list[Prompt], model: PreTrainedModel | None = None) -> Row:
    fields = [field.name for field in dataclasses.fields(SoftPrompt)]
    soft = [SoftPrompt(**{name: prompt[name] for name in fields}) for prompt in prompts]
    wanted = [Request(prompt, sample, seed=0) for prompt in soft for sample in range(asked.samples)]
    order = {id(request): number for number, request in enumerate(wanted)}
    tokens_per_row = max(map(len, soft)) + asked.new_tokens
    engine = make_engine(model or load(asked), asked.batch_size, tokens_per_row=tokens_per_row)

    def decode(requests: list[Request], new_tokens: int) -> list[list[int]]:
        engine.counters = Counters()
        found = engine.generate(requests, Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=new_tokens))
        return [done.tokens for done in sorted(found, key=lambda done: order[id(done.request)])]

    decode(wanted[:1], 2)
    first_token, _ = timed(lambda: decode(wanted[: engine.batch_size], 1))
    one_token = timed(lambda: decode(wanted, 1))[0] if len(wanted) > engine.batch_size else first_token
    row = timings(asked, lambda: decode(wanted, asked.new_tokens))
    later = len(wanted) * (asked.new_tokens - 1) / (statistics.median(row["seconds"]) - one_token)
    return {
        **row,
        "decode_tokens_per_second": round(later, 1),
        "first_token_seconds": round(first_token, 3),
        "batch_size": engine.batch_size,
        "held_memory_mb": psutil.Process().memory_info().rss >> 20,
        "counters": dataclasses.asdict(engine.counters),
    }


def vllm_engine_case(asked: argparse.Namespace, prompts: list[Prompt]) -> Row:
    """What `scale-run --engine vllm` does with these prompts; every repetition begins with an empty prefix cache."""
    peaks = watch_memory()
    fields = [field.name for field in dataclasses.fields(SoftPrompt)]
    soft = [SoftPrompt(**{name: prompt[name] for name in fields}) for prompt in prompts]
    wanted = [Request(prompt, sample, seed=0) for prompt in soft for sample in range(asked.samples)]
    order = {id(request): number for number, request in enumerate(wanted)}
    backbone = loading.load_embeddings_only(asked.backbone, dtype=place(asked)[1])
    context = -(-(max(map(len, soft)) + asked.new_tokens) // 128) * 128
    settings = vllm_process.engine_settings(
        model_files.locate(asked.backbone), dtype=asked.dtype, context=context, soft=True, seed=0, given={}
    )
    embeddings = embedded_prompts(backbone, dtype=asked.dtype, context=context)
    process = vllm_process.acquire(settings, {}, seeds="streams", sampled=True)
    engine = VllmEngine(process, embeddings, end_tokens=(), seeds="streams")

    def decode(requests: list[Request], new_tokens: int) -> list[list[int]]:
        engine.counters = Counters()
        process.clear_prefix_cache()
        found = engine.generate(requests, Decoding(temperature=0.0, top_p=1.0, top_k=0, max_new_tokens=new_tokens))
        return [done.tokens for done in sorted(found, key=lambda done: order[id(done.request)])]

    decode(wanted[:1], 2)
    first_question = [one for one in wanted if one.prompt.question_id == wanted[0].prompt.question_id]
    first_token, _ = timed(lambda: decode(first_question, 1))
    row = timings(asked, lambda: decode(wanted, asked.new_tokens))
    counters = {key: getattr(engine.counters, key) for key in ("prefill_computed", "prefill_avoided")}
    engine.close()
    memory = peak_memory(peaks)
    return {**row, "first_token_seconds": round(first_token, 3), "counters": counters, "tree_memory_mb": memory}


@torch.inference_mode()
def generate(model: PreTrainedModel, rows: list[Tensor], *, size: int, new_tokens: int) -> list[list[int]]:
    """The library's own loop, `size` rows at once, every row with its own copy of the prompt, padded on the left."""
    tokens: list[list[int]] = []
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        inputs = pad_sequence(batch, batch_first=True, padding_side="left").to(model.device)
        mask = pad_sequence([row.new_ones(len(row), dtype=torch.long) for row in batch], True, padding_side="left")
        limits = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        tokens += model.generate(inputs_embeds=inputs, attention_mask=mask.to(model.device), **limits).tolist()
    return tokens


def generate_case(asked: argparse.Namespace, prompts: list[Prompt]) -> Row:
    model = load(asked)
    rows = [prompt["embeddings"] for prompt in prompts for _ in range(asked.samples)]
    generate(model, rows[:1], size=1, new_tokens=2)
    first_token, _ = timed(lambda: generate(model, rows[: asked.rows], size=asked.rows, new_tokens=1))
    return {
        **timings(asked, lambda: generate(model, rows, size=asked.rows, new_tokens=asked.new_tokens)),
        "first_token_seconds": round(first_token, 3),
        "batch_size": asked.rows,
        "counters": {"prefill_computed": sum(map(len, rows)), "prefill_avoided": 0},
    }


def batch_size_case(asked: argparse.Namespace, prompts: list[Prompt]) -> Row:
    """The batch size of `generate` with the most tokens a second, each tried once at a quarter of the length; it does not
    count in the peak memory of `generate`."""
    model = load(asked)
    rows = [prompt["embeddings"] for prompt in prompts for _ in range(asked.samples)]
    generate(model, rows[:1], size=1, new_tokens=2)
    short = max(1, asked.new_tokens // 4)
    speeds = {}
    for size in [size for size in _BATCH_SIZES if size <= len(rows)] or [len(rows)]:
        seconds, _ = timed(lambda: generate(model, rows[:size], size=size, new_tokens=short))  # noqa: B023
        speeds[size] = size * short / seconds
    return {"batch_size": max(speeds, key=lambda size: speeds[size])}


def floor_case(asked: argparse.Namespace, prompts: list[Prompt]) -> Row:
    device, dtype = place(asked)
    config = AutoConfig.from_pretrained(model_files.locate(asked.backbone)).get_text_config()
    return floor(config, rows=min(len(prompts) * asked.samples, 256), device=device, dtype=dtype)


_CASES: dict[str, Callable[[argparse.Namespace, list[Prompt]], Row]] = {
    "engine": engine_case,
    "engine-float32": engine_float32_case,
    "engine-int8": engine_int8_case,
    "batch-size": batch_size_case,
    "generate": generate_case,
    "vllm-engine": vllm_engine_case,
    "floor": floor_case,
}

if __name__ == "__main__":
    main()
