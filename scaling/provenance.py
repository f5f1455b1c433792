"""What the parts of a run were trained on, and which of the run's questions were among it. Reads no weights.

Parts are the thinker or the adapter, and backbone or assistant where an adapter was merged into them.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contrastive.checkpoint import IMPORTED
from scaling.config import RunConfig
from scaling.methods import thinkers
from scaling.models import adapters
from scaling.records.errors import UsageError, listed
from scaling.records.names import UNKNOWN, questions_called
from scaling.records.overlap import Overlap, learned_from, overlap_of
from scaling.tasks.catalogue import Task


@dataclass(frozen=True)
class Part:
    """role: thinker, adapter, backbone or assistant. name: as it was given. about: what it says of its training, None where
    it had none. overlap: of its questions with the run's, None where it does not say what they were."""

    role: str
    name: str
    about: dict[str, Any] | None
    overlap: Overlap | None

    @property
    def trained_on(self) -> str | None:
        """What its questions are called, UNKNOWN where it does not say, None where it was not trained."""
        if self.about is None:
            return None
        if learned := learned_from(self.about):
            return learned.name
        if not self.about.get("task"):
            return UNKNOWN
        return questions_called(str(self.about["task"]), self.about.get("data"))


@dataclass(frozen=True)
class Provenance:
    """Of a run. task: what its questions are called. asked: how many there are. dropped: whether those of the overlap are
    left out of the run. models: the options that name them."""

    task: str
    asked: int
    parts: tuple[Part, ...]
    dropped: bool
    models: str

    @property
    def overlap(self) -> Overlap | None:
        """With all parts together, None where no part says what it was trained on."""
        known = [part.overlap for part in self.parts if part.overlap is not None]
        if not known:
            return None
        trained = dict.fromkeys(name for one in known for name in one.trained)
        validated = dict.fromkeys(name for one in known for name in one.validated if name not in trained)
        return Overlap(tuple(trained), tuple(validated))

    def to_dict(self) -> dict[str, Any]:
        """For the environment in run.json."""
        fields: dict[str, Any] = {"task": self.task}
        for part in self.parts:
            if part.role in ("thinker", "adapter"):
                fields[f"{part.role}_trained_on"] = part.trained_on
            if part.about and IMPORTED in part.about:
                fields["thinker_imported_from"] = part.about[IMPORTED]
        overlap = self.overlap
        if overlap is not None:
            fields["overlap"] = {"trained": overlap.trained, "validated": overlap.validated, "left_out": self.dropped}
        return fields

    def summary(self) -> dict[str, Any]:
        """For summary.json and the final table: the same, with the overlap's numbers and first questions."""
        overlap = self.overlap or Overlap()
        counts: dict[str, Any] = {"of": self.asked, "left_out": self.dropped}
        for kind, ids in (("trained", overlap.trained), ("validated", overlap.validated)):
            counts |= {kind: len(ids), f"first_{kind}": listed(ids, shown=3)}
        return {"training": {**self.to_dict(), "overlap": counts if overlap.ids else None}}

    def warnings(self) -> list[str]:
        """What a reader must know before believing a figure, in plain words."""
        return [text for part in self.parts for text in (*self._about_training(part), *self._about_overlap(part))]

    def _about_training(self, part: Part) -> list[str]:
        if part.about is None:
            return [
                "the thinker is untrained, so its thoughts mean nothing to the backbone: train one with "
                f"`scale-train {self.models}`, and give its folder as `--thinker`"
            ]
        warnings = []
        if IMPORTED in part.about:
            warnings.append(
                f"the wording of the prompts is ours, not the one that the published projection {part.name} was trained with"
            )
        if part.trained_on == UNKNOWN:
            warnings.append(f"the {part.role} {part.name} does not say what it was trained on")
        elif part.role in ("thinker", "adapter") and part.trained_on != self.task:
            warnings.append(
                f"the {part.role} {part.name} was trained on {part.trained_on}, and these questions are of {self.task}"
            )
        if part.overlap is None and part.trained_on == self.task:
            warnings.append(
                f"the {part.role} {part.name} does not say which questions it was trained on, so they may be among these"
            )
        return warnings

    def _about_overlap(self, part: Part) -> list[str]:
        overlap = part.overlap or Overlap()
        todo = "they are left out" if self.dropped else "`--overlap drop` leaves them out, `--overlap refuse` stops"
        return [
            f"the {part.role} {part.name} was {verb} {len(ids)} of the {self.asked} questions "
            f"({listed(ids, shown=3)}): {todo}"
            for ids, verb in ((overlap.trained, "trained on"), (overlap.validated, "validated on"))
            if ids
        ]


def provenance_of(config: RunConfig, task: Task) -> tuple[Task, Provenance]:
    """The questions that are to be asked, and where they and the run's parts come from.

    config: a resolved one. Raises UsageError where questions were trained on and `--overlap` refuses them, where it leaves
    none, and for a thinker or adapter that cannot be used.
    """
    parts = tuple(
        replace(part, overlap=overlap_of(task.questions, learned))
        if part.about is not None and (learned := learned_from(part.about))
        else part
        for part in _parts(config)
    )
    models = shlex.join(["--backbone", config.backbone, "--assistant", config.assistant])
    known = Provenance(name_of(task, config.data), len(task.questions), parts, config.overlap == "drop", models)
    shared = (known.overlap or Overlap()).ids
    if shared and config.overlap == "refuse":
        raise UsageError(
            f"`--overlap refuse`: {_whose(parts)} was trained or validated on {len(shared)} of the {known.asked} questions "
            f"({listed(shared, shown=3)}): ask others, or leave these out with `--overlap drop`."
        )
    if not known.dropped:
        return task, known
    left_out = set(shared)
    kept = tuple(question for question in task.questions if question.id not in left_out)
    if not kept:
        raise UsageError(
            f"`--overlap drop` leaves no question, as {_whose(parts)} was trained or validated on all {known.asked}: ask "
            f"others."
        )
    return replace(task, questions=kept), known


def name_of(task: Task, data: Path | None) -> str:
    """What the questions of a task are called, where `data` is its file or folder."""
    return questions_called(task.name, data.expanduser().resolve() if data else None)


def _whose(parts: Iterable[Part]) -> str:
    named = [f"the {part.role} {part.name}" for part in parts if part.overlap and part.overlap.ids]
    return " or ".join(named)


def _parts(config: RunConfig) -> list[Part]:
    parts = []
    if config.soft:
        parts.append(Part("thinker", str(config.thinker), thinkers.about(config), None))
    if config.adapter:
        parts.append(Part("adapter", config.adapter, adapters.find(config.adapter).about, None))
    models = {config.backbone: "backbone"}
    if config.assisted:
        models.setdefault(config.assistant, "assistant")
    for name, role in models.items():
        place = Path(name).expanduser()
        about = adapters.read_about(place) if place.is_dir() else {}
        parts += [Part(role, name, about, None)] if learned_from(about) else []
    return parts
