"""Tokenises text from data so that no question or chain becomes a control token, whatever it says.

A control token is one that a tokenizer recognises by its name wherever the name stands in a text. An example is
`<|im_end|>`, which ends a turn of a chat.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

# Unicode reserves both code points as noncharacters, so that texts do not have them, and no vocabulary does.
_CUT = "\ufdd0"  # marks where a text is cut
_UNKNOWN = "\U0010fffe"  # shows what a tokenizer makes of unknown characters


class DataEncoder:
    """Tokenises texts that contain data.

    Where data contains the name of a control token, the text is cut after the name's first character. The parts before and
    after the cut are tokenised separately, so that the tokenizer does not see the name. Data without such a name gets
    exactly the ids that the tokenizer gives.

    Attributes:
        control: ids of the control tokens by name.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, also_of_template: bool = True, leave: Iterable[str] = ()):
        """Finds the control tokens of a tokenizer.

        Args:
            tokenizer: the tokenizer.
            also_of_template: take added tokens that the chat template names for control tokens, too, even if they are not
                marked as special. Those that mark turns in DeepSeek's models are not.
            leave: names of tokens not to be taken for control tokens. The caller makes sure that data never has them.
        """
        self._tokenizer = tokenizer
        self.control = _control_tokens(tokenizer, also_of_template=also_of_template)
        for name in leave:
            self.control.pop(name, None)
        longest_first = sorted(self.control, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None

    def holds_control(self, text: str) -> bool:
        """Whether the text contains the name of a control token."""
        return bool(self._names and self._names.search(text))

    def encode(self, data: Sequence[str], render: Callable[[list[str]], str]) -> tuple[list[int], str]:
        """Tokenises a text with data in it, without the tokens that the tokenizer itself puts around texts.

        Args:
            data: the parts of the text that come from outside.
            render: puts these parts into the text. Names of control tokens that it writes itself become control tokens.

        Returns:
            The token ids, and the text.
        """
        cut = _CUT  # made longer until no data contains it
        while any(cut in part for part in data):
            cut += _CUT
        text = render([self._without_names(part, cut) for part in data])
        pieces = [piece for piece in text.split(cut) if piece]
        ids = [number for piece in pieces for number in self._tokenizer(piece, add_special_tokens=False)["input_ids"]]
        return ids, "".join(pieces)

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text that is data as a whole."""
        return self.encode([text], lambda parts: parts[0])[0]

    def controls(self, ids: Iterable[int]) -> list[int]:
        """The control tokens among these ids, in order. The token for unknown characters is none: any text may have it."""
        return [number for number in ids if number in self._controls]

    @cached_property
    def _controls(self) -> frozenset[int]:
        """Ids of the control tokens, without the token for unknown characters."""
        unknown = self._tokenizer(_UNKNOWN, add_special_tokens=False)["input_ids"]
        return frozenset(self.control.values()) - {self._tokenizer.unk_token_id, *unknown}

    def _without_names(self, text: str, cut: str) -> str:
        """The text with a cut in the name of every control token."""
        parts, start = [], 0
        # the search goes on right after the cut, not after the name: another name may begin inside of this one
        while self._names and (match := self._names.search(text, start)):
            parts.append(text[start : match.start() + 1])
            start = match.start() + 1
        return cut.join([*parts, text[start:]])


def _control_tokens(tokenizer: PreTrainedTokenizerBase, *, also_of_template: bool) -> dict[str, int]:
    """Names of the control tokens and their ids.

    White space and single characters are never control tokens, even if the tokenizer marks them as special: all texts
    consist of them.
    """
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
    """The tokens that a tokenizer puts before a text, such as one that begins a sequence.

    Tokens that it puts after a text are left out: they have no place in a prompt that is to be continued.
    """
    probe = "a"
    bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
    whole = tokenizer(probe)["input_ids"]
    # the tokens of the probe are found among all tokens: what is before them was added
    starts = (at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare)
    return list(whole[: next(starts, 0)])
