"""One builder of prompts, used by training and by runs alike. Knows tokenizers and tasks, no models, no tensors.

The backbone reads [question and instruction ; hint sentence, marker, L slots, marker ; assistant header]; the assistant
reads [instruction ; question] and then its L slots. Slots are a token added to the tokenizer, so they are found by id,
and no text can contain them unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from contrastive.checkpoint import MOST_SOFT_TOKENS
from scaling.control_tokens import DataEncoder, tokens_before
from scaling.models.loading import LanguageModel
from scaling.records.errors import UsageError, one_line
from scaling.records.records import PromptedQuestion, Question
from scaling.tasks.task import Task, ask

PROMPT_VERSION = "1"
SLOT = "<|soft-thought-slot|>"

_HINT = "Notes from a quick first look, which may help or be ignored:"
_OPEN, _CLOSE = "<notes>", "</notes>"
_ASSISTANT = "Look at this problem and note what matters for solving it."
# of models without a chat format: each is how a turn of their prompts begins
_QUESTION, _ANSWER = "Question:", "Answer:"
_NEXT_TURN = (f"\n{_QUESTION}", f"\n{_ANSWER}")
# some templates print today's date, which would make every day's prompts different: Llama 3 takes it as an option, others
# always ask the clock, which only a macro of the same name can stop (options of a template cannot be functions)
_TODAY = "26 Jul 2024"
_TEMPLATE_OPTIONS = {"enable_thinking": False, "date_string": _TODAY}
_STOPPED_CLOCK = f"{{% macro strftime_now(format) %}}{_TODAY}{{% endmacro %}}{{{{ '' }}}}"


@dataclass(frozen=True)
class Prompt:
    """Token ids before and after the L slots; without slots everything is prefix. text: the rendered prompt."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    text: str


class PromptBuilder:
    """Prompts of one task for one tokenizer, in the model's chat format (a plain one where it has none).

    exemplars: questions with rationale that stand solved before every question the backbone reads.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task: Task,
        exemplars: Sequence[Question] = (),
        check: Callable[[Sequence[int]], None] = lambda _: None,
    ):
        """check: gets the token ids of each prompt, without slots, and raises UsageError for those that cannot be read."""
        self._check = check
        self._tokenizer = tokenizer
        self._task = task
        self._solved = [(user_turn(one, task=task, num_slots=0), ask(task, "solution", one)) for one in exemplars]
        tokenizer.add_tokens([AddedToken(SLOT, special=True, normalized=False)])
        self._slot_id = int(tokenizer.convert_tokens_to_ids(SLOT))
        self._encoder = DataEncoder(tokenizer, leave=[SLOT])
        # a chat template writes its own beginning-of-sequence token
        self._before = [] if tokenizer.chat_template else tokens_before(tokenizer)
        self._own_control: dict[int, list[int]] = {}  # by the number of solved questions

    @classmethod
    def of(cls, model: LanguageModel, *, task: Task, exemplars: Sequence[Question] = ()) -> PromptBuilder:
        """Prompts for this model, which refuses those with a token that it does not know."""
        return cls(model.tokenizer, task=task, exemplars=exemplars, check=model.refuse_unknown)

    def backbone(self, question: Question, *, num_slots: int, notes: str = "") -> Prompt:
        """What the backbone reads, the assistant header included. Raises UsageError unless it holds exactly L slots.

        notes: text in the place of the slots.
        """
        if num_slots > MOST_SOFT_TOKENS:
            raise UsageError(f"{num_slots} soft tokens are more than a context takes ({MOST_SOFT_TOKENS}): give fewer.")
        user = user_turn(question, task=self._task, num_slots=num_slots, notes=notes)
        return self._prompt(user, question, num_slots, self._solved)

    def hint_request(self, question: Question) -> tuple[int, ...]:
        """What the assistant reads when it is to write its notes as text."""
        return self._prompt(f"{_ASSISTANT}\n\n{ask(self._task, 'text', question)}", question, 0).prefix

    def assistant(self, question: Question) -> tuple[int, ...]:
        """What the assistant reads before its slots. Never says how many slots follow."""
        return self._prompt(f"{_ASSISTANT}\n\n{ask(self._task, 'text', question)}\n\n{SLOT}", question, 1).prefix

    def _prompt(self, user: str, question: Question, num_slots: int, solved: Sequence[tuple[str, str]] = ()) -> Prompt:
        ids, text = self._encoded(user, solved)
        self._refuse_control(ids, question, len(solved))
        ids = [*self._before, *ids]
        found = [place for place, token in enumerate(ids) if token == self._slot_id]
        if len(found) != num_slots or (found and found[-1] - found[0] != num_slots - 1):
            raise UsageError(f"question {question.id} contains the reserved text {SLOT}; remove it from the data.")
        self._check([token for token in ids if token != self._slot_id])
        if not found:
            return Prompt(tuple(ids), (), text)
        return Prompt(tuple(ids[: found[0]]), tuple(ids[found[-1] + 1 :]), text)

    def _encoded(self, user: str, solved: Sequence[tuple[str, str]]) -> tuple[list[int], str]:
        """The ids of a prompt and its text. In these turns nothing but slots becomes a control token."""
        data = [user, *(text for turns in solved for text in turns)]

        def render(parts: list[str]) -> str:
            return self._chat(parts[0], list(zip(parts[1::2], parts[2::2], strict=True)))

        return self._encoder.encode(data, render)

    def _refuse_control(self, ids: Sequence[int], question: Question, num_solved: int) -> None:
        """Raises UsageError where a control token stems from data, as of a tokenizer that first makes other text of it."""
        if num_solved not in self._own_control:
            plain, _ = self._encoded("x", [("x", "x")] * num_solved)
            self._own_control[num_solved] = self._encoder.controls(plain)
        if self._encoder.controls(ids) != self._own_control[num_solved]:
            raise UsageError(
                f"question {question.id} holds text that the tokenizer reads as one of its control tokens, such as one that "
                f"ends a turn: remove it from the data."
            )

    def _chat(self, user: str, solved: Sequence[tuple[str, str]]) -> str:
        if not self._tokenizer.chat_template:
            return (
                "".join(f"{_QUESTION} {asked}\n{_ANSWER} {said}\n\n" for asked, said in solved)
                + f"{_QUESTION} {user}\n{_ANSWER}"
            )
        before = [
            {"role": role, "content": text}
            for turns in solved
            for role, text in zip(("user", "assistant"), turns, strict=True)
        ]
        return self._in_template([*before, {"role": "user", "content": user}])

    def _in_template(self, turns: list[dict[str, str]]) -> str:
        try:
            template = self._tokenizer.get_chat_template()
            return str(
                self._tokenizer.apply_chat_template(
                    turns,
                    chat_template=_STOPPED_CLOCK + template if "strftime_now" in template else template,
                    tokenize=False,
                    add_generation_prompt=True,
                    **_TEMPLATE_OPTIONS,
                )
            )
        except Exception as error:  # a template is a program of the model's, and may raise anything
            raise UsageError(
                f"the chat template of {self._tokenizer.name_or_path} cannot be used ({one_line(error)}): fetch or copy the "
                f"model's chat_template.jinja or tokenizer_config.json again, or mend the template."
            ) from None


def user_turn(question: Question, *, task: Task, num_slots: int, notes: str = "") -> str:
    """The user's turn for the backbone. With neither slots nor notes it is the plain chain-of-thought prompt."""
    parts = [ask(task, "text", question), *filter(None, [ask(task, "asks", question)])]
    if num_slots or notes:
        hint = f"{_HINT} {_OPEN}{SLOT * num_slots or notes}{_CLOSE}"
        first = task.answers.hint_first if task.hint_first is None else task.hint_first
        parts.insert(1 if first else 2, hint)
    return "\n\n".join(parts)


def stop_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """What ends a completion besides end tokens. A model without a chat format answers a second time, or invents the next
    question, where one with such a format ends its turn."""
    return () if tokenizer.chat_template else _NEXT_TURN


def own_words(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """What a model says in answer: the text before the first of its stop strings."""
    return before_first(stop_strings(tokenizer), text)


def before_first(ends: Sequence[str], text: str) -> str:
    """The text before the first of these in it."""
    return text[: min((text.find(end) for end in ends if end in text), default=len(text))]


def prompt_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """What run.json says of the prompts. Only models without a chat format have stop strings, so runs of others are what
    they were before there were any."""
    stops = stop_strings(tokenizer)
    return {"prompt_version": PROMPT_VERSION, **({"stop_strings": list(stops)} if stops else {})}


def as_asked(
    question: Question, prompt: Prompt, *, num_slots: int, assistant_tokens: int, hint_tokens: int = 0
) -> PromptedQuestion:
    """The record of a question with its prompt."""
    return PromptedQuestion(
        id=question.id,
        text=question.text,
        answer=question.answer,
        choices=question.choices,
        prompt=prompt.text,
        prefix_tokens=len(prompt.prefix),
        soft_tokens=num_slots,
        suffix_tokens=len(prompt.suffix),
        assistant_tokens=assistant_tokens,
        hint_tokens=hint_tokens,
    )


def check_lengths(prompts: Sequence[PromptedQuestion], *, context: int, max_new_tokens: int, shots: int = 0) -> None:
    """Raises UsageError for the first prompt that does not fit the context."""
    for asked in prompts:
        length = asked.prompt_tokens
        if length + max_new_tokens > context:
            room = context - length
            too_long = f"give fewer than {shots} `--shots`" if shots else "leave the question out of the data"
            todo = f"lower `--max-new-tokens` to {room} or less" if room > 0 else too_long
            raise UsageError(
                f"question {asked.id} needs {length} prompt tokens and `--max-new-tokens` {max_new_tokens}, more than "
                f"the model's context of {context}; {todo}, or take a backbone with a longer context."
            )


def check_assistant_lengths(tokens: Mapping[str, int], *, context: int) -> None:
    """Raises UsageError for the first question that does not fit the assistant's context.

    Args:
        tokens: for each question id, those that the assistant reads and those that follow, slots or its notes.
    """
    for question_id, length in tokens.items():
        if length > context:
            raise UsageError(
                f"the assistant needs {length} tokens for question {question_id}, more than its context of {context}; leave "
                f"the question out of the data, or take an `--assistant` with a longer context."
            )
