"""Computes what each grid of n paths x m samples costs for a question: chains, tokens, FLOPs, seconds; and memory.

The formulas are those of `scaling.records.costs`. Prompt lengths and numbers of generated tokens are those of the run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from analysis.load import Run
from scaling.records.costs import RunCosts
from scaling.records.names import CONTEMPLATION

Floats = NDArray[np.float64]

AXES = {
    "chains": "chains a question",
    "tokens": "generated tokens a question",
    "flops": "FLOPs a question",
    "seconds": "seconds a question",
}


@dataclass(frozen=True, eq=False)
class Compute:
    """The costs of a run, as means over its questions. What is not known is None.

    Attributes:
        axes: for each name in AXES that is known, [N, M]: the cost of a grid of n x m, at [n - 1, m - 1]. A completion
            counts the mean tokens and mean FLOPs of the question's N x M completions. "seconds" are the measured seconds of
            the whole grid, divided among smaller grids in proportion to FLOPs. So only the last cell is measured, and only
            where the run drew nothing outside the grid.
        unshared: FLOPs of the whole grid if its completions shared no prompt.
        kv_bytes: bytes of the keys and values of the whole grid, if all of it were in memory at once.
        peak_bytes: peak memory that the run measured.
        latent_steps: states of the backbone that the whole grid feeds back into it; None for methods that feed none back.
        sequential: forward passes of the backbone that a chain takes one after another: its latent steps and its tokens.
            None as for `latent_steps`.
        contemplation: tokens that stand for a chain of thought, of all paths; None for methods that have none.
    """

    axes: dict[str, Floats]
    unshared: float | None
    kv_bytes: float | None
    peak_bytes: int | None
    latent_steps: float | None = None
    sequential: float | None = None
    contemplation: float | None = None


def compute(run: Run) -> Compute:
    """The costs of `run`. FLOPs are known only where run.json holds the coefficients of the models."""
    paths = np.arange(1, run.num_paths + 1)[:, None]
    chains = (paths * np.arange(1, run.num_samples + 1)).astype(float)
    axes = {"chains": chains, "tokens": chains * run.tokens.mean()}
    peak = run.summary.get("peak_memory_bytes")
    costs, contemplation = _costs(run), _contemplation(run)
    if costs is None:
        return Compute(axes, None, None, peak, contemplation=contemplation)
    per_question = float(np.mean([costs.question(asked) for asked in run.questions]))
    per_path = float(np.mean([costs.path(asked) for asked in run.questions]))
    per_completion, unshared = _completions(run, costs)
    axes["flops"] = per_question + paths * per_path + chains * per_completion
    seconds = _seconds(run)
    if seconds is not None:
        axes["seconds"] = seconds * axes["flops"] / axes["flops"][-1, -1]
    steps = float(np.mean([costs.latent_steps(asked) for asked in run.questions]))
    latent, sequential = (run.num_paths * steps, steps + float(run.tokens.mean())) if steps else (None, None)
    return Compute(axes, unshared, _kv_bytes(run, costs), peak, latent, sequential, contemplation)


def _contemplation(run: Run) -> float | None:
    """How many contemplation tokens a question's prompts have, mean over questions. They stand in the slots of a prompt."""
    if run.config.get(CONTEMPLATION) is None:
        return None
    return run.num_paths * float(np.mean([asked.soft_tokens for asked in run.questions]))


def _costs(run: Run) -> RunCosts | None:
    """The coefficients of the run's models; None where run.json does not hold them.

    Earlier versions did not write that the paths of a perturbation, which alone has a size of its noise, share one thought.
    What a draw costs, which is nothing but for Gumbel noise, they do not tell.
    """
    coefficients = run.environment.get("costs")
    if coefficients is None:
        return None
    costs = RunCosts.from_json(coefficients)
    if run.config.get("noise") is not None and "one_thought" not in coefficients.get("thinker", {}):
        return replace(costs, thinker=replace(costs.thinker, one_thought=True))
    return costs


def _completions(run: Run, costs: RunCosts) -> tuple[float, float]:
    """The mean FLOPs of one completion, and those of a question's whole grid if its completions shared nothing."""

    @cache  # few prompts and completions differ in length
    def decode(behind: int, tokens: int) -> int:
        return costs.backbone.decode(tokens, behind=behind)

    decoding = [
        sum(decode(asked.prompt_tokens, tokens) for tokens in grid.ravel().tolist())
        for asked, grid in zip(run.questions, run.tokens, strict=True)
    ]
    size = run.num_paths * run.num_samples
    prompts = [
        costs.unshared(asked, [], paths=run.num_paths) + size * costs.backbone.forward(asked.prompt_tokens)
        for asked in run.questions
    ]
    return float(np.mean(decoding)) / size, float(np.mean(decoding) + np.mean(prompts))


def _seconds(run: Run) -> float | None:
    """The seconds of a question's whole grid; None where the run did not measure them.

    The run measures the time of all tokens that it ever generated, also for questions and samples that are no longer part
    of it. The grid gets the share of its tokens.
    """
    seconds, generated = run.summary.get("seconds"), run.summary.get("tokens", {}).get("generated")
    return seconds * float(run.tokens.sum(axis=(1, 2)).mean()) / generated if seconds and generated else None


def _kv_bytes(run: Run, costs: RunCosts) -> float:
    """Bytes of the keys and values of a question's whole grid: the shared prefix, each path, and each completion."""
    completions = run.tokens.sum(axis=(1, 2)) - run.num_paths * run.num_samples  # a last token is never fed back
    paths = np.array([asked.soft_tokens + asked.suffix_tokens for asked in run.questions]) * run.num_paths
    prefix = np.array([asked.prefix_tokens for asked in run.questions])
    return float(np.mean(prefix + paths + completions)) * costs.backbone.kv_bytes
