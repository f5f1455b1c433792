"""Tokenises text that comes from data, so that no question or chain can hold a control token, whatever it says.

A control token is one that a tokenizer reads from its name wherever that stands, such as `<|im_end|>`, which ends a turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

_CUT = "\ufdd0"  # Unicode keeps this code point out of texts
_UNKNOWN = "\U0010fffe"  # and this one, so that no vocabulary has it


class DataEncoder:
    """Tokenises texts that hold data.

    A control token's name inside data is cut after its first character, and what is before and after the cut is tokenised
    apart. Data without such a name gets the very ids that the tokenizer gives.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, also_of_template: bool = True, leave: Iterable[str] = ()):
        """Args:
        also_of_template: also the added tokens that the chat template names, where they are not marked as special, as
            turns of DeepSeek's models are not.
        leave: control tokens whose names never stand in data, as the caller checks that.
        """
        self._tokenizer = tokenizer
        self.control = _control_tokens(tokenizer, also_of_template=also_of_template)
        for name in leave:
            self.control.pop(name, None)
        longest_first = sorted(self.control, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def holds_control(self, text: str) -> bool:
        """Whether the name of a control token stands in the text."""
        return bool(self._names and self._names.search(text))

    def encode(self, data: Sequence[str], render: Callable[[list[str]], str]) -> tuple[list[int], str]:
        """Token ids of a text with data in it, without what the tokenizer itself puts around texts, and the text.

        Args:
            data: the parts that come from outside.
            render: puts them into the text; control tokens that it writes are such.
        """
        cut = _CUT
        while any(cut in part for part in data):
            cut += _CUT
        text = render([self._without_names(part, cut) for part in data])
        pieces = [piece for piece in text.split(cut) if piece]
        ids = [number for piece in pieces for number in self._tokenizer(piece, add_special_tokens=False)["input_ids"]]
        return ids, "".join(pieces)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text that is all data."""
        return self.encode([text], lambda parts: parts[0])[0]

    def controls(self, ids: Iterable[int]) -> list[int]:
        """The control tokens among these, in order. Not the token for unknown characters, which any text may hold."""
        return [number for number in ids if number in self._controls]

    @cached_property
    def _controls(self) -> frozenset[int]:
        unknown = self._tokenizer(_UNKNOWN, add_special_tokens=False)["input_ids"]
        return frozenset(self.control.values()) - {self._tokenizer.unk_token_id, *unknown}

    def _without_names(self, text: str, cut: str) -> str:
        """The text with a cut in the name of every control token."""
        parts, start = [], 0
        # each time from the cut on: a name may begin inside of another
        while self._names and (found := self._names.search(text, start)):
            parts.append(text[start : found.start() + 1])
            start = found.start() + 1
        return cut.join([*parts, text[start:]])


def _control_tokens(tokenizer: PreTrainedTokenizerBase, *, also_of_template: bool) -> dict[str, int]:
    """Names of the control tokens and their ids. White space and single characters are none, whatever the tokenizer says of
    them: texts are made of these."""
    template = tokenizer.get_chat_template() if also_of_template and tokenizer.chat_template else ""
    special = set(tokenizer.all_special_ids)  # some tokenizers do not mark their own end token as special
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if (token.special or number in special or token.content in template)
        and len(token.content) > 1
        and not token.content.isspace()
    }


def tokens_before(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before a text, such as a token that begins a sequence. It may also put one after it, which
    has no place in a prompt that is to be continued."""
    probe = "a"
    bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
    whole = tokenizer(probe)["input_ids"]
    starts = (at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare)
    return list(whole[: next(starts, 0)])
