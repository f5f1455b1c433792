"""A thinker turns questions into soft thoughts. This is what all kinds of thinkers have in common.

The thoughts of a question are a constant plus a residual: the constant is learned for each path and slot and is the same for
all questions, the residual is computed from the question.

The whole project uses these letters in shapes: B questions, N latent paths, M samples per path, L soft tokens, T positions
of the assistant's prompt, P positions of the backbone's prompt, D_a width of the assistant, D width of the backbone, V size
of the vocabulary.

Knows token ids, no texts and no benchmarks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from contrastive.forward import pad_right
from contrastive.token_sets import SoftTokenSets


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a thinker may read of B questions. A thinker that does not read a part of it gets None there.

    Attributes:
        size: B.
        assistant: the frozen model that reads the questions.
        input_ids: [B, T] int64, the assistant's prompts up to the first slot, padded on the right.
        attention_mask: [B, T] int64, 0 for padding.
        embeddings: [B, P, D] float32, the backbone's input embeddings of its prompts up to the first slot, padded right.
        seen: [B, P] bool, False for padding.
    """

    size: int
    assistant: PreTrainedModel | None = None
    input_ids: Tensor | None = None
    attention_mask: Tensor | None = None
    embeddings: Tensor | None = None
    seen: Tensor | None = None

    @classmethod
    def of_assistant(cls, assistant: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Inputs:
        """The inputs of a thinker that reads with an assistant. The arguments are those of the class."""
        return cls(len(input_ids), assistant, input_ids, attention_mask)

    def with_assistant(self) -> tuple[PreTrainedModel, Tensor, Tensor]:
        """Assistant, ids and mask. Raises ValueError where there is no assistant."""
        if self.assistant is None or self.input_ids is None or self.attention_mask is None:
            raise ValueError("this thinker reads questions with an assistant, and none was given")
        return self.assistant, self.input_ids, self.attention_mask

    def prompt(self) -> tuple[Tensor, Tensor]:
        """Embeddings of the backbone's prompts, and which of them are seen. Raises ValueError where there are none."""
        if self.embeddings is None or self.seen is None:
            raise ValueError("this thinker reads the backbone's prompt, and none was given")
        return self.embeddings, self.seen


@dataclass(frozen=True, eq=False)
class Thoughts:
    """What a thinker computes for B questions, as training needs it.

    Attributes:
        thoughts: [B, N, L, D] float32, what the backbone reads.
        contrasted: [B, N, L, D] float32, the part of them that is to differ between paths. It may be `thoughts` itself.
        penalty: [B] float32, is added to the loss as a mean over questions; None for none.
    """

    thoughts: Tensor
    contrasted: Tensor
    penalty: Tensor | None = None


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of a thinker besides those of its assistant. Positions are of the prompt that it reads.

    Attributes:
        slot: for each slot of each path.
        position: for each position, once a question.
        pair: for each pair of two positions, once a question.
        slot_position: for each pair of a slot and a position.
        slot_slot: for each pair of two slots of a path.
        slots_read: whether the assistant reads the slots of every path.
        computed_slots: how many slots of a path are computed, where that is more than are used; 0 for as many as are used.
    """

    slot: int = 0
    position: int = 0
    pair: int = 0
    slot_position: int = 0
    slot_slot: int = 0
    slots_read: bool = False
    computed_slots: int = 0


class Thinker(nn.Module, ABC):
    """All that is learned. A frozen model is an argument of the methods and never a part of a thinker's state.

    Subclasses say what they read, compute the residual, and say what a checkpoint must know to build them again.

    Attributes:
        offset: [N, 1, D] or [N, L, D], the constant of each path, or of each path and slot; None for none.
        refine_steps: rounds of refinement of the thoughts; None for a thinker that has no such rounds.
    """

    kind: ClassVar[str]  # names the class in `config.json`
    uses_assistant: ClassVar[bool] = False
    uses_prompt: ClassVar[bool] = False
    of_path: ClassVar[tuple[str, ...]] = ("offset",)  # names of parameters whose first dimension is N
    of_slot: ClassVar[tuple[str, ...]] = ("offset",)  # names of parameters whose second one is L, or 1 for all slots
    offset: nn.Parameter | None
    refine_steps: int | None = None

    @property
    @abstractmethod
    def num_paths(self) -> int:
        """N."""

    @property
    @abstractmethod
    def width(self) -> int:
        """D."""

    @property
    @abstractmethod
    def vectors_per_path(self) -> int:
        """K, the learned vectors of a path: 1 for any number of slots, else L."""

    @abstractmethod
    def residual(self, inputs: Inputs, num_slots: int) -> Tensor:
        """The part of the thoughts that is computed from the questions, [B, N, L, D] float32. num_slots: L."""

    @abstractmethod
    def sizes(self) -> dict[str, Any]:
        """What `empty` needs besides N, L and D, by name, as JSON can hold it. Values at their default may be left out."""

    @classmethod
    @abstractmethod
    def shapes(cls, num_paths: int, soft_tokens: int, backbone_width: int) -> dict[str, list[int]]:
        """Shape of each tensor of a thinker, by name. Subclasses have further arguments: those that `sizes` gives."""

    @classmethod
    @abstractmethod
    def empty(cls, num_paths: int, soft_tokens: int, backbone_width: int) -> Self:
        """A thinker whose tensors are to be filled from a file. Arguments as of `shapes`."""

    @abstractmethod
    def flops(self) -> Flops:
        """What computing thoughts costs."""

    def begin_from(self, constant: Tensor) -> None:
        """Gives an untrained thinker a constant that was learned before and stays as it is, so that the residual is learned.

        constant: [N, L, D], a learned prompt for each path.
        """
        self.offset = nn.Parameter(constant.detach().float().clone(), requires_grad=False)

    def only(self, paths: slice) -> Self:
        """A copy with some of the paths; what all paths share is not copied."""
        return self._cut(self.of_path, (paths,))

    def _cut(self, names: Sequence[str], place: tuple[slice, ...]) -> Self:
        """A copy that has only a part of some parameters; all others are shared."""
        kept = copy(self)
        for kind in ("_parameters", "_buffers", "_modules"):  # else both would have the same ones for ever
            kept.__dict__[kind] = dict(self.__dict__[kind])
        for name in names:
            whole = self._parameters[name]
            if whole is not None:
                setattr(kept, name, nn.Parameter(whole.detach()[place].clone(), requires_grad=whole.requires_grad))
        return kept

    def first_slots(self, num_slots: int) -> Self:
        """The same thinker for fewer slots: its thoughts are the first `num_slots` of those that this one computes for all.

        A thinker that computes each slot from no later slot computes only those. Others say in `flops` how many they
        compute. A thinker whose slots share all vectors is returned itself, and so is one that has no more slots.

        Raises:
            ValueError: it has fewer slots.
        """
        if self.vectors_per_path in (1, num_slots):
            return self
        if self.vectors_per_path < num_slots:
            raise ValueError(f"there are {self.vectors_per_path} slots a path, fewer than {num_slots}")
        return self._cut(self.of_slot, (slice(None), slice(num_slots)))

    def first_paths(self, num_paths: int) -> Self:
        """The same thinker with only its first `num_paths` paths, so that the others cost nothing."""
        return self.only(slice(num_paths))

    def forward(self, inputs: Inputs, num_slots: int) -> Tensor:
        """The thoughts of questions, [B, N, L, D] float32. num_slots: L."""
        return self.compute(inputs, num_slots).thoughts

    def compute(self, inputs: Inputs, num_slots: int) -> Thoughts:
        """The thoughts of questions, with what training needs besides. num_slots: L."""
        thoughts = self.with_constant(self.residual(inputs, num_slots))
        return Thoughts(thoughts, thoughts)

    def paths_apart(self, inputs: Inputs, num_slots: int) -> Tensor:
        """Computes the thoughts of `forward` with a computation of its own for each path.

        A path's thoughts are then the same to the last bit, however many paths there are. They differ from those of
        `forward` by rounding alone. Arguments and result are the same.
        """
        each = [self.only(slice(path, path + 1)) for path in range(self.num_paths)]
        return torch.cat([one(inputs, num_slots) for one in each], dim=1)

    def with_constant(self, residual: Tensor) -> Tensor:
        """Adds the constant to a residual [..., N, L, D]. Raises ValueError where it has another number of slots."""
        if self.offset is None:
            return residual
        per_path = self.offset.shape[1]
        if per_path not in (1, residual.shape[-2]):
            raise ValueError(f"there are {per_path} constants a path, which cannot fill {residual.shape[-2]} slots")
        return residual + self.offset

    def with_steps(self, refine_steps: int | None) -> Self:
        """Sets the rounds of refinement; None leaves them. Raises ValueError for a thinker that has none."""
        if refine_steps is not None and self.refine_steps is None:
            raise ValueError(f"a thinker of the kind {self.kind} has no rounds of refinement")
        self.refine_steps = self.refine_steps if refine_steps is None else refine_steps
        return self

    def parameter_count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


@torch.no_grad()
def read(
    thinker: Thinker,
    assistant: PreTrainedModel | None,
    backbone: PreTrainedModel,
    *,
    questions: Sequence[Sequence[int]],
    prompts: Sequence[Sequence[int]],
) -> Inputs:
    """Makes the inputs of a thinker: those that it reads.

    Args:
        thinker: what will read them.
        assistant: the frozen model that reads questions; None for a thinker that needs none.
        backbone: the frozen model, of which only the input embeddings are used.
        questions: token ids of the assistant's prompts up to the first slot.
        prompts: token ids of the backbone's prompts up to the first slot.
    """
    if thinker.uses_assistant and assistant is not None:
        return Inputs.of_assistant(assistant, *pad_right(questions, assistant.device))
    if not thinker.uses_prompt:
        return Inputs(len(prompts))
    device = next(thinker.parameters()).device
    ids, mask = pad_right(prompts, backbone.device)
    embeddings = backbone.get_input_embeddings()(ids).float()
    return Inputs(len(prompts), embeddings=embeddings.to(device), seen=mask.bool().to(device))


class ConstantPerSlot(Thinker):
    """A thinker whose constant has a vector for each path and slot, which tells N, L and D."""

    offset: nn.Parameter

    def __init__(self, constant: Tensor) -> None:
        """constant: [N, L, D]."""
        super().__init__()
        self.offset = nn.Parameter(constant.detach().float().clone())

    @property
    def num_paths(self) -> int:
        return self.offset.shape[0]

    @property
    def width(self) -> int:
        return self.offset.shape[2]

    @property
    def vectors_per_path(self) -> int:
        return self.offset.shape[1]


def rare_constants(rare_rows: Tensor, *, num_paths: int, num_slots: int, scale: float) -> Tensor:
    """Untrained constants [N, L, D], no two alike: embeddings of rarely used tokens with the root mean square `scale`.

    Those of the first n paths do not depend on N. rare_rows: [C, D], of the rarest first.
    """
    vectors = SoftTokenSets.from_rows(rare_rows, num_paths * num_slots).vectors.detach()
    vectors = vectors * (scale / vectors.pow(2).mean(-1, keepdim=True).sqrt())
    return vectors.view(num_paths, num_slots, -1)
