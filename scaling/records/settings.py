"""Describes an option: its help text, which methods use it, and what another value of it means for an existing run.

An option is declared once, as a field of `RunConfig` or `TrainConfig` with a `Setting` beside its type. All other code reads
the declaration: command lines, refusals, run hashes, sweeps, reports and the documentation.

Only the standard library is used, so that reports can ask. The config classes are imported when they are first needed.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.methods.kinds import Trait


class Effect(Enum):
    """What another value of an option means for a run, or a training, that exists already. The values say it in words."""

    IDENTITY = "another run"
    SIZE = "extends the run"
    FREE = "the same run"


class Differs(IntEnum):
    """Between which runs of one report a setting may differ without a warning or refusal."""

    NEVER = 0  # runs that differ in it cannot be compared
    METHODS = 1  # runs of different methods may differ
    SEEDS = 2  # runs of the same method may differ, too


class Tag(Enum):
    """Further properties of settings. Each is used by one part of the project."""

    QUESTIONS = "decides which questions are asked"
    HUB = "may name something on the Hugging Face Hub"
    LOADED = "decides which weights are loaded"
    NAMED = "stands in the name that a report gives to a method"
    VALIDATION = "is the same in a run and in the one, on other questions, that its voters learn from"
    HARNESS = "is decided by the evaluation harness, where that asks the questions"
    INHERITED = "has in a sweep's trainings the value that it has in their runs"
    CHOSEN_LATER = "where it is not given, a checkpoint or a server decides it after the settings are resolved"
    CONTRAST = "is about how several paths are driven apart, so of no use to one"
    REGRESSION = "is about how contemplation tokens are learned from a chain, so of no use to pause tokens"
    WORDING = "decides how questions are put to the backbone, so that a training and its runs should share it"
    LENGTH = "decides how long a training is and on what, and not what one of its steps costs"
    AFTERWARDS = "is done with what a training made; a sweep whose trainings differ in it trains twice"


class Setting:
    """The description of an option. Its name, type and default are those of the field that it is declared with."""

    def __init__(
        self,
        help: str,
        group: str,
        *marks: Effect | Differs | Tag,
        used_by: Trait | None = None,
        whose: str = "",
        values: Collection[str] = (),
        content: str = "",
        facts: tuple[str, ...] = (),
        not_in_sweeps: str = "",
        symbol: str = "",
    ) -> None:
        """
        Args:
            help: the text of `--help`.
            group: the heading above it in `--help`.
            marks: one `Effect` at most (default `IDENTITY`), one `Differs` at most (default `NEVER`), and any `Tag`.
            used_by: the trait that a method must have to use the option; None if all methods use it.
            whose: the methods that use it, in words, for the message that refuses it to others. Empty if it is not refused,
                or is refused elsewhere.
            values: the possible values, if the type does not list them.
            content: for an option that names a file or model, the key of run.json that identifies its content.
            facts: further keys of run.json that follow from the option.
            not_in_sweeps: why a sweep's grid cannot vary it; empty if it can.
            symbol: its letter in formulas and figures.
        """
        self.help, self.group = help, group
        self.effect = next((mark for mark in marks if isinstance(mark, Effect)), Effect.IDENTITY)
        self.differs = next((mark for mark in marks if isinstance(mark, Differs)), Differs.NEVER)
        self.used_by, self.whose = used_by, whose
        self.values, self.not_in_sweeps, self.symbol = values, not_in_sweeps, symbol
        self.content, self.facts = content, (*([content] if content else []), *facts)
        self._marks = {*marks, self.effect, used_by}

    def has(self, *marks: Enum) -> bool:
        """Whether it has one of these marks, or is used by methods that have one of these traits."""
        return not self._marks.isdisjoint(marks)


@cache
def settings_of(model: Any) -> dict[str, Setting]:
    """The options of a pydantic model by name, in their order. Raises TypeError for a field without a `Setting`."""
    declared = {
        name: [mark for mark in field.metadata if isinstance(mark, Setting)]
        for name, field in model.model_fields.items()
    }
    if bare := [name for name, settings in declared.items() if len(settings) != 1]:
        raise TypeError(f"{model.__name__}.{bare[0]} needs one `Setting` beside its type")
    return {name: setting for name, (setting,) in declared.items()}


@cache
def names(model: Any, *marks: Enum) -> tuple[str, ...]:
    """Names of the options of `model` that have one of these marks, in their order."""
    return tuple(name for name, setting in settings_of(model).items() if setting.has(*marks))


@cache
def run_settings() -> dict[str, Setting]:
    """The options of `scale-run` by name."""
    from scaling.config import RunConfig  # imported here, because reading records needs only the standard library

    return settings_of(RunConfig)


@cache
def run_names(*marks: Enum) -> tuple[str, ...]:
    """Names of the options of `scale-run` that have one of these marks."""
    return tuple(name for name, setting in run_settings().items() if setting.has(*marks))
