"""Groups runs into the methods of a report, names the methods, and refuses runs that cannot be compared.

Runs with the same name are one method. They may differ only in `--seed` and in the checkpoint that they use, which may be a
backbone that was itself trained. Each checkpoint is a training; runs that use the same one are its sampling seeds. Methods
are compared on the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.load import Run, Unfinished, content_digest
from scaling.records.errors import UsageError, listed
from scaling.records.journal import UNREAD
from scaling.records.names import TRAINED_FROM, called
from scaling.records.settings import Differs, Effect, run_names, run_settings

Floats = NDArray[np.float64]

_UNTRAINED = "untrained"  # value of `--thinker`: made without chance, so it is no training
_SHORT = 40  # characters of a setting's value in a method's name


@dataclass(frozen=True, eq=False)
class Method:
    """A method of the report. runs: one for each training and seed; all have the same N x M and the same questions."""

    name: str
    runs: tuple[Run, ...]

    @property
    def trainings(self) -> list[str]:
        """The different checkpoints of its runs; one empty text if nothing was trained."""
        return list(dict.fromkeys(map(training_of, self.runs)))

    @property
    def trained(self) -> bool:
        """Whether its runs use a checkpoint."""
        return self.trainings != [""]

    def by_training(self, values: Sequence[Floats]) -> list[Floats]:
        """For each training the mean of its runs. values: an array for each run, in the order of `runs`."""
        own = [training_of(run) for run in self.runs]
        return [
            np.mean([value for value, of in zip(values, own, strict=True) if of == training], axis=0)
            for training in self.trainings
        ]

    def mean(self, values: Sequence[Floats]) -> Floats:
        """The mean over trainings, each of which is the mean of its runs. values: an array for each run."""
        mean: Floats = np.mean(self.by_training(values), axis=0)
        return mean

    @property
    def num_paths(self) -> int:
        return self.runs[0].num_paths

    @property
    def num_samples(self) -> int:
        return self.runs[0].num_samples


def training_of(run: Run) -> str:
    """What tells the training of a run from others: checksums of its thinker and its adapter, and of a trained backbone.

    Empty if it uses none of them.

    Where the run records no checksum, what was given as thinker or adapter stands for it.
    """
    config = run.config
    thinker = config.get("thinker_sha256") or (config.get("thinker") if config.get("thinker") != _UNTRAINED else None)
    backbone = None
    if run.environment.get("backbone_trained_on"):  # its name stands for it where its weights were not read
        backbone = config.get("backbone") if _unread(config) else config.get("backbone_fingerprint")
    return " ".join(
        str(part) for part in (thinker, config.get("adapter_sha256") or config.get("adapter"), backbone) if part
    )


def group(runs: Sequence[tuple[str | None, Run]], *, common: bool) -> list[Method]:
    """Groups runs into methods, in the given order.

    Args:
        runs: each with the name that the user gave it, or None.
        common: whether to keep only the questions that all runs have, instead of refusing runs with different questions.

    Raises:
        UsageError: the runs cannot be compared.
    """
    shared = _on_the_same_questions([run for _, run in runs], common=common)
    names = _names([name for name, _ in runs], shared)
    methods: dict[str, list[Run]] = {}
    for name, run in zip(names, shared, strict=True):
        methods.setdefault(name, []).append(run)
    for name, seeds in methods.items():
        _refuse_unlike(name, seeds)
    return [Method(name, tuple(seeds)) for name, seeds in methods.items()]


@cache
def may_differ(between: Differs) -> frozenset[str]:
    """The keys of run.json that may differ without a note or refusal.

    Args:
        between: whether they differ between the methods of a report, or between the runs of one method.
    """
    keys = set(run_names(Effect.FREE))
    for name, setting in run_settings().items():
        keys |= {name, *setting.facts} if setting.differs >= between else set()
    return frozenset(keys)


def unlike_settings(methods: Sequence[Method]) -> dict[str, list[Any]]:
    """The settings that differ between methods although they should not, with all their values.

    A backbone that was itself trained counts as the one that it was before.
    """
    configs = _with_fingerprints([_before_training(run) for method in methods for run in method.runs])
    return {key: values for key, values in _differing(configs).items() if key not in may_differ(Differs.METHODS)}


def _before_training(run: Run) -> dict[str, Any]:
    """The settings of a run with the backbone that its own was trained from, where it says which that was."""
    before = run.environment.get(TRAINED_FROM)
    return {**run.config, "backbone": before, "backbone_fingerprint": UNREAD} if before else run.config


def _with_fingerprints(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fills in the backbone's fingerprint of runs that did not read its weights.

    They get the fingerprint from a run with the same backbone that did.
    """
    key = "backbone_fingerprint"
    read = {config.get("backbone"): config.get(key) for config in configs if not _unread(config)}
    return [
        {**config, key: read.get(config.get("backbone"), config[key])} if _unread(config) else config
        for config in configs
    ]


def _unread(config: dict[str, Any]) -> bool:
    return str(config.get("backbone_fingerprint")).startswith(UNREAD)


def controls(methods: Sequence[Method]) -> dict[tuple[str, str], str]:
    """The methods that are controls of another method: for (method, control), the kind of control.

    A control belongs to a method where both are equal in every other setting.
    """
    kinds = [(method, method.runs[0].config.get("control")) for method in methods]
    return {
        (method.name, control.name): kind
        for control, kind in kinds
        for method, other_kind in kinds
        if kind and not other_kind and _differ_in_control_alone(method.runs[0], control.runs[0])
    }


def _differ_in_control_alone(run: Run, control: Run) -> bool:
    differing = _differing([run.config, control.config])
    return differing.keys() <= {*run_names(Effect.FREE, Effect.SIZE), "control", "seed"}


def without(method: Method, names: Sequence[str]) -> tuple[str, int, int, tuple[tuple[str, str], ...]]:
    """What is equal for methods that differ in some settings alone, and in what may differ between seeds.

    Args:
        method: one of them.
        names: of the settings.

    Returns:
        Its name without the settings, N, M, and all other settings that it has.
    """
    run = method.runs[0]
    left_out = {*may_differ(Differs.SEEDS), *names, *(fact for name in names for fact in run_settings()[name].facts)}
    name = called({key: value for key, value in run.config.items() if key not in names}, run.environment)
    settings = {key: str(value) for key, value in run.config.items() if key not in left_out and value is not None}
    return name, method.num_paths, method.num_samples, tuple(sorted(settings.items()))


def _names(given: Sequence[str | None], runs: Sequence[Run]) -> list[str]:
    """A name for each run: the one that the user gave, or else the method's.

    Where unnamed runs of one method differ, the settings in which they differ are added.
    """
    bases = [name or called(run.config, run.environment) for name, run in zip(given, runs, strict=True)]
    names = []
    for name, base, run in zip(given, bases, runs, strict=True):
        rivals = [
            other.config
            for other_name, other_base, other in zip(given, bases, runs, strict=True)
            if other_name is None and other_base == base
        ]
        differing = {} if name else _differing(rivals)
        details = [f"{key} {short(run.config.get(key))}" for key in _readable(differing)]
        names.append(f"{base} ({', '.join(details)})" if details else base)
    return names


def _readable(differing: dict[str, list[Any]]) -> list[str]:
    """The differing keys that help a reader; checksums and fingerprints only where nothing else differs."""
    keys = [key for key in differing if key not in (*run_names(Effect.FREE), "seed", "limit")]
    readable = [key for key in keys if not key.endswith(("sha256", "fingerprint"))]
    return readable or keys


def short(value: Any) -> str:
    """The value as a short text: `none` for None, of a path only the last part."""
    text = "none" if value is None else str(value)
    return Path(text).name if "/" in text and " " not in text else shorten(text, _SHORT, placeholder=" ...")


def _differing(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys that do not have the same value in all configs, with their values as texts, each once."""
    keys = sorted({key for config in configs for key in config})
    columns = {key: [config.get(key) for config in configs] for key in keys}
    return {
        key: list(dict.fromkeys(map(str, values)))
        for key, values in columns.items()
        if any(value != values[0] for value in values)
    }


def _refuse_unlike(name: str, runs: Sequence[Run]) -> None:
    """Raises UsageError where runs of one name are not different seeds of one method."""
    trained = _trained_backbone(runs)
    may = may_differ(Differs.SEEDS) | trained
    differing = [key for key in _differing([run.config for run in runs]) if key not in may]
    if differing:
        raise UsageError(
            f"the runs named {name} differ in {', '.join(differing)}, so they are no seeds of one method; "
            f"give them different names, as in `NAME=FOLDER`"
        )
    seed_settings = [key for key in run_names(Differs.SEEDS) if key not in run_names(Effect.SIZE)]
    seed_keys = [*(run_settings()[key].content or key for key in seed_settings), *sorted(trained)]
    seeds = [tuple(str(run.config.get(key)) for key in seed_keys) for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UsageError(
            f"{', '.join(run.label for run in runs)} are the same run with the same seed; give each run once, "
            f"or sample another with `--seed`"
        )


def _trained_backbone(runs: Sequence[Run]) -> frozenset[str]:
    """The keys of run.json that name the backbone, where that of every run says of itself that it was trained; else none."""
    if not all(run.environment.get("backbone_trained_on") for run in runs):
        return frozenset()
    return frozenset({"backbone", *run_settings()["backbone"].facts})


def _on_the_same_questions(runs: Sequence[Run], *, common: bool) -> list[Run]:
    """The runs, all with the same questions in the order of the first run.

    Args:
        runs: at least one.
        common: whether questions that some run lacks are left out. Otherwise they are refused.

    Raises:
        UsageError: one id stands for different questions, no question is in all runs, or some run lacks a question.
    """
    everywhere = set.intersection(*({asked.id for asked in run.questions} for run in runs))
    first = {asked.id: content_digest(asked) for asked in runs[0].questions}
    for run in runs[1:]:
        changed = [one.id for one in run.questions if one.id in everywhere and content_digest(one) != first[one.id]]
        if changed:
            raise UsageError(
                f"{runs[0].label} and {run.label} ask different things under the same id: {listed(changed)}; "
                f"compare runs on the same data (where gold answers have changed, `scale-run --rescore --out FOLDER` "
                f"judges by those of today)"
            )
    if not everywhere:
        refused = Unfinished if any(run.incomplete for run in runs) else UsageError
        raise refused("these runs have no complete question in common; compare runs on the same task and data")
    order = [asked.id for asked in runs[0].questions if asked.id in everywhere]
    for run in [] if common else runs:
        extra = [asked.id for asked in run.questions if asked.id not in everywhere]
        if extra:
            lacking = next(other for other in runs if extra[0] not in {asked.id for asked in other.questions})
            raise UsageError(
                f"{run.label} has questions that {lacking.label} has not, or not completely: {listed(extra)}; let both "
                f"runs end with the same `--limit`, or add `--common` to compare on the {len(everywhere)} they share"
            )
    return [run.only(order) for run in runs]


def trained_questions(run: Run) -> tuple[list[str], list[str], bool]:
    """The questions that the run's thinker, adapter or models have seen in training.

    Returns:
        The ids of those that they were trained on, the ids of those that they were validated on, and whether such questions
        were left out of the run. Both lists are empty where the run did not check this.
    """
    environments = [run.environment, *(run.environment.get("shards") or [])]
    overlaps = [one["overlap"] for one in environments if isinstance(one.get("overlap"), dict)]
    left_out = any(overlap["left_out"] for overlap in overlaps)
    asked = {question.id for question in run.questions}

    def ids(kind: str) -> list[str]:
        unique = dict.fromkeys(question_id for overlap in overlaps for question_id in overlap[kind])
        return [question_id for question_id in unique if left_out or question_id in asked]

    return ids("trained"), ids("validated"), left_out
