"""The base class of a method of your own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaling.methods.base import Surroundings
    from scaling.methods.kinds import Trait


class Method:
    """A method of your own. Subclass it, write `thoughts(self, question)`, and give the class as `method`.

    `thoughts` returns a question's soft thoughts [N, L, D]: N is `self.surroundings.num_paths`, L
    `self.surroundings.soft_tokens`, D the width of the backbone. docs/methods.md says what else a method may have.

    Attributes:
        name: what folders are called; the class's name where it is not given.
        title: what reports call it; the name where it is not given.
        traits: `Trait.PATHS` for several latent paths, `Trait.ASSISTANT` for an assistant, `Trait.LOCAL` for the backbone's
            weights in this process.
    """

    traits: tuple[Trait, ...] = ()

    def __init__(self, surroundings: Surroundings) -> None:
        """surroundings: the run's models, settings and questions. Further parameters are those of `method_args`, by name."""
        self.surroundings = surroundings
