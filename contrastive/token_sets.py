"""The initial token sets: N learned sets of vectors, which make one latent path differ from another.

Knows vectors, no tokenizer. The letters of the shapes are explained in `contrastive.thinker`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# with a larger cosine than this, two rows point the same way, and two paths would start out alike
_SAME_DIRECTION = 0.99


class SoftTokenSets(nn.Module):
    """The specialised initial tokens `[INI]^k` of SoftCoT++ (arXiv 2505.11484, section 3).

    Attributes:
        vectors: [N, K, D_a] float32, in the space of the assistant's input embeddings. K = 1 is the paper's form: one
            vector, repeated in all L slots of its path. With K = L each slot has a vector of its own.
    """

    def __init__(self, vectors: Tensor):
        super().__init__()
        if vectors.ndim != 3:
            raise ValueError(f"vectors must be [N, K, D_a], got {list(vectors.shape)}")
        self.vectors = nn.Parameter(vectors.detach().float().clone())

    @classmethod
    def from_rows(cls, rows: Tensor, num_paths: int) -> SoftTokenSets:
        """Makes untrained sets with one vector a path, taken from embeddings of rarely used tokens.

        Skipped are rows of zeros, and rows that point the same way as one that was taken: the embeddings of unused tokens
        are often copies of each other. If there are too few rows, the other paths get random vectors around the rows' mean.
        The sets of the first n paths do not depend on N.

        Args:
            rows: [C, D_a] input embeddings, of the rarest token first.
            num_paths: N.
        """
        rows = rows.detach().float()
        taken: list[Tensor] = []
        for row in rows:
            if len(taken) == num_paths:
                break
            if row.any() and not any(torch.cosine_similarity(row, other, dim=0) > _SAME_DIRECTION for other in taken):
                taken.append(row)
        taken += [_gaussian_like(rows, path) for path in range(len(taken), num_paths)]
        return cls(torch.stack(taken).unsqueeze(1))

    def forward(self, num_slots: int) -> Tensor:
        """Initial tokens of every path, [N, L, D_a]. Raises ValueError where K is neither 1 nor L."""
        paths, per_path, width = self.vectors.shape
        if per_path not in (1, num_slots):
            raise ValueError(f"the token sets hold {per_path} vectors a path, which cannot fill {num_slots} slots")
        return self.vectors.expand(paths, num_slots, width)


def _gaussian_like(rows: Tensor, path: int) -> Tensor:
    """A random vector [D_a] around the mean of `rows`. The number of the path is the seed."""
    generator = torch.Generator().manual_seed(path)
    noise = torch.randn(rows.shape[1], generator=generator)
    # Scaled by the root mean square and not by the standard deviation: the latter is nearly zero where the rows are nearly
    # copies of each other, and all paths would start out alike.
    return rows.mean(0) + noise * rows.pow(2).mean(0).sqrt()
