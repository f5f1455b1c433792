"""Estimates what the rest of a sweep will cost: completions, tokens, FLOPs and hours.

Tokens, FLOPs and hours need rates, such as tokens a second, that were measured on this machine: by finished jobs of the
sweep, or by short probe runs and trainings (`scale-sweep plan FILE --measure`). What was not measured is shown as unknown.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from scaling.config import RunConfig, filled_in, idle_options, task_of_settings
from scaling.methods.kinds import DEFAULT, Trait, kind_of
from scaling.records.errors import UsageError
from scaling.records.files import write_whole
from scaling.records.journal import RUN
from scaling.records.names import DEFAULT_TASK
from scaling.records.settings import Tag, names
from scaling.training.config import TrainConfig
from sweeps.ledger import DONE, Entry
from sweeps.plan import Counts, Extent, Job, Plan, max_limit, samples_of
from sweeps.points import RUN_DEFAULTS, TRAIN_FREE, hashed

RATES, TRAINING_RATES, PROBES = "rates.json", "training_rates.json", "probes"
_PROBE = (8, 1, 4)  # size of a probe run: questions, paths, samples
_PROBED_STEPS = 2  # of a probe of a training
_AS_COSTLY = (Tag.LENGTH, Tag.WORDING, Tag.AFTERWARDS)  # settings of trainings of which a step costs as much
_UNTRAINED_ADAPTER = "cot"  # the method that stands for one whose adapter or backbone is still to be trained


@dataclass(frozen=True)
class Rate:
    """What one kind of run costs, on the average.

    Attributes:
        tokens: generated tokens of a completion.
        prompt: prompt tokens that are computed for a completion.
        per_second: generated tokens a second.
        flops: FLOPs of a generated token.
        read_flops: FLOPs of a prompt token.
    """

    tokens: float
    prompt: float
    per_second: float
    flops: float
    read_flops: float


@dataclass
class Expected:
    """The expected cost of all jobs that are not done.

    Attributes:
        runs: how many runs are left to do.
        trainings: how many trainings are left to do.
        completions: to be sampled in these runs, `unread` ones apart.
        tokens_at_most: generated tokens, if every completion were as long as it may be.
        tokens: generated tokens of the runs whose rate is known.
        flops: of the runs whose rate is known.
        hours: one worker's, of the runs whose rate is known.
        unmeasured: number of runs whose rate is not known.
        unread: number of runs whose questions cannot be counted, as their data is not on this machine.
        training_hours: of all trainings; None where the duration of one is not known.
        seed_trainings: how many trainings one seed of training has, done or not.
        seed_hours: hours of these; None where the duration of one is not known.
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
    seed_trainings: int = 0
    seed_hours: float | None = 0.0

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
    """Estimates the cost of all jobs that are not done.

    Args:
        plan: the sweep's jobs.
        done: ids of the jobs that are done.
        entries: the jobs' states, which say what the others have drawn so far.
        rates: of runs, by `rate_key`.
        training: seconds of a training step, by `training_key`.
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
    # trainings that differ in their seed alone: one of each is what one more seed takes
    jobs = [job for job in plan.jobs if job.kind == "train"]
    apart = {hashed({key: value for key, value in job.settings.items() if key != "seed"}): job for job in jobs}
    cost.seed_trainings = len(apart)
    cost.seed_hours = _together(_training_hours(job, training) for job in apart.values())
    return cost


def _training_hours(job: Job, training: Mapping[str, float]) -> float | None:
    """Hours of a training; None where they are not known. training: seconds of a step, by `training_key`."""
    seconds, steps = training.get(training_key(job)), job.settings.get("max_steps")
    return None if seconds is None or steps is None else seconds * steps / 3600


def _together(hours: Iterable[float | None]) -> float | None:
    """The sum; None where one of them is not known."""
    known = list(hours)
    return None if None in known else sum(one for one in known if one is not None)


def _add_training(cost: Expected, job: Job, training: Mapping[str, float]) -> None:
    """Adds a training to the cost. training: seconds of a step, by `training_key`."""
    cost.trainings += 1
    cost.training_hours = _together((cost.training_hours, _training_hours(job, training)))


def _add_run(cost: Expected, job: Job, counts: Counts, rate: Rate | None, drawn: Sequence[Extent]) -> None:
    """Adds a run to the cost.

    Args:
        cost: is added to.
        job: the run.
        counts: numbers of questions.
        rate: of runs of this kind, None where it is not known.
        drawn: the extents that the run has sampled already.
    """
    cost.runs += 1
    asked = _questions(job, counts)
    if asked is None:
        cost.unread += 1
        return
    # extents overlap, so what is left is the difference of two unions
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
    """Number of questions of the largest extent; None where the data would have to be downloaded to count them."""
    limit, settings = max_limit(job.extents), job.settings
    is_local = task_of_settings(settings.get("task"), settings.get("data")).local
    return counts.of(settings, limit) if is_local else limit


def _samples(job: Job, extents: Sequence[Extent], asked: int) -> int:
    """Number of completions in the union of the extents, for those questions that belong to the job's part of a run.

    Args:
        job: the run, or the part of it.
        extents: questions, paths and samples.
        asked: number of questions of the whole run.
    """
    start, stop = job.part or (0, asked)
    within = [(min(asked if extent[0] is None else extent[0], asked, stop) - start, *extent[1:]) for extent in extents]
    return samples_of([extent for extent in within if extent[0] > 0], asked)


def _max_new_tokens(job: Job) -> int:
    """The largest number of tokens that a completion can have."""
    return int(filled_in(RUN_DEFAULTS | job.settings)["max_new_tokens"])


def rate_key(job: Job) -> str:
    """A text that is the same for jobs whose completions are taken to cost the same.

    These have the same models, engine, task, method and greatest length.
    """
    engine_and_task = (
        job.settings.get(key) or default
        for key, default in (("engine", RUN_DEFAULTS["engine"]), ("task", DEFAULT_TASK))
    )
    return "|".join(
        [job.models, *map(str, engine_and_task), str(job.settings["method"]), f"{_max_new_tokens(job)} tokens"]
    )


def training_key(job: Job) -> str:
    """A text that is the same for trainings of which a step is taken to cost the same.

    These differ in their seed, their prompt, and how many steps and questions they have. A training in stages has so many
    steps in each of them.
    """
    differ = {*TRAIN_FREE, *(key for tag in _AS_COSTLY for key in names(TrainConfig, tag))}
    return json.dumps({key: value for key, value in sorted(job.settings.items()) if key not in differ})


def rates_of(entries: Sequence[Entry], root: Path) -> tuple[dict[str, Rate], dict[str, float]]:
    """Collects the rates that were measured so far. Finished runs count rather than probes.

    Args:
        entries: the jobs with their states.
        root: the sweep's folder.

    Returns:
        The rates of runs by `rate_key`, and the seconds of a training step by `training_key`.
    """
    rates = _probed(root)
    for entry in entries:
        if entry.state == DONE and entry.job.kind != "train" and entry.result.get("generated"):
            rate = _measured(entry.result, root / entry.job.folder)
            rates |= {rate_key(entry.job): rate} if rate else {}
    training = _read_rates(root / TRAINING_RATES)
    for entry in entries:
        steps = entry.job.settings.get("max_steps")
        if entry.job.kind == "train" and entry.state == DONE and steps:
            training[training_key(entry.job)] = entry.seconds / steps
    return rates, training


def _read_rates(path: Path) -> dict[str, float]:
    """The seconds of training steps that probes measured. None where the file is damaged, as they can be measured again."""
    try:
        rates = {key: float(seconds) for key, seconds in json.loads(path.read_bytes()).items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    return {key: seconds for key, seconds in rates.items() if 0 < seconds < math.inf}


def _probed(root: Path) -> dict[str, Rate]:
    """Reads the rates of probes by `rate_key`. There are none where the file is damaged, as they can be measured again."""
    try:
        saved = json.loads((root / RATES).read_bytes())
        rates = {key: Rate(**{name: float(value) for name, value in fields.items()}) for key, fields in saved.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}
    return {key: rate for key, rate in rates.items() if _makes_sense(rate)}


def _makes_sense(rate: Rate) -> bool:
    return rate.per_second > 0 and all(0 <= value < math.inf for value in astuple(rate))


def _measured(costs: Mapping[str, Any], folder: Path) -> Rate | None:
    """The rate of a finished run, None where it cannot be told.

    Args:
        costs: what its worker has counted.
        folder: the run's, whose run.json says what a token costs.
    """
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
    """Measures the rate of every kind of run and training that no probe has measured.

    Runs are tried with 8 questions, one path and 4 samples, trainings with two steps in each stage.

    Args:
        plan: the sweep's jobs.
        root: its folder, where rates and probes are kept.
        tell: shows the user a line of text.

    Raises:
        UsageError: a probe cannot run, or measured nothing.
    """
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
        # named by its settings, so that an interrupted probe is continued only with the same ones
        folder = root / PROBES / hashed(probe.model_dump(mode="json"))
        summary = execute(probe.model_copy(update={"out": folder}), ProgressReporter(lambda _: None))
        rate = _measured(costs_of(summary, folder), folder)
        if rate is None:
            raise UsageError(f"the probe in {folder} measured nothing: remove the folder and try again")
        known[key] = rate
        write_whole(root / RATES, json.dumps({name: asdict(value) for name, value in known.items()}, indent=1) + "\n")

    _measure_trainings(plan, root, tell)


def _measure_trainings(plan: Plan, root: Path, tell: Any) -> None:
    """Measures the seconds of a step of each kind of training that has `max_steps`, as others end after their data."""
    from sweeps.execute import perform

    known = _read_rates(root / TRAINING_RATES)
    for job in plan.jobs:
        if job.kind != "train" or not job.settings.get("max_steps") or training_key(job) in known:
            continue
        tell(f"measuring a training: {job.label or job.settings.get('method', DEFAULT)}")
        probe = _training_probe(job)
        shutil.rmtree(root / probe.folder, ignore_errors=True)
        seconds = perform(probe, root, lambda _: None)["seconds"]
        shutil.rmtree(root / probe.folder)  # what two steps have trained is of no use, and may be large
        known[training_key(job)] = seconds / _PROBED_STEPS
        write_whole(root / TRAINING_RATES, json.dumps(known, indent=1) + "\n")


def _training_probe(job: Job) -> Job:
    """A training of two steps in each stage, with as many validation questions for a step as the whole training has."""
    config, steps = TrainConfig(**job.settings).resolved(), int(job.settings["max_steps"])
    in_stages = kind_of(config.method).has(Trait.LATENT)  # which are validated at their end, and others ten times
    every = config.validate_every or (steps if in_stages else max(1, steps // 10))
    few = {"max_steps": _PROBED_STEPS, "validate_every": 1, "limit": max(2, _PROBED_STEPS * config.batch_size)}
    few["validation"] = max(2, round(config.validation / every))
    if config.layer_steps:
        few["layer_steps"] = max(1, round(_PROBED_STEPS * config.layer_steps / steps))
    kept = {key: value for key, value in job.settings.items() if key not in names(TrainConfig, Tag.AFTERWARDS)}
    return replace(job, settings=kept | few, folder=f"{PROBES}/{job.id}")


def _probe(job: Job) -> RunConfig:
    """The settings of a probe: the job at a small size.

    A thinker that is still to be trained is replaced by an untrained one. An adapter or backbone that is still to be trained
    is left out, and chains of thought stand for its own: both cost the same, but trained chains may be shorter.
    """
    limit = max_limit(job.extents)
    samples = 1 if job.settings.get("temperature") == 0 else _PROBE[2]
    size = {"limit": min(_PROBE[0], limit or _PROBE[0]), "latent_paths": 1, "samples": samples}
    settings = job.settings
    if job.needs and kind_of(settings["method"]).has(Trait.ADAPTER):
        idle = idle_options(_UNTRAINED_ADAPTER)
        settings = {key: value for key, value in settings.items() if key not in idle} | {"method": _UNTRAINED_ADAPTER}
    elif job.needs:
        settings = {**settings, "thinker": "untrained"}
    return RunConfig(**{**settings, **size})
