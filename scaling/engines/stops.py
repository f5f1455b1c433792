"""Stop strings: texts that end a completion as an end token does, whichever tokens they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase


class StopStrings:
    """Finds stop strings in the tokens of a completion."""

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
        """
        Args:
            strings: none is empty, and each ends in visible ASCII, which vocabularies write as it is.
            tokenizer: of the completions' tokens.
        """
        self.strings = tuple(strings)
        self._tokenizer = tokenizer

    @cached_property
    def last_tokens(self) -> frozenset[int]:
        """Ids of the tokens that may complete a stop string, because they hold its last character.

        The text needs to be searched only after one of these tokens.
        """
        signs = {string[-1] for string in self.strings}
        bytes_of = {f"<0x{ord(sign):02X}>" for sign in signs}  # as vocabularies of bytes name them
        vocabulary = self._tokenizer.get_vocab().items()
        return frozenset(
            number for name, number in vocabulary if name in bytes_of or any(sign in name for sign in signs)
        )

    def end(self, tokens: Sequence[int]) -> bool:
        """Whether the text of these tokens holds a stop string."""
        text = str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))
        return any(string in text for string in self.strings)


def stops_for(strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> StopStrings | None:
    """The stop strings of a tokenizer's completions, None where there are no strings."""
    return StopStrings(strings, tokenizer) if strings else None
