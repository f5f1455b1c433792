"""The tokens that stand around a backbone's latent thoughts, or for pauses: their names, and how a model gets them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from scaling.models.loading import LanguageModel

BEGIN, END, PAUSED = "<|start-latent|>", "<|end-latent|>", "<|latent|>"


def add_tokens(tokenizer: PreTrainedTokenizerBase, names: Sequence[str]) -> list[int]:
    """Adds tokens to a vocabulary that lacks them. Returns the ids of all of them."""
    known = tokenizer.get_vocab()
    new = [AddedToken(name, special=True, normalized=False) for name in names if name not in known]
    tokenizer.add_tokens(new, special_tokens=True)
    return [int(tokenizer.convert_tokens_to_ids(name)) for name in names]


@torch.no_grad()
def prepare_tokens(backbone: LanguageModel, names: Sequence[str], *, seed: int) -> list[int]:
    """Gives a backbone tokens that it lacks. Its tokenizer and its model are changed in place.

    A new token's embedding is drawn around the mean of all embeddings, with their deviation, so that it differs from the
    others' as theirs do. In an output layer of its own its weights are zero, as it is not to be said.

    Args:
        backbone: the backbone.
        names: of the tokens.
        seed: of the new embeddings.

    Returns:
        The ids of the tokens.
    """
    known, before = set(backbone.tokenizer.get_vocab().values()), backbone.rows
    ids = add_tokens(backbone.tokenizer, names)
    if max(ids, default=0) >= before:
        backbone.model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    new = sorted({*range(before, backbone.rows), *set(ids).difference(known)})
    if not new:
        return ids
    weight: Tensor = backbone.model.get_input_embeddings().weight
    head = getattr(backbone.model.get_output_embeddings(), "weight", weight)
    if head is not weight:
        head[new] = 0
    old = weight[:before].float().cpu()
    drawn = torch.randn(len(new), weight.shape[1], generator=torch.Generator().manual_seed(seed))
    weight[new] = (old.mean(0) + old.std(0) * drawn).to(weight)
    return ids
