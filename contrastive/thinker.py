"""The thinker turns questions into soft thoughts, with a frozen assistant, N initial token sets and a projection.

The whole project uses these letters in shapes: B questions, N latent paths, M samples per path, L soft tokens, T positions,
D_a width of the assistant, D width of the backbone, V size of the vocabulary.

Knows token ids, no texts, no benchmarks and no backbone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from contrastive import prefix
from contrastive.projection import new_projection
from contrastive.token_sets import SoftTokenSets


class Thinker(nn.Module):
    """All that is learned: the initial token sets, the projection and, optionally, an offset for each path.

    The assistant is an argument of the methods and never a part of the thinker's state.
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
        """Joins the parts of a thinker.

        Args:
            token_sets: the initial token sets of the N paths.
            projection: from D_a to D.
            normalise: divide each assistant state by its root mean square before the projection, so that the scale of
                thoughts does not depend on the assistant's final norm. False is the papers' plain T = W h + b.
            statistics: [2, N, D_a], mean and standard deviation of each path's states over a reference set. If given, states
                are standardised by these instead.
            offset: whether each path has a learned vector that is added to W h + b. It begins as zero.
        """
        super().__init__()
        self.token_sets = token_sets
        self.projection = projection
        self.normalise = normalise
        self.register_buffer("statistics", statistics)
        per_path = torch.zeros(self.num_paths, 1, projection.out_features)
        self.register_parameter("offset", nn.Parameter(per_path) if offset else None)

    @classmethod
    def untrained(cls, rare_rows: Tensor, *, num_paths: int, backbone_width: int, scale: float) -> Thinker:
        """Makes a thinker before any training.

        Args:
            rare_rows: [C, D_a] input embeddings of rarely used tokens of the assistant, of the rarest first.
            num_paths: N.
            backbone_width: D.
            scale: root mean square of the thoughts, to be that of the backbone's input embeddings.
        """
        projection = new_projection(rare_rows.shape[1], backbone_width, scale=scale)
        return cls(SoftTokenSets.from_rows(rare_rows, num_paths), projection)

    @property
    def num_paths(self) -> int:
        """N."""
        return self.token_sets.vectors.shape[0]

    def first_paths(self, num_paths: int) -> Thinker:
        """The same thinker with only its first `num_paths` paths, so that the others cost nothing."""
        return self._only(slice(num_paths))

    def _only(self, paths: slice) -> Thinker:
        """The same thinker with some of its paths."""
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
        """Computes the thoughts of questions: T^k = W h^k + b with h^k = Assistant([question ; [INI]^k x L]).

        The assistant reads the question once, without gradient. The slots of all paths then follow in one forward pass, in
        which each slot sees only its own path.

        Args:
            assistant: the frozen model.
            input_ids: [B, T] int64, the assistant's prompt up to the first slot, padded on the right.
            attention_mask: [B, T] int64, 0 for padding.
            num_slots: L.

        Returns:
            Thoughts [B, N, L, D], float32.
        """
        return self.project(self.states(assistant, input_ids, attention_mask, num_slots))

    def paths_apart(
        self, assistant: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, num_slots: int
    ) -> Tensor:
        """Computes the thoughts of `forward` with a forward pass of its own for each path.

        A path's thoughts are then the same to the last bit, however many paths there are. They differ from those of
        `forward` by rounding alone. Arguments and result are the same.
        """
        path_thinkers = [self._only(slice(path, path + 1)) for path in range(self.num_paths)]
        if not prefix.can_extend(assistant, longest=input_ids.shape[1] + num_slots):
            return torch.cat(
                [path_thinker(assistant, input_ids, attention_mask, num_slots) for path_thinker in path_thinkers], dim=1
            )
        question = prefix.prefill(assistant, input_ids, attention_mask)
        return torch.cat(
            [
                path_thinker.project(path_thinker.follow(assistant, question, num_slots))
                for path_thinker in path_thinkers
            ],
            dim=1,
        )

    def states(self, assistant: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor, num_slots: int) -> Tensor:
        """The assistant's last hidden states at the slots, [B, N, L, D_a]. Arguments as in `forward`."""
        longest = input_ids.shape[1] + num_slots
        if not prefix.can_extend(assistant, longest=longest):
            tokens = self.token_sets(num_slots).to(assistant.dtype)  # [N, L, D_a]
            questions = [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]
            return prefix.states_after(assistant, questions, tokens.expand(len(input_ids), -1, -1, -1))
        return self.follow(assistant, prefix.prefill(assistant, input_ids, attention_mask), num_slots)

    def follow(self, assistant: PreTrainedModel, question: prefix.Prefix, num_slots: int) -> Tensor:
        """The assistant's last hidden states at the slots, [B, N, L, D_a], after questions that it has already read.

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
        states = prefix.extend(assistant, question, slots, positions, mask)
        return states.view(rows, self.num_paths, num_slots, -1)

    def project(self, states: Tensor) -> Tensor:
        """Maps assistant states [..., N, L, D_a] to thoughts [..., N, L, D], in float32."""
        states = states.float()
        if self.statistics is not None:
            mean, deviation = self.statistics[:, :, None]
            states = (states - mean) / deviation
        elif self.normalise:
            states = states * states.pow(2).mean(-1, keepdim=True).clamp(min=1e-12).rsqrt()
        thoughts: Tensor = self.projection(states)
        return thoughts if self.offset is None else thoughts + self.offset


def state_statistics(states: Tensor) -> Tensor:
    """Mean and standard deviation of each path over questions and slots, [2, N, D_a] float32. states: [B, N, L, D_a]."""
    of_path = states.float().transpose(0, 1).flatten(1, 2)
    return torch.stack([of_path.mean(1), of_path.std(1, unbiased=False).clamp(min=1e-6)])
