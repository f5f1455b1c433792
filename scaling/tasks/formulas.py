"""Computes formulas of plain numbers exactly: "5 + 7", "{12}", "2*6", "3^2", "\\frac{24}{2}", "\\sqrt{16}".

Only rational numbers are computed: a formula with an irrational value or a variable is refused. The length of the text, the
depth of brackets and the size of every number are limited, so that no text takes long. Only the standard library is used.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction

LARGEST = (
    10**100
)  # numerators and denominators are smaller; nothing larger is an answer, and it would take long to read

_MAX_LENGTH = 200
_MAX_DEPTH = 20
_MAX_POWER = 400

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"|(?P<sign>\*\*|[-+*/^×·÷∗()\[\]{}]|\\[{}]|\\(?:times|cdot|div|[dt]?frac|sqrt)(?![A-Za-z]))|(?P<currency>[$€£¥₹](?=\s?[0-9])))"
)
_SAME = {"**": "^", "×": "*", "·": "*", "∗": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "\\div": "/"}
_SAME |= {"\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\{": "{", "\\}": "}"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def evaluate(text: str) -> Fraction:
    """The exact value of a formula of plain numbers.

    Raises:
        ValueError: the text is no such formula. It may contain variables, irrational roots, or prose.
        ArithmeticError: it is one, but divides by zero or is too large to be an answer.
    """
    if len(text) > _MAX_LENGTH:
        raise ValueError("too long")
    parser = _Parser(_tokens(text))
    value = parser.sum()
    if parser.next is not None:
        raise ValueError("goes on")
    return value


def _tokens(text: str) -> list[str]:
    """The numbers, signs and brackets of a formula; currency signs are dropped. Raises ValueError for other text."""
    tokens, place, depth = [], 0, 0
    text = text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError("not arithmetic")
        place = match.end()
        if match["number"]:
            if "," in match["number"] and depth:  # "(1,200)" may be a pair
                raise ValueError("a pair or a number")
            tokens.append(match["number"].replace(",", ""))
        elif match["sign"]:
            sign = _SAME.get(match["sign"], match["sign"])
            depth += (sign in _CLOSING) - (sign in _CLOSING.values())
            tokens.append(sign)
    return tokens


class _Parser:
    """A recursive-descent parser, which computes as it reads. A formula is a sum of products of signed powers of atoms."""

    def __init__(self, tokens: list[str]):
        self._tokens = tokens
        self._place = 0
        self._depth = 0

    @property
    def next(self) -> str | None:
        """The next token; None at the end."""
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def sum(self) -> Fraction:
        """The value of a sum, up to a closing bracket or the end."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise ValueError("too deep")
        value = self._product()
        while (sign := self._take("+", "-")) is not None:
            term = self._product()
            value = _bounded(value + term if sign == "+" else value - term)
        self._depth -= 1
        return value

    def _product(self) -> Fraction:
        """The value of a product. The sign may be missing, as in 2(3)."""
        value, divided = self._signed(), False
        while True:
            sign = self._take("*", "/")
            if sign is None and not (self.next in ("(", "[", "{") or (self.next or "").startswith("\\")):
                return value
            if sign is None and divided:  # 1/2(3) may be 3/2 or 1/6
                raise ValueError("ambiguous")
            factor = self._signed()
            divided = divided or sign == "/"
            value = _bounded(value / factor if sign == "/" else value * factor)

    def _signed(self) -> Fraction:
        negative = False
        while (sign := self._take("+", "-")) is not None:
            negative ^= sign == "-"
        value = self._power()
        return -value if negative else value

    def _power(self) -> Fraction:
        bases = [self._atom()]
        negative = []
        while self._take("^") is not None:
            negative.append(self._take("-") is not None)
            bases.append(self._atom())
        value = bases.pop()
        while bases:  # from the right: 2^3^2 is 2^9
            value = _raised(bases.pop(), -value if negative.pop() else value)
        return value

    def _atom(self) -> Fraction:
        """The value of a number, a fraction, a root or a formula in brackets."""
        token = self.next
        if token is None or token in "+-*/^)]}":
            raise ValueError("nothing where a number should be")
        self._place += 1
        if token == "\\frac":
            top = self._group()
            return _bounded(top / self._group())
        if token == "\\sqrt":
            return _root(self._group())
        if token in _CLOSING:
            value = self.sum()
            if self._take(_CLOSING[token]) is None:
                raise ValueError("brackets do not match")
            return value
        return _bounded(Fraction(token))

    def _group(self) -> Fraction:
        """The value of an argument in braces, as of a LaTeX command."""
        if self.next != "{":
            raise ValueError("no argument in braces")
        return self._atom()

    def _take(self, *tokens: str) -> str | None:
        """Takes the next token if it is one of these; None if not."""
        token = self.next
        if token not in tokens:
            return None
        self._place += 1
        return token


def _bounded(value: Fraction) -> Fraction:
    """The value itself. Raises OverflowError if it is too large."""
    if max(abs(value.numerator), value.denominator) >= LARGEST:
        raise OverflowError("too large")
    return value


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    """A power. Its size is estimated first, so that nothing huge is computed."""
    if exponent.denominator != 1:
        raise ValueError("a root")
    if base in (0, 1, -1):  # the size of the exponent does not matter
        return base ** (int(exponent) % 2) if base and exponent else base**exponent.numerator
    if abs(exponent) > _MAX_POWER:
        raise OverflowError("too large")
    size = max(abs(base.numerator), base.denominator)
    if size.bit_length() * abs(exponent) > 2 * LARGEST.bit_length():
        raise OverflowError("too large")
    return _bounded(base**exponent.numerator)


def _root(value: Fraction) -> Fraction:
    """The square root. Raises ValueError unless it is rational."""
    if value < 0:
        raise ValueError("imaginary")
    root = Fraction(math.isqrt(value.numerator), math.isqrt(value.denominator))
    if root * root != value:
        raise ValueError("irrational")
    return root
