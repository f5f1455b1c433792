"""Chooses how many rows every decoding pass has with `--exact`, so that tokens do not depend on what else is decoded.

Sums are rounded differently where their terms are added in another order, and the order depends on the size of a product.
With `--exact` every pass therefore has the same number of rows, a *block*. The place of a row in the block may still matter.
So this is tried on the model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from scaling.engines.base import SoftPrompt
from scaling.engines.local.packing import PackedWeights
from scaling.engines.local.shared import SharedPrefixDecoder

# As many rows as weights are packed for on a CPU; elsewhere a pass costs about the same for any number of rows up to here.
_ROWS = {"cpu": 32}
_ROWS_ELSEWHERE = 128
_PREFIXES = (70, 3, 20)  # tokens; one longer than the keys that are attended to at a time
_SUFFIX = 2


@torch.inference_mode()
def block_for(model: PreTrainedModel) -> tuple[int, PackedWeights]:
    """Chooses the number of rows of every pass.

    It is a whole block where a row's logits are the same bits at every place of the block and beside any other rows.
    Otherwise it is 1, as a single row has neither another place nor other rows beside it.

    Returns:
        The number of rows, and the model's weights laid out for it.
    """
    block = _ROWS.get(model.device.type, _ROWS_ELSEWHERE)
    packed = PackedWeights(model, fixed=block)
    with packed:
        if places_do_not_matter(model, block):
            return block, packed
    return 1, PackedWeights(model, fixed=1)


def places_do_not_matter(model: PreTrainedModel, block: int) -> bool:
    """Whether the logits of rows are the same, bit for bit, in several orders of the rows and for some of the rows alone."""
    expected = _logits(model, block, list(range(block)))
    turned = [(7 * row + 3) % block for row in range(block)]
    orders = [list(reversed(range(block))), turned if len(set(turned)) == block else [], [block // 2], [block - 1, 0]]
    return all(torch.equal(_logits(model, block, order), expected[:, order]) for order in orders if order)


def _logits(model: PreTrainedModel, block: int, order: list[int]) -> Tensor:
    """Logits after the prompts of the numbered completions, and after each of two tokens more, [3, len(order), V]."""
    decoder = SharedPrefixDecoder(model, num_rows=block, max_new_tokens=2, block=block)
    vocabulary = model.config.get_text_config().vocab_size
    ids = torch.arange(block + sum(_PREFIXES), device=model.device) * 37 % (vocabulary // 2)
    starts = [sum(_PREFIXES[:number]) for number in range(len(_PREFIXES))]
    embed = model.get_input_embeddings()(ids[:2]).float()
    prompts = [
        SoftPrompt("", path, tuple(ids[start : start + length].tolist()), embed * (1 + path), (1,) * _SUFFIX)
        for path, (start, length) in enumerate(zip(starts, _PREFIXES, strict=True))
    ]
    for prompt in prompts:
        decoder.hold([prompt])
    logits = [decoder.place(range(len(order)), [prompts[row % len(prompts)] for row in order])]
    for step in range(2):
        logits.append(decoder.step(ids[[row + step for row in order]]))
    return torch.stack(logits)
