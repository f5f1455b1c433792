"""The base class of methods that users write themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaling.methods.base import Surroundings
    from scaling.methods.kinds import Trait


class Method:
    """The base class of your own methods. Write `thoughts(self, question)` in a subclass, and pass the class as `method`.

    `thoughts` returns the soft thoughts of a question, [N, L, D]. N is `self.surroundings.num_paths`, L is
    `self.surroundings.soft_tokens`, and D is the hidden size of the backbone. docs/methods.md says what else a method may
    have.

    Attributes:
        name: the method's name in folders; by default the name of the class.
        title: the method's name in reports; by default `name`.
        traits: what the method needs. `Trait.PATHS` for several latent paths, `Trait.ASSISTANT` for an assistant,
            `Trait.LOCAL` for the backbone's weights in this process.
    """

    traits: tuple[Trait, ...] = ()

    def __init__(self, surroundings: Surroundings) -> None:
        """Keeps the surroundings. A subclass may take further parameters, which get the values of `method_args` by name.

        Args:
            surroundings: models, settings and questions of the run.
        """
        self.surroundings = surroundings
