"""Reads numbers in English words: "twelve", "fifty-two point six two", "negative four", "half a dozen", "two and a half".

Only a complete number at the beginning of a text is read. "nineteen eighty-four" and "one of them" are none. Only the
standard library is used.
"""

from __future__ import annotations

import re
from fractions import Fraction

_SMALL_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_SMALL = {word: number for number, word in enumerate(_SMALL_WORDS.split())}
_TENS_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = {word: 10 * number for number, word in enumerate(_TENS_WORDS.split(), start=2)} | {"fourty": 40}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_PARTS = {"half": 2, "halves": 2, "quarter": 4, "quarters": 4}
for _number, _word in enumerate(("third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"), start=3):
    _PARTS |= {_word: _number, f"{_word}s": _number}

_DIGIT = "|".join(list(_SMALL)[:10])
_WORD = "|".join([*sorted((*_SMALL, *_TENS, *SCALES, *_PARTS), key=len, reverse=True), rf"point(?= (?:{_DIGIT})\b)"])
_PHRASE = re.compile(
    rf"(?:(?:negative|minus) )?(?:an? (?=(?:{'|'.join([*SCALES, *_PARTS])})\b))?(?:{_WORD})\b"
    rf"(?:(?:(?<=thousand), |(?<=million), |(?<=billion), |-| )(?:and )?(?:an? )?(?:{_WORD})\b)*",
    re.IGNORECASE,
)
_GOES_ON = re.compile(
    r"[-/]\w|['’]|[ -](?:of|more|less|fewer|times|than|or|to|that|which|who|whose|in|by|from|where|when|option|choice"
    r"|things?|way|and|plus|minus|divided|multiplied|time|is|can|could|must|should|we|you|has|have|over)\b",
    re.IGNORECASE,
)


def leading_words(text: str) -> tuple[Fraction, int] | None:
    """The number in words at the beginning of a text, and where it ends.

    Returns:
        None if there is no such number, or what follows makes it part of something longer.
    """
    match = _PHRASE.match(text)
    if match is None or _GOES_ON.match(text, match.end()):
        return None
    words = re.findall("[a-z]+", match[0].lower())
    negative = words[0] in ("negative", "minus")
    number = _read(words[1:] if negative else words)
    return None if number is None else (-number if negative else number, match.end())


def _read(words: list[str]) -> Fraction | None:
    """The value of the words of a number without its sign, in lower case; None if they are none."""
    last = words[-1]
    if last in _PARTS:
        return _with_part(words)
    if last in SCALES and ("point" in words or any(word in _PARTS for word in words)):
        factor = _read(words[:-2] if words[-2] == "a" else words[:-1])
        return None if factor is None else factor * SCALES[last]
    if last == "dozen":
        factor = Fraction(1) if words[:-1] in ([], ["a"]) else _whole(words[:-1])
        return None if factor is None else factor * 12
    if "point" in words:
        return _with_decimals(words)
    return _whole(words)


def _with_part(words: list[str]) -> Fraction | None:
    """The value of words that end with a part: "half", "a third", "three quarters", "two and a half".

    A single "third" is an ordinal, so it has no value.
    """
    parts, whole = Fraction(1, _PARTS[words[-1]]), Fraction(0)
    top = words[:-1]
    if "and" in top:
        cut = len(top) - 1 - top[::-1].index("and")
        before = _whole(top[:cut])
        if before is None or cut == len(top) - 1:
            return None
        whole, top = before, top[cut + 1 :]
    elif not top and words[-1] != "half":
        return None
    count = Fraction(1) if top in ([], ["a"]) else _whole(top)
    return None if count is None else whole + count * parts


def _with_decimals(words: list[str]) -> Fraction | None:
    """The value of words with a decimal point: "three point one four"."""
    cut = words.index("point")
    whole = _whole(words[:cut]) if cut else Fraction(0)
    digits = [_SMALL.get(word, 10) for word in words[cut + 1 :]]
    if whole is None or not digits or max(digits) > 9:
        return None
    return whole + Fraction(int("".join(map(str, digits))), 10 ** len(digits))


def _whole(words: list[str]) -> Fraction | None:
    """A whole number such as "two hundred thousand and five"; None if a word cannot follow the one before."""
    # total: the groups that a scale has closed, such as "two hundred thousand". group: the number since then.
    total, group, last, largest = 0, 0, "", 10**15
    for word in words:
        if word == "and":
            if last not in SCALES or last == "dozen":
                return None
        elif word in ("a", "an"):
            if last:
                return None
            group = 1
        elif word in _SMALL:
            if last == "a" or last in _SMALL or (last in _TENS and not 0 < _SMALL[word] < 10):
                return None
            group += _SMALL[word]
        elif word in _TENS:
            if last == "a" or last in _SMALL or last in _TENS:
                return None
            group += _TENS[word]
        elif word == "hundred":
            if not 0 < group < 100 and last:
                return None
            group = max(group, 1) * 100
        elif word in SCALES and word != "dozen":
            if SCALES[word] >= largest or (last and not group):
                return None
            largest = SCALES[word]
            total, group = total + max(group, 1) * largest, 0
        else:
            return None
        last = word if word != "and" else last
    return Fraction(total + group) if last and words[-1] != "and" else None
