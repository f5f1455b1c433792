"""Checks whether a model can be used here: it must accept embeddings in place of tokens, and be causal."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from contrastive.forward import MODEL_ERRORS, agree, hidden_states
from scaling.models.signatures import takes
from scaling.records.errors import one_line

_TOKENS = 8  # length of the trial text is one more


@torch.no_grad()
def why_not_usable(model: PreTrainedModel) -> str | None:
    """Says why soft tokens cannot be put into this model's input; None where they can be.

    The model is run on a few tokens, and must show that:
    - it accepts embeddings, also such as belong to no token, and leaves them unchanged;
    - it is causal: the logits of a position do not depend on later tokens;
    - token ids and their embeddings give the same logits.
    """
    if not takes(model, "inputs_embeds"):
        return "it takes token ids alone and no embeddings, in whose place soft tokens stand"
    size = int(model.get_input_embeddings().weight.shape[0])
    # ids spread over the vocabulary
    ids = (torch.arange(3, 3 + 5 * (_TOKENS + 1), 5, device=model.device) * max(1, size // 100) % size)[None]
    try:
        embeddings = model.get_input_embeddings()(ids)
        before = embeddings.clone()
        whole = model(inputs_embeds=embeddings, use_cache=False).logits
        if not torch.equal(embeddings, before):
            return "it overwrites the embeddings that it is given"
        shorter = model(inputs_embeds=embeddings[:, :-1], use_cache=False).logits
        by_ids = model(input_ids=ids, use_cache=False).logits
        # sums of two tokens' embeddings, which are the embedding of no token, as soft tokens are
        width = hidden_states(model, inputs_embeds=embeddings + embeddings.flip(1), use_cache=False).shape[-1]
    except MODEL_ERRORS as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"it cannot be read from the embeddings of a text alone ({type(error).__name__}: {one_line(error)})"
    if width != embeddings.shape[-1]:
        return f"its states have width {width} and its embeddings {embeddings.shape[-1]}"
    if not bool(whole.isfinite().all()):
        return None  # nothing can be compared; the sampler says so when it draws the first token
    if not agree(whole[:, :-1], shorter):
        return "it is not causal: what it makes of a token depends on the tokens after it"
    if not agree(whole, by_ids):
        return "it makes more of a token than its embedding, so that nothing else can be put in the place of one"
    return None
