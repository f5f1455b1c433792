"""What a plan will cost: completions, tokens, FLOPs and hours, from rates measured on this machine. Promises nothing else.

Rates come from the finished jobs of the sweep, else from a probe, `scale-sweep plan FILE --measure`; what was not measured
is said to be unknown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scaling.config import RunConfig
from scaling.errors import UsageError
from scaling.journal import RUN
from scaling.tasks.catalogue import load_task
from sweeps.files import write_whole
from sweeps.ledger import DONE, Entry
from sweeps.plan import Job, Plan, config_of, max_limit, samples_of

RATES = "rates.json"
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

    def told(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def expected(plan: Plan, done: Iterable[str], rates: Mapping[str, Rate], training: Mapping[str, float]) -> Expected:
    """training: seconds of a step, by models."""
    finished, found = set(done), Expected()
    counted: dict[str, int | None] = {}
    for job in plan.jobs:
        if job.id in finished or job.kind == "merge":
            continue
        if job.kind == "train":
            _add_training(found, job, training)
        else:
            _add_run(found, job, counted, rates.get(rate_key(job)))
    return found


def _add_training(found: Expected, job: Job, training: Mapping[str, float]) -> None:
    found.trainings += 1
    seconds, steps = training.get(job.models), job.settings.get("max_steps")
    if seconds is None or steps is None or found.training_hours is None:
        found.training_hours = None
    else:
        found.training_hours += seconds * steps / 3600


def _add_run(found: Expected, job: Job, counted: dict[str, int | None], rate: Rate | None) -> None:
    found.runs += 1
    asked = _questions(job, counted)
    if asked is None:
        found.unread += 1
        return
    if job.part:
        asked = max(0, min(asked, job.part[1]) - job.part[0])
    completions = samples_of(job.boxes, asked)
    config = config_of(job, job.boxes[-1], trained="-" if job.needs else None).resolved()
    found.completions += completions
    found.tokens_at_most += completions * (config.max_new_tokens or 0)
    if rate is None:
        found.unmeasured += 1
        return
    tokens = completions * rate.tokens
    found.tokens += tokens
    found.flops += tokens * rate.flops + completions * rate.prompt * rate.read_flops
    found.hours += tokens / rate.per_second / 3600


def _questions(job: Job, counted: dict[str, int | None]) -> int | None:
    """How many questions the largest box asks; None where they would have to be fetched first."""
    limit, settings = max_limit(job.boxes), job.settings
    key = json.dumps([settings.get(name) for name in ("task", "data", "split", "difficulty")] + [limit])
    if key not in counted:
        counted[key] = _count(settings, limit)
    return counted[key]


def _count(settings: Mapping[str, Any], limit: int | None) -> int | None:
    task, data = settings.get("task"), settings.get("data")
    if data is None and task not in (None, "arithmetic"):
        return limit  # on the Hub
    split = settings.get("split") or "test"
    difficulty = settings.get("difficulty") or 1
    place = Path(data) if data else None
    return len(load_task(task, data=place, split=split, limit=limit, difficulty=difficulty).questions)


def rate_key(job: Job) -> str:
    """Jobs of the same key are taken to cost as much a completion: same models, task and kind of prompt."""
    return "|".join([job.models, str(job.settings.get("task") or "arithmetic"), str(job.settings["method"])])


def rates_of(entries: Sequence[Entry], root: Path) -> tuple[dict[str, Rate], dict[str, float]]:
    """Rates of finished runs, else of probes; and seconds a step of finished trainings, by models."""
    path = root / RATES
    probed = json.loads(path.read_text()) if path.is_file() else {}
    rates = {key: Rate(**fields) for key, fields in probed.items()}
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


def _measured(costs: Mapping[str, Any], folder: Path) -> Rate | None:
    try:
        model = json.loads((folder / RUN).read_bytes())["environment"]["costs"]["backbone"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not costs["seconds"] or not costs["completions"]:
        return None
    return Rate(
        tokens=costs["generated"] / costs["completions"],
        prompt=costs["prefill_computed"] / costs["completions"],
        per_second=costs["generated"] / costs["seconds"],
        flops=model["layers"] + model["head"],
        read_flops=model["layers"],
    )


def measure(plan: Plan, root: Path, tell: Any) -> None:
    """A short run for every kind of job that no probe has measured: 8 questions, one path, 4 samples. Raises UsageError."""
    from scaling.models import keep_loaded
    from scaling.run import execute
    from sweeps.work import Following, costs_of

    keep_loaded(2)
    path = root / RATES
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    for job in plan.jobs:
        if job.kind == "train" or (key := rate_key(job)) in known:
            continue
        tell(f"measuring {key.replace('|', ' ')}")
        folder = root / "probes" / str(len(known))
        summary = execute(_probe(job, folder), Following(lambda _: None))
        rate = _measured(costs_of(summary), folder)
        if rate is None:
            raise UsageError(f"the probe in {folder} measured nothing: remove the folder and try again")
        known[key] = asdict(rate)
        write_whole(path, json.dumps(known, indent=1) + "\n")


def _probe(job: Job, folder: Path) -> RunConfig:
    """The job at a small size; an untrained thinker or no adapter costs as much as the one that is still to be trained."""
    limit = max_limit(job.boxes)
    samples = 1 if job.settings.get("temperature") == 0 else _PROBE[2]
    size = {"limit": min(_PROBE[0], limit or _PROBE[0]), "latent_paths": 1, "samples": samples, "out": folder}
    settings = job.settings
    if job.needs and settings["method"] == "lora":
        settings = {**settings, "method": "cot"}
    elif job.needs:
        settings = {**settings, "thinker": "untrained"}
    return RunConfig(**{**settings, **size})
