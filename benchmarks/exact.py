"""How many completions change with the batch size, with `--exact` and without, and what it costs: one JSON line a case.

The same questions are decoded at each batch size by the in-process engine, in each type; the first size is what the others
are compared with. Cases with and without `--exact` take turns, `--repeats` times. tokens_per_second: median, at each size.

    python benchmarks/exact.py                      # 4 questions x 4 paths x 4 samples, float32 and bfloat16
    python benchmarks/exact.py --quick              # a smoke test
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from scaling.config import RunConfig
from scaling.engines.base import Decoding
from scaling.engines.local.engine import TransformersEngine
from scaling.models.hardware import cpu_name, device_type
from scaling.run import Setup, prepare
from scaling.sampler import Grid, requests

_TOKENS_HELD = 200_000

Drawn = dict[tuple[str, int, int], list[int]]


class _Silent:
    """Shows nothing of what a run tells."""

    def status(self, text: str) -> None: ...
    def start(self, grid: Grid, done: Any, folder: Any) -> None: ...
    def completion(self, completion: Any) -> None: ...


def draw(setup: Setup, *, rows: int, exact: bool) -> tuple[Drawn, float]:
    """The tokens of every completion by (question, path, sample), and tokens a second."""
    config = setup.config
    grid = Grid(setup.task.questions, config.latent_paths or 1, config.samples, config.seed)
    ends = setup.backbone.end_tokens
    engine = TransformersEngine(
        setup.backbone.model, end_tokens=ends, batch_size=rows, max_batch_tokens=_TOKENS_HELD, exact=exact
    )
    decoding = Decoding(config.temperature, config.top_p, config.top_k, config.max_new_tokens or 1, log_probs=True)
    began, found = time.monotonic(), {}
    for done in engine.generate(requests(grid, (), setup.method), decoding):
        prompt = done.request.prompt
        found[prompt.question_id, prompt.path, done.request.sample] = done.tokens
    return found, sum(map(len, found.values())) / (time.monotonic() - began)


def compare(asked: argparse.Namespace, dtype: str) -> list[dict[str, Any]]:
    """A case with `--exact` and one without."""
    size = {"limit": asked.questions, "latent_paths": asked.latent_paths, "samples": asked.samples}
    setups = {
        exact: prepare(
            RunConfig.model_validate({**size, "dtype": dtype, "device": asked.device, "exact": exact or None}),
            _Silent(),
        )
        for exact in (False, True)
    }
    drawn: dict[tuple[bool, int], Drawn] = {}
    speeds: dict[tuple[bool, int], list[float]] = {}
    for _ in range(asked.repeats):
        for rows in asked.rows:
            for exact, setup in setups.items():
                drawn[exact, rows], speed = draw(setup, rows=rows, exact=exact)
                speeds.setdefault((exact, rows), []).append(speed)
    cases = []
    for exact in setups:
        first = drawn[exact, asked.rows[0]]
        cases.append(
            {
                "case": "exact" if exact else "default",
                "dtype": dtype,
                "device": cpu_name() if device_type(asked.device) == "cpu" else asked.device,
                "completions": len(first),
                "rows": asked.rows,
                "differing": {
                    rows: sum(first[key] != drawn[exact, rows][key] for key in first) for rows in asked.rows[1:]
                },
                "tokens_per_second": {rows: round(statistics.median(speeds[exact, rows]), 1) for rows in asked.rows},
            }
        )
    return cases


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("questions", 4), ("latent-paths", 4), ("samples", 4), ("repeats", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[64, 16, 5], help="batch sizes, the first to compare with"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="1 question x 2 x 2 in float32")
    asked = parser.parse_args()
    if asked.quick:
        asked.questions, asked.latent_paths, asked.samples, asked.rows, asked.dtypes = 1, 2, 2, [4, 2], ["float32"]
    return asked


if __name__ == "__main__":
    arguments = parse()
    for kind in arguments.dtypes:
        for case in compare(arguments, kind):
            print(json.dumps(case), flush=True)
