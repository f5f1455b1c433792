"""What the methods are, as far as settings, sweeps and reports need to know: their names, and what each makes use of.

Standard library only, so that command lines and reports can ask without loading a model.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class Trait(Enum):
    """Something that a method has or does, on which settings, models and costs depend."""

    THOUGHTS = auto()  # soft thoughts, made by a thinker from what an assistant reads
    PERTURBED = auto()  # latent paths are random draws around the thought of one
    PATHS = auto()  # there may be more than one latent path
    SLOTS = auto()  # prompts have soft tokens: thoughts, or placeholders
    ASSISTANT = auto()  # an assistant is loaded
    NOTES = auto()  # the assistant writes text, which stands in the prompt
    ADAPTER = auto()  # an adapter is merged into the backbone
    SHOTS = auto()  # solved questions may stand before the asked one


@dataclass(frozen=True)
class MethodKind:
    """A method by name.

    Attributes:
        name: as `--method` takes it.
        title: as the papers call it.
        traits: what it makes use of.
    """

    name: str
    title: str
    traits: frozenset[Trait]

    def has(self, trait: Trait) -> bool:
        return trait in self.traits

    @property
    def trains_paths(self) -> bool:
        """Whether a thinker is trained with as many paths as the method has, rather than with one."""
        return self.has(Trait.THOUGHTS) and self.has(Trait.PATHS) and not self.has(Trait.PERTURBED)


def _kind(name: str, title: str, *traits: Trait) -> tuple[str, MethodKind]:
    return name, MethodKind(name, title, frozenset(traits))


_SOFT = (Trait.THOUGHTS, Trait.SLOTS, Trait.ASSISTANT)
_PERTURBED = (*_SOFT, Trait.PERTURBED, Trait.PATHS)
KINDS = dict(
    (
        _kind("softcot++", "SoftCoT++", *_SOFT, Trait.PATHS),
        _kind("softcot", "SoftCoT", *_SOFT),
        _kind("softcot-p", "SoftCoT-P", *_PERTURBED),
        _kind("softcot-dropout", "SoftCoT-Dropout", *_PERTURBED),
        _kind("softcot-gumbel", "SoftCoT-Gumbel", *_PERTURBED),
        _kind("cot", "CoT", Trait.SHOTS),
        _kind("cot-unk", "CoT-Unk", Trait.SLOTS),
        _kind("assist-cot", "Assist-CoT", Trait.ASSISTANT, Trait.NOTES),
        _kind("lora", "LoRA", Trait.ADAPTER),
    )
)


def kind_of(method: str) -> MethodKind:
    """What is known of a method by its name."""
    return KINDS[method]
