"""How a question is put to the backbone: the template of `--prompt`, and the options that replace parts of it.

A template is a small jinja2 file with named blocks, which are rendered one by one:

    system    the system turn; empty for none
    user      the user's turn: the question, the slots and the request
    request   the sentence that asks for the answer, for `user` to show by `self.request()`
    hint      the sentence with the slots, for `user` to show by `self.hint()`
    answer    the beginning of the assistant's turn; empty for none
    solution  what a training learns and `--shots` show

Blocks that a template lacks are those of `plain`. Templates run in a sandbox. What comes from data is a value there, so that
nothing in a question is ever taken for a template. This module knows no tokenizers and no models; torch is not loaded.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined, Template, TemplateSyntaxError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from scaling.config import PLAIN_PROMPT as PLAIN
from scaling.records.errors import UsageError, nearest, one_line
from scaling.records.records import Question
from scaling.tasks.task import Task, ask

# keys of run.json: an edited template makes another run
CONTENT, ASSISTANT_CONTENT = "prompt_sha256", "assistant_prompt_sha256"
ANSWER = "answer"  # value of `--assistant-prompt`: the assistant is about to answer
_FOLDER = Path(__file__).parent / "prompt_templates"
SHIPPED = tuple(sorted(path.stem for path in _FOLDER.glob("*.jinja")))
_BLOCKS = ("system", "user", "request", "hint", "answer", "solution")
_OF_QUESTIONS = (
    "question",
    "text",
    "choices",
    "kind",
    "request",
    "instruction",
    "own_form",
    "ending",
    "wanted",
    "hint_first",
    "slots",
)
_OF_SOLUTIONS = ("rationale", "answer", "solution", "conclusion")  # they tell the answer, so no prompt may have them
_SHORT = 60  # characters of an option's value in a warning
_HOW_TO_BEGIN = (
    ' Begin with `{% extends "plain" %}`, and give the text its place, such as `{% block system %}...{% endblock %}`; for '
    "another request and nothing more, `--instruction TEXT` needs no template."
)
_MARK = "\ufdd1"  # stands for the slots while a template is rendered; no text has this noncharacter of Unicode
_OF_JINJA = {"loop", "self", "super", "caller", "varargs", "kwargs"}
_BLOCK_BEGINS = re.compile(r"(\{%[-+]?\s*block\s+\w+\s*)[-+]?%\}")
_BLOCK_ENDS = re.compile(r"\{%[-+]?(\s*endblock\b)")


class Turns(NamedTuple):
    """The texts of a prompt.

    Attributes:
        system: the system turn; empty for none.
        user: the user's turn.
        answer: the beginning of the assistant's turn; empty for none.
    """

    system: str
    user: str
    answer: str


@dataclass(frozen=True)
class Wording:
    """How questions are put to the backbone, as the options of the same names say.

    Attributes:
        prompt: name of a shipped template, or a file; None for `plain`.
        system_prompt: the system turn in place of the template's.
        instruction: the request in place of the task's.
        thinking: "on" if the model writes down a thought before its answer. Its chat template must be able to ask for that.
        shot_format: "text" if solved questions stand in the user's turn, and not in turns of their own.
        prefill: the beginning of the answer in place of the template's.
        assistant_prompt: how the assistant is asked: a template as for `prompt`, or "answer" for the template `direct` with
            the answer begun, so that the assistant's last state is the one that it would answer from. None for a request
            to note what matters.
    """

    option: ClassVar[str] = "--prompt"  # that names the template
    shows: ClassVar[str] = "text"  # the method of a task that gives the question's text
    others: ClassVar[tuple[str, ...]] = ()  # values of the option that are no templates

    prompt: str | None = None
    system_prompt: str | None = None
    instruction: str | None = None
    thinking: str | None = None
    shot_format: str | None = None
    prefill: str | None = None
    assistant_prompt: str | None = None

    @property
    def thinks(self) -> bool:
        """Whether a thought stands before the answer."""
        return self.thinking == "on"

    @property
    def shots_in_text(self) -> bool:
        """Whether solved questions stand in the user's turn."""
        return self.shot_format == "text"

    @property
    def for_assistant(self) -> Wording | None:
        """How the assistant is asked; None for the request to note what matters."""
        if self.assistant_prompt == ANSWER:
            return AssistantWording("direct", prefill="The answer is ")
        return None if self.assistant_prompt is None else AssistantWording(self.assistant_prompt)

    def turns(self, question: Question, *, task: Task, slots: str = "") -> Turns:
        """The texts of a question's prompt.

        Args:
            question: what is asked.
            task: gives the question's text and the request.
            slots: the text of the slots, or the assistant's notes; empty for a method without them.

        Raises:
            UsageError: the template fails, has no place for the slots or several, or does not show `--instruction`.
        """
        values = self._values(question, task)
        mark = _MARK
        while any(mark in str(value) for value in values.values()):
            mark += _MARK
        values["slots"] = mark if slots else ""
        system, user, answer = (self._template.render(block, values) for block in ("system", "user", "answer"))
        system = system if self.system_prompt is None else self.system_prompt
        answer = answer if self.prefill is None else self.prefill
        inside, outside = user.count(mark), (system + answer).count(mark)
        if slots and (inside, outside) != (1, 0):
            raise UsageError(
                f"{self._template.place} must show `slots` once, in the user's turn, as the method has soft tokens or "
                f"notes, and shows it {inside} times there and {outside} times elsewhere: write `{{{{ slots }}}}` once in "
                f"its block `user` or `hint`, or take `--method cot`."
            )
        if self.instruction is not None and self.instruction not in user:
            raise UsageError(
                f"`--instruction` is not shown by {self._template.place}: write `{{{{ request }}}}` or "
                f"`{{{{ self.request() }}}}` in its block `user`, or leave the option out."
            )
        self._refuse_hidden(question, user, values)
        if answer and self.thinks:
            raise UsageError(
                "`--thinking on` has a thought before the answer, and the answer's beginning is given by `--prefill` or the "
                "template: leave one of them out."
            )
        return Turns(system, user.replace(mark, slots), answer)

    def solution(self, question: Question, *, task: Task) -> str:
        """What the model is to answer: a training learns it, and `--shots` show it. Raises UsageError as `turns` does."""
        written = task.answers.written(question.answer)
        solved = {
            "rationale": list(question.rationale),
            "answer": task.answers.in_box(question.answer),
            "solution": ask(task, "solution", question),
            "conclusion": f"The answer is {written}."
            if task.wanted is not None
            else ask(task, "solution", replace(question, rationale=())),
        }
        return self._template.render("solution", self._values(question, task) | {"slots": ""} | solved)

    def identity(self) -> dict[str, str]:
        """What run.json and a checkpoint say of the template; empty for `plain`, so that runs of 0.1 keep their hash."""
        own = {} if self.prompt in (None, PLAIN) else {CONTENT: self._template.digest}
        assistant = self.for_assistant
        return own if assistant is None else {**own, ASSISTANT_CONTENT: assistant._template.digest}

    def check(self) -> None:
        """Raises UsageError if a template is missing or has a fault that can be seen without a question."""
        _ = self._template
        if self.for_assistant is not None:
            self.for_assistant.check()

    def unlike(self, about: Mapping[str, Any]) -> list[str]:
        """The options in which prompts differ from those of a training.

        Args:
            about: what the training says of itself.

        Returns:
            A text for each such option, as in "`--prompt` paper there, plain here". The format of solved questions is left
            out, as a training shows none.
        """
        texts = []
        for name in _OF_TRAININGS:
            there, here = about.get(name), getattr(self, name)
            content = {"prompt": CONTENT, "assistant_prompt": ASSISTANT_CONTENT}.get(name)
            same = about.get(content) == self.identity().get(content) if content else there == here
            if not same:
                edited = " (edited since)" if there == here else ""
                option = f"`--{name.replace('_', '-')}`"
                texts.append(f"{option} {_shown(name, there)} there, {_shown(name, here)} here{edited}")
        return texts

    def _refuse_hidden(self, question: Question, user: str, values: Mapping[str, Any]) -> None:
        """Raises UsageError if the user's turn does not show the question's text, or not all of its options.

        Case and white space do not count, as a template may change them.
        """
        shown = _folded(user)
        if _folded(values["question"]) in shown:
            return
        missing = [text for text in (values["text"], *values["choices"]) if _folded(text) not in shown]
        if missing:
            what, lacks = "options" if missing[0] in values["choices"] else "text", shorten(missing[0], _SHORT)
            raise UsageError(
                f"{self._template.place} does not show the {what} of question {question.id} ({lacks!r}) in the user's turn: "
                f"write `{{{{ question }}}}`, or `{{{{ text }}}}` and each of `choices`, in its block `user`."
            )

    def _values(self, question: Question, task: Task) -> dict[str, Any]:
        """The variables of all blocks, but for the slots."""
        kind = task.answers
        asked = ask(task, "asks", question)
        # a task that says what is wanted has no words of its own for other prompts than `plain`
        own = "" if task.wanted is not None or asked == kind.request else asked
        own = own if self.instruction is None else self.instruction
        shown = ask(task, self.shows, question)
        return {
            "question": shown,
            "text": question.text if question.choices else shown,
            "choices": list(question.choices),
            "kind": kind.name,
            "request": asked if self.instruction is None else self.instruction,
            "instruction": own,
            "own_form": bool(own) and task.wanted is None and type(task).solution is not Task.solution,
            "ending": task.ending,
            "wanted": kind.wanted if task.wanted is None else task.wanted,
            "hint_first": kind.hint_first if task.hint_first is None else task.hint_first,
        }

    @cached_property
    def _template(self) -> PromptTemplate:
        name = self.prompt or PLAIN
        read = (
            _shipped_template if name in SHIPPED else PromptTemplate
        )  # a user may edit a file while this process runs
        return read(name, option=self.option, others=self.others)


class AssistantWording(Wording):
    """How questions are put to the assistant, which may read another text of them than the backbone."""

    option, shows, others = "--assistant-prompt", "assistant_text", (ANSWER,)


_OF_TRAININGS = tuple(field.name for field in fields(Wording) if field.name != "shot_format")


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _shown(name: str, value: object) -> str:
    """The value of an option as a short text for a warning; of a template its name."""
    if name == "prompt":
        return Path(str(value or PLAIN)).name
    if name == "assistant_prompt":
        return Path(str(value or "none")).name
    return shorten(str(value or "none"), _SHORT)


def wording_of(config: Any) -> Wording:
    """The wording that the settings of a run or of a training describe. A setting that they do not have is not given."""
    return Wording(**{field.name: getattr(config, field.name, None) for field in fields(Wording)})


class PromptTemplate:
    """A template with the ones that it extends, read and checked.

    Attributes:
        place: how messages call it.
        digest: SHA-256 of its text and of those that it extends, in hex.
    """

    def __init__(self, name: str, *, option: str = Wording.option, others: Sequence[str] = Wording.others) -> None:
        """Reads a template.

        Args:
            name: a shipped one, or a file.
            option: that names it, for messages.
            others: values of the option that are no templates, for messages.

        Raises:
            UsageError: there is none, or it has a fault.
        """
        self.place = f"`{option} {name}`"
        self._known = (*others, *SHIPPED)
        self._sources: dict[str, str] = {}
        self._environment = _environment(FunctionLoader(self._load))
        self._chain: list[Template] = []
        extended: str | None = name
        while extended:
            self._chain.append(self._loaded(extended))
            extended = self._checked(extended)
        if not any("user" in template.blocks for template in self._chain):
            raise UsageError(
                f"{self.place} has no block `user`, which shows the question: add one, or begin with `{{% extends "
                f'"{PLAIN}" %}}`.'
            )
        if PLAIN not in self._sources:
            self._chain.append(self._loaded(PLAIN))
        self.digest = sha256("\0".join(self._sources.values()).encode("utf-8", "surrogatepass")).hexdigest()

    def render(self, block: str, values: Mapping[str, Any]) -> str:
        """The text of a block. Raises UsageError, with the line, if the template fails."""
        context = self._chain[0].new_context(dict(values))
        for extended in self._chain[1:]:
            for name, function in extended.blocks.items():
                context.blocks.setdefault(name, []).append(function)
        try:
            try:
                return "".join(context.blocks[block][0](context))
            except Exception:
                self._environment.handle_exception()  # raises it again, with the lines of the template
        except Exception as error:  # a template is a program, and may raise anything
            raise self._refused(f"fails ({one_line(error)})", self._line_of(error)) from None

    def _load(self, name: str) -> tuple[str, str, None]:
        """The source of a template and its file, as jinja2 asks for them."""
        path = _FOLDER / f"{name}.jinja" if name in SHIPPED else Path(name).expanduser()
        try:
            source = path.read_text(encoding="utf-8-sig")  # Windows begins files with a mark
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            known = ", ".join(self._known)
            raise UsageError(
                f"{self.place} must be {known} or a file of a template, and cannot be read ({why}): give one of these."
                f"{nearest(name, self._known)}"
            ) from None
        self._sources[name] = source
        return _BLOCK_ENDS.sub(r"{%-\1", _BLOCK_BEGINS.sub(r"\1-%}", source)), str(path), None

    def _loaded(self, name: str) -> Template:
        """Loads a template. Raises UsageError if it is missing, or no template."""
        try:
            return self._environment.get_template(name)
        except TemplateSyntaxError as error:
            raise self._refused(f"is no template ({one_line(error)})", error.lineno) from None

    def _checked(self, name: str) -> str | None:
        """Refuses what no rendering would tell. Returns the name of the template that this one extends, None for none."""
        tree = self._environment.parse(self._sources[name])
        for node in tree.body:
            if not isinstance(node, nodes.Block | nodes.Extends) and not _is_space(node):
                why = "has text or code outside of its blocks, which is shown nowhere"
                raise self._refused(why, node.lineno, _HOW_TO_BEGIN)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport)):
            raise self._refused("includes another file, and may only extend a shipped template", node.lineno)
        for block in tree.find_all(nodes.Block):
            if block.name not in _BLOCKS:
                why = f"has a block `{block.name}`, which is none of {', '.join(_BLOCKS)}"
                raise self._refused(why, block.lineno, nearest(block.name, _BLOCKS))
            self._refuse_unknown(block)
        for node in tree.find_all(nodes.Extends):
            extended = node.template.value if isinstance(node.template, nodes.Const) else None
            if extended not in SHIPPED:
                raise self._refused(f"may extend one of {', '.join(SHIPPED)}, by its name in quotes", node.lineno)
            return str(extended)
        return None

    def _refuse_unknown(self, block: nodes.Block) -> None:
        """Raises UsageError for a variable that no template has, or that this block may not have."""
        known = {*_OF_QUESTIONS, *(_OF_SOLUTIONS if block.name == "solution" else ()), *self._environment.globals}
        set_here = {name.name for name in block.find_all(nodes.Name) if name.ctx in ("store", "param")}
        macros = {macro.name for macro in block.find_all(nodes.Macro)}
        for name in block.find_all(nodes.Name):
            if name.name not in known | set_here | macros | _OF_JINJA:
                leaks = " here, as it tells the answer" if name.name in _OF_SOLUTIONS else ""
                why = f"has no variable `{name.name}`{leaks}"
                raise self._refused(why, name.lineno, "" if leaks else nearest(name.name, known))

    def _line_of(self, error: BaseException) -> int | None:
        """The line of the template in which an error was raised; None if that was in one that it extends."""
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == self._chain[0].filename]
        return lines[-1] if lines else None

    def _refused(self, why: str, line: int | None = None, advice: str = "") -> UsageError:
        at = f" line {line}" if line else ""
        return UsageError(
            f"{self.place}{at} {why}: correct it, as docs/prompts.md says what a template may hold.{advice}"
        )


@cache
def _shipped_template(name: str, *, option: str, others: tuple[str, ...]) -> PromptTemplate:
    """A shipped template, compiled once in a process. Arguments as of `PromptTemplate`."""
    return PromptTemplate(name, option=option, others=others)


def _environment(loader: FunctionLoader) -> Environment:
    """The sandbox of templates. What is random is left out, as a prompt must be the same every time."""
    environment = ImmutableSandboxedEnvironment(
        loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    del environment.globals["lipsum"], environment.filters["random"]
    environment.globals["paragraphs"] = _paragraphs
    return environment


def _paragraphs(*texts: Any) -> str:
    """The texts that are not empty, with an empty line between them."""
    return "\n\n".join(str(text) for text in texts if text)


def _is_space(node: nodes.Node) -> bool:
    """Whether a part of a template is white space."""
    return isinstance(node, nodes.Output) and all(
        isinstance(part, nodes.TemplateData) and not part.data.strip() for part in node.nodes
    )
