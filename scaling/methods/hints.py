"""Writes the assistant's hints for Assist-CoT: short texts about each question that the backbone reads.

A hint is decoded once and kept in the cache folder, where every later run finds it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import torch

from scaling.cache import Cache, cache_folder
from scaling.engines.base import Decoding, Request, SoftPrompt
from scaling.engines.local.engine import fitted_engine
from scaling.engines.stops import stops_for
from scaling.models.loading import LanguageModel
from scaling.prompts import SLOT, check_assistant_lengths, own_words, stop_strings

MAX_HINT_TOKENS = 64


@dataclass(frozen=True)
class Hint:
    """A hint of one question.

    Attributes:
        text: what the backbone reads.
        num_tokens: tokens that the assistant generated for it, the end token included.
    """

    text: str
    num_tokens: int


def write_hints(
    assistant: LanguageModel,
    prompts: dict[str, tuple[int, ...]],
    tell: Callable[[str], None],
    to_device: Callable[[], None] = lambda: None,
    *,
    exact: bool = False,
) -> dict[str, Hint]:
    """Returns the greedy hint of at most 64 tokens for each prompt. Hints that are not in the cache are decoded now.

    Args:
        assistant: the model that writes them.
        prompts: token ids of the assistant's prompts, by any key.
        tell: shows the user a line of text.
        to_device: moves the assistant to where it works; called only if a hint must be decoded.
        exact: whether a hint must not depend on which others are decoded in the same batch, not even by rounding.

    Returns:
        The hints by the keys of the prompts.

    Raises:
        UsageError: a prompt does not fit the assistant's context.
    """
    check_assistant_lengths(
        {key: len(ids) + MAX_HINT_TOKENS for key, ids in prompts.items()}, context=assistant.context
    )
    precision = f"{_precision(assistant)}{'-exact' if exact else ''}"
    path = cache_folder() / "hints" / f"{assistant.computes}-{MAX_HINT_TOKENS}-{precision}.jsonl"
    ends, stops = assistant.end_tokens, stop_strings(assistant.tokenizer)
    endings = [ends, stops] if stops else [ends]
    names = {key: hashlib.sha256(json.dumps([ids, *endings]).encode()).hexdigest() for key, ids in prompts.items()}
    known = Cache(path, lambda line: (line["prompt"], Hint(line["text"], line["num_tokens"])))
    missing = {key: ids for key, ids in prompts.items() if names[key] not in known}
    if missing:
        tell(f"{assistant.name} writes {len(missing)} hints")
        to_device()
    for key, hint in _decode(assistant, missing, exact=exact) if missing else ():
        known.add([{"prompt": names[key], **asdict(hint)}])
    return {key: known[name] for key, name in names.items()}


def _decode(
    assistant: LanguageModel, prompts: dict[str, tuple[int, ...]], *, exact: bool
) -> Iterable[tuple[str, Hint]]:
    """Decodes hints in batches. Yields each with its prompt's key as soon as it is finished."""
    engine = fitted_engine(
        assistant.model,
        end_tokens=assistant.end_tokens,
        tokens_per_row=max(map(len, prompts.values())) + MAX_HINT_TOKENS,
        exact=exact,
    )
    empty = torch.empty(0, assistant.width)
    requests = (Request(SoftPrompt(key, 0, ids, empty, ()), 0, 0) for key, ids in prompts.items())
    tokenizer = assistant.tokenizer
    stop = stops_for(stop_strings(tokenizer), tokenizer)
    for chain in engine.generate(requests, Decoding(0.0, 1.0, 0, MAX_HINT_TOKENS, stop=stop)):
        text = own_words(str(tokenizer.decode(chain.tokens, skip_special_tokens=True)), tokenizer)
        text = text.replace(SLOT, "").strip()  # the slot marker in a hint would be taken for a slot of the prompt
        yield chain.request.prompt.question_id, Hint(text or "none", len(chain.tokens))


def _precision(assistant: LanguageModel) -> str:
    return str(assistant.model.dtype).removeprefix("torch.")
