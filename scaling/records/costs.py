"""What a run costs in floating-point operations and bytes of keys and values. Formulas only: standard library, no models.

A multiplication and an addition count as two operations, as in torch's FLOP counter. Counted are matrix products and
attention; norms, activations, embeddings and sampling are not (well below 2 % of a forward pass). A query attends to the
keys that it may see: a causal prefix of T tokens has T (T + 1) / 2 pairs of query and key, fewer in a layer with a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scaling.records.records import PromptedQuestion


@dataclass(frozen=True)
class ModelCosts:
    """A decoder-only model's costs.

    layers: FLOPs of all layers' matrix products for one token; head: of the output layer for one position whose logits are
    needed. attention: FLOPs of one query with one key in one layer. windows: for each layer the keys a query sees at most,
    0 for all of them. kv_bytes: of one token in all layers.
    """

    layers: int
    head: int
    attention: int
    windows: tuple[int, ...]
    kv_bytes: int

    def forward(self, tokens: int, *, behind: int = 0) -> int:
        """FLOPs of reading `tokens` tokens after `behind` others that are already held; no logits."""
        return tokens * self.layers + self.attention * self._pairs(behind, tokens)

    def decode(self, tokens: int, *, behind: int) -> int:
        """FLOPs of generating `tokens` tokens after a prompt of `behind`: the last one is not read again."""
        return tokens * self.head + (self.forward(tokens - 1, behind=behind) if tokens else 0)

    def _pairs(self, behind: int, tokens: int) -> int:
        """Pairs of query and key, summed over layers."""
        return sum(layers * _seen(behind, tokens, window) for window, layers in Counter(self.windows).items())


def _seen(behind: int, tokens: int, window: int) -> int:
    """Keys that the queries at positions behind .. behind + tokens - 1 see, themselves included."""
    whole = tokens * behind + tokens * (tokens + 1) // 2
    if not window or behind + tokens <= window:
        return whole
    free = max(0, min(tokens, window - behind))  # queries that still see everything
    return free * behind + free * (free + 1) // 2 + (tokens - free) * window


@dataclass(frozen=True)
class RunCosts:
    """What turns a run's lengths into FLOPs. projection: of one slot. assistant: None without soft tokens."""

    backbone: ModelCosts
    assistant: ModelCosts | None = None
    projection: int = 0

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> RunCosts:
        """What `dataclasses.asdict` made of it, read back from run.json.

        Raises TypeError, KeyError or ValueError for what that has not made.
        """
        models = {role: _model_costs(fields[role]) for role in ("backbone", "assistant") if fields.get(role)}
        _refuse_no_count(fields["projection"])
        return cls(**models, projection=fields["projection"])

    def question(self, asked: PromptedQuestion) -> int:
        """What all paths share: the assistant reads the question once and may write a hint, the backbone the prefix."""
        return self._hint(asked) + self._assistant(asked.assistant_tokens) + self.backbone.forward(asked.prefix_tokens)

    def path(self, asked: PromptedQuestion) -> int:
        """What each path adds: its slots in the assistant, the projection, its segment of the prompt."""
        own = self._assistant(asked.soft_tokens, behind=asked.assistant_tokens) + asked.soft_tokens * self.projection
        return own + self.backbone.forward(asked.soft_tokens + asked.suffix_tokens, behind=asked.prefix_tokens)

    def completion(self, asked: PromptedQuestion, tokens: int) -> int:
        """What each completion of `tokens` generated tokens adds."""
        return self.backbone.decode(tokens, behind=asked.prompt_tokens)

    def unshared(self, asked: PromptedQuestion, tokens: Sequence[int], *, paths: int) -> int:
        """The same grid when nothing is shared: every completion reads its whole prompt, every path its question."""
        thinking = self._assistant(asked.assistant_tokens + asked.soft_tokens) + asked.soft_tokens * self.projection
        prefill = self.backbone.forward(asked.prompt_tokens)
        thinking += self._hint(asked)
        return paths * thinking + sum(prefill + self.completion(asked, count) for count in tokens)

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
    """Raises ValueError for a value that is no whole number from 0."""
    for value in values:
        if type(value) is not int or value < 0:
            raise ValueError(f"{value!r} is no count")
