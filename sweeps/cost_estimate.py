"""What a plan will cost: completions, tokens, FLOPs and hours, from rates measured on this machine. Promises nothing else.

Rates come from the finished jobs of the sweep, else from a probe, `scale-sweep plan FILE --measure`; what was not measured
is said to be unknown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from scaling.config import RunConfig, filled_in, is_generated
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
    """tokens: generated for a completion, mean. prompt: prompt tokens computed for it. per_second: generated. flops: for one
    generated token. read_flops: for one prompt token."""

    tokens: float
    prompt: float
    per_second: float
    flops: float
    read_flops: float


@dataclass
class Expected:
    """Of all jobs that are not done. tokens, flops and hours are of the jobs whose rate is known; unmeasured counts the
    runs, unread those of them whose number of questions is not known here, trainings all that are still to come."""

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
    """done: ids of jobs. entries: of the ledger, what the others have drawn. training: seconds of a step, by models."""
    drawn = {entry.job.id: entry.covered for entry in entries}
    found, counts = Expected(), Counts()
    for job in plan.jobs:
        if job.kind == "merge" or job.id in done:
            continue
        if job.kind == "train":
            _add_training(found, job, training)
        else:
            _add_run(found, job, counts, rates.get(rate_key(job)), drawn.get(job.id, ()))
    return found


def _add_training(found: Expected, job: Job, training: Mapping[str, float]) -> None:
    found.trainings += 1
    seconds, steps = training.get(job.models), job.settings.get("max_steps")
    if seconds is None or steps is None or found.training_hours is None:
        found.training_hours = None
    else:
        found.training_hours += seconds * steps / 3600


def _add_run(found: Expected, job: Job, counts: Counts, rate: Rate | None, drawn: Sequence[Extent]) -> None:
    """drawn: what the run holds already."""
    found.runs += 1
    asked = _questions(job, counts)
    if asked is None:
        found.unread += 1
        return
    completions = _samples(job, [*job.boxes, *drawn], asked) - _samples(job, drawn, asked)
    found.completions += completions
    found.tokens_at_most += completions * _most_tokens(job)
    if rate is None:
        found.unmeasured += 1
        return
    tokens = completions * rate.tokens
    found.tokens += tokens
    found.flops += tokens * rate.flops + completions * rate.prompt * rate.read_flops
    found.hours += tokens / rate.per_second / 3600


def _questions(job: Job, counts: Counts) -> int | None:
    """How many questions the largest box asks; None where they would have to be fetched first."""
    limit, settings = max_limit(job.boxes), job.settings
    here = settings.get("data") is not None or is_generated(settings.get("task"), None)
    return counts.of(settings, limit) if here else limit


def _samples(job: Job, boxes: Sequence[Extent], asked: int) -> int:
    """Completions of the boxes, of those questions that the job is about."""
    start, stop = job.part or (0, asked)
    within = [(min(asked if box[0] is None else box[0], asked, stop) - start, *box[1:]) for box in boxes]
    return samples_of([box for box in within if box[0] > 0], asked)


def _most_tokens(job: Job) -> int:
    """Of one completion."""
    return int(filled_in(RUN_DEFAULTS | job.settings)["max_new_tokens"])


def rate_key(job: Job) -> str:
    """Jobs of the same key are taken to cost as much a completion: same models and engine, task, kind of prompt, length."""
    told = (job.settings.get(key) or default for key, default in (("engine", "transformers"), ("task", "arithmetic")))
    return "|".join([job.models, *map(str, told), str(job.settings["method"]), f"{_most_tokens(job)} tokens"])


def rates_of(entries: Sequence[Entry], root: Path) -> tuple[dict[str, Rate], dict[str, float]]:
    """Rates of finished runs, else of probes; and seconds a step of finished trainings, by models."""
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
    limit = max_limit(job.boxes)
    samples = 1 if job.settings.get("temperature") == 0 else _PROBE[2]
    size = {"limit": min(_PROBE[0], limit or _PROBE[0]), "latent_paths": 1, "samples": samples}
    settings = job.settings
    if job.needs and kind_of(settings["method"]).has(Trait.ADAPTER):
        settings = {**settings, "method": "cot"}
    elif job.needs:
        settings = {**settings, "thinker": "untrained"}
    return RunConfig(**{**settings, **size})
