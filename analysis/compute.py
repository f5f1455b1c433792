"""What a grid of n paths x m samples costs a question: chains, tokens, FLOPs, seconds; and the bytes of the whole grid.

Formulas are those of `scaling.records.costs`, filled in with a run's own prompt lengths and generated
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from analysis.load import Run
from scaling.records.costs import RunCosts

Floats = NDArray[np.float64]

AXES = {
    "chains": "chains a question",
    "tokens": "generated tokens a question",
    "flops": "FLOPs a question",
    "seconds": "seconds a question",
}


@dataclass(frozen=True, eq=False)
class Compute:
    """A run's costs. axes: for each name of AXES that is known, [N, M]: mean over questions of what n x m costs, at
    [n - 1, m - 1]. Tokens and FLOPs of a completion are the mean over the question's N x M.

    seconds: those that the run took, the whole grid's share by tokens and within it by FLOPs; so only the last cell was
    measured, and that only where nothing outside the grid was drawn. unshared: FLOPs of a
    question whose completions share nothing. kv_bytes: keys and values of a question's whole grid, were all of it held at
    once. peak_bytes: of the process, as the run measured it. None where unknown.
    """

    axes: dict[str, Floats]
    unshared: float | None
    kv_bytes: float | None
    peak_bytes: int | None


def compute(run: Run) -> Compute:
    """The costs of `run`; FLOPs only where run.json holds the models' coefficients."""
    paths = np.arange(1, run.num_paths + 1)[:, None]
    chains = (paths * np.arange(1, run.num_samples + 1)).astype(float)
    axes = {"chains": chains, "tokens": chains * run.tokens.mean()}
    peak = run.summary.get("peak_memory_bytes")
    coefficients = run.environment.get("costs")
    if coefficients is None:
        return Compute(axes, None, None, peak)
    costs = RunCosts.from_json(coefficients)
    question = float(np.mean([costs.question(asked) for asked in run.questions]))
    path = float(np.mean([costs.path(asked) for asked in run.questions]))
    completion, unshared = _completions(run, costs)
    axes["flops"] = question + paths * path + chains * completion
    seconds = _seconds(run)
    if seconds is not None:
        axes["seconds"] = seconds * axes["flops"] / axes["flops"][-1, -1]
    return Compute(axes, unshared, _kv_bytes(run, costs), peak)


def _completions(run: Run, costs: RunCosts) -> tuple[float, float]:
    """Mean FLOPs of one completion, and of a question's whole grid when nothing is shared."""

    @cache  # few prompts and completions differ in length
    def decode(behind: int, tokens: int) -> int:
        return costs.backbone.decode(tokens, behind=behind)

    totals = [
        sum(decode(asked.prompt_tokens, tokens) for tokens in own.ravel().tolist())
        for asked, own in zip(run.questions, run.tokens, strict=True)
    ]
    size = run.num_paths * run.num_samples
    prompts = [
        costs.unshared(asked, [], paths=run.num_paths) + size * costs.backbone.forward(asked.prompt_tokens)
        for asked in run.questions
    ]
    return float(np.mean(totals)) / size, float(np.mean(totals) + np.mean(prompts))


def _seconds(run: Run) -> float | None:
    """Seconds of a question's whole grid. Measured are those of all tokens that the run ever generated, also for
    questions and samples that are no longer asked for; the grid has its share of them."""
    seconds, generated = run.summary.get("seconds"), run.summary.get("tokens", {}).get("generated")
    return seconds * float(run.tokens.sum(axis=(1, 2)).mean()) / generated if seconds and generated else None


def _kv_bytes(run: Run, costs: RunCosts) -> float:
    own = run.tokens.sum(axis=(1, 2)) - run.num_paths * run.num_samples  # the last token of each is never read
    path = np.array([asked.soft_tokens + asked.suffix_tokens for asked in run.questions]) * run.num_paths
    prefix = np.array([asked.prefix_tokens for asked in run.questions])
    return float(np.mean(prefix + path + own)) * costs.backbone.kv_bytes
