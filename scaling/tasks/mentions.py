"""Tells whether a text holds an answer, in whatever spelling, so that who reads the text could copy the answer from it.

This is another question than which answer a text states (`scaling.tasks.answers`): it is enough that the answer is named.
The kinds in `scaling.tasks.kinds` call these functions. Only the standard library is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from string import ascii_uppercase

from scaling.tasks import expressions
from scaling.tasks.number_words import leading_words
from scaling.tasks.numbers import NUMBER, tidy, value, value_of
from scaling.tasks.words import plain_words

_BOX_OR_BRACES = re.compile(r"\\f?box(?:ed)?\s*\{|[{}]")
_POSSESSIVE = re.compile(r"['’]s\b")
_SPACED_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])")
_WORD_START = re.compile(r"(?<![\w-])[A-Za-z]")
_SPACE_AT_SIGNS = re.compile(r"\s*([^\w\s])\s*")
_YES_NO = {"yes": re.compile(r"\b(?:yes|true)\b", re.IGNORECASE), "no": re.compile(r"\b(?:no|false)\b", re.IGNORECASE)}
_LONGEST_WORDS = 200  # most characters of a number in words
_AFTER_LETTER = r"(?:is|was|as|or|and|but|because|since|so|for|must|would|should|fits|matches|seems|follows|works)\b"


def mentions_literally(text: str, answer: str) -> bool:
    """Whether a text holds an answer as it is written. Case does not count, nor does white space beside signs."""
    wanted, searched = _squeezed(answer), _squeezed(text)
    before, after = (r"(?<![\w\\])" if wanted[:1].isalnum() else "", r"(?!\w)" if wanted[-1:].isalnum() else "")
    return bool(wanted) and re.search(rf"{before}{re.escape(wanted)}{after}", searched) is not None


def mentions_number(text: str, answer: str) -> bool:
    """Whether a text holds a number, as in "1,234", "1 234", "\\frac{1}{2}" or "twelve". Formulas are sought as written."""
    wanted = value(answer)
    if wanted is None:
        return mentions_literally(text, answer)
    joined = _SPACED_THOUSANDS.sub(lambda match: match[0].replace(" ", ""), text)
    return any(wanted in _numbers_in(tidy(way)) for way in dict.fromkeys((text, joined)))


def mentions_choice(text: str, letter: str, choices: Sequence[str]) -> bool:
    """Whether a text names an option by its letter ("B", "(b)", "option b") or by its words.

    The article "a" is no letter.
    """
    small = letter.lower()
    # "A dog" and "I see" name no option, and "A is right" does
    word = rf"(?!\s+(?!{_AFTER_LETTER})[a-z])" if letter in "AI" else ""
    named = (
        rf"(?<![\w'’-]){letter}(?![\w'’-]){word}|\({small}\)|(?<!\w){small}\)|\b(?:option|choice|letter)\s+{small}\b"
    )
    if re.search(named, text) is not None:
        return True
    option = "".join(choices[ascii_uppercase.index(letter) :][:1])
    if len(option) < 2 and option.isalpha():
        return False
    return mentions_number(text, option) if value(tidy(option)) is not None else mentions_words(text, option)


def mentions_yes_or_no(text: str, answer: str) -> bool:
    """Whether a text holds the word "yes" or "true" or, for the answer "no", the word "no" or "false"."""
    return _YES_NO[answer].search(text) is not None if answer in _YES_NO else mentions_literally(text, answer)


def mentions_expression(text: str, answer: str) -> bool:
    """Whether a text holds a mathematical answer; of a list of solutions, all of them, in any order."""
    parsed = expressions.parse(answer)
    if parsed is not None and parsed.shape == expressions.LIST and parsed.parts:
        return all(mentions_expression(text, str(part)) for part in parsed.parts)
    if value(answer) is not None:
        return mentions_number(expressions.cleaned(text), answer)
    return mentions_literally(text, answer) or mentions_literally(expressions.cleaned(text), answer)


def mentions_words(text: str, answer: str) -> bool:
    """Whether a text holds some words. What does not count in text answers (case, punctuation ...) does not count here."""
    wanted = plain_words(answer)
    plain = _BOX_OR_BRACES.sub(" ", text)
    ways = (plain_words(way) for way in dict.fromkeys((plain, _POSSESSIVE.sub(" ", plain))))
    return bool(wanted) and any(re.search(rf"(?<!\w){re.escape(wanted)}(?!\w)", way) for way in ways)


def _numbers_in(text: str) -> Iterator[Fraction]:
    """The values of the numbers in a text, in digits and in words."""
    yield from (number for match in NUMBER.finditer(text) if (number := value_of(match)) is not None)
    place = 0
    while start := _WORD_START.search(text, place):
        spoken = leading_words(text[start.start() : start.start() + _LONGEST_WORDS])
        place = start.start() + (spoken[1] if spoken else 1)
        if spoken:
            yield spoken[0]


def _squeezed(text: str) -> str:
    """A text in lower case, without dollar signs and without white space beside signs."""
    return _SPACE_AT_SIGNS.sub(r"\1", " ".join(text.replace("$", " ").split())).strip().casefold()
