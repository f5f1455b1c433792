"""Which runs are one method, what it is called, and whether the methods may be compared: same questions, same settings.

Runs of one name are its seeds: equal but for `--seed` and the thinker they were given. Knows no estimates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.load import Run
from scaling.records.errors import UsageError, listed
from scaling.records.journal import FREE, UNREAD
from scaling.records.names import called

_OF_A_SEED = (  # may differ between runs of one method
    *("seed", "thinker", "thinker_sha256", "adapter", "adapter_sha256", "merged_fingerprint", "limit", *FREE),
)
_OF_A_METHOD = (
    *(*_OF_A_SEED, "method", "latent_paths", "samples", "soft_tokens", "assistant", "assistant_fingerprint"),
    *("control", "noise", "shots", "exemplars", "initial_token", "overlap"),
    *("method_args", "method_sha256", "method_identity", "decoder_fingerprint"),
)
_OF_A_CONTROL = ("control", "samples")  # may differ between a control and its method


@dataclass(frozen=True, eq=False)
class Method:
    """A line of the report. runs: one for each seed, all of N x M on the same questions."""

    name: str
    runs: tuple[Run, ...]

    @property
    def num_paths(self) -> int:
        return self.runs[0].num_paths

    @property
    def num_samples(self) -> int:
        return self.runs[0].num_samples


def group(runs: Sequence[tuple[str | None, Run]], *, common: bool) -> list[Method]:
    """Methods in the given order. runs: each with the name that the user gave it, or None.

    common: keep the questions that all runs hold, rather than refuse runs on different ones. Raises UsageError.
    """
    shared = _on_the_same_questions([run for _, run in runs], common=common)
    names = _names([name for name, _ in runs], shared)
    methods: dict[str, list[Run]] = {}
    for name, run in zip(names, shared, strict=True):
        methods.setdefault(name, []).append(run)
    for name, own in methods.items():
        _refuse_unlike(name, own)
    return [Method(name, tuple(own)) for name, own in methods.items()]


def unlike_settings(methods: Sequence[Method]) -> dict[str, list[Any]]:
    """Settings that should not differ between rivals and do, with their values."""
    configs = _with_fingerprints([run.config for method in methods for run in method.runs])
    return {key: values for key, values in _differing(configs).items() if key not in _OF_A_METHOD}


def _with_fingerprints(configs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run that has not read its backbone's weights gets the fingerprint of one that has."""
    key = "backbone_fingerprint"
    read = {config.get("backbone"): config.get(key) for config in configs if not _unread(config)}
    return [
        {**config, key: read.get(config.get("backbone"), config[key])} if _unread(config) else config
        for config in configs
    ]


def _unread(config: dict[str, Any]) -> bool:
    return str(config.get("backbone_fingerprint")).startswith(UNREAD)


def controls(methods: Sequence[Method]) -> dict[tuple[str, str], str]:
    """Which control it is, at (method, control), for every control whose own method, equal in all else, is given too."""
    kinds = [(method, method.runs[0].config.get("control")) for method in methods]
    return {
        (own.name, control.name): kind
        for control, kind in kinds
        for own, its in kinds
        if kind and not its and _alike(own.runs[0], control.runs[0])
    }


def _alike(own: Run, control: Run) -> bool:
    apart = _differing([own.config, control.config])
    return not [key for key in apart if key not in (*FREE, *_OF_A_CONTROL, "seed", "limit", "latent_paths")]


def _names(given: Sequence[str | None], runs: Sequence[Run]) -> list[str]:
    """The user's name, else the method's with whatever tells it from the other unnamed runs of that method."""
    bases = [name or called(run.config, run.environment) for name, run in zip(given, runs, strict=True)]
    names = []
    for name, base, run in zip(given, bases, runs, strict=True):
        rivals = [
            other.config for own, its, other in zip(given, bases, runs, strict=True) if own is None and its == base
        ]
        apart = {} if name else _differing(rivals)
        told = [f"{key} {_short(run.config.get(key))}" for key in _telling(apart)]
        names.append(f"{base} ({', '.join(told)})" if told else base)
    return names


def _telling(apart: dict[str, list[Any]]) -> list[str]:
    """Of the keys that differ those that a reader can read; a fingerprint only where nothing else differs."""
    keys = [key for key in apart if key not in ("seed", "limit", *FREE)]
    readable = [key for key in keys if not key.endswith(("sha256", "fingerprint"))]
    return readable or keys


def _short(value: Any) -> str:
    return Path(value).name if isinstance(value, str) and "/" in value else str(value)


def _differing(configs: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    keys = sorted({key for config in configs for key in config})
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: list(dict.fromkeys(map(str, own))) for key, own in values.items() if any(v != own[0] for v in own)}


def _refuse_unlike(name: str, runs: Sequence[Run]) -> None:
    apart = [key for key in _differing([run.config for run in runs]) if key not in _OF_A_SEED]
    if apart:
        raise UsageError(
            f"the runs named {name} differ in {', '.join(apart)}, so they are no seeds of one method; "
            f"give them different names, as in `NAME=FOLDER`"
        )
    apart_by = ("seed", "thinker_sha256", "adapter_sha256")
    seeds = [tuple(str(run.config.get(key)) for key in apart_by) for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UsageError(
            f"{', '.join(run.label for run in runs)} are the same run with the same seed; give each run once, "
            f"or sample another with `--seed`"
        )


def _on_the_same_questions(runs: Sequence[Run], *, common: bool) -> list[Run]:
    everywhere = set.intersection(*({asked.id for asked in run.questions} for run in runs))
    first = {asked.id: asked for asked in runs[0].questions}
    for run in runs:
        changed = [q.id for q in run.questions if q.id in everywhere and _content(q) != _content(first[q.id])]
        if changed:
            raise UsageError(
                f"{runs[0].label} and {run.label} ask different things under the same id: {listed(changed)}; "
                f"compare runs on the same data (where gold answers have changed, `scale-run --rescore --out FOLDER` "
                f"judges by those of today)"
            )
    if not everywhere:
        raise UsageError("these runs have no complete question in common; compare runs on the same task and data")
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


def _content(asked: Any) -> tuple[str, str, tuple[str, ...]]:
    return asked.text, asked.answer, asked.choices


def trained_questions(run: Run) -> tuple[list[str], list[str], bool]:
    """Ids of the run's questions that its thinker, adapter or models were trained on, and of those they were validated on;
    and whether such questions were left out of the run. Nothing where the run did not look."""
    environments = [run.environment, *(run.environment.get("shards") or [])]
    looked = [one["overlap"] for one in environments if isinstance(one.get("overlap"), dict)]
    left_out = any(own["left_out"] for own in looked)
    asked = {question.id for question in run.questions}

    def ids(kind: str) -> list[str]:
        found = dict.fromkeys(name for own in looked for name in own[kind])
        return [name for name in found if left_out or name in asked]

    return ids("trained"), ids("validated"), left_out
