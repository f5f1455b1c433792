"""Computes what a run costs: floating-point operations (FLOPs), and bytes of keys and values. Standard library only.

These are formulas over lengths; no model is needed. A multiplication and an addition count as two operations, as in torch's
FLOP counter. Counted are matrix products and attention. Norms, activations, embeddings and sampling are not counted: they
are well below 2 % of a forward pass. A query attends only to the keys that it may see. A causal prefix of T tokens therefore
has T (T + 1) / 2 pairs of query and key, and fewer in a layer with a sliding window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scaling.records.records import PromptedQuestion


@dataclass(frozen=True)
class ModelCosts:
    """The costs of a decoder-only model.

    Attributes:
        layers: FLOPs of the matrix products of all layers for one token.
        head: FLOPs of the output layer for one position whose logits are needed.
        attention: FLOPs of one query with one key in one layer.
        windows: for each layer, the largest number of keys that a query sees; 0 for all keys.
        kv_bytes: bytes of the keys and values of one token in all layers.
    """

    layers: int
    head: int
    attention: int
    windows: tuple[int, ...]
    kv_bytes: int

    def forward(self, tokens: int, *, behind: int = 0) -> int:
        """FLOPs of reading tokens, without logits. behind: tokens before them whose keys and values are already there."""
        return tokens * self.layers + self.attention * self._pairs(behind, tokens)

    def decode(self, tokens: int, *, behind: int) -> int:
        """FLOPs of generating tokens after a prompt of `behind` tokens. The last token generated is never read."""
        return tokens * self.head + (self.forward(tokens - 1, behind=behind) if tokens else 0)

    def _pairs(self, behind: int, tokens: int) -> int:
        """Pairs of a query and a key that it sees, summed over layers."""
        return sum(layers * _seen(behind, tokens, window) for window, layers in Counter(self.windows).items())


def _seen(behind: int, tokens: int, window: int) -> int:
    """Pairs of a query and a key that it sees in one layer, for the queries at positions behind .. behind + tokens - 1.

    window: the largest number of keys that a query sees, its own included; 0 for all.
    """
    whole = tokens * behind + tokens * (tokens + 1) // 2
    if not window or behind + tokens <= window:
        return whole
    free = max(0, min(tokens, window - behind))  # queries that still see everything
    return free * behind + free * (free + 1) // 2 + (tokens - free) * window


@dataclass(frozen=True)
class ThinkerCosts:
    """FLOPs of a thinker besides those of its assistant and of its projection.

    Its positions are those of the prompt that it reads: the assistant's, or, without an assistant, the backbone's up to the
    first slot.

    Attributes:
        position: for each position, once a question.
        pair: for each pair of two positions, once a question.
        slot_position: for each pair of a slot and a position.
        slot_slot: for each pair of two slots of a path.
        slots_read: whether the assistant reads the slots of every path.
        computed_slots: how many slots of a path the thinker computes where that is more than are used, else 0.
        latent: whether the slots of a path are the backbone's own states: once a question it reads the prefix, whose last
            state is the first slot, and then it reads each slot to compute the next one.
        one_thought: whether the slots are computed once a question, and every path is a random draw around them.
        draw: for each slot of such a draw.
    """

    position: int = 0
    pair: int = 0
    slot_position: int = 0
    slot_slot: int = 0
    slots_read: bool = True
    computed_slots: int = 0
    latent: bool = False
    one_thought: bool = False
    draw: int = 0

    def question(self, positions: int) -> int:
        """FLOPs once a question, for all paths together."""
        return positions * self.position + positions**2 * self.pair

    def path(self, slots: int, positions: int) -> int:
        """FLOPs that each path adds. slots: those that are computed."""
        return slots * (positions * self.slot_position + slots * self.slot_slot)


NO_THINKER = ThinkerCosts()  # nothing besides an assistant and a projection, as in all runs of version 0.1


@dataclass(frozen=True)
class RunCosts:
    """Computes the FLOPs of a run from the lengths of its prompts and completions.

    Attributes:
        backbone: costs of the model that decodes.
        assistant: costs of the model that thinks, None without soft tokens or hints.
        projection: FLOPs of the projection, or of what else makes a thought, for one slot.
        thinker: what the thinker costs besides.
    """

    backbone: ModelCosts
    assistant: ModelCosts | None = None
    projection: int = 0
    thinker: ThinkerCosts = NO_THINKER

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> RunCosts:
        """Makes it from the dict in run.json, which `dataclasses.asdict` had made of it.

        Raises TypeError, KeyError or ValueError for any other dict.
        """
        models = {role: _model_costs(fields[role]) for role in ("backbone", "assistant") if fields.get(role)}
        _refuse_no_count(fields["projection"])
        thinker = ThinkerCosts(**fields["thinker"]) if "thinker" in fields else NO_THINKER
        _refuse_no_count(*(value for value in vars(thinker).values() if type(value) is not bool))
        return cls(**models, projection=fields["projection"], thinker=thinker)

    def question(self, asked: PromptedQuestion) -> int:
        """FLOPs that a question costs once, for all paths together.

        The assistant reads the question and may write a hint, the thinker may read it, too, and the backbone reads the
        prompt's prefix. Where all paths are draws around one thought, its slots in the assistant and the projection count
        here.
        """
        thought = self._slots(asked) if self.thinker.one_thought else 0
        return self._hint(asked) + self._reading(asked) + thought + self.backbone.forward(asked.prefix_tokens)

    def path(self, asked: PromptedQuestion) -> int:
        """FLOPs that each path of a question adds.

        These are its slots in the assistant and the projection, or its draw around the question's one thought, and the soft
        tokens and the suffix in the backbone.
        """
        thought = self._draw(asked) if self.thinker.one_thought else self._slots(asked)
        return thought + self.backbone.forward(asked.soft_tokens + asked.suffix_tokens, behind=asked.prefix_tokens)

    def completion(self, asked: PromptedQuestion, tokens: int) -> int:
        """FLOPs that each completion adds. tokens: number of its generated tokens."""
        return self.backbone.decode(tokens, behind=asked.prompt_tokens)

    def unshared(self, asked: PromptedQuestion, tokens: Sequence[int], *, paths: int) -> int:
        """FLOPs of a question if nothing were shared: each path reads its question, each completion its whole prompt.

        Args:
            asked: the question.
            tokens: number of generated tokens of each completion.
            paths: number of paths.
        """
        thinking = self._reading(asked) + self._slots(asked) + self._draw(asked) + self._hint(asked)
        prefill = self.backbone.forward(asked.prompt_tokens)
        return paths * thinking + sum(prefill + self.completion(asked, count) for count in tokens)

    def latent_steps(self, asked: PromptedQuestion) -> int:
        """States of the backbone that a path of the question is made of, one computed from the other."""
        return asked.soft_tokens if self.thinker.latent else 0

    def _positions(self, asked: PromptedQuestion) -> int:
        """Tokens of the prompt that the thinker reads."""
        return asked.assistant_tokens if self.assistant else asked.prefix_tokens if asked.soft_tokens else 0

    def _reading(self, asked: PromptedQuestion) -> int:
        latent = self.backbone.forward(asked.prefix_tokens) if self.latent_steps(asked) else 0
        return self._assistant(asked.assistant_tokens) + self.thinker.question(self._positions(asked)) + latent

    def _slots(self, asked: PromptedQuestion) -> int:
        """FLOPs of a path's thoughts, or of the one thought around which all paths are drawn."""
        slots = self.thinker.computed_slots if asked.soft_tokens and self.thinker.computed_slots else asked.soft_tokens
        read = slots if self.thinker.slots_read else 0
        thinking = self._assistant(read, behind=asked.assistant_tokens) + slots * self.projection
        latent = self.backbone.forward(max(0, self.latent_steps(asked) - 1), behind=asked.prefix_tokens)
        return thinking + self.thinker.path(slots, self._positions(asked)) + latent

    def _draw(self, asked: PromptedQuestion) -> int:
        """FLOPs of a random draw around a thought."""
        return asked.soft_tokens * self.thinker.draw

    def _hint(self, asked: PromptedQuestion) -> int:
        if not self.assistant:
            return 0
        return self.assistant.decode(asked.hint_tokens, behind=asked.assistant_tokens)

    def _assistant(self, tokens: int, *, behind: int = 0) -> int:
        return self.assistant.forward(tokens, behind=behind) if self.assistant else 0


def _model_costs(fields: dict[str, Any]) -> ModelCosts:
    costs = ModelCosts(**{**fields, "windows": tuple(fields["windows"])})
    _refuse_no_count(costs.layers, costs.head, costs.attention, costs.kv_bytes, *costs.windows)
    return costs


def _refuse_no_count(*values: Any) -> None:
    """Raises ValueError for a value that is not a whole number of at least 0."""
    for value in values:
        if type(value) is not int or value < 0:
            raise ValueError(f"{value!r} is no count")
