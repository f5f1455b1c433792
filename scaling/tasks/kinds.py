"""The kinds of answers: how an answer is asked for, read from a text, written, and compared with the gold answer.

A new kind is a subclass of `Kind` and an entry in `KINDS`. A kind knows nothing of prompts and files. torch is not loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from scaling.records.errors import nearest
from scaling.tasks import expressions
from scaling.tasks.answers import (
    Reading,
    bare,
    last_number,
    letter_of,
    opening_or_last_yes_or_no,
    opening_or_named_letter,
    read_text,
    stated_choice,
    stated_number,
    stated_yes_or_no,
    yes_or_no,
)
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.mentions import (
    mentions_choice,
    mentions_expression,
    mentions_literally,
    mentions_number,
    mentions_words,
    mentions_yes_or_no,
)
from scaling.tasks.number_words import leading_words
from scaling.tasks.numbers import number_or_formula, tidy, value, written
from scaling.tasks.stated_expressions import boxed_expression, last_expression, plain, stated_expression
from scaling.tasks.words import plain_words

_DIFFERENCE = re.compile(
    r"[0-9.]+\s*-\s*[0-9.]+"
)  # from a model "15 - 3" is 12, but as a gold answer it may be a score
_TIME = re.compile(r"[0-9]{1,2} ?[ap]\. ?m\.?", re.IGNORECASE)
_END = (  # of what is stated, but not at the point of "St. Louis"
    r"[\n。！？]|(?<=\w{4})[*_\"'`$)]{0,4}[.!?](?:\s|$)|,?\sbecause\s"
    r"|(?<=\w{2})[*_\"'`$)]{0,4}[.!?]\s+(?=(?:It|This|That|The|Thus|Therefore|We|He|She|They)\b)"
)
_END_OF_TEXT = re.compile(rf"{_END}|(?<=\w{{4}});(?:\s|$)")
_END_OF_SET = re.compile(_END)
_ROUNDS = 8  # most times that the values of a set are written; most are written the same after the first
_THOUSANDS = r"(?<![0-9,.])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9,])"
_SEPARATOR = r"[,;\n，、；،؛]|(?<![\w-])(?:and|or|&)(?![\w-])"
_OPENING, _CLOSING = frozenset("([{"), frozenset(")]}")
_OF_SET = re.compile(rf"(?P<thousands>{_THOUSANDS})|(?P<separator>{_SEPARATOR})|[()\[\]{{}}]")
_DEPTH = 4  # most brackets within brackets that a value of a set may have
_AROUND = " \t\r\n$*.`"  # may stand around a set and its values


class Kind:
    """What an answer may be.

    Attributes:
        name: its name in files and records.
        ending: how a solution ends that states such an answer, in the words of a request: '"The answer is" and the number'.
        wanted: what the answer is, in the words of a request: "the number".
        request: the sentence at the end of a prompt that asks for such an answer.
        hint_first: whether the hint comes before the request; if not, it comes after it.
        has_choices: whether questions have lettered options.
        several: whether a gold answer in data may be a list of values.
        verbatim: whether an answer is only equal to the same text. If not, votes count equal numbers and formulas as one
            answer, whatever their texts.
    """

    name: ClassVar[str]
    ending: ClassVar[str] = '"The answer is" and the answer'
    wanted: ClassVar[str] = "the answer"
    hint_first: ClassVar[bool] = False
    has_choices: ClassVar[bool] = False
    several: ClassVar[bool] = False
    verbatim: ClassVar[bool] = False

    @property
    def request(self) -> str:
        return request_for(self.ending)

    def read(self, text: str, *, choices: Sequence[str] = (), question: str = "") -> Reading:
        """Reads the answers of a completion. No text makes it raise an exception.

        Args:
            text: the completion.
            choices: the option texts of the question.
            question: the question's text. It tells whether "7 dozen" means 7 or 84.
        """
        return read_text(
            text,
            stated=lambda said: self.stated(said, choices),
            whole=lambda said: self.canonical(said, num_choices=len(choices)),
            elsewhere=lambda rest: self.elsewhere(rest, choices),
            question=question,
            **self.reading(),
        )

    def reading(self) -> dict[str, Any]:
        """Other arguments of `read_text` for answers of this kind."""
        return {}

    def stated(self, said: str, choices: Sequence[str]) -> str | None:
        """The answer in the text after "the answer is" and similar words.

        Args:
            said: this text.
            choices: the option texts of the question.

        Returns:
            None if it has no answer, `SEVERAL` if moreover no other answer may be searched.
        """
        raise NotImplementedError

    def elsewhere(self, text: str, choices: Sequence[str]) -> str | None:
        """The answer in a text that states none in the form asked for; None if it has none."""
        raise NotImplementedError

    def canonical(self, answer: str, *, num_choices: int = 0) -> str | None:
        """The canonical form of an answer; None if the text is no answer of this kind. A canonical form is its own."""
        raise NotImplementedError

    def gold(self, answer: str, *, num_choices: int = 0) -> str | None:
        """The canonical form of a gold answer; None if it is no answer of this kind, or is ambiguous."""
        return self.canonical(answer, num_choices=num_choices)

    def required(self, num_choices: int) -> str:
        """What a gold answer must be, in words, for messages."""
        raise NotImplementedError

    def written(self, answer: str) -> str:
        """The answer as it is written after "The answer is" in a solution."""
        return answer

    def in_box(self, answer: str) -> str:
        """The answer as it is written in `\\boxed{}`."""
        return self.written(answer)

    def mentions(self, text: str, answer: str, *, choices: Sequence[str] = ()) -> bool:  # noqa: ARG002
        """Whether a text holds an answer in any spelling, stated or not, so that it could be copied from there.

        Args:
            text: any text.
            answer: in canonical form.
            choices: the option texts of the question.
        """
        forms = dict.fromkeys((answer, self.written(answer), self.in_box(answer)))
        return any(mentions_literally(text, form) for form in forms)

    def equal(self, gold: str, answer: str, checker: AnswerChecker) -> bool:  # noqa: ARG002
        """Whether an answer is the gold answer; both in canonical form. checker: compares numbers and formulas."""
        return answer == gold


class Number(Kind):
    """A number or a formula. "$1,200.50" becomes "1200.5", "3/4" becomes "0.75", "1/3" and LaTeX formulas stay."""

    name = "number"
    ending = '"The answer is" and the number'
    wanted = "the number"

    def stated(self, said: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return stated_number(said)

    def elsewhere(self, text: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return last_number(text)

    def canonical(self, answer: str, *, num_choices: int = 0) -> str | None:  # noqa: ARG002
        return number_or_formula(answer)

    def gold(self, answer: str, *, num_choices: int = 0) -> str | None:
        plain = tidy(answer).strip(" $")
        ambiguous = _DIFFERENCE.fullmatch(plain) or _TIME.fullmatch(plain)
        return None if ambiguous else super().gold(answer, num_choices=num_choices)

    def required(self, num_choices: int) -> str:  # noqa: ARG002
        return "one number such as 18, 3/4 or 1200.5, or one formula, and no date, time, range or list of them,"

    def mentions(self, text: str, answer: str, *, choices: Sequence[str] = ()) -> bool:  # noqa: ARG002
        return mentions_number(text, answer)

    def equal(self, gold: str, answer: str, checker: AnswerChecker) -> bool:
        return checker.equal(gold, answer)


class Choice(Kind):
    """The letter of an option, in upper case."""

    name = "choice"
    ending = '"The answer is" and the letter of the right option'
    wanted = "the letter of the right option"
    has_choices = True

    def stated(self, said: str, choices: Sequence[str]) -> str | None:
        return stated_choice(said, choices)

    def elsewhere(self, text: str, choices: Sequence[str]) -> str | None:
        return opening_or_named_letter(text, choices)

    def canonical(self, answer: str, *, num_choices: int = 0) -> str | None:
        return letter_of(bare(answer), num_choices)

    def required(self, num_choices: int) -> str:
        return f"a letter from A to {chr(ord('A') + max(num_choices, 1) - 1)}"

    def written(self, answer: str) -> str:
        return f"({answer})"

    def mentions(self, text: str, answer: str, *, choices: Sequence[str] = ()) -> bool:
        return mentions_choice(text, answer, choices)


class YesNo(Kind):
    """ "yes" or "no". "true" counts as "yes" and "false" as "no"."""

    name = "yes_no"
    ending = '"The answer is yes" or "The answer is no"'
    wanted = "yes or no"
    hint_first = True  # StrategyQA's slots stand before the closing request (the papers' setting)

    def stated(self, said: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return stated_yes_or_no(said)

    def elsewhere(self, text: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return opening_or_last_yes_or_no(text)

    def canonical(self, answer: str, *, num_choices: int = 0) -> str | None:  # noqa: ARG002
        return yes_or_no(bare(answer))

    def required(self, num_choices: int) -> str:  # noqa: ARG002
        return "yes or no"

    def mentions(self, text: str, answer: str, *, choices: Sequence[str] = ()) -> bool:  # noqa: ARG002
        return mentions_yes_or_no(text, answer)


class Expression(Kind):
    """A mathematical answer in LaTeX or plain text, see `scaling.tasks.expressions`. Formulas are compared by math-verify.

    Numbers are equal only if they are exactly the same, or one was printed as a floating-point number: 0.33 is not 1/3.
    """

    name = "expression"
    ending = '"The answer is" and the answer in \\boxed{}'

    def reading(self) -> dict[str, Any]:
        return {"plain": plain, "box": boxed_expression}

    def stated(self, said: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return stated_expression(said)

    def elsewhere(self, text: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return last_expression(text)

    def canonical(self, answer: str, *, num_choices: int = 0) -> str | None:  # noqa: ARG002
        return expressions.canonical(answer)

    def gold(self, answer: str, *, num_choices: int = 0) -> str | None:
        return _if_read_from_box(self, super().gold(answer, num_choices=num_choices))

    def required(self, num_choices: int) -> str:  # noqa: ARG002
        return "a mathematical answer such as \\frac{1}{2}, (1, 2) or x = 5, of at most 400 characters,"

    def written(self, answer: str) -> str:
        return f"$\\boxed{{{self.in_box(answer)}}}$"

    def in_box(self, answer: str) -> str:
        return answer

    def mentions(self, text: str, answer: str, *, choices: Sequence[str] = ()) -> bool:  # noqa: ARG002
        return mentions_expression(text, answer)

    def equal(self, gold: str, answer: str, checker: AnswerChecker) -> bool:
        return checker.equal_expressions(gold, answer)


class Text(Kind):
    """A few words. What does not count is said in `scaling.tasks.words`. Only a stated answer is read, in all its words."""

    name = "text"
    verbatim = True

    def reading(self) -> dict[str, Any]:
        return {"box": self.canonical, "literal": True}

    def stated(self, said: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return self.canonical(_END_OF_TEXT.split(said.strip(), maxsplit=1)[0])

    def elsewhere(self, text: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return None

    def canonical(self, answer: str, *, num_choices: int = 0) -> str | None:  # noqa: ARG002
        return plain_words(answer) or None

    def gold(self, answer: str, *, num_choices: int = 0) -> str | None:
        return _if_read_from_box(self, super().gold(answer, num_choices=num_choices))

    def required(self, num_choices: int) -> str:  # noqa: ARG002
        return "a text with at least one letter or digit"

    def written(self, answer: str) -> str:
        # in a box where the end would be cut off, as that of "just because of you"
        return answer if self.read(f"The answer is {answer}.").strict == answer else f"\\boxed{{{answer}}}"

    def in_box(self, answer: str) -> str:
        return answer

    def mentions(self, text: str, answer: str, *, choices: Sequence[str] = ()) -> bool:  # noqa: ARG002
        return mentions_words(text, answer)


class Set(Text):
    """Several values in any order, such as "3, 5 and 7" or "red and blue"; repeated ones count once.

    Values are equal if they are the same number, or the same words as in `Text`. What stands in brackets is one value, as
    the point (1, 2), whose order counts. Brackets around all values do not count, but for round ones: (1, 2) is a point. In
    data a gold answer may be a list.
    """

    name = "set"
    ending = '"The answer is" and the values, separated by commas'
    wanted = "the values, separated by commas,"
    several = True

    def stated(self, said: str, choices: Sequence[str]) -> str | None:  # noqa: ARG002
        return self.canonical(_END_OF_SET.split(said.strip(), maxsplit=1)[0])

    def canonical(self, answer: str, *, num_choices: int = 0) -> str | None:  # noqa: ARG002
        for _ in range(_ROUNDS):
            before, text = answer, tidy(answer).replace("\\{", "{").replace("\\}", "}").strip(_AROUND)
            parts = _parts(text[1:-1] if _is_bracketed(text) and text[0] != "(" else text)
            answer = ", ".join(sorted({one for part in parts if (one := self._value(part))}))
            if answer == before:
                return answer or None
        return None

    def _value(self, text: str, depth: int = _DEPTH) -> str:
        text = text.strip(_AROUND)
        parts = _parts(text[1:-1], thousands=False) if depth and _is_bracketed(text) else ()
        if len(parts) < 2:
            return self._number_or_words(text)
        values = [one for part in parts if (one := self._value(part, depth - 1))]
        return f"{text[0]}{', '.join(sorted(values) if text[0] == '{' else values)}{text[-1]}"

    def _number_or_words(self, text: str) -> str:
        words = plain_words(text)
        spoken = leading_words(words)
        if spoken and spoken[1] == len(words):
            return written(spoken[0])
        number = None if any(letter.isalpha() for letter in text.rpartition("=")[2]) else number_or_formula(text)
        return number if number is not None and value(number) is not None else words

    def required(self, num_choices: int) -> str:  # noqa: ARG002
        return "a list of values, or a text with commas or the word `and` between them,"

    def mentions(self, text: str, answer: str, *, choices: Sequence[str] = ()) -> bool:  # noqa: ARG002
        return all(self._mentions_value(text, part.strip()) for part in _parts(answer))

    def _mentions_value(self, text: str, part: str) -> bool:
        if value(part) is not None:
            return mentions_number(text, part)
        return mentions_literally(text, part) if _is_bracketed(part) else mentions_words(text, part)


KINDS: dict[str, Kind] = {kind.name: kind for kind in (Number(), Choice(), YesNo(), Expression(), Text(), Set())}


def _if_read_from_box(kind: Kind, gold: str | None) -> str | None:
    """The gold answer; None if no completion could state it, as not even its box is read."""
    return gold if gold is not None and kind.read(f"\\boxed{{{kind.in_box(gold)}}}").strict == gold else None


def _parts(text: str, *, thousands: bool = True) -> list[str]:
    """The values of a set between separators that stand in no brackets; brackets that do not match count as none.

    Args:
        text: the values.
        thousands: whether 1,234 is one value.
    """
    depths = list(_depths(text))
    matched = bool(depths) and min(depths) >= 0 and depths[-1] == 0
    parts, place = [""], 0
    for token, depth in zip(_OF_SET.finditer(text), depths, strict=True):
        if matched and depth:
            continue
        parts[-1] += text[place : token.start()]
        place = token.end()
        if token["separator"]:
            parts.append("")
        elif token["thousands"] and not thousands:
            parts += token[0].split(",")
        else:
            parts[-1] += token[0].replace(",", "")
    parts[-1] += text[place:]
    return [part for part in parts if part]


def _depths(text: str) -> Iterator[int]:
    """For each token of a text in how many brackets it stands; for a bracket, after it."""
    depth = 0
    for token in _OF_SET.finditer(text):
        depth += (token[0] in _OPENING) - (token[0] in _CLOSING)
        yield depth


def _is_bracketed(text: str) -> bool:
    """Whether one pair of brackets stands around a text."""
    *before, last = _depths(text) if text and text[0] in _OPENING and text[-1] in _CLOSING else (1,)
    return last == 0 and 0 not in before


def request_for(ending: str) -> str:
    """The sentence that asks for a solution which ends like this."""
    # asked for a "short" explanation, a small model states its answer far more often than after "think step by step"
    return f"Give a short explanation and end with {ending}."


def kind_of(kind: str | Kind) -> Kind:
    """The kind of a name. A kind is returned as it is."""
    return KINDS[kind] if isinstance(kind, str) else kind


def unknown_kind(name: object) -> str:
    """The advice for the name of a kind that does not exist, as the end of a message."""
    return f"choose one of {', '.join(KINDS)}.{nearest(str(name), KINDS)}"
