"""Countdown: numbers and a target. The answer is an expression that uses each number exactly once and makes the target.

A question may have several right answers. An expression is judged by what it is: its numbers are those of the question, and
its value is the target. So the gold answer is only one solution. Nothing is ever run as code: an expression is parsed, has
at most `_LONGEST` characters, and consists of whole numbers, + - * / and brackets.

Votes count an expression whatever its spaces, needless brackets, and order of terms and factors: `(4 - 2) * 22` and
`22*(4-2)` are one answer, `22 + 22` is another. Whether an expression makes the target could be known without the gold
answer, but votes do not use it: coverage is what a run would reach that checks its answers. torch is not loaded.
"""

from __future__ import annotations

import ast
import random
import re
from collections.abc import Hashable, Sequence
from fractions import Fraction

from scaling.records.records import Question
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.generated import GeneratedTask, listed, pick, shuffled, split_by
from scaling.tasks.kinds import Kind

_LARGEST_NUMBER, _LARGEST_TARGET, _SMALLEST_TARGET = 20, 100, 10  # before the stream widens
_LARGEST_STEP = 1000  # largest result of a step of the gold solution
_LONGEST = 120  # characters of an expression

_WRITTEN = (  # ways to write operations and brackets, and the plain one
    (re.compile(r"\\(?:left|right)|[$`*_]{2,}|[$`]"), ""),
    (re.compile(r"\\[dt]?frac\s?\{([^{}]*)\}\s?\{([^{}]*)\}"), r"(\1)/(\2)"),
    (re.compile(r"\\times|\\cdot|[×·∙]|(?<=[0-9)])(?:\s[xX]\s|[xX](?=\())(?=[0-9(])"), "*"),
    (re.compile(r"\\div|÷"), "/"),
    (re.compile("[−–]"), "-"),
    (re.compile(r"[\[{]"), "("),
    (re.compile(r"[\]}]"), ")"),
)
_EXPRESSION = re.compile(  # with its decimals, so that "12 * 10 / 8.0" is none, and not "12 * 10"
    r"(?<![0-9.,])[-(0-9](?:[-+*/() 0-9]|(?<=[0-9])[.,](?=[0-9]))*[0-9)](?![0-9]|[.,][0-9])"
)
_OPERATION = re.compile(r"(?<=[0-9)])([-+*/])")
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)|\n")

Operand = tuple[int, str]  # the value of a part of a solution, and the part as text


class Calculation(Kind):
    """An expression of whole numbers with + - * / and brackets. Equal expressions are those of the same form."""

    name = "calculation"
    ending = '"The answer is" and the expression'
    wanted = "the expression"
    verbatim = True

    def stated(self, said: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return next(iter(_expressions(_SENTENCE_END.split(said.strip(), maxsplit=1)[0])), None)

    def elsewhere(self, text: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return next(reversed(_expressions(text)), None)

    def canonical(self, answer: str, *, num_choices: int = 0) -> str | None:  # noqa: ARG002
        tree = _parsed(_plain(answer).strip(" ."))
        if tree is None or _value(tree) is None or not any(isinstance(part, ast.BinOp) for part in ast.walk(tree)):
            return None  # none, one that divides by zero, or a mere number
        return _sum_text(tree)

    def required(self, num_choices: int) -> str:  # noqa: ARG002
        return "an expression of whole numbers with + - * / and brackets, such as 22 * (4 - 2),"

    def written(self, answer: str) -> str:
        return _OPERATION.sub(r" \1 ", answer)


class Countdown(GeneratedTask):
    """The task of making a target from three numbers (difficulty 1) or four."""

    name, kind = "countdown", Calculation()
    levels = 2

    def equal(self, question: Question, answer: str, checker: AnswerChecker) -> bool:  # noqa: ARG002
        return solves(question, answer)

    def same(self, question: Question) -> Hashable:
        *numbers, target = _numbers_in(question.text)
        return tuple(sorted(numbers)), target

    def draw(self, rng: random.Random, split: str, width: int) -> Question | None:
        numbers = [pick(rng, range(2, width * _LARGEST_NUMBER + 1)) for _ in range(self.difficulty + 2)]
        if split_of(numbers) != split:
            return None
        steps: list[str] = []
        left: list[Operand] = [(number, str(number)) for number in numbers]
        while len(left) > 1:
            first, second, *left = shuffled(rng, left)
            combined = _combined(rng, first, second, steps)
            left.append(combined)
        target, solution = left[0]
        answer = self.answers.canonical(solution)
        if answer is None or not _SMALLEST_TARGET <= target <= width * _LARGEST_TARGET:
            return None
        given = listed([str(number) for number in shuffled(rng, numbers)])
        text = f"Use the numbers {given}, each exactly once, with + - * / and brackets to make {target}."
        return Question("", text, answer, rationale=tuple(steps))


def split_of(numbers: Sequence[int]) -> str:
    """The only split that may use these numbers, in any order, in one question."""
    return split_by("countdown/" + ",".join(map(str, sorted(numbers))))


def solves(question: Question, expression: str) -> bool:
    """Whether an expression uses the numbers of a question, each exactly once, and makes its target."""
    *numbers, target = _numbers_in(question.text)
    tree = _parsed(expression)
    return tree is not None and sorted(_numbers_in(expression)) == sorted(numbers) and _value(tree) == target


def _combined(rng: random.Random, first: Operand, second: Operand, steps: list[str]) -> Operand:
    """Combines two parts of a solution by a random operation with a positive whole result. steps: the step is added."""
    (large, of_large), (small, of_small) = sorted((first, second), key=lambda part: -part[0])
    results = {"+": large + small, "-": large - small, "*": large * small if small > 1 else 0}
    results["/"] = large // small if small > 1 and large % small == 0 else 0
    operation = pick(rng, [sign for sign, result in results.items() if sign == "+" or 0 < result <= _LARGEST_STEP])
    steps.append(f"{large} {operation} {small} = {results[operation]}.")
    return results[operation], f"({of_large}{operation}{of_small})"


def _numbers_in(text: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]+", text)]


def _plain(text: str) -> str:
    for pattern, replacement in _WRITTEN:
        text = pattern.sub(replacement, text)
    return text


def _expressions(text: str) -> list[str]:
    """The expressions in a text, in canonical form and in their order. Of an equation it is the side that calculates."""
    found = (CALCULATION.canonical(match[0].strip()) for match in _EXPRESSION.finditer(_plain(text)))
    return [expression for expression in found if expression is not None]


def _parsed(text: str) -> ast.expr | None:
    """The expression of a text; None if it is too long, no expression, or has other parts than those allowed."""
    if len(text) > _LONGEST or not re.fullmatch("[-+*/() 0-9]+", text):
        return None
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    return tree if _allowed(tree) else None


def _allowed(tree: ast.AST) -> bool:
    if isinstance(tree, ast.BinOp):
        return isinstance(tree.op, ast.Add | ast.Sub | ast.Mult | ast.Div) and all(
            map(_allowed, (tree.left, tree.right))
        )
    if isinstance(tree, ast.UnaryOp):
        return isinstance(tree.op, ast.USub) and _allowed(tree.operand)
    return isinstance(tree, ast.Constant) and isinstance(tree.value, int)


def _value(tree: ast.expr) -> Fraction | None:
    """The value of an allowed expression; None if it divides by zero."""
    if isinstance(tree, ast.UnaryOp):
        value = _value(tree.operand)
        return None if value is None else -value
    if not isinstance(tree, ast.BinOp):
        return Fraction(ast.literal_eval(tree))
    left, right = _value(tree.left), _value(tree.right)
    if left is None or right is None:
        return None
    if isinstance(tree.op, ast.Add | ast.Sub):
        return left + right if isinstance(tree.op, ast.Add) else left - right
    if isinstance(tree.op, ast.Mult):
        return left * right
    return left / right if right else None


def _sum_text(tree: ast.expr) -> str:
    """An expression in its one form: no needless brackets, terms and factors sorted, those added and multiplied first."""
    added, subtracted = _terms(tree)
    return "+".join(sorted(added, key=_order)) + "".join(f"-{term}" for term in sorted(subtracted, key=_order))


def _terms(tree: ast.expr) -> tuple[list[str], list[str]]:
    """The terms of an expression that are added, and those that are subtracted."""
    if isinstance(tree, ast.UnaryOp):
        return _terms(tree.operand)[::-1]
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Add | ast.Sub):
        left, right = _terms(tree.left), _terms(tree.right)
        right = right if isinstance(tree.op, ast.Add) else right[::-1]
        return left[0] + right[0], left[1] + right[1]
    negative, above, below = _factors(tree)
    term = "*".join(sorted(above, key=_order)) + "".join(f"/{factor}" for factor in sorted(below, key=_order))
    return ([], [term]) if negative else ([term], [])


def _factors(tree: ast.expr) -> tuple[bool, list[str], list[str]]:
    """Whether a term is negative, its factors that multiply, and those that divide."""
    if isinstance(tree, ast.UnaryOp):
        negative, above, below = _factors(tree.operand)
        return not negative, above, below
    if isinstance(tree, ast.BinOp) and isinstance(tree.op, ast.Mult | ast.Div):
        left, right = _factors(tree.left), _factors(tree.right)
        above, below = right[1:] if isinstance(tree.op, ast.Mult) else right[:0:-1]
        return left[0] != right[0], left[1] + above, left[2] + below
    return False, [f"({_sum_text(tree)})" if isinstance(tree, ast.BinOp) else str(ast.literal_eval(tree))], []


def _order(part: str) -> tuple[bool, int, str]:
    return "(" in part, -len(part), part


CALCULATION = Calculation()
