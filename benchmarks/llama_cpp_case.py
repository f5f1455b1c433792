"""The llama.cpp case of `decode.py`: runs in an environment with llama-cpp-python, so it imports nothing of this project.

usage: llama_cpp_case.py --job FILE --gguf FILE [--float16] [--samples 4] [--new-tokens 128] [--repeats 3] [--threads 1]

The last line on stdout is the result as JSON; logs go to stderr. llama.cpp is called as its own examples call it, by batches
of many sequences, with its defaults but for what the job needs: it reads the same soft prompts, as embeddings, computes what
the prompts of a question begin with once, the rest of each prompt once, and copies both to the completions by `seq_cp`. Up
to 64 completions are decoded together. Each step takes the most probable token of the logits; end tokens end nothing.

layout: of the cache of keys and values, the faster of *unified* (one buffer, every sequence's attention passes over it) and
*split* (a buffer for each sequence, which a copied prompt is copied into). layouts: the rates of both.
weights: what the file says of itself. build: the instructions that llama.cpp was built for.
--float16: the same model with 16 bits a weight, as llama.cpp's own tool writes it. What rounding took is not given back.
"""

from __future__ import annotations

import argparse
import json
import logging
import resource
import statistics
import sys
import time
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_SEQUENCES = 64  # decoded together
_BATCH = 2048  # prompt tokens of one call: llama.cpp's default
_BLOCK = 256  # positions; llama.cpp rounds a sequence's up to a multiple of it
_LAYOUTS = {"unified": True, "split": False}
_HEAD = 8  # as in `decode.py`

Floats = npt.NDArray[np.float32]
Prompt = tuple[int, Floats]  # number of its question, embeddings [T, D]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", required=True, help="of decode.py; the prompts lie beside it as .npz")
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--float16", action="store_true")
    for name, default in (("samples", 4), ("new-tokens", 128), ("repeats", 3), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked, _ = parser.parse_known_args()  # `decode.py` passes on more than this case needs
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # it prints every tensor
    job = Path(asked.job)
    if asked.float16:
        source, asked.gguf = asked.gguf, str(job.with_name("float16.gguf"))
        # by a process of its own, so that its memory does not count
        writing = get_context("spawn").Process(target=write_float16, args=(source, asked.gguf))
        writing.start()
        writing.join()
    print(json.dumps(measure(asked, read_prompts(job.with_suffix(".npz")))), flush=True)


def write_float16(source: str, target: str) -> None:
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_F16, True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), settings):
        sys.exit(f"error: llama.cpp cannot write {source} with 16 bits")


def read_prompts(path: Path) -> list[Prompt]:
    saved = np.load(path)
    rows = np.split(saved["embeddings"], np.cumsum(saved["lengths"])[:-1])
    return list(zip(saved["questions"].tolist(), rows, strict=True))


def measure(asked: argparse.Namespace, prompts: list[Prompt]) -> dict[str, Any]:
    """The row of the faster layout, on one loaded model."""
    import llama_cpp

    model = llama_cpp.llama_model_load_from_file(asked.gguf.encode(), llama_cpp.llama_model_default_params())
    if not model:
        sys.exit(f"error: llama.cpp cannot load {asked.gguf}")
    rows = [measure_layout(asked, prompts, model, layout) for layout in _LAYOUTS]
    text = llama_cpp.ctypes.create_string_buffer(128)
    llama_cpp.llama_model_desc(model, text, len(text))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        **max(rows, key=lambda row: float(row["tokens_per_second"])),
        "layouts": {row["layout"]: row["tokens_per_second"] for row in rows},
        "weights": text.value.decode(),
        "build": llama_cpp.llama_print_system_info().decode(),
        "threads": asked.threads,
        "peak_memory_mb": peak >> 20,
        "versions": {"llama-cpp-python": llama_cpp.__version__, "numpy": np.__version__},
    }


def measure_layout(asked: argparse.Namespace, prompts: list[Prompt], model: Any, layout: str) -> dict[str, Any]:
    """The warm-up, the first token and the repetitions."""
    completions = [prompt for prompt in range(len(prompts)) for _ in range(asked.samples)]
    batches = [completions[start : start + _SEQUENCES] for start in range(0, len(completions), _SEQUENCES)]
    sizes = {"sequences": len(batches[0]), "new_tokens": asked.new_tokens, "threads": asked.threads}
    decoder = Decoder(model, prompts, **sizes, unified=_LAYOUTS[layout])
    decoder.decode(batches[0][:1], 2)
    began = time.perf_counter()
    decoder.decode(batches[0], 1)
    first_token = time.perf_counter() - began
    seconds, cpu, tokens = [], [], []
    for _ in range(asked.repeats):
        decoder.computed = 0
        began, cpu_began = time.perf_counter(), time.process_time()
        tokens = [ids for batch in batches for ids in decoder.decode(batch, asked.new_tokens)]
        seconds.append(time.perf_counter() - began)
        cpu.append(time.process_time() - cpu_began)
    decoder.close()
    generated, flat = sum(map(len, tokens)), sum(len(prompts[prompt][1]) for prompt in completions)
    return {
        "layout": layout,
        "tokens": generated,
        "seconds": [round(took, 3) for took in seconds],
        "cpu_seconds": [round(took, 3) for took in cpu],
        "tokens_per_second": round(generated / statistics.median(seconds), 1),
        "first_token_seconds": round(first_token, 3),
        "batch_size": len(batches[0]),
        "counters": {"prefill_computed": decoder.computed, "prefill_avoided": flat - decoder.computed},
        "heads": [ids[:_HEAD] for ids in tokens],
    }


def shared_length(rows: list[Floats]) -> int:
    """Tokens that all prompts begin with; each keeps one at least, whose logits are read."""
    first, *others = rows
    length = min(map(len, rows)) - 1 if others else 0
    for other in others:
        different = (first[:length] != other[:length]).any(axis=1)
        length = int(different.argmax()) if different.any() else length
    return length


class Decoder:
    """llama.cpp's context with one completion to each of its sequences, which name their prompts by number."""

    def __init__(
        self, model: Any, prompts: list[Prompt], *, sequences: int, new_tokens: int, threads: int, unified: bool
    ) -> None:
        import llama_cpp

        self.api, self.prompts = llama_cpp, prompts
        self.computed = 0  # prompt tokens
        settings = llama_cpp.llama_context_default_params()
        longest = max(len(row) for _, row in prompts) + new_tokens
        settings.n_ctx = sequences * -(-longest // _BLOCK) * _BLOCK
        settings.n_seq_max, settings.n_batch = sequences, _BATCH
        settings.n_threads = settings.n_threads_batch = threads
        settings.kv_unified = unified
        self.context = llama_cpp.llama_init_from_model(model, settings)
        if not self.context:
            sys.exit(f"error: llama.cpp makes no cache of {settings.n_ctx} positions")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self.width = llama_cpp.llama_model_n_embd(model)
        self.of_embeddings = llama_cpp.llama_batch_init(_BATCH, self.width, 1)
        self.of_tokens = llama_cpp.llama_batch_init(sequences, 0, 1)

    def close(self) -> None:
        for batch in (self.of_embeddings, self.of_tokens):
            self.api.llama_batch_free(batch)
        self.api.llama_free(self.context)

    def decode(self, completions: list[int], new_tokens: int) -> list[list[int]]:
        """The tokens of each completion, given by its prompt; starts with an empty cache."""
        self.api.llama_memory_clear(self.memory, True)
        steps = [self.read(completions)]
        lengths = [len(self.prompts[prompt][1]) for prompt in completions]
        for step in range(new_tokens - 1):
            for place, token in enumerate(steps[-1]):
                self.of_tokens.token[place] = token
            steps.append(self.run(self.of_tokens, [(place, at + step, True) for place, at in enumerate(lengths)]))
        return [list(tokens) for tokens in zip(*steps, strict=True)]

    def read(self, completions: list[int]) -> list[int]:
        """The first token of each completion: what a question's prompts share, then the rest of each, then copies."""
        holders = {prompt: completions.index(prompt) for prompt in completions}  # the sequence that reads it
        shared, rests, copies = [], [], []
        for _, group in groupby(holders, lambda prompt: self.prompts[prompt][0]):
            rows = {holders[prompt]: self.prompts[prompt][1] for prompt in group}
            length, first = shared_length(list(rows.values())), min(rows)
            shared.append((first, rows[first][:length], 0))
            rests += [(sequence, row[length:], length) for sequence, row in rows.items()]
            copies += [(first, sequence) for sequence in rows if length and sequence != first]
        self.embed(shared, read=False)
        self.copy(copies)
        tokens = dict(zip(holders, self.embed(rests, read=True), strict=True))
        self.copy([(holders[prompt], own) for own, prompt in enumerate(completions) if holders[prompt] != own])
        return [tokens[prompt] for prompt in completions]

    def copy(self, pairs: list[tuple[int, int]]) -> None:
        for source, target in pairs:
            self.api.llama_memory_seq_cp(self.memory, source, target, -1, -1)

    def embed(self, parts: list[tuple[int, Floats, int]], *, read: bool) -> list[int]:
        """Parts of prompts: sequence, embeddings, first position. Returns the token after each, where they are read."""
        tokens: list[int] = []
        rows = [
            (vector, (sequence, start + place, read and place == len(part) - 1))
            for sequence, part, start in parts
            for place, vector in enumerate(part)
        ]
        held = np.ctypeslib.as_array(self.of_embeddings.embd, (_BATCH, self.width))
        for start in range(0, len(rows), _BATCH):
            vectors, places = zip(*rows[start : start + _BATCH], strict=True)
            held[: len(vectors)] = vectors
            tokens += self.run(self.of_embeddings, list(places))
        self.computed += len(rows)
        return tokens

    def run(self, batch: Any, places: list[tuple[int, int, bool]]) -> list[int]:
        """One call: for each place its sequence, its position and whether its logits are read. The most probable tokens."""
        batch.n_tokens = len(places)
        for row, (sequence, position, read) in enumerate(places):
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
            batch.pos[row], batch.logits[row] = position, read
        if status := self.api.llama_decode(self.context, batch):
            sys.exit(f"error: llama.cpp cannot decode {len(places)} tokens (status {status})")
        if not (wanted := sum(read for _, _, read in places)):
            return []
        logits = np.ctypeslib.as_array(self.api.llama_get_logits(self.context), (wanted, self.vocabulary))
        tokens: list[int] = logits.argmax(axis=1).tolist()
        return tokens


if __name__ == "__main__":
    main()
