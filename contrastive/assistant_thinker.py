"""The thinker of SoftCoT and SoftCoT++: a frozen assistant reads the question, and a projection maps its states to thoughts.

What the states are taken from is a choice. By default they are those of slots that follow the question, filled with the
initial tokens of each path. The other choices pool the states of the question's own positions.

The letters of the shapes are explained in `contrastive.thinker`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, ClassVar, Literal, Self, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from contrastive import prefix, prompt_cache
from contrastive.forward import hidden_states, layer_states
from contrastive.projection import new_projection
from contrastive.thinker import Flops, Inputs, Thinker
from contrastive.token_sets import SoftTokenSets

States = Literal["slots", "last", "mean", "attention"]
SLOTS: States = "slots"


class AssistantThinker(Thinker):
    """A projection of an assistant's states, with what makes one path differ from another.

    With the states of slots, the thoughts of path k are T^k = W h^k + b + c^k, where h^k are the states at its L slots,
    which hold its initial tokens. Otherwise they are T^(k,l) = W (g^(k,l) * h^(k,l)) + b + c^(k,l) for slot l, where h is
    pooled over the positions of the question's prompt, and g is a learned gain for each path, slot and dimension. `last`
    takes the state of the last position, `mean` the mean of all, and `attention` their mean with the weights
    softmax(q^(k,l) . h_t / sqrt(D_a)), where q is a learned query for each path and slot.
    """

    kind: ClassVar[str] = "softcot++"
    uses_assistant: ClassVar[bool] = True
    of_path: ClassVar[tuple[str, ...]] = ("offset", "queries")
    of_slot: ClassVar[tuple[str, ...]] = ("offset", "queries")
    statistics: Tensor | None
    queries: nn.Parameter | None

    def __init__(
        self,
        token_sets: SoftTokenSets,
        projection: nn.Linear,
        *,
        normalise: bool = True,
        statistics: Tensor | None = None,
        offset: bool = False,
        states: States = SLOTS,
        queries: Tensor | None = None,
        layer: int | None = None,
        constants_per_path: int | None = None,
    ):
        """Joins the parts of a thinker.

        Args:
            token_sets: the initial token sets of the N paths; for pooled states the gains [N, L, D_a].
            projection: from D_a to D.
            normalise: divide each assistant state by its root mean square before the projection, so that the scale of
                thoughts does not depend on the assistant's final norm. False is the papers' plain T = W h + b.
            statistics: [2, N, D_a], mean and standard deviation of each path's states over a reference set; [2, 1, D_a] for
                pooled states. If given, states are standardised by these instead.
            offset: whether each path has learned vectors that are added. They begin as zero.
            states: what is projected.
            queries: [N, L, D_a], of the states `attention`.
            layer: whose states are read: 1 for the first layer of the assistant, -1 for the last, after the final norm; None
                for the last.
            constants_per_path: vectors that `offset` has for each path: L for one a slot, 1 for one in all slots; None for
                L with pooled states and 1 with those of slots.
        """
        super().__init__()
        self.token_sets = token_sets
        self.projection = projection
        self.normalise, self.states_of, self.layer = normalise, states, layer
        self.register_buffer("statistics", statistics)
        constants = torch.zeros(self.num_paths, constants_per_path or self._usual_constants(), self.width)
        self.register_parameter("offset", nn.Parameter(constants) if offset else None)
        self.register_parameter("queries", None if queries is None else nn.Parameter(queries.detach().clone()))

    @classmethod
    def untrained(cls, rare_rows: Tensor, *, num_paths: int, backbone_width: int, scale: float) -> AssistantThinker:
        """Makes a thinker before any training.

        Args:
            rare_rows: [C, D_a] input embeddings of rarely used tokens of the assistant, of the rarest first.
            num_paths: N.
            backbone_width: D.
            scale: root mean square of the thoughts, to be that of the backbone's input embeddings.
        """
        projection = new_projection(rare_rows.shape[1], backbone_width, scale=scale)
        return cls(SoftTokenSets.from_rows(rare_rows, num_paths), projection)

    @classmethod
    def pooled(
        cls,
        states: States,
        projection: nn.Linear,
        *,
        num_paths: int,
        num_slots: int,
        normalise: bool = True,
        offset: bool = True,
        layer: int | None = None,
    ) -> AssistantThinker:
        """Makes a thinker on pooled states before any training. Its gains and queries are normal random numbers.

        Args:
            states: how the states are pooled.
            projection: from D_a to D.
            num_paths: N.
            num_slots: L.
            normalise: as of the class, and so the next two.
            offset: see there.
            layer: see there.
        """
        size = (num_slots, projection.in_features)
        gains, queries = (
            torch.stack([torch.randn(size, generator=_seeded(2 * path + of)) for path in range(num_paths)])
            for of in range(2)
        )
        return cls(
            SoftTokenSets(gains),
            projection,
            normalise=normalise,
            offset=offset,
            states=states,
            queries=queries if states == "attention" else None,
            layer=layer,
        )

    def _usual_constants(self) -> int:
        """Constants of a path, unless they come from an earlier stage of training."""
        return 1 if self.states_of == SLOTS else self.vectors_per_path

    def begin_from(self, constant: Tensor) -> None:
        super().begin_from(constant)
        # the projection begins as zero, and its bias stays so, as a bias is one more constant
        self.projection.bias.requires_grad_(False)
        with torch.no_grad():
            self.projection.weight.zero_()
            self.projection.bias.zero_()

    @property
    def num_paths(self) -> int:
        """N."""
        return self.token_sets.vectors.shape[0]

    @property
    def width(self) -> int:
        return self.projection.out_features

    @property
    def vectors_per_path(self) -> int:
        return self.token_sets.vectors.shape[1]

    def only(self, paths: slice) -> Self:
        kept = super().only(paths)
        kept.token_sets = SoftTokenSets(self.token_sets.vectors[paths])
        if self.statistics is not None and self.states_of == SLOTS:  # else there is one for all paths
            kept.statistics = self.statistics[:, paths]
        return kept

    def first_slots(self, num_slots: int) -> Self:
        kept = super().first_slots(num_slots)
        if kept is not self:
            kept.token_sets = SoftTokenSets(self.token_sets.vectors[:, :num_slots])
        return kept

    def sizes(self) -> dict[str, Any]:
        described: dict[str, Any] = {
            "assistant_width": self.projection.in_features,
            "vectors_per_path": self.vectors_per_path,
            "normalise": self.normalise,
            "standardise": self.statistics is not None,
            "path_offset": self.offset is not None,
        }
        if self.states_of != SLOTS:
            described["states"] = self.states_of
        if self.offset is not None and self.offset.shape[1] != self._usual_constants():
            described["constants_per_path"] = self.offset.shape[1]
        return described if self.layer is None else {**described, "layer": self.layer}

    @classmethod
    def shapes(  # type: ignore[override]
        cls,
        num_paths: int,
        soft_tokens: int,
        backbone_width: int,
        *,
        assistant_width: int,
        vectors_per_path: int,
        normalise: bool,
        standardise: bool,
        path_offset: bool,
        states: str = SLOTS,
        layer: int | None = None,
        constants_per_path: int | None = None,
    ) -> dict[str, list[int]]:
        del normalise, layer, soft_tokens
        if states not in get_args(States):
            raise ValueError(f"states={states!r} is none of {', '.join(get_args(States))}")
        sets = [num_paths, vectors_per_path, assistant_width]
        of_slots = states == SLOTS
        offset, statistics = (1, num_paths) if of_slots else (vectors_per_path, 1)
        return {
            "token_sets.vectors": sets,
            "projection.weight": [backbone_width, assistant_width],
            "projection.bias": [backbone_width],
            **({"statistics": [2, statistics, assistant_width]} if standardise else {}),
            **({"offset": [num_paths, constants_per_path or offset, backbone_width]} if path_offset else {}),
            **({"queries": sets} if states == "attention" else {}),
        }

    @classmethod
    def empty(cls, num_paths: int, soft_tokens: int, backbone_width: int, **sizes: Any) -> AssistantThinker:
        shapes = cls.shapes(num_paths, soft_tokens, backbone_width, **sizes)
        tensors = {name: torch.zeros(shape) for name, shape in shapes.items() if not name.startswith("projection")}
        return cls(
            SoftTokenSets(tensors["token_sets.vectors"]),
            new_projection(sizes["assistant_width"], backbone_width, scale=1.0),
            normalise=sizes["normalise"],
            statistics=tensors.get("statistics"),
            offset="offset" in tensors,
            states=sizes.get("states", SLOTS),
            queries=tensors.get("queries"),
            layer=sizes.get("layer"),
            constants_per_path=sizes.get("constants_per_path"),
        )

    def flops(self) -> Flops:
        attention = 4 * self.projection.in_features if self.queries is not None else 0
        return Flops(
            slot=2 * self.projection.weight.numel(), slot_position=attention, slots_read=self.states_of == SLOTS
        )

    def residual(self, inputs: Inputs, num_slots: int) -> Tensor:
        """W h^k + b with h^k = Assistant([question ; [INI]^k x L]), or with pooled states.

        The assistant reads the question once, without gradient. With the states of slots, the slots of all paths then follow
        in one forward pass, in which each slot sees only its own path.
        """
        if self.states_of == SLOTS:
            return self._projected(self.states(*inputs.with_assistant(), num_slots))
        return self._from_pooled(*self.prompt_states(*inputs.with_assistant()), num_slots)

    def paths_apart(self, inputs: Inputs, num_slots: int) -> Tensor:
        """As in `Thinker`. The assistant reads the question once for all paths, where that is possible."""
        each = [self.only(slice(path, path + 1)) for path in range(self.num_paths)]
        assistant, ids, mask = inputs.with_assistant()
        if self.states_of != SLOTS:
            states = self.prompt_states(assistant, ids, mask)
            return torch.cat([one.with_constant(one._from_pooled(*states, num_slots)) for one in each], dim=1)
        if not prefix.can_extend(assistant, longest=ids.shape[1] + num_slots):
            return super().paths_apart(inputs, num_slots)
        question = prompt_cache.prefill(assistant, ids, mask)
        return torch.cat([one.project(one.follow(assistant, question, num_slots)) for one in each], dim=1)

    def states(self, assistant: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, num_slots: int) -> Tensor:
        """The assistant's hidden states at the slots, [B, N, L, D_a].

        Args:
            assistant: the frozen model.
            input_ids: [B, T] int64, the assistant's prompts up to the first slot, padded on the right.
            attention_mask: [B, T] int64, 0 for padding.
            num_slots: L.
        """
        longest = input_ids.shape[1] + num_slots
        if not prefix.can_extend(assistant, longest=longest):
            tokens = self.token_sets(num_slots).to(assistant.dtype)  # [N, L, D_a]
            questions = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
            return prefix.states_after(
                assistant, questions, tokens.expand(len(input_ids), -1, -1, -1), output=self._output
            )
        return self.follow(assistant, prompt_cache.prefill(assistant, input_ids, attention_mask), num_slots)

    def follow(self, assistant: PreTrainedModel, question: prefix.Prefix, num_slots: int) -> Tensor:
        """The assistant's hidden states at the slots, [B, N, L, D_a], after questions that it has already read.

        It is for assistants that can continue after a prefix, see `prefix.can_extend`.

        Args:
            assistant: the frozen model.
            question: B questions that it has read.
            num_slots: L.
        """
        rows = len(question.seen)
        # all paths lie behind each other in one row; the mask and equal positions keep them apart
        slots = self.token_sets(num_slots).flatten(0, 1).to(assistant.dtype).expand(rows, -1, -1)
        steps = torch.arange(num_slots, device=slots.device).repeat(self.num_paths)
        positions = question.lengths[:, None] + steps
        mask = prefix.path_mask(self.num_paths, num_slots, slots.device)
        states = prefix.extend(assistant, question, slots, positions, mask, output=self._output)
        return states.view(rows, self.num_paths, num_slots, -1)

    @property
    def _output(self) -> prefix.Output:
        """What is read of the assistant's forward pass."""
        return hidden_states if self.layer is None else _of_layer(self.layer)

    @torch.no_grad()
    def prompt_states(
        self, assistant: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The assistant's states at the positions of its prompts, [B, T, D_a] float32, and which are no padding, [B, T].

        Arguments as of `states`.
        """
        seen = attention_mask.bool()
        if prefix.can_extend(assistant, longest=input_ids.shape[1]):
            states = prompt_cache.read_states(assistant, input_ids, attention_mask, output=self._output)
            return states.float(), seen
        # such a model may take no mask, so every question is read alone
        rows = [
            self._output(assistant, inputs_embeds=assistant.get_input_embeddings()(ids[own][None]), use_cache=False)[0]
            for ids, own in zip(input_ids, seen, strict=True)
        ]
        return nn.utils.rnn.pad_sequence([row.float() for row in rows], batch_first=True), seen

    def reference(self, inputs: Inputs, num_slots: int) -> Tensor:
        """The states of one question that `statistics` are made of, [N, S, D_a] float32; N = 1 for pooled states."""
        if self.states_of == SLOTS:
            return self.states(*inputs.with_assistant(), num_slots)[0].float()
        states, seen = self.prompt_states(*inputs.with_assistant())
        return states[seen][None] if self.states_of == "attention" else self._pooled(states, seen)[0]

    def _pooled(self, states: Tensor, seen: Tensor) -> Tensor:
        """The last of the states, or their mean, [B, 1, 1, D_a]. states: [B, T, D_a]; seen: [B, T]."""
        counts = seen.sum(-1)
        if self.states_of == "last":
            return states[torch.arange(len(states), device=states.device), counts - 1][:, None, None]
        total = states.masked_fill(~seen[:, :, None], 0.0).sum(1)
        return (total / counts[:, None])[:, None, None]

    def _from_pooled(self, states: Tensor, seen: Tensor, num_slots: int) -> Tensor:
        """Thoughts [B, N, L, D] without their constant. states: [B, T, D_a] of the prompts' positions; seen: [B, T]."""
        gains = self.token_sets(num_slots)  # [N, L, D_a]
        if self.queries is None:
            pooled = self._scaled(self._pooled(states, seen))
        else:
            scaled = self._scaled(states[:, None])[:, 0]
            scores = torch.einsum("btd,nld->bnlt", scaled, self.queries) / scaled.shape[-1] ** 0.5
            weights = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1)
            pooled = torch.einsum("bnlt,btd->bnld", weights, scaled.masked_fill(~seen[:, :, None], 0.0))
        thoughts: Tensor = self.projection(gains * pooled)
        return thoughts

    def project(self, states: Tensor) -> Tensor:
        """Maps assistant states at the slots [..., N, L, D_a] to thoughts [..., N, L, D], in float32."""
        return self.with_constant(self._projected(states))

    def _projected(self, states: Tensor) -> Tensor:
        """As `project`, without the constant."""
        thoughts: Tensor = self.projection(self._scaled(states.float()))
        return thoughts

    def _scaled(self, states: Tensor) -> Tensor:
        """States [..., N, S, D_a] as they are projected: standardised, normalised, or plain."""
        if self.statistics is not None:
            mean, deviation = self.statistics[:, :, None]
            scaled: Tensor = (states - mean) / deviation
            return scaled
        if self.normalise:
            return states * states.pow(2).mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
        return states


@cache
def _of_layer(layer: int) -> prefix.Output:
    """What reads a layer's states; always the same object, by which a cache of prompts knows it again."""
    return partial(layer_states, layer=layer)


def state_statistics(states: Sequence[Tensor]) -> Tensor:
    """Mean and standard deviation of each path's states over questions and positions, [2, N, D_a] float32.

    states: [N, S, D_a] of each question.
    """
    of_path = torch.cat([of_question.float() for of_question in states], dim=1)
    return torch.stack([of_path.mean(1), of_path.std(1, unbiased=False).clamp(min=1e-6)])


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
