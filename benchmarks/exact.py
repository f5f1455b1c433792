"""What `--exact` costs, and how many completions differ between batch sizes with and without it.

usage: exact.py [--questions 2] [--batch-sizes 64,20] [--dtypes float32,bfloat16] [--repeats 2] [--backbone NAME] [--quick]

JSON lines on stdout, one for each type, way and batch size; progress on stderr. Arithmetic questions x 8 latent paths x 4
samples as `scale-run` draws them by default, at temperature 0.5, all in one process; repetitions come in turns, so that
what else the machine does falls on all alike. Two cores take about 6 minutes.

tokens_per_second: generated tokens by the seconds from the first prompt to the last token, thoughts included; median and
all. differing: completions whose tokens are not those of the first batch size in the same type and way;
differing_log_probs: whose log-probability is not the same to the last bit. block: rows of a pass with `--exact`.

--quick: one question, 2 x 2 completions of 8 tokens, to see that it runs; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from scaling import models
from scaling.config import DEFAULT_MODEL, RunConfig
from scaling.engines.base import Decoding
from scaling.engines.transformers import TransformersEngine
from scaling.hardware import cpu_name
from scaling.run import Setup, prepare
from scaling.sampler import Grid, requests

_MAX_TOKENS = 1 << 20  # of keys and values, so that rows alone are the bound


@dataclass(eq=False)
class Case:
    """A type, a way and a batch size; what its repetitions gave. drawn: tokens and log-probability by completion."""

    dtype: str
    exact: bool
    batch_size: int
    rates: list[float] = field(default_factory=list)
    drawn: dict[tuple[str, int, int], tuple[list[int], float | None]] = field(default_factory=dict)
    block: int | None = None


class Quiet:
    """A watcher that says what happens on stderr."""

    def status(self, text: str) -> None:
        print(text, file=sys.stderr)

    def start(self, *_: Any) -> None: ...

    def completion(self, *_: Any) -> None: ...


def main() -> None:
    arguments = parse()
    models.keep_loaded(2 * len(arguments.dtypes))  # with and without, on the same weights
    cases = [
        Case(dtype, exact, size)
        for dtype in arguments.dtypes
        for exact in (False, True)
        for size in arguments.batch_sizes
    ]
    for number in range(arguments.repeats):
        for case in cases:
            draw(case, arguments)
            print(
                f"{number + 1}/{arguments.repeats} {case.dtype} exact={case.exact} {case.batch_size} rows",
                file=sys.stderr,
            )
    for case in cases:
        first = next(other for other in cases if (other.dtype, other.exact) == (case.dtype, case.exact))
        print(json.dumps(result(case, first)), flush=True)


def draw(case: Case, arguments: argparse.Namespace) -> None:
    size = {"latent_paths": 2, "samples": 2, "max_new_tokens": 8} if arguments.quick else {"latent_paths": 8}
    asked = {"dtype": case.dtype, "device": arguments.device, "limit": arguments.questions, **size}
    pair = {"backbone": arguments.backbone, "assistant": arguments.backbone}
    setup = prepare(RunConfig(**asked, **pair, exact=case.exact or None), Quiet())
    engine = TransformersEngine(
        setup.backbone.model,
        end_tokens=setup.backbone.end_tokens,
        batch_size=case.batch_size,
        max_batch_tokens=_MAX_TOKENS,
        exact=case.exact,
    )
    began = time.monotonic()
    case.drawn, case.block = drawn_by(engine, setup), engine.block
    case.rates.append(sum(len(tokens) for tokens, _ in case.drawn.values()) / (time.monotonic() - began))


def drawn_by(engine: TransformersEngine, setup: Setup) -> dict[tuple[str, int, int], tuple[list[int], float | None]]:
    config = setup.config
    grid = Grid(setup.task.questions, config.latent_paths or 1, config.samples, config.seed)
    decoding = Decoding(config.temperature, config.top_p, config.top_k, config.max_new_tokens or 1, log_probs=True)
    return {
        (done.request.prompt.question_id, done.request.prompt.path, done.request.sample): (done.tokens, done.log_prob)
        for done in engine.generate(requests(grid, (), setup.method), decoding)
    }


def result(case: Case, first: Case) -> dict[str, Any]:
    keys = case.drawn.keys()
    return {
        **{"dtype": case.dtype, "exact": case.exact, "batch_size": case.batch_size, "block": case.block},
        "tokens_per_second": statistics.median(case.rates),
        "rates": case.rates,
        "completions": len(keys),
        "differing": sum(case.drawn[key][0] != first.drawn[key][0] for key in keys),
        "differing_log_probs": sum(case.drawn[key][1] != first.drawn[key][1] for key in keys),
        **{"processor": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--questions", type=int, default=2)
    parser.add_argument("--batch-sizes", type=lambda text: [int(size) for size in text.split(",")], default=[64, 20])
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--backbone", default=DEFAULT_MODEL)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.questions, arguments.batch_sizes, arguments.repeats = 1, [4, 3], 1
    return arguments


if __name__ == "__main__":
    main()
