"""Finds mathematical answers in the text of a completion, for the kind `expression`. Standard library only."""

from __future__ import annotations

import re

from scaling.tasks import expressions
from scaling.tasks.answers import SENTENCE_END, last_number
from scaling.tasks.numbers import leading_number, tidy

_MOST_WORDS = 4  # a longer text in words is part of an explanation
_IN_DOLLARS = re.compile(r"(?<!\$)\$+([^$]{1,400})\$+")
_ONE_OR_MORE_IN_DOLLARS = re.compile(r"\$+[^$]{1,400}\$+(?:(?:,|;|,? ?(?:and|or)\b){1,2} ?\$+[^$]{1,400}\$+){0,20}")
_REASON = re.compile(
    r",?\s(?:because|since|as|which|where|when|if|so|for|with|after|by|given|due)\b|,\s(?:not|but)\b|\s\("
)
_ENVIRONMENT = re.compile(r"\\begin\{(\w{1,12})\}.{0,600}?\\end\{\1\}", re.DOTALL)


def plain(text: str) -> str:
    """A completion as it is read: with one way to write each sign, and every matrix on one line."""
    return _ENVIRONMENT.sub(lambda match: match[0].replace("\n", " "), expressions.cleaned(text))


def stated_expression(said: str) -> str | None:
    """The answer in canonical form that a statement begins with; None if it has none.

    These parts are tried in turn: the formulas between dollar signs, the first sentence, what comes before its reason, and
    the number that the statement begins with. A few words are an answer only if none of these is one.
    """
    said = said.strip()
    if said.count("$") % 2:  # the first dollar sign was removed with the marks before it
        said = f"${said}"
    sentence = SENTENCE_END.split(said, maxsplit=1)[0]
    reason = _REASON.split(sentence, maxsplit=1)[0]
    in_dollars = _ONE_OR_MORE_IN_DOLLARS.match(said)
    parts = [in_dollars[0].replace("$", " ")] if in_dollars else []
    words = None
    for part in [*parts, sentence, reason]:
        expression = expressions.parse(part)
        if expression is not None and not expressions.is_prose(expression):
            return expressions.canonical(part)
        if expression is not None and len(str(expression).split()) <= _MOST_WORDS:
            words = words or expressions.canonical(part)
    return leading_number(tidy(said)) or words


def boxed_expression(content: str) -> str | None:
    """The answer in canonical form that is the content of a box. Nothing of it is cut off, also not the sign of "5!"."""
    return expressions.canonical(content) or stated_expression(content)


def last_expression(text: str) -> str | None:
    """The last formula between dollar signs in canonical form; if there is none, the last number."""
    for part in reversed(_IN_DOLLARS.findall(text)[-3:]):
        expression = expressions.parse(part)
        if expression is not None and not expressions.is_prose(expression):
            return expressions.canonical(part)
    return last_number(tidy(text))
