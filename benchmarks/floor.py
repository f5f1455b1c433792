"""The least time that a decoding step can take on this machine, as measured on it.

A step reads every weight once, and multiplies it with every row: it takes at least the longer of the two, at the speed of
memory and at the best that matrix products reach, which is that of many rows. Knows no engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

_PRODUCTS = 20  # a measurement
_MANY = 1024  # rows; of fewer the library may be slow, which is no property of the machine


def floor(config: Any, *, rows: int, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """config: of the backbone; rows: completions decoded together. The rate of products is that of `dtype` or of float32,
    whichever is faster: without bfloat16 instructions a CPU does better to multiply in float32."""
    parameters = step_parameters(config)
    values = torch.ones(1 << 28, device=device)
    bandwidth = values.numel() * 4 / best(values.sum)
    rate = max(matrix_rate(config, device=device, dtype=kind) for kind in {dtype, torch.float32})
    step = max(parameters * dtype.itemsize / bandwidth, rows * 2 * parameters / rate)
    return {
        "tokens_per_second": round(rows / step, 1),
        "step_seconds": round(step, 6),
        "rows": rows,
        "read_gb_per_second": round(bandwidth / 1e9, 2),
        "matrix_gflop_per_second": round(rate / 1e9, 1),
        "weight_bytes_per_step": parameters * dtype.itemsize,
        "flops_per_token": 2 * parameters,
    }


def matrix_rate(config: Any, *, device: str, dtype: torch.dtype) -> float:
    """FLOP/s of many rows [R, D] times [D, FF] in the backbone's own sizes."""
    left = torch.randn(_MANY, config.hidden_size, device=device, dtype=dtype)
    right = torch.randn(config.hidden_size, config.intermediate_size, device=device, dtype=dtype)
    return _PRODUCTS * 2 * left.numel() * right.shape[1] / best(lambda: [left @ right for _ in range(_PRODUCTS)])


def step_parameters(config: Any) -> int:
    """Parameters that take part in a step: all but the input embedding, the output layer also where it is the same."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embedding, output = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    others = sum(weight.numel() for weight in model.parameters() if weight is not embedding and weight is not output)
    return int(others + output.numel())


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work returned."""
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def best(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of nine."""

    def once() -> None:
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    once()
    return min(timed(once)[0] for _ in range(9))
