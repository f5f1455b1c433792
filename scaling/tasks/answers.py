"""Finds the answer in the text of a completion. The strict reading takes a stated answer only, the lenient one any.

The kinds of answers in `scaling.tasks.kinds` say what an answer may be, and call the functions of this module.

A stated answer is the last `\\boxed{...}`. If there is none, it is the last "answer is X", "answer: X" or "#### X", with or
without hedges such as "most likely" or "clearly".

The lenient reading takes the stated answer, too. If nothing is stated, it searches the whole text. If the stated answer
cannot be read, or is withdrawn ("5? No"), it searches only what follows, never what came before. If the stated answer names
several answers ("5 or 6") or an option that does not exist, it finds nothing.

Answers in words are read literally: any word may be part of one, also "not", "maybe" and "correct".

Neither reading uses what is denied ("not 5"). Neither uses what comes after a new question, once an answer was stated.

The functions never get the gold answer, so nothing is read because it would be correct. Every pattern takes linear time on
any text. Only the standard library is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from string import ascii_uppercase

from scaling.tasks.number_words import SCALES
from scaling.tasks.numbers import (
    NUMBER,
    agree,
    begins_with_number,
    is_choice_of_numbers,
    leading_number,
    number_or_formula,
    tidy,
    value_of,
    written,
)

_STATED_LENGTH = (
    300  # most characters of a stated answer; the limit keeps the time linear for texts with many statements
)

SEVERAL = ""  # what a reader returns if several answers are stated, or an option that does not exist

_HEDGE = (
    r"(?:(?:(?:most|more|very|quite|almost|rather|highly|pretty) )?(?:likely|probably|certainly)|possibly|perhaps|maybe"
    r"|presumably|clearly|definitely|surely|obviously|evidently|apparently|seemingly|arguably|undoubtedly|indeed|now|then"
    r"|thus|hence|therefore|so|again|also|still|actually|really|simply|just|exactly|precisely|finally|always|necessarily"
    r"|here|either|technically|generally|mostly|usually|typically|largely|basically|essentially|ultimately|overall"
    r"|in fact|of course|in this case|in total|altogether|as follows|in all (?:likelihood|probability)"
    r"|without (?:a |any )?doubt|no doubt|none other than|going to be|it seems|I (?:think|believe|guess|suppose|would say)"
    r"|I['’]d say|(?:it|this|that) (?:is|must be|should be|would be)|it['’]s|we (?:get|have|find)"
    r"|(?:found|given|calculated|computed|determined|obtained|known|thought|expected) (?:to be|by|as))"
)
_HEDGES = re.compile(rf"(?:{_HEDGE}\b[\s,:*_]*)+", re.IGNORECASE)
_ASIDE = re.compile(rf"[\s*_]*(?:,\s*{_HEDGE}\s*,|{_HEDGE}\s*:)[\s*_]*", re.IGNORECASE)  # a hedge that marks set apart
_SOME_HEDGES = rf"(?:,?\s{_HEDGE}\b,?){{0,2}}"

_BOX_PARTS = re.compile(r"\\f?box(?:ed)?\s?\{|\\[{}]|[{}]")
_OR_ANOTHER_BOX = re.compile(r"[\s$.*]*\b(?P<or>or)[\s$*]*\\f?box(?:ed)?\s?\{")
_AND_ANOTHER_BOX = re.compile(
    r"[\s$*]{0,8}(?:[,;&]|(?=\b(?:and|or)\b))[\s$*]{0,8}(?:and\b|(?P<or>or)\b)?[\s$*]{0,8}\\f?box(?:ed)?\s?\{"
)
_STATEMENT = re.compile(
    r"(?P<hashes>(?<!#)####(?!#))|(?P<short>(?:(?<=\n)|\A)[ \t>*_]{0,4}(?-i:A)[*_]{0,2}:)|\bans\s?[.:=]"
    r"|(?<!</)\banswer\b(?:>|(?:\s(?:to|of|for|in)\s[^\n.:=]{0,80}?|\s?\([^()\n]{0,40}\))?"
    rf"(?:{_SOME_HEDGES}[\s*_\"'`]{{0,8}}(?:\b(?:is|(?:would|should|must|will|(?P<weak>could|may|might)){_SOME_HEDGES}\sbe"
    r"|has to be|seems to be|appears to be|comes (?:out )?to|equals)\b|[:=]"
    r"|\b(?:depends|varies|(?:cannot|can['’]t|can not|could not) be (?=determined|known|found|given|computed|answered))\b)"
    r"|(?<=final answer)[*_]{0,3}\s?(?=\n)))",
    re.IGNORECASE,
)
_ONLY_IF_READ = re.compile(r"\b(?:hope|whether|if|sure|check|verify|what|why|how)\b[^.\n]*$", re.IGNORECASE)
_NEXT_QUESTION = re.compile(r"\s*(?:$|Q:|Question)")
_NUMBERED_HEADING = re.compile(r"\s*[0-9]+[.)]\s+\S")
_NEW_QUESTION = re.compile(r"\n[ \t>*_#]{0,8}(?:Q|Question)\s?#?[0-9]{0,4}[*_]{0,3}:", re.IGNORECASE)
_FILLED_BOX = re.compile(r"\\f?box(?:ed)?\s?\{\s*[^\s}]")
MARKUP = " \t\r\n*_:\"'`>$"
_FIRST_ITEM = re.compile(r"[ \t*_:]*(?:\n[ \t]*)+(?:[-*+•]|1[.)])[ \t]+(?=\S)")
_NEXT_ITEM = re.compile(r"\n[ \t]*(?:[-*+•]|[0-9]{1,2}[.)])[ \t]+(?=\S)")
_OR_HEDGED = re.compile(
    rf",?\s(or|and)\b(?:[\s,]*(?:more (?:precisely|exactly|accurately)|{_HEDGE}|rather|else|even)\b)+[\s,]+",
    re.IGNORECASE,
)
_DOUBT = (
    r"(?:(?:\b(?:I|we)\s(?:(?:really|seriously|strongly|highly|also|still|do)\s)?doubt"
    r"|(?:n['’]t|\b(?:not|hardly|never))\s(?:think|believe|say|mean))(?:\s(?:that|whether|if))?"
    r"|\b(?:not\s(?:true|possible|likely|the case)|unlikely|doubtful|impossible|wrong|false|incorrect)\s(?:that|whether|if))"
    r"\s(?:(?:the|my|your|his|her|their|our)\s)?(?:\w{1,12}\s)?"
)
_DOUBTED = re.compile(rf"{_DOUBT}$", re.IGNORECASE)
_DENIED = re.compile(
    r"(?:\banswer\b[^.!?\n:=,0-9]{0,40}?\s(?:(?:is|was|can|ca|could|would|must)\s?(?:n['’]t|not|never)"
    rf"|is\s(?:\w{{1,12}}\s)?(?:not|never|neither))\b|{_DOUBT}answer\b)"
    r"(?:(?!\bbut\b)[^.!?;\n,—]|\.(?=[0-9])|,(?!\s(?:it|so|rather|instead|because|since|as|but)\b))*",
    re.IGNORECASE,
)
_SUPPOSED = re.compile(r"\b(?:[Ii]f|[Uu]nless|[Oo]therwise)\b[^.\n]*$|(?:^|[.\n]\s?)(?:Had|Were)\b[^.\n]*$")
_WITHDRAWN = re.compile(
    r"\?|.?\s*(?:nope|no)[,.:!]\s*(?:wait|sorry|actually|make that|that['’]s (?:wrong|not)|\(?(?-i:[A-H])\b(?!['’])"
    r"|[-$]{0,2}[0-9])"
    r"|.?\s*(?:scratch that|correction)\b",
    re.IGNORECASE,
)
# a question mark that may end a title: "Who Framed Roger Rabbit?"
_OF_A_TITLE = re.compile(r"\?(?!\s*(?:no|nope|wait|hmm)\b)", re.IGNORECASE)
_NO_ANSWER = re.compile(
    r"(?:n['’]t|not|never|neither|correct|incorrect|right|wrong|clear|reasonable|consistent|accurate|verified|confirmed|valid"
    r"|plausible|sensible|logical|obvious|helpful|useful|above|below|shown|given|found|obtained|calculated|supposed"
    r"|expected|required|needed|rounded|expressed|complete|as|in)\b",
    re.IGNORECASE,
)
_NOT = re.compile(r"not\s*(?:[.,;!\n]|$)", re.IGNORECASE)
_REMARK = re.compile(  # in pairs, so that of the labels "valid" and "invalid" the last one is read
    r"(?:(?:in)?(?:correct|valid|accurate|consistent)|(?:un)?(?:clear|reasonable|verified|confirmed))[\s*_\"'`.!]*",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(
    r"(?<!\bi\.e)(?<!\be\.g)(?<!\bapprox)(?<!\bRs)[.!?;](?=[\s*]|$)(?!\s?=)|[\n。]", re.IGNORECASE
)

_LIST_MARK = re.compile(r"[.)]\**[ \t]+\S|[.)]?\*+[ \t]*\S{0,20}:")
_LINE_START = re.compile(r"(?:^|\n)[ \t>*#]*$")
_STEP = re.compile(r"\bstep\s?#?$", re.IGNORECASE)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")

_AND_THEN = r"(?=\s*(?:$|[^\w\s=-]|-(?!\w))|[ \t]*\n|\s+(?:because|since|as|and|but|so|for|due|given)\b)"
_LETTER = re.compile(
    rf"(?:the\s)?(?P<named>(?:answer\s)?(?i:option|choice|letter)\b[\s*:]*)?"
    rf"[(\[{{]?(?:(?P<sure>[B-HJ-Z])\b(?!['-]\w|\s?=)|(?P<any>[A-Za-z]){_AND_THEN})"
    r"(?!['’]\w|\.\w)(?![\s)\].,*]*(?:\b(?:or|and)\b|/)[\s*]*[(\[]?[A-Z]\b)"
)
_STANDS_ALONE = re.compile(_AND_THEN)
_SEVERAL_LETTERS = re.compile(
    r"(?:between\s|both\s)?(?:the\s)?(?:(?:option|choice|letter)s?\b[\s*:]*)?[(\[]?[A-Z][)\]]?[\s*]*"
    r"(?:(?:,?\s?\b(?:or|and)\b|/|&)[\s*]*(?:(?:option|choice)\s)?[(\[]?[A-HJ-Z]\b(?!['’]\w)"
    r"|,\s?[(\[]?[A-HJ-Z][)\]]?[\s*]*(?:[.,!;\n]|$|(?:or|and)\b)|[^.\n]{1,40}\bor\s[(\[]?[A-Z]\))"
)
_OPENING_LETTER = re.compile(
    r"[\s*]*(?:\(([A-Za-z])\)|([A-Za-z])(?:[).:](?!\w)|\**\s*$|\**[ \t]*\n))(?!\s(?:is|was|would)\b)"
)
_NAMED_LETTER = re.compile(
    rf"\b(?:[Oo]ption|[Cc]hoice)\s*(?:is\b)?{_SOME_HEDGES}:?[\s*]{{0,4}}\(?([A-Z])\b|\(([A-Z])\)"
    rf"|\b([A-Z])(?:\*\*)?\s(?:is|would be|must be){_SOME_HEDGES}\s(?:the\s)?(?:most\s)?(?:correct|right|best|answer)\b"
    r"|\b(?:[Pp]ick|[Cc]hoose|[Ss]elect|go(?:ing)? with"
    r"|(?:[Ss]o|[Tt]hus|[Hh]ence|[Tt]herefore),?(?=\s[A-Z][.!*)]*\s*(?:$|\n)))\s\(?([A-HJ-Z])\b(?!['’-]\w)"
)
_OPTION_LABEL = re.compile(
    r"(?:(?P<line>^[ \t>*_#-]{0,8})|(?<![^\s*,;|]))\(?(?P<letter>[A-Za-z])(?:[).:]|\Z)[*_]{0,2}", re.MULTILINE
)
_NEXT_LETTER = re.compile(r"[\s*,)]*(?:\b(?:or|and)\b|/|&)[\s*(]*")

_TRUE_FALSE = {"yes": "yes", "true": "yes", "no": "no", "false": "no"}
_YES_NO = re.compile(rf"(yes|no|true|false)\b{_AND_THEN}", re.IGNORECASE)
_BOTH = re.compile(
    r"(?:both\s)?(yes|no|true|false)\b[\"'*]*\s*(?:/|\||,?\s?\b(?:or|and)\b)\s*[\"'*]*(?:yes|no|true|false)\b",
    re.IGNORECASE,
)
_EMPHATIC = re.compile(
    r"an?\s(?:definite|definitive|clear|resounding|firm|strong|simple|qualified|tentative|likely|probable|big|solid"
    r"|emphatic|short|straightforward)\s(?=(?:yes|no)\b)",
    re.IGNORECASE,
)
_OPENING_YES_NO = re.compile(
    rf"(yes\b(?!-)|(?:no|true|false)\b(?:{_AND_THEN}|(?=\s+(?:it|he|she|they|we|you|I|this|that|there|the)\b)))",
    re.IGNORECASE,
)
_STANDALONE_YES_NO = re.compile(
    r"(?<![\w-])(?<!or )(?<!yes and )(?<!no and )(?<!/)(yes|no)\b(?=[*\"')]*(?:[.,;:!]|\s*$|\s*\n))", re.IGNORECASE
)
_IT_DEPENDS = re.compile(
    r"(?:\A|[.!?:,\n]\s{0,2}|\b(?:so|but|and|well|really)\s)it (?:really |all |just )?depends(?=\s?(?:[.,;!\n]|$)"
    r"|\son (?:how|what|whether|who|where|which|when|why|your|context"
    r"|the (?:context|definition|situation|circumstances))\b)",
    re.IGNORECASE,
)
_ASKED_IN = re.compile(
    rf"\b(?:how many (?:more |fewer |whole |full )?|in |number of )({'|'.join(SCALES)})s?\b", re.IGNORECASE
)
_OR_BEFORE = re.compile(r"[0-9]\S{0,8}(?:\s[A-Za-z]{1,12})?,?\sor\s\$?(?:about\s|[A-Za-z]\s?=\s?)?[$€£¥₹]?$")
_SPACED = re.compile(r"(?<![0-9.,])(?<![0-9] )[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])")


@dataclass(frozen=True)
class Reading:
    """The answers of one completion in canonical form; None for no answer.

    Attributes:
        strict: the answer that is stated as the request asks for it.
        lenient: the answer found anywhere in the text.
    """

    strict: str | None
    lenient: str | None


@dataclass(frozen=True)
class _Statement:
    """The text after "answer is" and similar words, or in a box.

    Attributes:
        said: this text.
        start: where it begins in the completion.
        whole: whether it must be an answer and nothing else.
        skipped: if one of these is read from it, it was no statement, and the one before it is tried.
        in_box: whether it is the content of a box.
        remark: whether it may be about the answer, as in "the answer is correct". It counts only if no other does.
    """

    said: str
    start: int
    whole: bool = False
    skipped: tuple[str | None, ...] = ()
    in_box: bool = False
    remark: bool = False


def read_text(
    text: str,
    *,
    stated: Callable[[str], str | None],
    whole: Callable[[str], str | None],
    elsewhere: Callable[[str], str | None],
    question: str = "",
    plain: Callable[[str], str] = tidy,
    box: Callable[[str], str | None] | None = None,
    literal: bool = False,
) -> Reading:
    """Reads the answers of a completion.

    Args:
        text: the completion.
        stated: reads the text after "the answer is" and similar words. It returns `SEVERAL` if nothing else may be searched.
        whole: reads a text that must be an answer and nothing else.
        elsewhere: reads a text in which no answer is stated.
        question: the question's text. If it asks "how many dozens", then "7 dozen" is 7, otherwise 84.
        plain: writes the text in plain characters before it is read.
        box: reads the content of a box, for answers that may be lists: then "\\boxed{3} and \\boxed{5}" are one. None if
            `stated` reads it.
        literal: whether any words may be the answer, also hedges and "not".
    """
    text = plain(text)
    for scale in {match[1].lower() for match in _ASKED_IN.finditer(question)}:
        text = re.sub(rf"(?<=[0-9A-Za-z][ -]){scale}\b", f"{scale}s", text, flags=re.IGNORECASE)

    def read(found: _Statement) -> str | None:
        if found.in_box and box is not None:
            return box(found.said)
        return whole(found.said) if found.whole else stated(found.said)

    strict, rest = _stated(text, read, lists=box is not None, literal=literal)
    return Reading(strict, strict) if strict is not None else Reading(None, elsewhere(rest))


def bare(answer: str) -> str:
    """An answer without the punctuation and markup around it."""
    return tidy(answer).strip(MARKUP + ".()")


def boxed(text: str) -> str | None:
    """The content of the last `\\boxed{...}` of a text; None if it has none."""
    box = _last_box(text)
    return box.said.strip() if box else None


def _stated(
    text: str, read: Callable[[_Statement], str | None], *, lists: bool, literal: bool
) -> tuple[str | None, str]:
    """The stated answer of a text: what `read` returns for the last box or, if there is none, for the last statement.

    Args:
        text: the completion.
        read: reads a statement.
        lists: whether several boxes may be one answer.
        literal: as in `read_text`.

    Returns:
        The answer, None if none is stated; and the part of the text in which the lenient reading may search.
    """
    read = cache(read)  # so that each statement is read once, though `_before_new_question` reads them, too
    text = _before_new_question(text, read, literal=literal)
    box = _last_box(text, lists=lists)
    for statement in [box] if box else _ranked(_statements(text, literal=literal)):
        answer = read(statement)
        if answer in statement.skipped:
            continue
        if answer == SEVERAL:
            return None, ""
        return (answer, "") if answer is not None else (None, _DENIED.sub("", text[statement.start :]))
    return None, _DENIED.sub("", text)


def _ranked(statements: Iterator[_Statement]) -> Iterator[_Statement]:
    """Statements with those that may be remarks at the end."""
    remarks = []
    for statement in statements:
        if statement.remark:
            remarks.append(statement)
        else:
            yield statement
    yield from remarks


def _before_new_question(text: str, read: Callable[[_Statement], str | None], *, literal: bool) -> str:
    """The text up to the first new question ("Q: ...") that the model invents after it has stated an answer."""
    if not _NEW_QUESTION.search(text):
        return text
    box = _FILLED_BOX.search(text)
    stated = (
        statement.start
        for statement in reversed(list(_statements(text, literal=literal)))
        if read(statement) not in statement.skipped
    )
    start = min(next(stated, len(text)), box.start() if box else len(text))
    question = _NEW_QUESTION.search(text, start)
    return text[: question.start()] if question else text


def _last_box(text: str, *, lists: bool = False) -> _Statement | None:
    """The content of the last box that is closed and not empty; for nested boxes, that of the inner one.

    Two boxes with "or" between them are two answers, so their contents are joined: "5 or 6". If `lists` is true, boxes with
    a comma or "and" between them are joined, too: "3, 5".
    """
    joint = _AND_ANOTHER_BOX if lists else _OR_ANOTHER_BOX
    open_braces: list[tuple[int, bool]] = []
    start, content, end = -1, "", 0
    for part in _BOX_PARTS.finditer(text):
        if part[0] == "}" and open_braces:
            begin, is_box = open_braces.pop()
            inside = text[begin : part.start()] if is_box and begin > start else ""
            if inside.strip():
                another = joint.match(text, end) if end else None
                if another and another.end() == begin and content != inside:
                    inside = f"{content} or {inside}" if another["or"] else f"{content}, {inside}"
                start, content, end = begin, inside, part.end()
        elif part[0] == "{" or len(part[0]) > 2:
            open_braces.append((part.end(), len(part[0]) > 2))
    return _Statement(content, start, in_box=True) if content else None


def _statements(text: str, *, literal: bool) -> Iterator[_Statement]:
    """The statements of a text, the last first. Each reaches from words such as "answer is" to the next such words.

    "####" may also begin a heading. "The answer is not 5", "I doubt that the answer is 5", "if so, the answer would be 5"
    and "the answer is correct" state no answer. If `literal` is true, the first and the last do: "not guilty" and "correct"
    may be answers.
    """
    end = len(text)
    for match in reversed(list(_STATEMENT.finditer(text))):
        said = text[match.end() : min(end, match.end() + _STATED_LENGTH)].partition("</")[0]
        end = match.start()
        line = said.partition("\n")[0]
        if match["hashes"]:
            yield _Statement("" if _NUMBERED_HEADING.match(line) else line, match.end(), skipped=(None,))
        elif match["short"]:
            if _NEXT_QUESTION.match(text, match.end() + len(line)):
                yield _Statement(line, match.end(), whole=True, skipped=(None,))
        elif match["weak"] and SENTENCE_END.sub("", said.strip()) != said.strip().rstrip(".!"):
            continue  # "the answer could be 5. Let us see"
        elif _is_doubted(text, match, said):
            continue
        elif (place := _withdrawn(said, literal=literal)) is not None:
            yield _Statement("", match.end() + place)
        elif literal:
            yield _literal(said, match.end(), text[max(0, match.start() - 60) : match.start()])
        elif bare := said.strip(MARKUP + ".,"):
            bare = _OR_HEDGED.sub(r" \1 ", _listed(said)).lstrip(MARKUP + ",")
            hedges = _HEDGES.match(bare)
            bare = bare[hedges.end() :] if hedges else bare
            if not _NO_ANSWER.match(bare) or (hedges and _NOT.match(bare)):
                before = text[max(0, match.start() - 60) : match.start()]
                skipped = (None, SEVERAL) if _ONLY_IF_READ.search(before) else ()
                yield _Statement(bare, match.end(), skipped=skipped)


def _literal(said: str, start: int, before: str) -> _Statement:
    """A statement with all its words. start: where it begins. before: what stands before it."""
    aside = _ASIDE.match(said)
    words = _listed(said[aside.end() :] if aside else said).lstrip(MARKUP + ",")
    hoped = _ONLY_IF_READ.search(before) and _NO_ANSWER.match(words)
    is_remark = hoped or _REMARK.fullmatch(SENTENCE_END.split(words, maxsplit=1)[0])
    return _Statement(words, start, skipped=(None,), remark=bool(is_remark))


def yes_or_no(text: str) -> str | None:
    """ "yes" for "yes" and "true", "no" for "no" and "false", in any case; None for any other text."""
    return _TRUE_FALSE.get(text.lower())


def _is_doubted(text: str, match: re.Match[str], said: str) -> bool:
    """Whether the words before a statement doubt it ("I doubt that the answer is"), or it is only hypothetical ("if")."""
    before = text[max(0, match.start() - 200) : match.start()]
    if _DOUBTED.search(before[-60:]):
        return True
    sentence = SENTENCE_END.split(said, maxsplit=1)[0]
    return "would" in match[0] and bool(_SUPPOSED.search(before) or re.search(r"\b(?:if|unless)\b", sentence))


def _withdrawn(said: str, *, literal: bool) -> int | None:
    """Where a statement ends that is a question ("5? No") or is taken back ("5. No, wait"); None if it is neither.

    If `literal` is true, a question mark counts only before words such as "no".
    """
    start = len(said) - len(said.lstrip(MARKUP))
    end = re.search(r",(?=\sno,\s)", said) or SENTENCE_END.search(said, start)
    if end is None or (literal and _OF_A_TITLE.match(said, end.start())):
        return None
    return end.end() if _WITHDRAWN.match(said, end.start()) else None


def _listed(said: str) -> str:
    """A list as one line: its only item, or "5 or 6" for several items. Any other text as it is."""
    first = _FIRST_ITEM.match(said)
    return _NEXT_ITEM.sub(" or ", said[first.end() :]) if first else said


def stated_yes_or_no(said: str) -> str | None:
    """The "yes" or "no" at the beginning of a statement; `SEVERAL` if it names both."""
    said = _EMPHATIC.sub("", said.strip(MARKUP), count=1)
    if _BOTH.match(said):
        return SEVERAL
    match = _YES_NO.match(said)
    return _TRUE_FALSE[match[1].lower()] if match else ("no" if _NOT.match(said) else None)


def stated_number(said: str) -> str | None:
    """The number of a statement, or its formula.

    These parts are tried in turn: the formula between dollar signs, the first sentence, its first clause, and the number
    that the statement begins with. `SEVERAL` is returned for a choice of numbers, a range, or a number that is only part of
    something longer.
    """
    said = said.strip()
    if not said:
        return None
    sentence = SENTENCE_END.split(said, maxsplit=1)[0]
    left, _, right = sentence.partition("=")
    if right and "=" not in right and re.search(r"\bof\b", left):  # "20% of 50 = 10"
        said = sentence = right
    in_dollars = re.match(r"[\s*:]*\$+([^$]*)\$", said)
    if is_choice_of_numbers(sentence) or re.match(r"(?:between|from)\s\S{0,3}[0-9]", sentence):
        return SEVERAL
    parts = [in_dollars[1] if in_dollars else "", sentence, re.split(r",\s", sentence, maxsplit=1)[0]]
    if sentence.count("=") > 1:  # of "3 * 5 = 15 a day, 15 * 4 = 60 in all" the beginning is not the answer
        return next((number for part in parts[:2] if (number := number_or_formula(part)) is not None), None)
    numbers = (number_or_formula(part) for part in parts)
    number = next((number for number in numbers if number is not None), None) or leading_number(said)
    return SEVERAL if number is None and begins_with_number(said) else number


def stated_choice(said: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that a statement names by its letter or its text; `SEVERAL` if it names more than one."""
    said = said.strip(MARKUP)
    if not said:
        return None
    sentence = SENTENCE_END.split(said, maxsplit=1)[0]
    option = _option_equal_to(sentence, choices)
    if _without_options(said, choices).startswith("\n"):
        return SEVERAL
    if _SEVERAL_LETTERS.match(said):
        return option or SEVERAL
    match = _LETTER.match(said)
    if match is None:
        return option or _option_equal_to(re.split(r",\s", sentence, maxsplit=1)[0], choices)
    letter = match["sure"] or match["any"]
    is_named = match["named"] or said.startswith(")", match.end()) or len(sentence.strip(MARKUP + ".()")) == 1
    if letter.islower() and not is_named:
        return option
    chosen = letter_of(letter, len(choices))
    if chosen or letter == "I" or not _STANDS_ALONE.match(said, match.end()):
        return chosen or option
    return SEVERAL


def last_number(text: str) -> str | None:
    """The last number of a text that is no label; None if the text leaves a choice of two numbers ("5 or 6")."""
    text = _SPACED.sub(_joined_groups, text)
    later, later_percent = None, False
    for match in reversed(list(NUMBER.finditer(text))):
        number = None if _is_label(text, match) else value_of(match)
        if number is None:
            continue
        if later is not None:
            percent = text.startswith("%", match.end()), later_percent
            return written(later) if agree(number, later, percent=percent) else None
        equation = re.match(r"\s{0,3}=", text[match.end() : match.end() + 4])
        if equation or not _OR_BEFORE.search(text[max(0, match.start() - 40) : match.start()]):
            return written(number)
        later, later_percent = number, text.startswith("%", match.end())
    return None if later is None else written(later)


def _joined_groups(match: re.Match[str]) -> str:
    """ "1000" for "1 000". But "5 100" of "5 100 dollar bills" stays, as these may be two numbers."""
    return match[0].replace(" ", "") if " 000" in match[0] or match[0].count(" ") > 1 else match[0]


def _is_label(text: str, match: re.Match[str]) -> bool:
    """Whether a number is no quantity: "1." of a list, "Step 3", "4th", both parts of "5:30", and 0x1F."""
    before, after = text[max(0, match.start() - 12) : match.start()], text[match.end() : match.end() + 30]
    in_list = _LINE_START.search(before) is not None and _LIST_MARK.match(after) is not None
    in_clock = re.match(r":[0-9]", after) or re.search(r"[0-9]:$", before)
    in_base = match[0] == "0" and re.match("[xXbo][0-9A-Fa-f]", after)
    return in_list or bool(in_clock or in_base or _STEP.search(before) or _ORDINAL.match(after))


def letter_of(text: str, num_choices: int) -> str | None:
    """The letter of one of the first `num_choices` options, in upper case; None for any other text."""
    letter = text.upper()
    return letter if len(letter) == 1 and letter in ascii_uppercase[:num_choices] else None


def opening_or_named_letter(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the option that a text chooses.

    It is the letter that the text begins with ("C) 42"). If there is none, it is the last one named, as "(C)" or "option C",
    but never the article "A". If there is none either, it is that of the only option whose text occurs. None if the last
    two letters are joined as a choice ("B or C").
    """
    text = _without_options(text, choices)
    opening, num_choices = _OPENING_LETTER.match(text), len(choices)
    first = letter_of(opening[1] or opening[2], num_choices) if opening else None
    named = [match for match in _NAMED_LETTER.finditer(text) if letter_of(_named(match), num_choices)]
    if first or not named:
        return first or _only_option_in(text, choices)
    if len(named) > 1 and _NEXT_LETTER.fullmatch(text, named[-2].end(), named[-1].start()):
        return None
    return _named(named[-1])


def _without_options(text: str, choices: Sequence[str]) -> str:
    """The text with a line break in place of every list that repeats the options, such as "A) 10 B) 20"."""
    in_lines = [label for label in _OPTION_LABEL.finditer(text) if label["line"] is not None]
    text = _without_lists(text, in_lines, choices)  # first, as an option may hold labels of its own: "A) a) 10"
    return _without_lists(text, list(_OPTION_LABEL.finditer(text)), choices)


def _without_lists(text: str, labels: Sequence[re.Match[str]], choices: Sequence[str]) -> str:
    """As `_without_options`, for lists made of these labels only. A list begins with A and has at least two labels."""
    options = [_forms(option)[0] for option in choices]
    kept, place, first = [], 0, 0
    while first < len(labels):
        last = first
        if labels[first]["letter"] in "Aa":
            while last + 1 < len(labels) and _is_next_option(text, labels[last], labels[last + 1], options):
                last += 1
        if last > first:
            kept += [text[place : labels[first].start()], "\n"]
            place = _end_of_option(text, labels[last], choices)
        first = last + 1
    return "".join([*kept, text[place:]])


def _is_next_option(text: str, label: re.Match[str], after: re.Match[str], options: Sequence[str]) -> bool:
    """Whether a second label continues a list: it has the next letter, and between the two is only the first's option.

    Two labels that begin neighbouring lines need no such option between them. The option may be followed by a unit, as in
    "(A) 10 km (B) 20 km".
    """
    place = ascii_uppercase.index(label["letter"].upper())
    if ascii_uppercase.find(after["letter"].upper()) != place + 1 or place >= len(options):
        return False
    option = text[label.end() : after.start()].strip()
    if label["line"] is not None and after["line"] is not None:
        return "\n" not in option
    if len(option) > len(options[place]) + 20:
        return False
    words = _words(re.sub(r"[,;|]?\s*(?:\b(?:or|and))?$", "", option))
    return (
        words.startswith(options[place]) and re.fullmatch(r" ?[^\W\d_]{0,9}", words[len(options[place]) :]) is not None
    )


def _end_of_option(text: str, label: re.Match[str], choices: Sequence[str]) -> int:
    """Where the option after a label ends: after the option's text if that is there, else at the end of the line."""
    option = "".join(choices[ascii_uppercase.index(label["letter"].upper()) :][:1])
    spelt = re.compile(r"\s*" + r"\s+".join(map(re.escape, option.split())) + r"(?!\w)", re.IGNORECASE)
    end = (spelt.match(text, label.end()) if option.strip() else None) or re.compile(".*").match(text, label.end())
    return end.end() if end else label.end()


def _named(match: re.Match[str]) -> str:
    return match[match.lastindex or 0]


def _option_equal_to(said: str, choices: Sequence[str]) -> str | None:
    """The letter of the only option with the same words or, if there is none, of the only one that is the same number."""
    for place, form in enumerate(_forms(said)):
        equal = [
            letter
            for letter, option in zip(ascii_uppercase, choices, strict=False)
            if form and _forms(option)[place] == form
        ]
        if len(equal) == 1:
            return equal[0]
    return None


@lru_cache(2**10)
def _forms(option: str) -> tuple[str, str | None]:
    """The two forms in which an option is compared: its words, and its number or formula."""
    return _words(option), number_or_formula(option)


def _only_option_in(text: str, choices: Sequence[str]) -> str | None:
    """The letter of the only option whose text occurs as whole words. Options that are a single letter do not count."""
    words = _words(text)
    letters = []
    for letter, option in zip(ascii_uppercase, map(_words, choices), strict=False):
        whole = rf"(?<![\w])(?<![0-9][.,])(?<!-){re.escape(option)}(?![\w]|[.,:/][0-9])"
        if option and not (len(option) == 1 and option.isalpha()) and re.search(whole, words):
            letters.append(letter)
    return letters[0] if len(letters) == 1 else None


def _words(text: str) -> str:
    return " ".join(tidy(text).replace("$", "").casefold().split()).strip(" *_\"'`.")


def opening_or_last_yes_or_no(text: str) -> str | None:
    """The "yes" or "no" that a text begins with or, if there is none, the last one that stands alone."""
    text = text[max((match.end() for match in _IT_DEPENDS.finditer(text)), default=0) :]
    opening = _OPENING_YES_NO.match(text.lstrip(MARKUP))
    if opening:
        return None if _BOTH.match(text.lstrip(MARKUP)) else _TRUE_FALSE[opening[1].lower()]
    standalone = _STANDALONE_YES_NO.findall(text)
    return _TRUE_FALSE[standalone[-1].lower()] if standalone else None
