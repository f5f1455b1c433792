"""The thinker: a frozen assistant, N initial token sets and a projection turn questions into soft thoughts.

Letters used by the whole project: B questions, N latent paths, M samples per path, L soft tokens, T positions,
D_a assistant width, D backbone width, V vocabulary. Knows token ids, no text, no benchmark, no backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from contrastive import prefix
from contrastive.projection import new_projection
from contrastive.token_sets import SoftTokenSets


class Thinker(nn.Module):
    """What is learned: initial token sets, projection and, where wanted, an offset for each path. The assistant is handed in
    and never part of the state.

    normalise: divide each assistant state by its root mean square before the projection, which frees its scale from the
    assistant's final norm; False is the papers' plain T = W h + b. statistics: [2, N, D_a], mean and deviation of each
    path's states over a reference set, by which states are then standardised instead. offset: whether each path has a
    learned vector of its own beside W h + b.
    """

    statistics: Tensor | None
    offset: nn.Parameter | None

    def __init__(
        self,
        token_sets: SoftTokenSets,
        projection: nn.Linear,
        *,
        normalise: bool = True,
        statistics: Tensor | None = None,
        offset: bool = False,
    ):
        super().__init__()
        self.token_sets = token_sets
        self.projection = projection
        self.normalise = normalise
        self.register_buffer("statistics", statistics)
        per_path = torch.zeros(self.num_paths, 1, projection.out_features)
        self.register_parameter("offset", nn.Parameter(per_path) if offset else None)

    @classmethod
    def untrained(cls, rare_rows: Tensor, *, num_paths: int, backbone_width: int, scale: float) -> Thinker:
        """A thinker without training whose thoughts have RMS `scale`, that of the backbone's own embeddings.

        rare_rows: [C, D_a] input embeddings of rarely used tokens of the assistant, rarest first.
        """
        projection = new_projection(rare_rows.shape[1], backbone_width, scale=scale)
        return cls(SoftTokenSets.from_rows(rare_rows, num_paths), projection)

    @property
    def num_paths(self) -> int:
        return self.token_sets.vectors.shape[0]

    def first_paths(self, num_paths: int) -> Thinker:
        """The same thinker with its first paths only, so that unused ones cost nothing."""
        return self._only(slice(num_paths))

    def _only(self, paths: slice) -> Thinker:
        kept = Thinker(
            SoftTokenSets(self.token_sets.vectors[paths]),
            self.projection,
            normalise=self.normalise,
            statistics=None if self.statistics is None else self.statistics[:, paths],
            offset=self.offset is not None,
        )
        if self.offset is not None and kept.offset is not None:
            kept.offset.data = self.offset.detach()[paths].clone()
        return kept

    def forward(self, assistant: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, num_slots: int) -> Tensor:
        """Thoughts [B, N, L, D], float32: T^k = W h^k + b with h^k = Assistant([question ; [INI]^k x L]).

        input_ids, attention_mask: [B, T] int64, padded on the right, ending before the first slot. The question is read
        once, without gradient; then all paths' slots follow it in one pass, each seeing only its own path.
        """
        return self.project(self.states(assistant, input_ids, attention_mask, num_slots))

    def paths_apart(
        self, assistant: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, num_slots: int
    ) -> Tensor:
        """What `forward` gives, up to rounding, in one pass for each path: a path's thoughts are then the same bits however
        many paths there are."""
        each = [self._only(slice(path, path + 1)) for path in range(self.num_paths)]
        if not prefix.can_extend(assistant, longest=input_ids.shape[1] + num_slots):
            return torch.cat([one(assistant, input_ids, attention_mask, num_slots) for one in each], dim=1)
        question = prefix.prefill(assistant, input_ids, attention_mask)
        return torch.cat([one.project(one.follow(assistant, question, num_slots)) for one in each], dim=1)

    def states(self, assistant: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, num_slots: int) -> Tensor:
        """The assistant's last hidden states at the slots, [B, N, L, D_a]."""
        longest = input_ids.shape[1] + num_slots
        if not prefix.can_extend(assistant, longest=longest):
            tokens = self.token_sets(num_slots).to(assistant.dtype)  # [N, L, D_a]
            questions = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
            return prefix.states_after(assistant, questions, tokens.expand(len(input_ids), -1, -1, -1))
        return self.follow(assistant, prefix.prefill(assistant, input_ids, attention_mask), num_slots)

    def follow(self, assistant: PreTrainedModel, question: prefix.Prefix, num_slots: int) -> Tensor:
        """The same after questions that have been read, for assistants whose reading can be gone on with."""
        rows = len(question.seen)
        slots = self.token_sets(num_slots).flatten(0, 1).to(assistant.dtype).expand(rows, -1, -1)
        steps = torch.arange(num_slots, device=slots.device).repeat(self.num_paths)
        positions = question.lengths[:, None] + steps
        mask = prefix.path_mask(self.num_paths, num_slots, slots.device)
        states = prefix.extend(assistant, question, slots, positions, mask)
        return states.view(rows, self.num_paths, num_slots, -1)

    def project(self, states: Tensor) -> Tensor:
        """[..., N, L, D_a] assistant states to [..., N, L, D] thoughts, in float32."""
        states = states.float()
        if self.statistics is not None:
            mean, deviation = self.statistics[:, :, None]
            states = (states - mean) / deviation
        elif self.normalise:
            states = states * states.pow(2).mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
        thoughts: Tensor = self.projection(states)
        return thoughts if self.offset is None else thoughts + self.offset


def state_statistics(states: Tensor) -> Tensor:
    """Mean and deviation of each path's states [B, N, L, D_a] over questions and slots, [2, N, D_a] float32."""
    of_path = states.float().transpose(0, 1).flatten(1, 2)
    return torch.stack([of_path.mean(1), of_path.std(1, unbiased=False).clamp(min=1e-6)])
