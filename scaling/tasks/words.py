"""The one way to write an answer of a few words. Standard library only."""

from __future__ import annotations

import re
import unicodedata

from scaling.tasks.numbers import tidy

_ROUNDS = 8  # most times that marks are removed, as removing some may uncover others
_MARKS = " \t\r\n*_:\"'`>$.()"
_FOREIGN_MARKS = re.compile("[¿¡。、・「」『』【】〔〕《》〈〉،؛؟।…‹›„‚]")
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "«": '"', "»": '"'})
_ARTICLE = re.compile(r"(?:an?|the)\s+(?=\S)")
# not within numbers, times and names such as C++, and no minus sign
_PUNCTUATION = re.compile(
    r"(?<![0-9])[.,:;](?![0-9])|(?<=[0-9])[.,:;](?![0-9])|(?<![0-9])[,:;]|[!?\"`()\[\]{}']|(?<![0-9 ])\*|\*(?![0-9 ])"
)
_HYPHEN = re.compile(r"(?<=[^\W\d_])[-_/–—]+(?=[^\W\d_])")


def plain_words(text: str) -> str:
    """A text without what does not count in a text answer; empty if nothing is left.

    These do not count: case, ways to write a character (NFKC), white space, punctuation and brackets (but for those in
    numbers and times), quotes, markdown, LaTeX around text, hyphens between words, and an article at the beginning.
    """
    for _ in range(_ROUNDS):
        before = text
        text = unicodedata.normalize(
            "NFKC", _FOREIGN_MARKS.sub(" ", tidy(text.translate(_QUOTES))).strip(_MARKS)
        ).casefold()
        text = " ".join(_HYPHEN.sub(" ", _PUNCTUATION.sub("", text)).split())
        text = _ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text
        if text == before:
            return "" if text == "the" else text
    return ""
