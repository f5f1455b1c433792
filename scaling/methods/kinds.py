"""The table of methods: their names, and what each of them uses (an assistant, a thinker, several paths and so on).

Settings, sweeps and reports ask this table instead of comparing names. It needs the standard library only, so that command
lines and reports answer without loading torch. A method of the user's own is described by its file, which is loaded for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Any

from scaling.records.errors import UsageError
from scaling.records.names import TITLES
from scaling.records.plugins import load_object, refuse_unknown

GROUP = "softcotpp.methods"  # entry points of this group are methods of installed packages


class Trait(Enum):
    """Something that a method has or does, on which settings, models and costs depend."""

    THOUGHTS = auto()  # a question has soft thoughts, which a control may replace
    THINKER = auto()  # they are made by a thinker
    READING = auto()  # the thinker reads the question
    REFINED = auto()  # the thinker refines them in rounds, of which there may be more or fewer
    PERTURBED = auto()  # latent paths are random draws around the thought of one
    LATENT = auto()  # its thoughts are states of the backbone, fed back into it one after another
    PATHS = auto()  # there may be more than one latent path
    SLOTS = auto()  # prompts have soft tokens: thoughts, or placeholders
    ASSISTANT = auto()  # an assistant is loaded
    NOTES = auto()  # the assistant writes text, which stands in the prompt
    ADAPTER = auto()  # an adapter of the backbone is trained
    MERGED = auto()  # it is merged into the backbone's weights, which is all there is to it
    CONTEMPLATION = auto()  # contemplation tokens stand for a chain, and the method computes their keys and values
    STAND_INS = auto()  # a training may have pause tokens, or nothing, in the place of its continuous thoughts
    SHOTS = auto()  # solved questions may stand before the asked one
    ARGUMENTS = auto()  # it takes arguments of its own
    LOCAL = auto()  # the backbone's weights, or changed ones, must be in this process


@dataclass(frozen=True)
class MethodKind:
    """A method by name.

    Attributes:
        name: as `--method` takes it; folders of runs are named after it.
        title: as the papers call it.
        traits: what it uses.
        factory: class or function that makes a user's own method, None for a method of the package.
        latent_paths: N unless the settings say another; None where a checkpoint or the method's traits decide.
        soft_tokens: L of a user's own method, unless the settings say another.
        sha256: checksum of the source of a user's own method.
        file: its path.
    """

    name: str
    title: str
    traits: frozenset[Trait]
    factory: Callable[..., Any] | None = None
    latent_paths: int | None = None
    soft_tokens: int | None = None
    sha256: str | None = None
    file: str | None = None

    def has(self, trait: Trait) -> bool:
        return trait in self.traits

    @property
    def trains_paths(self) -> bool:
        """Whether a thinker is trained with as many paths as the method has, rather than with one."""
        return self.has(Trait.THINKER) and self.has(Trait.PATHS) and not self.has(Trait.PERTURBED)

    @property
    def needs_adapter(self) -> bool:
        """Whether it is nothing without an adapter. A method with latent steps may have a backbone trained as a whole."""
        return self.has(Trait.ADAPTER) and not self.has(Trait.LATENT)

    @property
    def trained_as(self) -> str | None:
        """The method of `scale-train` that trains its thinker or adapter; None where there is nothing to train."""
        if self.has(Trait.THINKER):
            return DEFAULT if self.has(Trait.ASSISTANT) else self.name
        return self.name if self.has(Trait.ADAPTER) else None


def _kind(name: str, *traits: Trait, latent_paths: int | None = None) -> tuple[str, MethodKind]:
    return name, MethodKind(name, TITLES[name], frozenset(traits), latent_paths=latent_paths)


_THINKER = (Trait.THOUGHTS, Trait.THINKER, Trait.SLOTS)
_READER = (*_THINKER, Trait.READING)
_SOFT = (*_READER, Trait.ASSISTANT)
_PERTURBED = (*_SOFT, Trait.PERTURBED, Trait.PATHS)
_LATENT = (Trait.THOUGHTS, Trait.LATENT, Trait.PERTURBED, Trait.PATHS)
KINDS = dict(
    (
        _kind("softcot++", *_SOFT, Trait.PATHS),
        _kind("softcot", *_SOFT),
        _kind("softcot-p", *_PERTURBED),
        _kind("softcot-dropout", *_PERTURBED),
        _kind("softcot-gumbel", *_PERTURBED),
        _kind("prompt-tuning", *_THINKER, Trait.PATHS),
        _kind("proposer", *_READER, Trait.PATHS),
        _kind("refiner", *_READER, Trait.PATHS, Trait.REFINED),
        _kind("cot", Trait.SHOTS),
        _kind("cot-unk", Trait.SLOTS),
        _kind("assist-cot", Trait.ASSISTANT, Trait.NOTES),
        _kind("lora", Trait.ADAPTER, Trait.MERGED, Trait.LOCAL),
        _kind("coconut", *_LATENT, Trait.ADAPTER, Trait.STAND_INS, Trait.LOCAL, latent_paths=1),
        _kind("ccot", Trait.ADAPTER, Trait.CONTEMPLATION, Trait.STAND_INS, Trait.LOCAL),
    )
)
DEFAULT = "softcot++"
_DECLARABLE = (Trait.PATHS, Trait.ASSISTANT, Trait.LOCAL)  # what a user's own method may list in its `traits`
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_DEFAULT_PATHS = 8


def kind_of(method: str) -> MethodKind:
    """The method that `--method` names: one of KINDS, or a user's own. Raises UsageError where there is none."""
    return KINDS.get(method) or _own_kind(method)


def has_thoughts(factory: object) -> bool:
    """Whether the methods that a factory makes have thoughts.

    A class shows it. What a function returns is not known before it is called, so it is taken to have thoughts.
    """
    return not isinstance(factory, type) or hasattr(factory, "thoughts") or hasattr(factory, "batch_thoughts")


def _is_method(value: object) -> bool:
    return isinstance(value, type) and (has_thoughts(value) or hasattr(value, "traits"))


def _own_kind(spec: str) -> MethodKind:
    """Loads a user's own method and reads what it declares. Raises UsageError where something is wrong with that."""
    loaded = load_object(spec, option="--method", group=GROUP, fits=_is_method, known=KINDS)
    factory = loaded.object
    refuse = partial(_refused, spec)
    if not callable(factory):
        raise refuse(f"is a {type(factory).__name__}, and a class or function is needed, which makes the method")
    name = getattr(factory, "name", None) or getattr(factory, "__name__", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in KINDS:
        raise refuse(f"has the name {name!r}, and needs one of letters, digits and `._+-` that no other method has")
    title = getattr(factory, "title", name)
    if not isinstance(title, str) or not title.strip() or set("[],=\n") & set(title):
        raise refuse(f"has the title {title!r}, and needs a text without brackets, commas and equals signs")
    traits = getattr(factory, "traits", ())
    declared = set(traits) if isinstance(traits, tuple | list | set | frozenset) else {traits}
    if not declared <= set(_DECLARABLE):
        known = ", ".join(f"Trait.{trait.name}" for trait in _DECLARABLE)
        raise refuse(f"declares traits {traits!r}, and may declare {known}")
    with_thoughts = (Trait.THOUGHTS, Trait.SLOTS) if has_thoughts(factory) else ()
    paths = _count(factory, "latent_paths", refuse) or (_DEFAULT_PATHS if Trait.PATHS in declared else 1)
    if paths > 1 and Trait.PATHS not in declared:
        raise refuse(f"has {paths} latent paths: add Trait.PATHS to its `traits`")
    return MethodKind(
        name,
        title,
        frozenset((Trait.ARGUMENTS, *with_thoughts, *declared)),
        factory,
        paths,
        _count(factory, "soft_tokens", refuse),
        loaded.sha256,
        loaded.file,
    )


def _count(factory: Any, key: str, refuse: Callable[[str], UsageError]) -> int | None:
    """A number of at least 1 that a factory has as an attribute, None where it has none. Raises what `refuse` makes."""
    value = getattr(factory, key, None)
    if value is not None and (type(value) is not int or value < 1):
        raise refuse(f"has `{key}` {value!r}, and needs a whole number from 1")
    return value


def _refused(spec: str, why: str) -> UsageError:
    return UsageError(f"`--method` {spec} {why}.")


def known_method(given: str) -> str:
    """Returns the name as it is given. Raises UsageError where it cannot be the name of a method.

    A user's own file is not opened, as settings of old runs must be readable where it is no longer there.
    """
    if given not in KINDS:
        refuse_unknown(given, option="--method", group=GROUP, known=KINDS)
    return given
