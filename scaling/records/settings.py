"""What an option is: the words that describe it, who uses it, and what another value of it means for a run.

An option is declared once, as a field of `RunConfig` or `TrainConfig` with a `Setting` beside its type. Everything that
treats options in different ways reads it from there: command lines, refusals, run hashes, sweeps, reports, documentation.

Standard library only, so that reports can ask. The options themselves are read when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, IntEnum
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling.methods.kinds import Trait


class Effect(Enum):
    """What another value means for a run, or a training, that is already there. The value: in a few words."""

    IDENTITY = "another run"
    SIZE = "extends the run"
    FREE = "the same run"


class Differs(IntEnum):
    """Between which runs of one report a setting may have different values without a word."""

    NEVER = 0  # methods that differ in it are not comparable
    METHODS = 1
    SEEDS = 2  # runs of one method, hence also runs of two


class Tag(Enum):
    """What else is asked of settings, each by one part of the project."""

    QUESTIONS = "decides which questions are asked"
    LOADED = "decides which weights are loaded"
    NAMED = "stands in the name that a report gives to a method"
    VALIDATION = "is the same in a run and in the one, on other questions, that its voters learn from"
    HARNESS = "is decided by the evaluation harness, where that asks the questions"
    INHERITED = "has in a sweep's trainings the value that it has in their runs"
    CONTRAST = "is about how several paths are driven apart, so of no use to one"
    AFTERWARDS = "is done with what a training made; a sweep whose trainings differ in it trains twice"


class Setting:
    """An option, but for its name, type and default, which the field says that it stands beside."""

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
            help: what `--help` says.
            group: heading under which it stands there.
            marks: what another value means (another run, where nothing is said), between which runs of a report it may
                differ, and what else is asked of it.
            used_by: what a method must have to use it; None for an option that all methods use.
            whose: these methods in words, for the refusal; empty where it is not refused, or refused in other words.
            values: what it may be, where its type does not say.
            content: the key of run.json that tells what lies there, of an option that names a place.
            facts: further keys of run.json that follow from it.
            not_in_sweeps: why a grid cannot set it; empty where it can.
            symbol: the letter that formulas and figures have for it.
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
    """The options of a pydantic model by name, in their order. Raises TypeError for a field that has no `Setting`."""
    found = {name: [one for one in of.metadata if isinstance(one, Setting)] for name, of in model.model_fields.items()}
    if bare := [name for name, own in found.items() if len(own) != 1]:
        raise TypeError(f"{model.__name__}.{bare[0]} needs one `Setting` beside its type")
    return {name: own for name, (own,) in found.items()}


@cache
def names(model: Any, *marks: Enum) -> tuple[str, ...]:
    """Names of the options of `model` that have one of these marks, in their order."""
    return tuple(name for name, own in settings_of(model).items() if own.has(*marks))


@cache
def run_settings() -> dict[str, Setting]:
    """The options of `scale-run` by name."""
    from scaling.config import RunConfig  # needs more than the standard library, which reading records does not

    return settings_of(RunConfig)


@cache
def run_names(*marks: Enum) -> tuple[str, ...]:
    """Names of the options of `scale-run` that have one of these marks."""
    return tuple(name for name, own in run_settings().items() if own.has(*marks))
