"""Makes one text of all ways to write a formula, its form, so that equal formulas are found by comparing texts.

Comparing every pair of a question's answers would take quadratic time; here each answer is processed once. math-verify and
sympy are imported, and may take any time for a text. So only the worker process of `scaling.tasks.equality`, which has a
time limit, imports this module.
"""

from __future__ import annotations

import hashlib
from fractions import Fraction
from typing import Any

from math_verify import parse
from sympy import Basic, Eq, Expr, FiniteSet, Float, Interval, MatrixBase, Rational, Tuple, nan, zoo
from sympy.core.relational import Relational

from scaling.tasks import expressions
from scaling.tasks.numbers import written

_PRECISION = 40  # digits that values are computed with
_SHOWN = 20  # digits in a form; so many surely agree if one formula is computed in two ways
_EXACT = Fraction(1, 10**25)  # a value this close to a fraction with a small denominator counts as that fraction
_LARGEST_DENOMINATOR = 10**6
_LARGEST_VALUE = 10**12  # up to here, 40 digits are enough to recognise the fraction
_TOO_LARGE = 10**100  # a larger value is no answer
_POINTS = ("first", "second")  # where formulas with variables are evaluated


def form(text: str) -> str:
    """The form of a formula in LaTeX or plain text. Equal formulas have the same form.

    A rational number has its canonical form, see `scaling.tasks.numbers`. An irrational number is "~" with 20 digits. A
    formula with variables is its values at two points, which depend only on the variables' names. Lists, sets, tuples,
    intervals and matrices are made of the forms of their parts. A set of one part is that part, as in `{12}`.

    Raises:
        ValueError: the formula has no value, as 1/0.
        Exception: whatever the libraries raise for a text that is no formula.
    """
    expression = expressions.parse(text)
    return _form_of(text) if expression is None or not expression.parts else expressions.form_of(expression, _form_of)


def _form_of(text: str) -> str:
    """The form of one formula."""
    parsed = parse(f"${text}$", parsing_timeout=None)
    formulas = [part for part in parsed if isinstance(part, Basic | MatrixBase)]
    if not formulas or formulas[0].has(nan, zoo):
        raise ValueError("no formula, or one without a value")
    return _form(formulas[0])


def _form(parsed: Any) -> str:
    if isinstance(parsed, Eq):
        return _form(parsed.rhs) if parsed.lhs.is_Symbol else _equation(parsed.lhs - parsed.rhs)
    if isinstance(parsed, MatrixBase):
        return f"matrix {parsed.shape}: {'; '.join(map(_form, parsed))}"
    if isinstance(parsed, FiniteSet):
        parts = sorted(map(_form, parsed.args))
        return parts[0] if len(parts) == 1 else f"{{{'; '.join(parts)}}}"
    if isinstance(parsed, Tuple):
        return f"tuple: {'; '.join(map(_form, parsed.args))}"
    if isinstance(parsed, Interval):
        ends = f"{_form(parsed.start)}; {_form(parsed.end)}"
        return f"{'(' if parsed.left_open else '['}{ends}{')' if parsed.right_open else ']'}"
    if isinstance(parsed, Relational):
        return str(parsed.canonical)
    return _of_expression(parsed) if isinstance(parsed, Expr) else str(parsed)


def _of_expression(expression: Expr) -> str:
    expression = _with_exact_decimals(expression)
    if expression.free_symbols:
        values = [_value(expression, point) for point in _POINTS]
        return f"values {values[0]}, {values[1]}" if None not in values else str(expression)
    value = _value(expression, "")
    if value is None:
        return str(expression)
    if "i" in value:
        return f"complex {value}"
    exact = _exactly(expression)
    return f"~{value}" if exact is None else written(exact)


def _equation(difference: Expr) -> str:
    """The form of the equation `difference` = 0: the ratio of its values at two points.

    Multiples of an equation have the same ratio, hence the same form.
    """
    ratio = _value(_at(difference, _POINTS[0]) / _at(difference, _POINTS[1]), "")
    return f"{difference} = 0" if ratio is None else f"equation {ratio}"


def _with_exact_decimals(expression: Any) -> Any:
    """The expression with exact decimals: 0.1 is 1/10. sympy's own 0.1 is a binary number close to it."""
    return expression.xreplace({number: Rational(str(number)) for number in expression.atoms(Float)})


def _at(expression: Any, point: str) -> Any:
    """The expression at a point. Variables are between 1 and 2 at the first point, between -3 and -2 at the second."""
    start = {"first": 1, "second": -3}.get(point, 0)
    return expression.subs(
        {symbol: start + _between_0_and_1(f"{point} {symbol}") for symbol in expression.free_symbols}
    )


def _between_0_and_1(name: str) -> Rational:
    """A number that follows from a name alone."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=5).digest()
    return Rational(int.from_bytes(digest), 2**40)


def _value(expression: Any, point: str) -> str | None:
    """The value at a point with 20 digits, and its imaginary part after an "i"; None if it is no finite number."""
    value = _at(expression, point).evalf(_PRECISION)
    real, imaginary = value.as_real_imag()
    if not all(part.is_Number and part.is_finite for part in (real, imaginary)):
        return None
    tiny = Float(_EXACT.numerator, _PRECISION) / _EXACT.denominator * max(1, abs(real), abs(imaginary))
    real, imaginary = ("0" if abs(part) < tiny else str(Float(part, _SHOWN)) for part in (real, imaginary))
    return real if imaginary == "0" else f"{real} i {imaginary}"


def _exactly(expression: Any) -> Fraction | None:
    """The value of a real expression if it is rational, else None."""
    value = Fraction(str(expression.evalf(_PRECISION).as_real_imag()[0]))
    near = value.limit_denominator(_LARGEST_DENOMINATOR)
    if abs(value) < _LARGEST_VALUE and abs(value - near) < _EXACT * (1 + abs(value)):
        return near
    done = expression.doit() if abs(value) < _TOO_LARGE else expression
    return Fraction(int(done.p), int(done.q)) if done.is_Rational else None
