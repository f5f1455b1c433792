"""Estimates what the rest of a sweep will cost: completions, tokens, FLOPs and hours.

Estimates need rates, as tokens a second, measured on this machine: by finished jobs of the sweep, else by short probe runs
(`scale-sweep plan FILE --measure`). What was not measured is shown as unknown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from scaling.config import RunConfig, filled_in, task_of_settings
from scaling.methods.kinds import Trait, kind_of
from scaling.records.errors import UsageError
from scaling.records.files import write_whole
from scaling.records.journal import RUN
from sweeps.ledger import DONE, Entry
from sweeps.plan import Counts, Extent, Job, Plan, max_limit, samples_of
from sweeps.points import RUN_DEFAULTS, hashed

RATES, PROBES = "rates.json", "probes"
_PROBE = (8, 1, 4)  # questions, paths, samples


@dataclass(frozen=True)
class Rate:
    """What one kind of run costs.

    tokens: generated tokens of a completion, mean. prompt: prompt tokens that are computed for a completion. per_second:
    generated tokens a second. flops: of a generated token. read_flops: of a prompt token.
    """

    tokens: float
    prompt: float
    per_second: float
    flops: float
    read_flops: float


@dataclass
class Expected:
    """The expected cost of all jobs that are not done.

    tokens, flops and hours are of the runs whose rate is known; unmeasured counts the other runs. unread: runs whose number
    of questions is not known, as their data is not on this machine. training_hours: None where they cannot be told.
    """

    runs: int = 0
    trainings: int = 0
    completions: int = 0
    tokens_at_most: int = 0
    tokens: float = 0.0
    flops: float = 0.0
    hours: float = 0.0
    unmeasured: int = 0
    unread: int = 0
    training_hours: float | None = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def expected(
    plan: Plan,
    done: Collection[str],
    entries: Sequence[Entry],
    rates: Mapping[str, Rate],
    training: Mapping[str, float],
) -> Expected:
    """The expected cost of all jobs that are not done.

    Args:
        done: ids of the jobs that are.
        entries: the ledger's, which tell what other jobs have drawn so far.
        rates: by `rate_key` of a job.
        training: seconds of a training step, by the models that are loaded.
    """
    drawn = {entry.job.id: entry.covered for entry in entries}
    cost, counts = Expected(), Counts()
    for job in plan.jobs:
        if job.kind == "merge" or job.id in done:
            continue
        if job.kind == "train":
            _add_training(cost, job, training)
        else:
            _add_run(cost, job, counts, rates.get(rate_key(job)), drawn.get(job.id, ()))
    return cost


def _add_training(cost: Expected, job: Job, training: Mapping[str, float]) -> None:
    cost.trainings += 1
    seconds, steps = training.get(job.models), job.settings.get("max_steps")
    if seconds is None or steps is None or cost.training_hours is None:
        cost.training_hours = None
    else:
        cost.training_hours += seconds * steps / 3600


def _add_run(cost: Expected, job: Job, counts: Counts, rate: Rate | None, drawn: Sequence[Extent]) -> None:
    """Adds a run to the cost. drawn: the extents that it holds already."""
    cost.runs += 1
    asked = _questions(job, counts)
    if asked is None:
        cost.unread += 1
        return
    completions = _samples(job, [*job.extents, *drawn], asked) - _samples(job, drawn, asked)
    cost.completions += completions
    cost.tokens_at_most += completions * _max_new_tokens(job)
    if rate is None:
        cost.unmeasured += 1
        return
    tokens = completions * rate.tokens
    cost.tokens += tokens
    cost.flops += tokens * rate.flops + completions * rate.prompt * rate.read_flops
    cost.hours += tokens / rate.per_second / 3600


def _questions(job: Job, counts: Counts) -> int | None:
    """Questions of the largest extent; None where they would have to be downloaded to be counted."""
    limit, settings = max_limit(job.extents), job.settings
    here = task_of_settings(settings.get("task"), settings.get("data")).local
    return counts.of(settings, limit) if here else limit


def _samples(job: Job, extents: Sequence[Extent], asked: int) -> int:
    """Completions in the extents, of the questions of the job's part."""
    start, stop = job.part or (0, asked)
    within = [(min(asked if extent[0] is None else extent[0], asked, stop) - start, *extent[1:]) for extent in extents]
    return samples_of([extent for extent in within if extent[0] > 0], asked)


def _max_new_tokens(job: Job) -> int:
    """The most that one completion can have."""
    return int(filled_in(RUN_DEFAULTS | job.settings)["max_new_tokens"])


def rate_key(job: Job) -> str:
    """Jobs of the same key are taken to cost as much a completion: same models and engine, task, kind of prompt, length."""
    told = (
        job.settings.get(key) or default
        for key, default in (("engine", RUN_DEFAULTS["engine"]), ("task", "arithmetic"))
    )
    return "|".join([job.models, *map(str, told), str(job.settings["method"]), f"{_max_new_tokens(job)} tokens"])


def rates_of(entries: Sequence[Entry], root: Path) -> tuple[dict[str, Rate], dict[str, float]]:
    """Rates of runs by `rate_key`, of finished ones rather than of probes; seconds of a training step by models."""
    rates = _probed(root)
    for entry in entries:
        if entry.state == DONE and entry.job.kind != "train" and entry.result.get("generated"):
            rate = _measured(entry.result, root / entry.job.folder)
            rates |= {rate_key(entry.job): rate} if rate else {}
    training = {
        entry.job.models: entry.result["seconds"] / entry.result["steps"]
        for entry in entries
        if entry.job.kind == "train" and entry.state == DONE and entry.result.get("steps")
    }
    return rates, training


def _probed(root: Path) -> dict[str, Rate]:
    """Rates of probes; none where their file is damaged, as they can be measured again."""
    try:
        told = json.loads((root / RATES).read_bytes())
        rates = {key: Rate(**{name: float(value) for name, value in fields.items()}) for key, fields in told.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    return {key: rate for key, rate in rates.items() if _makes_sense(rate)}


def _makes_sense(rate: Rate) -> bool:
    return rate.per_second > 0 and all(0 <= one < math.inf for one in astuple(rate))


def _measured(costs: Mapping[str, Any], folder: Path) -> Rate | None:
    try:
        model = json.loads((folder / RUN).read_bytes())["environment"]["costs"]["backbone"]
        read_flops, head = float(model["layers"]), float(model["head"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    if not costs["seconds"] or not costs["completions"]:
        return None
    return Rate(
        tokens=costs["generated"] / costs["completions"],
        prompt=costs["prefill_computed"] / costs["completions"],
        per_second=costs["generated"] / costs["seconds"],
        flops=read_flops + head,
        read_flops=read_flops,
    )


def measure(plan: Plan, root: Path, tell: Any) -> None:
    """A short run for every kind of job that no probe has measured: 8 questions, one path, 4 samples. Raises UsageError."""
    from scaling.models.loading import keep_loaded
    from scaling.run import execute
    from sweeps.execute import ProgressReporter, costs_of

    keep_loaded(2)
    known = _probed(root)
    for job in plan.jobs:
        if job.kind == "train" or (key := rate_key(job)) in known:
            continue
        tell(f"measuring {key.replace('|', ' ')}")
        probe = _probe(job)
        folder = root / PROBES / hashed(probe.model_dump(mode="json"))  # an interrupted one goes on only as it began
        summary = execute(probe.model_copy(update={"out": folder}), ProgressReporter(lambda _: None))
        rate = _measured(costs_of(summary, folder), folder)
        if rate is None:
            raise UsageError(f"the probe in {folder} measured nothing: remove the folder and try again")
        known[key] = rate
        write_whole(root / RATES, json.dumps({name: asdict(one) for name, one in known.items()}, indent=1) + "\n")


def _probe(job: Job) -> RunConfig:
    """The job at a small size; an untrained thinker or no adapter costs as much as the one that is still to be trained."""
    limit = max_limit(job.extents)
    samples = 1 if job.settings.get("temperature") == 0 else _PROBE[2]
    size = {"limit": min(_PROBE[0], limit or _PROBE[0]), "latent_paths": 1, "samples": samples}
    settings = job.settings
    if job.needs and kind_of(settings["method"]).has(Trait.ADAPTER):
        settings = {**settings, "method": "cot"}
    elif job.needs:
        settings = {**settings, "thinker": "untrained"}
    return RunConfig(**{**settings, **size})
