"""The vLLM case of `decode.py`: runs in vLLM's own environment, so it imports nothing of this project.

usage: vllm_case.py --job FILE --model FOLDER [--dtype bfloat16] [--samples 4] [--new-tokens 128] [--repeats 3]

The last line on stdout is the result as JSON; logs go to stderr. The prefix cache is emptied before every repetition, so
that a repetition shares prompts inside the job and not with the one before it. Loading and compiling are not timed.
vLLM's own settings are taken from the environment, VLLM_CPU_KVCACHE_SPACE (GiB, here 2 unless set) among them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import threading
import time
from importlib.metadata import version
from typing import Any

import psutil
import torch

_BLOCK = 128  # positions; `max_model_len` is a multiple of it
_SAMPLE_EVERY = 0.25  # seconds between two looks at the memory
_HEAD = 8  # as in `decode.py`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    for name, default in (("samples", 4), ("new-tokens", 128), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked, _ = parser.parse_known_args()  # `decode.py` passes on more than this case needs
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_LOGGING_STREAM", "ext://sys.stderr")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    peaks = watch_memory()
    row = measure(asked, torch.load(asked.job))
    print(json.dumps({**row, "peak_memory_mb": peak_memory(peaks)}), flush=True)


def measure(asked: argparse.Namespace, prompts: list[dict[str, Any]]) -> dict[str, Any]:
    """The warm-up, the first token and the repetitions, on one loaded model."""
    llm = load(asked, longest=max(len(prompt["embeddings"]) for prompt in prompts))
    decode(llm, prompts[:1], samples=1, new_tokens=2)
    first_question = [prompt for prompt in prompts if prompt["question_id"] == prompts[0]["question_id"]]
    first_token, _ = decode(llm, first_question, samples=asked.samples, new_tokens=1)
    seconds, counts = [], {}
    for _ in range(asked.repeats):
        before = prefix_cache(llm)
        took, tokens = decode(llm, prompts, samples=asked.samples, new_tokens=asked.new_tokens)
        seconds.append(took)
        counts = {name: value - before[name] for name, value in prefix_cache(llm).items()}
    generated = sum(map(len, tokens))
    return {
        "tokens": generated,
        "seconds": [round(took, 3) for took in seconds],
        "tokens_per_second": round(generated / statistics.median(seconds), 1),
        "first_token_seconds": round(first_token, 3),
        "counters": spared(counts),
        "threads": os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "auto"),
        "versions": {name: found for name in ("torch", "transformers", "vllm") if (found := installed(name))},
        "heads": [ids[:_HEAD] for ids in tokens],
    }


def load(asked: argparse.Namespace, *, longest: int) -> Any:
    """vLLM's engine with its defaults, but for soft prompts and for positions no longer than the job's."""
    from vllm import LLM  # only in its own environment; reads the settings above

    return LLM(
        model=asked.model,
        dtype=asked.dtype,
        skip_tokenizer_init=True,
        enable_prompt_embeds=True,
        enable_prefix_caching=True,
        max_model_len=-(-(longest + asked.new_tokens) // _BLOCK) * _BLOCK,
        disable_log_stats=False,  # they hold the counts of the prefix cache
    )


def decode(llm: Any, prompts: list[dict[str, Any]], *, samples: int, new_tokens: int) -> tuple[float, list[list[int]]]:
    """Seconds, and the token ids of each completion, prompt by prompt; starts with an empty prefix cache."""
    from vllm import SamplingParams

    parameters = SamplingParams(
        temperature=0.0, ignore_eos=True, min_tokens=new_tokens, max_tokens=new_tokens, detokenize=False
    )
    llm.reset_prefix_cache()
    began = time.perf_counter()
    # vLLM refuses n > 1 where decoding is greedy; its n would make the same separate requests
    inputs = [{"prompt_embeds": prompt["embeddings"]} for prompt in prompts for _ in range(samples)]
    results = llm.generate(inputs, parameters, use_tqdm=False)
    seconds = time.perf_counter() - began
    return seconds, [list(result.outputs[0].token_ids) for result in results]


def prefix_cache(llm: Any) -> dict[str, int]:
    """Prompt tokens that vLLM looked up in its prefix cache so far, and those it found; empty where it does not say."""
    names = {"vllm:prefix_cache_queries": "queries", "vllm:prefix_cache_hits": "hits"}
    found = {names[metric.name]: int(metric.value) for metric in llm.get_metrics() if metric.name in names}
    return found if len(found) == len(names) else {}


def spared(counts: dict[str, int]) -> dict[str, int] | None:
    if not counts:
        return None
    return {"prefill_computed": counts["queries"] - counts["hits"], "prefill_avoided": counts["hits"]}


def installed(name: str) -> str | None:
    """The version of a package; vLLM's build for CPUs has a name of its own."""
    for distribution in (name, f"{name}-cpu"):
        try:
            return version(distribution)
        except ImportError:
            continue
    return None


def watch_memory() -> dict[int, int]:
    """Peak resident bytes by process id, for this process's children, kept up to date by a thread."""
    peaks: dict[int, int] = {}

    def look() -> None:
        own = psutil.Process()
        while True:
            for child in own.children(recursive=True):
                try:
                    peaks[child.pid] = max(peaks.get(child.pid, 0), child.memory_info().rss)
                except psutil.Error:  # it has just ended
                    continue
            time.sleep(_SAMPLE_EVERY)

    threading.Thread(target=look, daemon=True).start()
    return peaks


def peak_memory(children: dict[int, int]) -> int:
    """MB over the process tree: each process's own peak, added up."""
    unit = 1 if sys.platform == "darwin" else 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return round((own + sum(children.copy().values())) / 2**20)


if __name__ == "__main__":
    main()
