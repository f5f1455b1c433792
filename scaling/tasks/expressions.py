"""Takes mathematical answers apart: lists of solutions, points, intervals, sets, unions, matrices, and formulas in them.

An answer is a tree of `Expression`. What stands in it without further parts is a number, a formula or a few words. Numbers
and words are compared by their texts here; formulas are compared by whoever calls `same` and `form_of`, by math-verify.

- The order of a list ("2, -1", "x = 2 or x = -1", "\\{-1, 2\\}") does not matter; `\\pm 3` is the list "3, -3". The order of
  a point or tuple does, and so does the kind of an interval's brackets. An open interval looks as a point does.
- An inequality that bounds one variable is its interval: "x < 3" is "(-\\infty, 3)". "x \\in S" is S.
- An equation that only gives a value its name is the value: "x = 5" is 5, "f(x) = 2x" is "2x". Values of several names are
  a tuple in the alphabetic order of the names. Other equations stay.
- A comma is never a decimal comma. It separates thousands in "1,234", outside of brackets, and is part of a list elsewhere.
- Units, percent and degree signs do not count. "1011_2" is only equal to the same digits in the same base.

Every pattern takes linear time on any text. Only the standard library is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction

from scaling.tasks.numbers import number_or_formula, value
from scaling.tasks.words import plain_words

_MAX_LENGTH = 400
_MAX_DEPTH = 8
_MAX_PARTS = 64
_ROUNDS = 6  # most times that an answer is taken apart and written; most are written the same after the first

FORMULA, DIGITS, WORDS = "formula", "digits", "words"
LIST, UNION, MATRIX = "list", "union", "matrix"
_UNORDERED = (LIST, UNION)


@dataclass(frozen=True)
class Expression:
    """An answer or a part of one.

    Attributes:
        shape: `FORMULA` (or a number), `DIGITS` in another base, or `WORDS`, which have no parts; `LIST`, `UNION`, `MATRIX`
            and its columns ("matrix 2"), or the two brackets of a tuple or interval ("(]").
        text: of a formula, digits or words, in canonical form.
        parts: of the other shapes.
    """

    shape: str
    text: str = ""
    parts: tuple[Expression, ...] = ()

    def __str__(self) -> str:
        """The canonical form."""
        return self._written(inside=False)

    def _written(self, *, inside: bool) -> str:
        if self.text:
            return self.text
        written = [part._written(inside=True) for part in self.parts]
        if self.shape == LIST:
            listed = ", ".join(sorted(written))
            return f"\\{{{listed}\\}}" if inside and written else listed or "\\emptyset"
        if self.shape == UNION:
            return " \\cup ".join(sorted(written))
        if self.shape.startswith(MATRIX):
            columns = int(self.shape.split()[1])
            rows = [" & ".join(written[start : start + columns]) for start in range(0, len(written), columns)]
            return "\\begin{pmatrix}" + " \\\\ ".join(rows) + "\\end{pmatrix}"
        return f"{self.shape[0]}{', '.join(written)}{self.shape[1]}"


def canonical(text: str) -> str | None:
    """The canonical form of an answer; None if it is none. A canonical form is its own."""
    for _ in range(_ROUNDS):
        expression = parse(text)
        written = None if expression is None else str(expression)
        if written is None or written == text:
            return written
        text = written
    return None


def parse(text: str) -> Expression | None:
    """Takes an answer apart; None if it is none, or too long or deep."""
    if len(text) > _MAX_LENGTH:
        return None
    text = _peeled(cleaned(text))
    # brackets that do not match may still be a formula or words
    return (_parse(text, _MAX_DEPTH) or _single(text)) if text else None


def is_prose(expression: Expression) -> bool:
    """Whether an answer consists of words or has words among its parts."""
    return expression.shape == WORDS or any(map(is_prose, expression.parts))


def is_plain(expression: Expression) -> bool:
    """Whether an answer has no formulas but numbers, so that comparing it takes no time."""
    if expression.shape == FORMULA:
        return value(expression.text) is not None
    return all(map(is_plain, expression.parts))


def same(gold: Expression, answer: Expression, equal: Callable[[str, str], bool]) -> bool:
    """Whether two answers are equal.

    Args:
        gold: one answer.
        answer: the other one.
        equal: compares two numbers or formulas, the one of `gold` first.
    """
    if gold == answer:
        return True
    if gold.shape != answer.shape or len(gold.parts) != len(answer.parts):
        return False
    if gold.shape not in _UNORDERED:
        if gold.shape == FORMULA:
            return equal(gold.text, answer.text)
        return not gold.text and all(
            same(one, other, equal) for one, other in zip(gold.parts, answer.parts, strict=True)
        )
    left = list(answer.parts)
    for part in gold.parts:
        found = next((other for other in left if same(part, other, equal)), None)
        if found is None:
            return False
        left.remove(found)
    return True


def form_of(expression: Expression, form: Callable[[str], str]) -> str:
    """One text for all ways to write an answer. form: the one text for all ways to write a formula."""
    if expression.shape == FORMULA:
        return form(expression.text)
    if expression.text:
        return expression.text
    parts = [form_of(part, form) for part in expression.parts]
    if expression.shape in _UNORDERED:
        parts = sorted(set(parts))
        return parts[0] if len(parts) == 1 else f"{expression.shape} {{{'; '.join(parts)}}}"
    if expression.shape.startswith(MATRIX):
        return f"{expression.shape}: {'; '.join(parts)}"
    return f"{expression.shape[0]}{'; '.join(parts)}{expression.shape[1]}"


# Cleaning

_SIGNS = {
    **{"\u2212": "-", "\u2013": "-", "\ufe63": "-", "\uff0d": "-", "∞": "\\infty ", "π": "\\pi ", "±": "\\pm "},
    **{"×": "\\times ", "·": "\\cdot ", "÷": "/", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∪": "\\cup "},
    **{"∈": "\\in ", "∅": "\\emptyset ", "ℝ": "\\mathbb{R}", "²": "^{2}", "³": "^{3}", "\u00a0": " ", "\u202f": " "},
    **{"\u2009": " ", "≈": "\\approx ", "⟨": "(", "⟩": ")"},
}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_NAME_END = "(?![A-Za-z])"
_CLEANING: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"\\(?:left|right){_NAME_END}\s?\.?|\\(?:displaystyle|textstyle|limits|big|Big|bigg|Bigg){_NAME_END}", ""),
        (r"(?<!\\)\\[()\[\]]", "$"),
        (r"(?<!\\)\\[!,]", ""),
        (rf"(?<!\\)\\[;: ]|\\q?quad{_NAME_END}|~", " "),
        (r"(?<!\\)\\([$%])", r"\1"),
        (r"\{,\}", ","),
        (rf"\\langle{_NAME_END}", "("),
        (rf"\\rangle{_NAME_END}", ")"),
        (rf"\\lbrace{_NAME_END}", r"\\{"),
        (rf"\\rbrace{_NAME_END}", r"\\}"),
        (rf"\\(?:leq|leqslant|le){_NAME_END}|<=", r"\\le "),
        (rf"\\(?:geq|geqslant|ge){_NAME_END}|>=", r"\\ge "),
        (rf"\\lt{_NAME_END}", "<"),
        (rf"\\gt{_NAME_END}", ">"),
        (rf"\\(?:neq|ne){_NAME_END}", r"\\ne "),
        (rf"\\varnothing{_NAME_END}", r"\\emptyset "),
        (rf"\\lor{_NAME_END}", " or "),
        (rf"\\[dtc]frac{_NAME_END}", r"\\frac"),
        (r"\\frac ?([0-9A-Za-z]) ?([0-9A-Za-z])", r"\\frac{\1}{\2}"),
        (r"\\frac ?(\{[^{}]{0,80}\}) ?([0-9A-Za-z])", r"\\frac\1{\2}"),
        (r"\\frac ?([0-9A-Za-z]) ?(\{[^{}]{0,80}\})", r"\\frac{\1}\2"),
        (r"\\frac (?=\{)", r"\\frac"),
        (r"\\sqrt ?([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"√ ?\(([^()\n]{1,80})\)", r"\\sqrt{\1}"),
        (r"√ ?([0-9]+|[A-Za-z])", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])sqrt ?\(([^()\n]{1,80})\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])(sin|cos|tan|log|ln|pi)(?![A-Za-z])", r"\\\1 "),
        (r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|operatorname|mbox)\s?\{([^{}]*)\}", r" \1 "),
        (r" ?\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))", "°"),
        (r"(?<![A-Za-z])\\degrees?(?![A-Za-z])", "°"),
        (r"[ \t]+", " "),
    )
)


def cleaned(text: str) -> str:
    """A text with one way to write each sign, without LaTeX spacing and styles. Line breaks stay."""
    text = _SIGN.sub(lambda match: _SIGNS[match[0]], text)
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    return text


# Taking apart

_OPENING, _CLOSING = ("(", "[", "{", "\\{", "\\begin"), (")", "]", "}", "\\}", "\\end")
_TOKEN = re.compile(
    r"\\(?:begin|end)\b|\\[{}]|\\\\|\\[A-Za-z]+|[(){}\[\]]|[,;=<>&|]|\n"
    r"|(?<![\\A-Za-z])(?:and|or)\b(?! (?:a|one|two|three)[ -](?:half|third|quarter))"
)
_THOUSANDS = re.compile(r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_BOX = re.compile(r"\\f?box(?:ed)?\s?\{")
_MATRIX = re.compile(r"\\begin\{((?:[pbvBV]|small)?matrix|array)\}(?:\{[lcr| ]{0,40}\})?(.*)\\end\{\1\}", re.DOTALL)
_IN = re.compile(r"[A-Za-z](?:_\{?\w\}?)? ?\\in(?![A-Za-z])")
_BUILDER = re.compile(r"[A-Za-z](?: ?\\in ?\\mathbb ?\{ ?R ?\})? ?(?:\\mid(?![A-Za-z])|\\vert(?![A-Za-z])|[|:])")
_REALS = re.compile(
    r"\\mathbb ?\{ ?R ?\}|\\mathbb R|\\R|all real(?: number)?s|(?:the )?set of real numbers", re.IGNORECASE
)
_SYMBOL = re.compile(r"(?:[A-Za-z]|\\(?!pi|infty)[A-Za-z]+)(?:_\{?\w{1,8}\}?)?'?")
_NAME = re.compile(
    r"(?:[A-Za-z]|\\[A-Za-z]+)(?:_\{?\w{1,8}\}?)?'{0,2}(?:\^\{-1\})? ?\([^()=]{1,30}\)"  # f(x)
    r"|\\(?:angle|triangle|overline|sin|cos|tan|log|ln|det|min|max|gcd)\b[^=]{0,60}"
    r"|\|?[A-Z]{2,3}\|?|[A-Za-z]{3,}[A-Za-z _]{0,40}"
    r"|\([A-Za-z](?:, ?[A-Za-z])+\)"  # (x, y)
    r"|\[[A-Z]{3,8}\]"
)
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9"}
_BASES |= {"ten": "10", "twelve": "12", "sixteen": "16"}
_DIGITS = rf"([0-9]{{1,2}}|{'|'.join(_BASES)})"
_BASE = re.compile(rf"([0-9][0-9A-Fa-f]*) ?(?:_ ?\{{? ?{_DIGITS} ?\}}?|(?:in )?\(?base[- ]?{_DIGITS}\)?)")
_RECURRING = re.compile(r"([0-9]{0,20})\.([0-9]{0,20})\\(?:overline|bar) ?\{ ?([0-9]{1,20}) ?\}")
_FRACTION_BEFORE_FACTOR = re.compile(r"(?<![0-9A-Za-z})\]^.])([0-9]+)/([0-9]+)(?=[A-Za-z\\])")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_RUN = re.compile(r"[^\W\d_]{3,}")
_VARIABLES = re.compile(r"[abcxyz]+")
_SHORT_WORD = re.compile(r"(?:no|yes|am|pm|[ap]\.m\.?)", re.IGNORECASE)
_SHORT_UNIT = re.compile(r"(?:cm|mm|km|kg|mg|ml|mL|ft|in|yd|mi|lb|oz|hr|am|pm|th|st|nd|rd)")
_PRODUCT = re.compile(r"(?<=[0-9})\]])([A-Za-z]{1,2})(?![A-Za-z0-9])")
_UNIT_POWER = r"(?: ?\^ ?\{?[23]\}?)?"
_UNIT = re.compile(
    rf"(?:(?:(?<=[0-9}}\])]){_SHORT_UNIT.pattern}"
    rf"|(?<=[0-9A-Za-z}}\])°])[ -](?:per )?(?!(?:[abcxyz]+|and|or|in(?! ?\^))\b)[A-Za-z]{{2,20}}){_UNIT_POWER}"
    rf"(?:(?: ?/ ?| per | )[A-Za-z]{{1,20}}{_UNIT_POWER}){{0,4}}|%|° ?[CF]?)\.?$"
)
_FOREIGN = re.compile("[^\x20-\x7e\u00a1-\u00ff\u0370-\u03ff\u2200-\u22ff]")


def _parse(text: str, depth: int, *, top: bool = True) -> Expression | None:
    """Takes cleaned text apart. top: whether it stands in no brackets, so that a comma may separate thousands."""
    text = _peeled(text)
    if not text or depth <= 0:
        return None
    for take in (_matrix, _listed, _both_signs, _union, _of_set, _bounds, _equation, _bracketed):
        taken = take(text, depth - 1, top)
        if taken is not _OTHER:
            return taken
    return _single(text)


_OTHER = Expression("")  # what the functions below return for a text that they are not for


def _peeled(text: str) -> str:
    """A text without what stands around an answer: dollar signs, markdown, quotes, a full stop, a box, needless braces."""
    for _ in range(_MAX_DEPTH):
        before = text
        text = text.strip(" \t\r\n$`*").rstrip(".,;:。 ").removeprefix("+").lstrip(" :,;")
        if len(text) > 1 and text[0] in "\"“'" and text[-1] in "\"”'":
            text = text[1:-1]
        box = _BOX.match(text)
        if box and _closed_at(text, box.end() - 1) == len(text):
            text = text[box.end() : -1]
        elif (
            text.startswith("{") and _closed_at(text, 0) == len(text) and len(_split(text[1:-1])) == 1 and text != "{}"
        ):
            text = text[1:-1]
        if text == before:
            break
    return text


def _closed_at(text: str, start: int) -> int:
    """Where the bracket that opens at `start` has been closed; -1 if it is not."""
    depth = 0
    for token in _TOKEN.finditer(text, start):
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        if depth == 0:
            return token.end()
    return -1


def _tokens(text: str) -> Iterator[re.Match[str]]:
    """The tokens of a text that stand in no brackets."""
    depth = 0
    for token in _TOKEN.finditer(text):
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        if depth == 0 and token[0] not in _CLOSING:
            yield token


def _split(text: str, *signs: str, thousands: bool = False) -> list[str]:
    """The parts of a text between signs that stand in no brackets. Without signs those of a list: comma, "and", "or" ..."""
    signs = signs or (",", ";", "and", "or", "\n")
    inside = [match.span() for match in _THOUSANDS.finditer(text)] if thousands else []
    parts, place = [], 0
    for token in _tokens(text):
        if token[0] in signs and not any(start < token.start() < end for start, end in inside):
            parts.append(text[place : token.start()])
            place = token.end()
    return [*parts, text[place:]]


def _all(texts: list[str], depth: int) -> tuple[Expression, ...] | None:
    """The expressions of several texts; None if one of them is none, or they are too many."""
    if len(texts) > _MAX_PARTS:
        return None
    parts = [_parse(text, depth, top=False) for text in texts]
    return None if None in parts else tuple(part for part in parts if part is not None)


def _list_of(parts: tuple[Expression, ...] | None) -> Expression | None:
    """The list of some parts, in which lists are merged and equal parts are one. A list of one part is that part."""
    if parts is None:
        return None
    flat = [inner for part in parts for inner in (part.parts if part.shape == LIST else (part,))]
    flat = sorted(dict.fromkeys(flat), key=str)
    return flat[0] if len(flat) == 1 else Expression(LIST, parts=tuple(flat))


def _matrix(text: str, depth: int, top: bool) -> Expression | None:  # noqa: ARG001
    match = _MATRIX.fullmatch(text)
    if match is None or "\\begin" in match[2]:
        return _OTHER
    body = re.sub(r"\\\\\[[0-9.a-z]{1,8}\]|\\\\|\\cr\b", "\\\\\\\\", re.sub(r"\\hline\b", "", match[2])).strip()
    rows = [row.split("&") for row in body.removesuffix("\\\\").split("\\\\")]
    if len({len(row) for row in rows}) > 1:
        return None
    cells = _all([cell for row in rows for cell in row], depth)
    return None if cells is None else Expression(f"{MATRIX} {len(rows[0])}", parts=cells)


def _listed(text: str, depth: int, top: bool) -> Expression | None:
    parts = [part for part in _split(text, thousands=top) if part.strip(" $*")]
    if len(parts) < 2:
        return _OTHER
    sides = [[side.strip(" $") for side in _split(part, "=")] for part in parts]
    names = [side[0] for side in sides if len(side) == 2 and _SYMBOL.fullmatch(side[0])]
    if len(names) == len(parts) == len(set(names)):  # x = 1, y = 2
        values = _all([right for _, right in sorted(sides)], depth)
        return None if values is None else Expression("()", parts=values)
    expressions = _all(parts, depth)
    if expressions and all(_is_interval(part) for part in expressions) and len(_split(text, "or")) == len(parts):
        return _union_of(expressions)
    return _list_of(expressions)


def _both_signs(text: str, depth: int, top: bool) -> Expression | None:  # noqa: ARG001
    if not any(token[0] in ("\\pm", "\\mp") for token in _TOKEN.finditer(text)):
        return _OTHER
    ways = [text, text]
    for sign in ("pm", "mp"):
        pattern, both = re.compile(rf"\\{sign}(?![A-Za-z]) ?"), "+-" if sign == "pm" else "-+"
        ways = [pattern.sub(one, way) for one, way in zip(both, ways, strict=True)]
    return _list_of(_all(ways, depth))


def _union(text: str, depth: int, top: bool) -> Expression | None:  # noqa: ARG001
    parts = _split(text, "\\cup")
    if len(parts) < 2:
        return _OTHER
    expressions = _all(parts, depth)
    return None if expressions is None else _union_of(expressions)


def _union_of(parts: tuple[Expression, ...]) -> Expression:
    flat = [inner for part in parts for inner in (part.parts if part.shape == UNION else (part,))]
    # a list among them is a set, whose parts are no longer told from those of the union, as in (1, 2) \cup \{3\}
    flat = sorted(dict.fromkeys(flat), key=str)
    return flat[0] if len(flat) == 1 else Expression(UNION, parts=tuple(flat))


def _of_set(text: str, depth: int, top: bool) -> Expression | None:  # noqa: ARG001
    """The set in "x \\in S", the condition in "\\{x | x < 3\\}", and the real numbers."""
    member = _IN.match(text)
    if member:
        return _parse(text[member.end() :], depth, top=False)
    if _REALS.fullmatch(text):
        return Expression("()", parts=(Expression(FORMULA, "-\\infty"), Expression(FORMULA, "\\infty")))
    inside = _in_braces(text)
    builder = _BUILDER.match(inside) if inside else None
    return _parse(inside[builder.end() :], depth, top=False) if inside and builder else _OTHER


def _in_braces(text: str) -> str | None:
    """What stands between the braces of a set; None if the text is no set in braces."""
    opening = "\\{" if text.startswith("\\{") else "{"
    if not text.startswith(opening) or not text.endswith("}") or _closed_at(text, 0) != len(text):
        return None
    return text[len(opening) : -1].removesuffix("\\").strip()


_LESS = {"<": ("<", True), "\\le": ("<=", True), ">": ("<", False), "\\ge": ("<=", False)}


def _bounds(text: str, depth: int, top: bool) -> Expression | None:  # noqa: ARG001
    """The interval of an inequality that bounds one variable by numbers."""
    signs = [token[0] for token in _tokens(text) if token[0] in _LESS]
    sides = [side.strip() for side in _split(text, *_LESS)]
    if len(signs) not in (1, 2) or len({_LESS[sign][1] for sign in signs}) > 1 or "=" in text:
        return _OTHER
    if not _LESS[signs[0]][1]:
        signs, sides = signs[::-1], sides[::-1]
    strict = [_LESS[sign][0] == "<" for sign in signs]
    if len(signs) == 1:
        if _SYMBOL.fullmatch(sides[0]):
            sides, strict = ["-\\infty", *sides], [True, *strict]
        else:
            sides, strict = [*sides, "\\infty"], [*strict, True]
    if not _SYMBOL.fullmatch(sides[1]) or _has_variables(sides[0]) or _has_variables(sides[2]):
        return _OTHER
    ends = _all([sides[0], sides[2]], depth)
    return None if ends is None else Expression("[("[strict[0]] + "])"[strict[1]], parts=ends)


def _has_variables(text: str) -> bool:
    return re.search("[A-Za-z]", _COMMAND.sub(" ", text)) is not None


def _is_interval(expression: Expression) -> bool:
    return len(expression.shape) == 2 and len(expression.parts) == 2


def _equation(text: str, depth: int, top: bool) -> Expression | None:
    """The value in an equation that only gives it its name, or its calculation. "y = 2x" stays an equation."""
    exact = _split(text, "\\approx")
    if len(exact) == 2:
        side = exact[1] if _SYMBOL.fullmatch(exact[0].strip()) or not exact[0].strip() else exact[0]
        return _parse(side, depth, top=top)
    *lefts, right = (side.strip(" $*") for side in _split(text, "="))
    if not lefts or not right or not lefts[0]:
        return _OTHER if not lefts else _parse(right, depth, top=top) if right else None
    is_value = not _has_variables(_without_unit(right))
    is_calculation = not any(map(_has_variables, lefts))
    if _NAME.fullmatch(lefts[0]) or (is_value and (is_calculation or _SYMBOL.fullmatch(lefts[0]))):
        return _parse(right, depth, top=top)
    return _OTHER


def _bracketed(text: str, depth: int, top: bool) -> Expression | None:  # noqa: ARG001
    inside = _in_braces(text)
    if inside is not None:
        return _list_of(_all([part for part in _split(inside) if part.strip()], depth))
    if text[0] not in "([" or text[-1] not in ")]" or _closed_at(text, 0) != len(text):
        return _OTHER
    parts = _split(text[1:-1], ",", ";")
    if len(parts) == 1:
        matches = text[0] + text[-1] in ("()", "[]")
        return _parse(parts[0], depth, top=False) if matches else None
    expressions = _all(parts, depth)
    return None if expressions is None else Expression(text[0] + text[-1], parts=expressions)


def _single(text: str) -> Expression | None:
    """A number, a formula, or a few words."""
    if re.fullmatch(r"\\emptyset ?|\\\{ ?\\\}", text):
        return Expression(LIST)
    base = _BASE.fullmatch(text)
    if base:
        return Expression(DIGITS, f"{base[1].upper()} in base {_BASES.get(base[2] or base[3], base[2] or base[3])}")
    text = _RECURRING.sub(_recurring, text)
    number = None if _is_product(text) else number_or_formula(text)
    if number is not None and value(number) is not None:
        return Expression(FORMULA, number)
    formula = _FRACTION_BEFORE_FACTOR.sub(r"\\frac{\1}{\2}", _without_unit(text))
    if formula != text and re.search(r"[0-9]|\\", formula):
        number = number_or_formula(formula)
        if number is not None and value(number) is not None:
            return Expression(FORMULA, number)
    if _is_formula(formula):
        return Expression(FORMULA, _compact(formula))
    words = plain_words(text)
    return Expression(WORDS, words) if words else None


def _is_product(text: str) -> bool:
    """Whether a text has variables right behind a number: 2k and 3m are formulas here, neither thousands nor metres."""
    return any(not _SHORT_UNIT.fullmatch(match[1]) for match in _PRODUCT.finditer(text)) and "$" not in text


def _recurring(match: re.Match[str]) -> str:
    """The fraction of a recurring decimal."""
    whole, fixed, period = match[1] or "0", match[2], match[3]
    size = Fraction(int(whole + fixed), 10 ** len(fixed))
    size += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(fixed))
    return f"{size.numerator}/{size.denominator}"


def _without_unit(text: str) -> str:
    """A formula without the unit at its end. Words alone stay."""
    shorter = _UNIT.sub("", text).strip()
    return shorter if re.search(r"[0-9]|\\(?:pi|sqrt|frac)", shorter) else text


def _is_formula(text: str) -> bool:
    """Whether a text is a formula and no prose."""
    bare = _COMMAND.sub(" ", text)
    if _FOREIGN.search(text) or _SHORT_WORD.fullmatch(text) or re.search(r"[?!:]\s|[0-9]:[0-9]|#", text):
        return False
    if any(not _VARIABLES.fullmatch(run) for run in _RUN.findall(bare)):
        return False
    # a sentence of short words has letters on both sides of a space: "as is"
    return (
        re.search(r"[A-Za-z]{2} [A-Za-z]{2}", bare) is None
        and re.search(r"[0-9A-Za-z\u0370-\u03ff]|\\", text) is not None
    )


def _compact(formula: str) -> str:
    """A formula without needless spaces."""
    formula = re.sub(r"\s+", " ", formula).strip()
    formula = re.sub(r"(\\[A-Za-z]+) (?![A-Za-z])", r"\1", formula)
    return re.sub(r"(?<!\\[A-Za-z]) (?=\S)", lambda match: _kept_space(match), formula)


def _kept_space(match: re.Match[str]) -> str:
    """A space that ends the name of a command, or that keeps two numbers apart; nothing for any other one."""
    before, after = match.string[: match.start()], match.string[match.end()]
    if re.search(r"\\[A-Za-z]{1,20}$", before[-24:]) and after.isalpha():
        return " "
    return " " if before[-1:].isdigit() and after.isdigit() else ""
