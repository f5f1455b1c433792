"""Builds the prompts of backbone and assistant, for training and for runs alike.

The backbone reads what a `Wording` makes of the question, with L slots in it, and the header of the assistant's turn. The
assistant model reads an instruction and the question, or what a template of its own makes of them, and then its own L slots.

A slot is a token that is added to the tokenizer. So slots are found by their id, and a text that contains one is noticed.
This module knows tokenizers and tasks, but no models and no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerBase

from contrastive.checkpoint import MOST_SOFT_TOKENS
from scaling.control_tokens import DataEncoder, tokens_before
from scaling.models.loading import LanguageModel
from scaling.records.errors import UsageError, one_line
from scaling.records.records import PromptedQuestion, Question
from scaling.tasks.task import Task, ask
from scaling.wording import AssistantWording, Turns, Wording

PROMPT_VERSION = "1"  # in run.json: runs of different prompts are different runs
SLOT = "<|soft-thought-slot|>"

_ASSISTANT = "Look at this problem and note what matters for solving it."
# how the turns of a prompt begin if the model has no chat format
_QUESTION, _ANSWER = "Question:", "Answer:"
_NEXT_TURN = (f"\n{_QUESTION}", f"\n{_ANSWER}")
_PROBE = "system-turn"  # a system turn, to see whether a chat template shows it
_THINKING = "enable_thinking"  # as chat templates call the option
# Some chat templates print today's date, so prompts would differ from day to day. Llama 3 takes the date as an option.
# Others call `strftime_now`. A macro of that name, put before the template, replaces it; an option cannot be a function.
_TODAY = "26 Jul 2024"
_STOPPED_CLOCK = f"{{% macro strftime_now(format) %}}{_TODAY}{{% endmacro %}}{{{{ '' }}}}"


@dataclass(frozen=True)
class Prompt:
    """A prompt with L slots.

    Attributes:
        prefix: token ids before the slots; all of them if there are no slots.
        suffix: token ids after the slots.
        text: the prompt as text, with its slots.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    text: str


class PromptBuilder:
    """Builds the prompts of one task for one tokenizer, in the model's chat format or, if it has none, in a plain one."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task: Task,
        wording: Wording | None = None,
        exemplars: Sequence[Question] = (),
        check: Callable[[Sequence[int]], None] = lambda _: None,
    ):
        """Adds the slot token to the tokenizer.

        Args:
            tokenizer: that of the model that will read the prompts.
            task: gives the texts of its questions.
            wording: how the model is asked; None for the prompt `plain`, or the assistant's request to note what matters.
            exemplars: questions with rationale. They are shown, solved, before every question that the backbone reads.
            check: is called with the token ids of each prompt, without slots. It raises UsageError for tokens that the
                model does not know.

        Raises:
            UsageError: the wording asks for a thought, and the model's chat template cannot; or its template has a fault.
        """
        self._check = check
        self._tokenizer = tokenizer
        self._task = task
        self.wording = wording or Wording()
        if self.wording.thinks and _THINKING not in str(tokenizer.chat_template and tokenizer.get_chat_template()):
            raise UsageError(
                f"`--thinking on` needs a model whose chat template knows `{_THINKING}`, and that of "
                f"{tokenizer.name_or_path} does not: leave the option out."
            )
        self._solved = [(self.turns(shot).user, self.solution(shot)) for shot in exemplars]
        tokenizer.add_tokens([AddedToken(SLOT, special=True, normalized=False)])
        self._slot_id = int(tokenizer.convert_tokens_to_ids(SLOT))
        self._encoder = DataEncoder(tokenizer, leave=[SLOT])
        # a chat template writes its own beginning-of-sequence token
        self._before = [] if tokenizer.chat_template else tokens_before(tokenizer)
        # the control tokens of the chat format itself, by the number of solved questions before the question
        self._own_control: dict[tuple[int, bool, bool], list[int]] = {}

    @classmethod
    def of(
        cls,
        model: LanguageModel,
        *,
        task: Task,
        wording: Wording | None = None,
        exemplars: Sequence[Question] = (),
    ) -> PromptBuilder:
        """The builder for a model. It refuses prompts with tokens that the model does not know."""
        return cls(model.tokenizer, task=task, wording=wording, exemplars=exemplars, check=model.refuse_unknown)

    @classmethod
    def of_assistant(cls, model: LanguageModel, *, task: Task, wording: Wording | None = None) -> PromptBuilder:
        """The builder for the assistant of a run or training. wording: how both of its models are asked."""
        return cls.of(model, task=task, wording=wording.for_assistant if wording else None)

    def backbone(self, question: Question, *, num_slots: int, notes: str = "") -> Prompt:
        """The backbone's prompt, up to and with the header of the assistant's turn.

        Args:
            question: what is asked.
            num_slots: L, the number of slots.
            notes: text in the place of the slots.

        Raises:
            UsageError: there are too many slots, or the question's text contains a slot or another control token.
        """
        if num_slots > MOST_SOFT_TOKENS:
            raise UsageError(f"{num_slots} soft tokens are more than a context takes ({MOST_SOFT_TOKENS}): give fewer.")
        turns, solved = self.turns(question, slots=SLOT * num_slots or notes), self._solved
        if self.wording.shots_in_text and self._tokenizer.chat_template:
            # a model without a chat format has them as text in any case
            turns, solved = turns._replace(user=f"{_as_text(solved)}{_QUESTION} {turns.user}"), []
        return self._prompt(turns, question, num_slots, solved)

    def turns(self, question: Question, *, slots: str = "") -> Turns:
        """The texts of a question's prompt. slots: the text of the slots, or notes in their place."""
        return self.wording.turns(question, task=self._task, slots=slots)

    def solution(self, question: Question) -> str:
        """The whole turn of an assistant that answers rightly, with the given beginning if the prompt has one."""
        solution, answer = self.wording.solution(question, task=self._task), self.turns(question).answer
        return f"{answer}{continuation(solution, answer)}"

    def hint_request(self, question: Question) -> tuple[int, ...]:
        """Token ids of the assistant's prompt if it writes its notes as text."""
        return self._for_assistant(question, 0)

    def assistant(self, question: Question) -> tuple[int, ...]:
        """Token ids of the assistant's prompt before its slots. They do not depend on the number of slots."""
        return self._for_assistant(question, 1)

    def _for_assistant(self, question: Question, num_slots: int) -> tuple[int, ...]:
        """Token ids of the assistant's prompt: all of them, or those before its slot if it has one."""
        if isinstance(self.wording, AssistantWording):  # slots come last
            return self._prompt(self.turns(question), question, 0).prefix
        text = f"{_ASSISTANT}\n\n{ask(self._task, 'assistant_text', question)}"
        return self._prompt(Turns("", f"{text}\n\n{SLOT}" if num_slots else text, ""), question, num_slots).prefix

    def _prompt(
        self, turns: Turns, question: Question, num_slots: int, solved: Sequence[tuple[str, str]] = ()
    ) -> Prompt:
        """The prompt of these turns, checked.

        Args:
            turns: the texts, with their slots.
            question: for messages.
            num_slots: how many slots the prompt must have, side by side.
            solved: earlier turns, as pairs (user, assistant).
        """
        ids, text = self._encoded(turns, solved)
        self._refuse_control(ids, question, turns, len(solved))
        ids = [*self._before, *ids]
        slots = [place for place, token in enumerate(ids) if token == self._slot_id]
        if len(slots) != num_slots or (slots and slots[-1] - slots[0] != num_slots - 1):
            raise UsageError(f"question {question.id} contains the reserved text {SLOT}; remove it from the data.")
        self._check([token for token in ids if token != self._slot_id])
        if not slots:
            return Prompt(tuple(ids), (), text)
        return Prompt(tuple(ids[: slots[0]]), tuple(ids[slots[-1] + 1 :]), text)

    def _encoded(self, turns: Turns, solved: Sequence[tuple[str, str]]) -> tuple[list[int], str]:
        """The token ids of a prompt, and its text. Of the turns' own text only slots become control tokens."""
        data = [*turns, *(text for pair in solved for text in pair)]

        def render(parts: list[str]) -> str:
            return self._chat(Turns(*parts[:3]), list(zip(parts[3::2], parts[4::2], strict=True)))

        return self._encoder.encode(data, render)

    def _refuse_control(self, ids: Sequence[int], question: Question, turns: Turns, num_solved: int) -> None:
        """Raises UsageError if the question's text became a control token.

        That is possible with a tokenizer that normalises text before it splits it into tokens. It is noticed by comparison
        with the control tokens of a prompt whose turns are all "x".
        """
        form = (num_solved, bool(turns.system), bool(turns.answer))
        if form not in self._own_control:
            plain, _ = self._encoded(Turns(*("x" if text else "" for text in turns)), [("x", "x")] * num_solved)
            self._own_control[form] = self._encoder.controls(plain)
        if self._encoder.controls(ids) != self._own_control[form]:
            raise UsageError(
                f"question {question.id} holds text that the tokenizer reads as one of its control tokens, such as one that "
                f"ends a turn: remove it from the data."
            )

    def _chat(self, turns: Turns, solved: Sequence[tuple[str, str]]) -> str:
        """The text of a prompt in the model's chat format, or in a plain one if it has none.

        A model whose chat format has no system turn reads that text as the first paragraph of the user's first turn.
        """
        system, user, answer = turns
        if not self._tokenizer.chat_template:
            head, begun = (f"{system}\n\n" if system else ""), (f" {answer}" if answer else "")
            return f"{head}{_as_text(solved)}{_QUESTION} {user}\n{_ANSWER}{begun}"
        texts = [*(text for pair in solved for text in pair), user]
        if system and not self._has_system_turn:
            system, texts[0] = "", f"{system}\n\n{texts[0]}"
        messages = [{"role": "assistant" if place % 2 else "user", "content": text} for place, text in enumerate(texts)]
        return f"{self._in_template(_system_turn(system) + messages)}{answer}"

    @cached_property
    def _has_system_turn(self) -> bool:
        """Whether the chat template shows a system turn. Some raise an exception for one, and some leave it out."""
        try:
            return _PROBE in self._in_template([*_system_turn(_PROBE), {"role": "user", "content": "x"}])
        except UsageError:
            return False

    def _in_template(self, turns: list[dict[str, str]]) -> str:
        """The text of turns in the tokenizer's chat template. Raises UsageError if the template fails."""
        options = {_THINKING: self.wording.thinks, "date_string": _TODAY}
        try:
            template = self._tokenizer.get_chat_template()
            return str(
                self._tokenizer.apply_chat_template(
                    turns,
                    chat_template=_STOPPED_CLOCK + template if "strftime_now" in template else template,
                    tokenize=False,
                    add_generation_prompt=True,
                    **options,
                )
            )
        except Exception as error:  # a template is a program that comes with the model, and may raise anything
            raise UsageError(
                f"the chat template of {self._tokenizer.name_or_path} cannot be used ({one_line(error)}): fetch or copy the "
                f"model's chat_template.jinja or tokenizer_config.json again, or mend the template."
            ) from None


def continuation(text: str, begun: str) -> str:
    """What follows the given beginning of an answer, so that both together are the text, or say it after the beginning.

    Args:
        text: the whole answer, which may begin with `begun`.
        begun: the beginning; empty for none.
    """
    if text.startswith(begun):
        return text.removeprefix(begun)
    return text if begun[-1].isspace() else f" {text}"


def _as_text(solved: Sequence[tuple[str, str]]) -> str:
    """Solved questions as text before a question; empty if there are none."""
    return "".join(f"{_QUESTION} {asked}\n{_ANSWER} {answered}\n\n" for asked, answered in solved)


def _system_turn(text: str) -> list[dict[str, str]]:
    """The system turn of a chat, none if the text is empty."""
    return [{"role": "system", "content": text}] if text else []


def stop_strings(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """The texts that end a completion, besides end tokens.

    A model with a chat format ends its turn itself, so there are none. A model without one goes on: it answers again or
    invents the next question. These texts are how such a continuation begins.
    """
    return () if tokenizer.chat_template else _NEXT_TURN


def own_words(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """A model's own answer in a text: what is before the first of its stop strings."""
    return before_first(stop_strings(tokenizer), text)


def before_first(ends: Sequence[str], text: str) -> str:
    """The part of a text before the first of `ends` in it; all of it if it has none."""
    return text[: min((text.find(end) for end in ends if end in text), default=len(text))]


def prompt_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, object]:
    """What run.json records of the prompts: their version and, if there are any, the stop strings.

    For a model with a chat format the entry of stop strings is left out, so that the hash of such a run is the same as
    before there were stop strings.
    """
    stops = stop_strings(tokenizer)
    return {"prompt_version": PROMPT_VERSION, **({"stop_strings": list(stops)} if stops else {})}


def as_asked(
    question: Question, prompt: Prompt, *, num_slots: int, assistant_tokens: int, hint_tokens: int = 0
) -> PromptedQuestion:
    """The record of a question with its prompt, a line of questions.jsonl.

    Args:
        question: what is asked.
        prompt: the backbone's prompt.
        num_slots: how many slots are filled with thoughts.
        assistant_tokens: tokens of the assistant's prompt.
        hint_tokens: tokens of the notes that the assistant writes.
    """
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
        cluster=question.cluster,
    )


def check_lengths(prompts: Sequence[PromptedQuestion], *, context: int, max_new_tokens: int, shots: int = 0) -> None:
    """Raises UsageError for the first prompt that, with its completion, is longer than the model's context.

    Args:
        prompts: the questions with the lengths of their prompts.
        context: the backbone's context, in tokens.
        max_new_tokens: tokens of the longest completion.
        shots: the value of `--shots`, for the advice in the message.
    """
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
    """Raises UsageError for the first question that is longer than the assistant's context.

    Args:
        tokens: for each question id, the tokens of the assistant's prompt and of the slots or notes after it, together.
        context: the assistant's context, in tokens.
    """
    for question_id, length in tokens.items():
        if length > context:
            raise UsageError(
                f"the assistant needs {length} tokens for question {question_id}, more than its context of {context}; leave "
                f"the question out of the data, or take an `--assistant` with a longer context."
            )
