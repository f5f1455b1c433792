"""Reads numbers exactly as people and models write them: money, percent, units, fractions, words, sums, simple LaTeX.

The canonical form of a number is its exact decimal without trailing zeros ("1200.5"). If no decimal is exact, it is the
reduced fraction ("1/3"). A formula of plain numbers becomes its value: "5 + 7" is "12". Other formulas are kept as they are;
this module only tells them from prose. It does not find the answer in a text (see `answers`), nor compare two (`equality`).

Commas and points are read by these rules:
- Groups of three digits are thousands: "5,500" is 5500, and so are "1 000", "1'000", "1_000" and "1,00,000" read.
- Any other single comma between digits is a decimal comma: "5,5", "0,125".
- Of a comma and a point the last one is decimal: "1.234,56".
- A single point is always decimal: "1.000" is 1.

A letter may mean thousands or millions ("$40k", "1.5M", "2k"), but not in a formula ("2k + 1").

A date, a time, a range, a choice between several numbers, and 0x1F are no numbers. Every pattern takes linear time on any
text. Only the standard library is used.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction

from scaling.tasks.formulas import LARGEST, evaluate
from scaling.tasks.number_words import SCALES, leading_words

_MAX_EXPONENT = 100
_MAX_PLACES = 100
_MAX_LENGTH = 300
_MAX_FORMULA = 200
_MAX_ROUNDS = 50  # of tidying; each round shortens the text, so no text of the greatest length needs as many

# A group of three must not be followed by a fourth digit: "1,2345" is two numbers. A list "1,2,3" holds no decimal comma.
_THOUSANDS = r"[1-9][0-9]{0,2}(?:,[0-9]{3}(?![0-9]))+|(?<![0-9],)[1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3}(?![0-9])"
_POINTS = r"[1-9][0-9]{0,2}(?:\.[0-9]{3})+(?:,[0-9]{1,2}(?![0-9])|(?<=\.[0-9]{3}\.[0-9]{3})(?![0-9.,]))"
_DECIMAL_COMMA = r"(?<![0-9],)(?<![(\[{])(?:[0-9]+,[0-9]{1,2}|0,[0-9]+)(?![0-9]|[.,][0-9])"
_DECIMAL = (
    rf"(?:(?:{_POINTS}|{_DECIMAL_COMMA}|(?:{_THOUSANDS}|[0-9]+)(?:\.[0-9]+)?|(?<![^\W_])\.[0-9]+)(?:[eE][-+]?[0-9]+)?)"
)
_SCALE = "|".join(SCALES)
# a minus that follows a digit, a letter or a closing bracket subtracts; one before a digit in "x2" belongs to a name
_NUMBER = (
    r"(?P<sign>(?<![^\W_])(?<![-)\]}%])[-+]|\b[Nn]egative )?(?P<inner>(?:[$€£¥₹] ?)-?)?(?<![^\W_])(?<![0-9]\.)"
    rf"(?:(?P<whole>[0-9]{{1,3}}) (?=[0-9]+/[0-9]))?(?P<chain>{_DECIMAL}(?:/{_DECIMAL})*)"
    rf"(?P<scales>(?:[ -](?:{_SCALE})\b){{0,2}})"
)
# two letters or more, or a metre, gram, second, hour, litre; other single letters and "ab", "xy" are variables
_UNIT_WORD = r"(?:(?!(?:pi|sqrt|sin|cos|tan|log|ln|exp|[abcxyz]+)\b)[^\W\d_]{2,}(?![^\W\d_])|[mgshlL]\b)"
_POWER = r"(?: ?\^\{?[123]\}?|[²³])?"
_UNIT = rf"[ \-]?(?:[%°€£¥₹¢$][CF]?)?(?:[ /·\-(]*{_UNIT_WORD}{_POWER}\)?)*"

NUMBER = re.compile(_NUMBER)
_WITH_UNIT = re.compile(rf"(?P<number>{_NUMBER})(?P<unit>{_UNIT})")
_MONTH = (
    r"(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?"
    r"|Nov(?:ember)?|Dec(?:ember)?)\b"
)
_GOES_ON = re.compile(
    r"[xXbo][0-9A-Fa-f]|\s*[+/^=:×÷\\√<>]|\s*(?<!\*)\*(?!\*)\s?[\w(\\]|\s*\*\*[0-9(]|\s*-\s?[0-9]"
    r"|[^\W\d_]\b(?<![mgshlL])|,[0-9]|\.[0-9]| x ?[0-9]"
    r"|\s(?:\w{1,12}\s)?(?:more|less|fewer) than [$€£¥₹]?[0-9]"
    rf"|\s(?:to|and|plus|minus|times|over|divided by|multiplied by)\s[$€£¥₹]?[0-9]| {_MONTH}"
)
_PART_OF = re.compile(r"%?\s+of\s+[$€£¥₹]?[0-9]")
_OTHER_BASE = re.compile(r"(?<![\w.])0[xXbo][0-9A-Fa-f]+\b")
_CHAIN_OF_NUMBERS = re.compile(r"[\s({\[]*[0-9]+(?:(?:[-—][0-9]+)+|(?:\.[0-9]+){2,})[\s)}\]]*")  # date, range or score
_RISING = re.compile(r"[\s({\[]*([0-9.]+) - ([0-9.]+)[\s)}\]]*")

# Only one part of the pattern can match a given space. If two could, the time would be exponential in the spaces.
_OPERAND = r"[(\s]*(?:[$€£¥₹]\s?)?[0-9][0-9.,]*(?:[%°)]| ?[A-Za-z]{2,}(?![A-Za-z]))*"
_OPERATOR = r"\s*(?:[-+*/×÷·]|x(?=\s?[$€£¥₹(]?[0-9])|\\(?:times|cdot|div)\b)"
_CALCULATION = rf"{_OPERAND}(?:{_OPERATOR}{_OPERAND})+"
_COUNTED = r"\\[dt]?binom ?\{[0-9]+\}\{[0-9]+\}|[0-9]+ ?[CP] ?[0-9]+|[CP]\([0-9]+, ?[0-9]+\)"
_NAMED_SIDE = re.compile(rf"[^\W\d_][A-Za-z_ ]*|[^A-Za-z]*|{_CALCULATION}|{_COUNTED}")
_CALCULATED = re.compile(rf"(?:{_CALCULATION}\s*=)+")
_APPROXIMATELY = re.compile(r"\s*(?:≈|≃|≅|\\approx(?![a-z]))\s*")
_SPOKEN_SIGNS = {"plus": "+", "minus": "-", "times": "*", "multiplied by": "*", "divided by": "/"}
_SPOKEN_SIGN = re.compile(rf"(?<=[0-9)]) ({'|'.join(_SPOKEN_SIGNS)}) (?=[$€£¥₹(]?[0-9])")
_POWER_WORD = re.compile(r"(?<=[0-9)]) (squared|cubed|to the power of (?=[0-9]))(?![^\W\d_])")

_WORD = re.compile(r"[^\W\d_]{3,}|\b(?:or|to|of|in|is|at|by|an|as|if|it|no|on|so|up|we|be|he|do|my)\b", re.IGNORECASE)
_FOREIGN = re.compile("[^\x20-\x7e\xa0-\xff\u0370-\u03ff\u2000-\u22ff]")  # no sign of a formula
_FUNCTIONS = re.compile(r"\\[A-Za-z]+|\b(?:sqrt|sin|cos|tan|log|exp)\b")
_FILLER = re.compile(
    r"(?:[\s*_:\"'`>]|(?:about|approximately|approx\.?|roughly|around|nearly|almost|exactly|precisely|simply|just|thus"
    r"|therefore|equal to|equals|only|(?:the )?number|a total of|Rs\.?"
    r"|INR|USD|US|EUR|GBP|CHF|CAD|AUD|JPY|CNY)(?![^\W\d_]),?)*",
    re.IGNORECASE,
)
_LABEL = re.compile(r"(?:\(?[A-Za-z]\)|[A-Z]\.|[0-9][)])\s+(?=[-$€£¥₹\\.]{0,2}[0-9])")
_NEXT_LABEL = re.compile(r"[\s,;(][A-Za-z1-9]\)\s")
_GROUPS_OF_THREE = re.compile(r"^([-$€£¥₹ ]*)([1-9][0-9]{0,2}(?: [0-9]{3})+)(?![0-9]| ?[0-9]*/)")
_LONG_DECIMAL_COMMA = re.compile(r"^([-$€£¥₹ ]*[0-9]+),([0-9]{4,})(?![0-9]|[.,][0-9])")
_MIXED = re.compile(
    r"(-?[0-9]+)(?:,? and | )(a half|one half|one-half|a quarter|three quarters|a third|two thirds|[0-9]/[0-9]+)\b"
)
_RESTATED = re.compile(r"\s\(|,?\s+or\s+|,\s*i\.\s?e\.,?\s*")
_OR_SO = re.compile(
    r"\s*(?:(?:or|i\.\s?e\.|that is|namely|both|either)(?![^\W\d_]),?\s*|[≈=]\s*|\\approx\s*)*", re.IGNORECASE
)


def _vulgar(sign: str) -> str:
    """ "1/2" for the sign of one half."""
    return str(Fraction(unicodedata.numeric(sign)).limit_denominator(10))


def _joined(match: re.Match[str]) -> str:
    """The digits of a match without what separates their groups."""
    return re.sub("[^0-9]", "", match[0])


def _in_thousands(match: re.Match[str]) -> str:
    """ "3.5 thousand" for "3.5k", but not for the 2k of "1 + 2k"."""
    before = match.string[max(0, match.start() - 4) : match.start()]
    return (
        match[0]
        if re.search(r"[\w)}\]]\s?[-+]\s?$|[*/^(×·]\s?$", before)
        else f"{match[1]} {_SUFFIXES[match[2].lower()]}"
    )


_SUFFIXES = {"k": "thousand", "m": "million", "bn": "billion", "b": "billion"}
_VULGAR = "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"

_TIDY: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = (
    (re.compile(r"(?![0-9])\d"), lambda match: str(unicodedata.decimal(match[0]))),  # Arabic, full-width ... digits
    (re.compile("(?<=[0-9])\u066b(?=[0-9])"), "."),  # the Arabic decimal and thousands separators
    (re.compile("(?<=[0-9])\u066c(?=[0-9])"), ","),
    (re.compile(f"(?:([0-9]) ?)?([{_VULGAR}])"), lambda match: f"{match[1] or ''} {_vulgar(match[2])}".lstrip()),
    # groups of three behind a no-break or thin space, an apostrophe or an underscore
    (re.compile("(?<![0-9.,])[1-9][0-9]{0,2}(?:[\u00a0\u2009\u202f'\u2019_][0-9]{3})+(?![0-9])"), _joined),
    (re.compile("[\u2212\u2013\ufe63\uff0d]"), "-"),
    (re.compile(r"\\(?:left|right)(?![a-z])|\\[!,]"), ""),
    (re.compile(r"\\[()\[\]]"), "$"),
    (re.compile(r"\\[;: ]|\\q?quad(?![a-z])|[~\u00a0\u202f]"), " "),
    (re.compile(r"\\([$%])"), r"\1"),
    (
        re.compile(r"([$€£¥₹] ?[0-9][0-9.,]*)(k|K|M|bn|B)\b(?!\$|\s?[-+*/^=\\<>(])"),  # not the 2k of "$2k + 1$"
        lambda match: f"{match[1]} {_SUFFIXES[match[2].lower()]}",
    ),
    (re.compile(r"(?<![\w.,])([0-9][0-9,]*(?:\.[0-9]+)?)(k|K|M|bn)\b(?!\$|\s?[-+*/^=\\<>(])"), _in_thousands),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox)\s?\{([^{}]*)\}"), r" \1 "),
    # the space makes 2\frac{1}{2} the mixed number "2 1/2"
    (re.compile(r"([0-9]) ?\\[dt]?frac ?\{ ?([0-9]+) ?\}\{ ?([0-9]+) ?\}"), r"\1 \2/\3"),
    (re.compile(r"\\[dt]?frac ?\{ ?(-?[0-9.]+) ?\} ?\{ ?([0-9.]+) ?\}"), r"\1/\2"),
    (re.compile(r"([0-9]) ?\\[dt]?frac ?([0-9])([0-9])(?![0-9])"), r"\1 \2/\3"),
    (re.compile(r"(?<![0-9])\\[dt]?frac ?([0-9])([0-9])(?![0-9])"), r"\1/\2"),
    (re.compile(r" ?\^ ?\{? ?\\circ(?![a-z]) ?\}?"), "°"),
    (
        re.compile(r"([0-9]) ?(?:\\times|\\cdot|[×*x]) ?10 ?(?:\^|\*\*) ?(?:\{(-?[0-9]{1,3})\}|(-?[0-9]{1,3}))"),
        r"\1e\2\3",
    ),
)


def tidy(text: str) -> str:
    """The text in plain characters: without typographic signs, LaTeX spacing, and LaTeX for plain numbers and words."""
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    return text


def value(text: str) -> Fraction | None:
    """The exact value of one plain number ("-3/4", "1,200.50", "2 1/2"); None for other texts and for huge numbers."""
    match = NUMBER.fullmatch(text) if len(text) <= _MAX_LENGTH else None
    return value_of(match) if match else None


def value_of(match: re.Match[str]) -> Fraction | None:
    """The exact value of a match of `NUMBER`; None for a date such as 1/2/2020 or 01/05, for n/0, and for huge numbers."""
    pieces = match["chain"].split("/")
    if len(pieces) > 2 or (len(pieces) == 2 and any(re.match("0[0-9]", piece) for piece in pieces)):
        return None
    top, bottom = _decimal(pieces[0]), _decimal(pieces[1]) if len(pieces) > 1 else Fraction(1)
    if top is None or not bottom:
        return None
    size = top / bottom + int(match["whole"] or 0)
    for scale in re.findall("[a-z]+", match["scales"]):
        size *= SCALES[scale]
    if max(size.numerator, size.denominator) >= LARGEST:
        return None
    return -size if match["sign"] not in (None, "+") or "-" in (match["inner"] or "") else size


def written(number: Fraction) -> str:
    """The canonical form of a number."""
    places = _decimal_places(number.denominator)
    if places is None or places > _MAX_PLACES:
        return f"{number.numerator}/{number.denominator}"
    digits = str(abs(number.numerator) * 10**places // number.denominator).rjust(places + 1, "0")
    sign = "-" if number < 0 else ""
    return f"{sign}{digits[:-places]}.{digits[-places:]}" if places else f"{sign}{digits}"


def number_or_formula(text: str) -> str | None:
    """The canonical form of a text that is one number, with or without a unit, or one formula; None for other texts."""
    tidied = text.strip()
    for _ in range(_MAX_ROUNDS):
        if len(tidied) > _MAX_LENGTH:
            return None
        text = _plain(_right_side(_peeled(tidy(tidied))))
        match = _WITH_UNIT.fullmatch(text) or _WITH_UNIT.fullmatch(text.replace(" / ", "/"))
        if match is not None:
            number = value_of(match)
            return None if number is None else written(number)
        formula = " ".join(text.split())
        if formula == tidied:
            return _formula(formula)
        tidied = formula  # removing what was around it may have uncovered more to tidy
    return None


def leading_number(text: str) -> str | None:
    """The number that a text begins with; None if it is part of something longer, such as a date or a formula."""
    text = _after_sum(text)
    match = NUMBER.match(text)
    if match is None or _GOES_ON.match(text, match.end()):
        return None
    if ("/" in match["chain"] or text.startswith("%", match.end())) and _PART_OF.match(text, match.end()):
        return None  # "20% of 50" may be 20 or 10
    number = value_of(match)
    return None if number is None else written(number)


def begins_with_number(text: str) -> bool:
    """Whether a text begins with a number, even one that is only part of a date, a range or a formula."""
    return (
        re.match(r"[\s({\[-]*", head := _after_sum(text)) is not None and NUMBER.match(head.lstrip(" ({[-")) is not None
    )


def is_choice_of_numbers(text: str) -> bool:
    """Whether a text begins with a choice between numbers: "5 or 6", "x = 2 or x = 3", "a) 5 b) 6"."""
    text = tidy(text[:_MAX_LENGTH])
    label = _LABEL.match(text)
    return bool(label and _NEXT_LABEL.search(text, label.end())) or _restated(text) == _SEVERAL


def _after_sum(text: str) -> str:
    """The beginning of a text in plain form. If it is a calculation, what comes after its equals sign."""
    text = _plain(_peeled(tidy(text[: 2 * _MAX_LENGTH])))
    match = _CALCULATED.match(text)
    return _plain(_peeled(text[match.end() :])) if match else text


def _formula(text: str) -> str | None:
    """The value of a formula of plain numbers; any other formula as it is; None for prose, dates, ranges and choices."""
    rising = _RISING.fullmatch(text)
    if _CHAIN_OF_NUMBERS.fullmatch(text) or (rising and _is_range(rising[1], rising[2])):
        return None
    restated = _restated(text)
    if restated is not None:
        return restated or None
    if not _is_formula(text):
        return None
    try:
        return written(evaluate(text))
    except ValueError:
        return text
    except ArithmeticError:
        return None


def _is_range(first: str, second: str) -> bool:
    """Whether the first of two texts is the smaller number."""
    numbers = value(first), value(second)
    return numbers[0] is not None and numbers[1] is not None and numbers[0] < numbers[1]


_SEVERAL = ""  # what `_restated` returns for two different numbers


def _restated(text: str) -> str | None:
    """The number that a text states twice: 3/4 for "3/4 (0.75)", 18 for "18 or 18.00" and for "18 (9 * 2)".

    A second number in parentheses with words, or in another unit ("90 minutes or 1.5 hours"), counts as a remark on the
    first.

    Returns:
        `_SEVERAL` if the two numbers differ ("5 or 6"); None if the text does not state two numbers.
    """
    match = _RESTATED.search(text)
    if match is None:
        return None
    in_parentheses = match[0].endswith("(")
    head, rest = text[: match.start()], text[match.end() :]
    inside, _, after = rest.partition(")") if in_parentheses else (re.split(r"[,;](?:\s|$)", rest)[0], "", "")
    inside = _OR_SO.sub("", inside, count=1)
    first, second = _one_number(head), _one_number(inside)
    if first is None or second is None or (in_parentheses and re.search(r"[^\w\s.]|[0-9]", after)):
        return None
    units = [
        "".join(re.findall("[A-Za-z°]", NUMBER.sub("", _plain(_peeled(part)), count=1))) for part in (head, inside)
    ]
    if agree(first, second, percent=(_is_percent(head), _is_percent(inside))):
        return written(first)
    if units[1] and (in_parentheses or (units[0] and units[0] != units[1])):
        return written(first)
    return _SEVERAL


def _is_percent(text: str) -> bool:
    return re.search("%|per ?cent", text) is not None


def _one_number(text: str) -> Fraction | None:
    """The value of a text that states one number once; None for any other text."""
    if not text.strip() or _RESTATED.search(text):
        return None
    form = number_or_formula(text)
    return None if form is None else value(form)


def agree(first: Fraction, second: Fraction, *, percent: tuple[bool, bool] = (False, False)) -> bool:
    """Whether two numbers are the same, or one of them is the other rounded to 1 to 6 decimals.

    Args:
        first: one number.
        second: the other number.
        percent: for each of them, whether it is a percentage.
    """
    if percent[0] != percent[1]:
        first, second = (first / 100, second) if percent[0] else (first, second / 100)
    return first == second or any(
        round(one, places) == other
        for one, other in ((first, second), (second, first))
        for places in (1, 2, 3, 4, 5, 6)
    )


def _decimal(piece: str) -> Fraction | None:
    """The value of a decimal number with or without exponent; None if it is too long."""
    digits, _, exponent = piece.lower().partition("e")
    if len(digits) > _MAX_LENGTH or len(exponent) > 4 or abs(int(exponent or 0)) > _MAX_EXPONENT:
        return None
    return Fraction(_with_point(digits)) * Fraction(10) ** int(exponent or 0)


def _with_point(digits: str) -> str:
    """A number as `_DECIMAL` matches it, written with at most one decimal point and without other separators."""
    comma, point = digits.rfind(","), digits.rfind(".")
    if comma > point and not re.fullmatch(_THOUSANDS, digits):
        return digits.replace(".", "").replace(",", ".")
    digits = digits.replace(",", "")
    return digits.replace(".", "") if digits.count(".") > 1 else digits


def _decimal_places(denominator: int) -> int | None:
    """How many decimals are needed to write n/denominator exactly; None if no number of decimals is enough."""
    powers = []
    for prime in (2, 5):
        power = 0
        while denominator % prime == 0:
            denominator, power = denominator // prime, power + 1
        powers.append(power)
    return max(powers) if denominator == 1 else None


def _peeled(text: str) -> str:
    """A text without what is around an answer: markdown, quotes, dollar signs, a full stop, "about", single brackets."""
    text = text.rstrip(" \t\r\n$*_`\"'.,;。")
    text = _FILLER.sub("", text, count=1).strip("$ ")
    surplus = sum(text.count(sign) for sign in "([{") - sum(text.count(sign) for sign in ")]}")
    if surplus < 0 and text[-1] in ")]}":
        return text[:-1]
    return text[1:] if surplus > 0 and text[0] in "([{" else text


def _plain(text: str) -> str:
    """A text whose beginning has digits in place of number words and of groups of digits, and no label as in "a) 10"."""
    label = _LABEL.match(text)
    if label and not _NEXT_LABEL.search(text, label.end()):
        text = text[label.end() :]
    text = _POWER_WORD.sub(lambda match: "^" + {"squared": "2", "cubed": "3"}.get(match[1], ""), text)
    text = re.sub(r"^minus (?=[$€£¥₹0-9])", "-", _SPOKEN_SIGN.sub(lambda match: f" {_SPOKEN_SIGNS[match[1]]} ", text))
    mixed = _MIXED.match(text)
    if mixed:
        part = leading_words(mixed[2])
        text = f"{mixed[1]} {part[0] if part else mixed[2]}{text[mixed.end() :]}"
    words = leading_words(text)
    if words:
        text = written(words[0]) + text[words[1] :]
    text = _GROUPS_OF_THREE.sub(lambda match: match[1] + match[2].replace(" ", ""), text, count=1)
    return _LONG_DECIMAL_COMMA.sub(r"\1.\2", text, count=1)


def _right_side(text: str) -> str:
    """The result in an equation: 5 for "x = 5" and "10 - 5 = 5", and 2/3 for "2/3 ≈ 0.67".

    An equation between two formulas has no result and stays as it is.
    """
    exact = _APPROXIMATELY.split(text, maxsplit=1)
    if len(exact) == 2:
        left = _right_side(exact[0])
        return exact[1] if not left.strip() or re.search("[A-Za-z]", _FUNCTIONS.sub(" ", left)) else left
    left, sign, right = text.rpartition("=")
    left = left.rpartition("=")[2].strip(" $*")
    named = sign and (_NAMED_SIDE.fullmatch(left) or not re.search("[A-Za-z]", _FUNCTIONS.sub(" ", left)))
    return right if named else text


def _is_formula(text: str) -> bool:
    """Whether a text is a formula, rather than prose, a date, a list or a number in another base."""
    bare = _FUNCTIONS.sub(" ", text)
    if (
        len(text) > _MAX_FORMULA
        or _FOREIGN.search(text)
        or _WORD.search(bare)
        or _LABEL.match(text)
        or _OTHER_BASE.search(text)
    ):
        return False
    if re.search(r"[0-9]:[0-9]|[?!]\s|/[0-9]+/", text) or ("\\" not in text and re.search("[0-9] [0-9]", text)):
        return False
    return bare != text or re.search(r"[0-9]|[+*^]|\S ?- ?\S", text) is not None
