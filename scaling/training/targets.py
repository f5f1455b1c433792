"""Makes the examples of a training: which questions, and what the backbone is to say after them, as token ids.

There are five kinds of targets, and mixtures of them:

- `gold`: the gold rationale with the answer.
- `self`: chains of thought that the backbone has sampled itself and that reach the right answer.
- `answer`: the answer alone, in the words that the prompt gives it.
- `first-step`: the first step of the gold rationale, without an end token, as the text would go on.
- `teacher`: what the backbone predicts for the answer once it has read a right chain of its own without its last steps.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from contrastive.target_loss import Example
from scaling.cache import cache_folder, made
from scaling.config import RunConfig
from scaling.control_tokens import DataEncoder
from scaling.methods.cot import ChainOfThought
from scaling.models.loading import LanguageModel
from scaling.prompts import PromptBuilder, continuation, prompt_identity
from scaling.records.errors import DATA, UsageError, counted, listed
from scaling.records.journal import Journal, config_hash
from scaling.records.names import stem_of
from scaling.records.overlap import Learned, digest_of, overlap_of, template_of
from scaling.records.records import Question
from scaling.run import RunObserver, Setup, digest, environment, sample_all
from scaling.tasks.catalogue import definition_of, load_task
from scaling.tasks.equations import EQUATIONS, lead_to_answer
from scaling.tasks.formats import holds_split
from scaling.tasks.task import LoadedTask, Task
from scaling.training.answer_spans import answer_place, before_answer
from scaling.training.config import TrainConfig
from scaling.training.mixture import ANSWER, FIRST_STEP, GOLD, SELF
from scaling.wording import Wording, wording_of

_SPLIT_SEED = "validation"  # part of the hash that picks validation questions
_MOST_LONGER = 4  # most tokens by which an answer that ends within a token is longer than it is alone
_TEMPERATURE = 0.7  # for sampling chains: high enough that they differ, low enough that many are right


@dataclass(frozen=True)
class Split:
    """Questions to learn from and questions to validate on.

    No question is in both, neither by its id nor by its text. None is from the test split.

    Attributes:
        task: the task that they are from.
        train: questions to learn from.
        validation: questions to validate on.
        repeated: number of training questions left out because their text is that of a validation question.
        left_out: a line that counts the questions without what `--rationale equations` needs; empty where all have it.
    """

    task: LoadedTask
    train: tuple[Question, ...]
    validation: tuple[Question, ...]
    repeated: int = 0
    left_out: str = ""

    def warnings(self, config: TrainConfig) -> list[str]:
        """Sentences about what is wrong with the questions. config: the settings of the training."""
        data, warnings = config.data, []
        if self.repeated:
            warnings.append(f"{self.repeated} training questions say the same as one to validate on, and are left out")
        tested: tuple[Question, ...] = ()
        if data is not None and holds_split(data, "test"):
            with suppress(UsageError):  # unusable test questions are no problem of a training: a run reports them
                tested = load_task(config.task, **_data_of(config)).questions
        if data is not None and tested:
            digests = frozenset(map(digest_of, (*self.train, *self.validation)))
            shared = overlap_of(tested, Learned("", digests, frozenset())).ids
            if shared:
                warnings.append(
                    f"{len(shared)} of the {len(tested)} test questions in {data} are trained or validated on "
                    f"({listed(shared, shown=3)}): leave them out of the train split, or run with `--overlap drop`"
                )
        return warnings


def split_of(config: TrainConfig, *, by_id: bool = False) -> Split:
    """Splits the questions of a training.

    A generated task has a validation split. From other tasks' train split, validation questions are picked by a hash of
    their texts, so that the same questions are picked whatever their order and their ids.

    Args:
        config: the settings.
        by_id: pick them by a hash of their ids, as versions before 0.2 did.

    Raises:
        UsageError: where nothing is left to train on.
    """
    if definition_of(config.task, config.data, columns=config.columns, kind=config.answer_kind).generated:
        shared = {"difficulty": config.difficulty, **_data_of(config)}
        task = load_task(config.task, split="train", limit=config.limit, **shared)
        validation = load_task(config.task, split="validation", limit=config.validation, **shared)
        left_out = ""
        if config.rationale == EQUATIONS:
            (task, left_out), (validation, _) = _with_equations(task), _with_equations(validation)
        return Split(task, task.questions, validation.questions, left_out=left_out)
    if config.data is not None and config.data.is_file() and stem_of(config.data) == "test":
        raise UsageError(f"`--data` {config.data} looks like test questions: give its folder, or the train file.")
    task = load_task(config.task, split="train", difficulty=config.difficulty, **_data_of(config))
    task, left_out = _with_equations(task) if config.rationale == EQUATIONS else (task, "")
    if len(task.questions) <= config.validation:
        raise UsageError(
            f"`--validation` {config.validation} leaves nothing to train on: there are {len(task.questions)} questions."
        )
    held_ids = {q.id for q in sorted(task.questions, key=_id_hash if by_id else _text_hash)[: config.validation]}
    held_out = tuple(q for q in task.questions if q.id in held_ids)
    others = [q for q in task.questions if q.id not in held_ids]
    texts = set(map(digest_of, held_out))
    train = [q for q in others if digest_of(q) not in texts]
    if not train:
        raise UsageError(
            f"`--validation` {config.validation} leaves nothing to train on: the other questions repeat the held-out ones."
        )
    return Split(task, tuple(train[: config.limit]), held_out, len(others) - len(train), left_out)


def _with_equations(task: LoadedTask) -> tuple[LoadedTask, str]:
    """The questions whose equations lead to their answer, and a line that counts the others; empty where there are none.

    Raises UsageError if there are no such questions.
    """
    asked = task.questions
    kept = tuple(question for question in asked if lead_to_answer(question))
    without = sum(not question.rationale for question in asked)
    if not kept:
        raise UsageError(
            f"`--rationale equations` takes calculator annotations such as <<16-3-4=9>> from rationales, and none of the "
            f"{len(asked):,} questions has some that lead to its answer: leave it out, or give other questions by `--data`."
        )
    if len(kept) == len(asked):
        return task, ""
    line = (
        f"{DATA}{len(kept):,} of {len(asked):,} questions are used; left out are {without:,} without equations and "
        f"{len(asked) - len(kept) - without:,} whose equations end in another number than the answer"
    )
    return replace(task, questions=kept), line


def _data_of(config: TrainConfig) -> dict[str, Any]:
    """What `load_task` is to know of the data of a training."""
    data = {"data": config.data, "columns": config.columns, "kind": config.answer_kind}
    return {**data, "rationale": config.rationale}


def _text_hash(question: Question) -> str:
    """A hash by which validation questions are picked: the same for questions that say the same."""
    return hashlib.sha256(f"{_SPLIT_SEED}\0{digest_of(question)}".encode()).hexdigest()


def _id_hash(question: Question) -> str:
    """The hash by which versions before 0.2 picked them."""
    return hashlib.sha256(f"{_SPLIT_SEED}\0{question.id}".encode()).hexdigest()


class ExampleBuilder:
    """Turns questions and targets into token ids, with exactly the prompts that runs use."""

    def __init__(
        self,
        backbone: LanguageModel,
        assistant: LanguageModel | None,
        *,
        task: Task,
        num_slots: int,
        wording: Wording | None = None,
    ) -> None:
        """Prepares the prompts of both models.

        Args:
            backbone: the model that is to say the targets.
            assistant: the model that reads the questions for the thinker; None where only the backbone reads.
            task: gives the questions' texts.
            num_slots: L, soft tokens in the backbone's prompt.
            wording: how the backbone is asked; None for the prompt `plain`.
        """
        self._tokenizer, self._task = backbone.tokenizer, task
        self._end = end_token(backbone)
        # Other tokens that the chat template names, such as `<think>`, are allowed in targets: a chain that a model has
        # sampled itself may begin with such a thought.
        self._target_encoder = DataEncoder(backbone.tokenizer, also_of_template=False)
        self._backbone = PromptBuilder.of(backbone, task=task, wording=wording)
        self._assistant = PromptBuilder.of_assistant(assistant, task=task, wording=wording) if assistant else None
        self._num_slots = num_slots
        self._context, self._check = backbone.context, backbone.refuse_unknown
        # several texts of one question are encoded one after the other, and rendering its prompt takes longer than these
        self._begun = lru_cache(maxsize=1)(lambda question: self._backbone.turns(question).answer)

    def solution(self, question: Question) -> str:
        """The target of a question that follows from its gold rationale."""
        return self._backbone.solution(question)

    def statement(self, question: Question) -> str:
        """The answer alone, in the words that the prompt and the task give it, as in "The answer is 18."."""
        return self._backbone.solution(replace(question, rationale=()))

    def first_step(self, question: Question) -> str | None:
        """What a solution says up to the end of its first step; None without a rationale, or if no solution shows it."""
        steps = steps_of(question)
        if not steps:
            return None
        solution = self._backbone.solution(replace(question, rationale=(steps[0],)))
        at = solution.find(steps[0])
        return None if at < 0 else solution[: at + len(steps[0])]

    def without_steps(self, example: Example, question: Question, removed: int) -> Example:
        """The example of a question's solution without its first steps.

        Args:
            example: that of the whole solution.
            question: the question.
            removed: how many steps are left out; of a question that has fewer, all.
        """
        text = self._backbone.solution(replace(question, rationale=tuple(steps_of(question)[removed:])))
        target = self._target(question, text)
        self._check(target)
        return replace(example, target=target, answer=self._answer_of(question, text, target))

    def fits(self, example: Example, *, more: int) -> bool:
        """Whether the backbone's context has room for an example, with its latent thoughts, and so many tokens more."""
        return _length(example) + more <= self._context

    def refuse_long(self, question: Question, example: Example, *, thoughts: int) -> None:
        """Raises UsageError for an example, with its latent thoughts, that is longer than the backbone's context.

        thoughts: how many stand in it, be they latent or tokens; the message names their options.
        """
        self._refuse_long(question, _length(example), thoughts=thoughts)

    def __call__(self, question: Question, text: str, *, end: bool = True) -> Example:
        """Makes an example of a question and a target.

        Args:
            question: the question.
            text: what the backbone is to say.
            end: whether the end token is added to it.

        Raises:
            UsageError: where prompt and target are longer than the backbone's context.
        """
        prompt = self._backbone.backbone(question, num_slots=self._num_slots)
        target = self._target(question, text, end=end)
        self._check(target)
        self._refuse_long(question, len(prompt.prefix) + self._num_slots + len(prompt.suffix) + len(target))
        assistant_prompt = self._assistant.assistant(question) if self._assistant else ()
        template = template_of(question)
        answer = self._answer_of(question, text, target) if end else None  # a step may hold it, and does not state it
        return Example(question.id, assistant_prompt, prompt.prefix, prompt.suffix, target, template, answer=answer)

    def given(self, question: Question, lead: str, rest: str, *, end: bool = True) -> Example:
        """As the call, for a target of which only the rest is scored.

        Args:
            question: the question.
            lead: the beginning of the text, which the backbone only reads.
            rest: the other part, of at least one character.
            end: whether the end token is added to it.
        """
        whole = self(question, f"{lead}{rest}", end=end)
        most = len(whole.target) - 1 - end
        return replace(whole, given=min(most, self._shared(question, lead, whole.target)))

    def taught(self, question: Question, chains: Sequence[str]) -> Example | None:
        """The answer with a teacher that has read the first chain in which something is left before the answer.

        Scored are the answer's own tokens and what follows them. The teacher is asked as in a chain of thought, without
        slots. It then reads the chain, cut by `before_answer`, and the words that lead to the answer.

        Args:
            question: the question.
            chains: right chains.

        Returns:
            None where no chain has anything left.
        """
        cut = next((left for chain in chains if (left := before_answer(chain, question, self._task))), None)
        if cut is None:
            return None
        statement = self.statement(question)
        at, _ = answer_place(self._task.answers, question.answer, statement) or (0, 0)
        example = self.given(question, statement[:at], statement[at:])
        begun = self._begun(question)
        whole = self._target(question, f"{cut}{continuation(statement, begun).lstrip()}")
        prompt = self._backbone.backbone(question, num_slots=0).prefix
        if whole[-len(example.scored) :] == example.scored:
            read = whole[: -len(example.scored)]
        else:  # a tokenizer that splits the answer otherwise after the chain
            read = (*self._target(question, cut, end=False), *example.target[: example.given])
        self._check(read)
        self._refuse_long(question, len(prompt) + len(read) + len(example.scored))
        return replace(example, reference=(*prompt, *read))

    def _target(self, question: Question, text: str, *, end: bool = True) -> tuple[int, ...]:
        """The token ids of what the backbone says after a question's prompt."""
        begun = self._begun(question)
        # a prompt without chat format ends with "Answer:", after which a word begins with a space
        rest = continuation(text, begun) if begun or self._tokenizer.chat_template else f" {text}"
        return (*self._target_encoder.text_ids(rest), *([self._end] if end else []))

    def _shared(self, question: Question, lead: str, target: tuple[int, ...]) -> int:
        """How many tokens of a target belong to its beginning `lead`.

        A space before what follows may be a token of its own, or a part of the first token that follows.
        """
        before = self._target(question, lead, end=False) if lead else ()
        return next((n for n, (a, b) in enumerate(zip(before, target, strict=False)) if a != b), len(before))

    def _answer_of(self, question: Question, text: str, target: tuple[int, ...]) -> tuple[int, int] | None:
        """Where the tokens of the answer stand that the text says last; None if it says none."""
        place = answer_place(self._task.answers, question.answer, text)
        if place is None:
            return None
        first, last = (self._shared(question, text[:at], target) for at in place)
        last, stated = max(last, first + 1), text[slice(*place)]
        # the last token of the answer may hold what follows it, too, as "5}"
        ends = range(last, min(last + _MOST_LONGER, len(target)) + 1)
        return first, next((end for end in ends if stated in self._text(target[first:end])), last)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    def _refuse_long(self, question: Question, length: int, *, thoughts: int = 0) -> None:
        """Raises UsageError for a question that needs more tokens than the backbone's context. thoughts: among them."""
        if length > self._context:
            among = f" and {counted(thoughts, 'thought')}" if thoughts else ""
            fewer = "give fewer thoughts by `--thoughts-per-step` or `--latent-stages`, " if thoughts else ""
            raise UsageError(
                f"question {question.id} needs {length} tokens with its target{among}, more than the backbone's context "
                f"of {self._context}: {fewer}leave the question out of the data, or take a backbone with a longer context."
            )


def steps_of(question: Question) -> list[str]:
    """The steps of a question's gold rationale: its lines."""
    return [line.strip() for step in question.rationale for line in step.splitlines() if line.strip()]


def end_token(backbone: LanguageModel) -> int:
    """The token that ends a target: the tokenizer's end token if the model stops there, else the first one that it stops at.

    Raises UsageError for a model that stops at no token.
    """
    tokenizers_end = backbone.tokenizer.eos_token_id
    if tokenizers_end in backbone.end_tokens:
        return int(tokenizers_end)
    if not backbone.end_tokens:
        raise UsageError(f"the backbone {backbone.name} has no end token, so it cannot learn where to stop.")
    return backbone.end_tokens[0]


def own_chains(
    split: Split, config: TrainConfig, backbone: LanguageModel, watcher: RunObserver
) -> dict[str, list[str]]:
    """Chains of thought that the backbone has sampled and whose answer is right, by question id, without repetitions.

    They are sampled once, with a journal in the cache folder. Later calls read them from there, and a sampling that was
    interrupted continues.

    Args:
        split: the questions; chains are sampled for training and for validation.
        config: says how many chains are sampled for each question, and with which seed.
        backbone: the model that samples them.
        watcher: is told how far the sampling is.
    """
    questions = (*split.train, *split.validation)
    wording = replace(wording_of(config), assistant_prompt=None)  # no assistant takes part
    method = ChainOfThought(backbone, task=split.task.definition, wording=wording)
    asked_by = {key: value for key, value in asdict(wording).items() if value is not None}
    settings = RunConfig(
        **{"method": "cot", "task": config.task, "data": config.data, "backbone": config.backbone},
        **{"columns": config.columns, "answer_kind": config.answer_kind},
        **{"samples": config.chains, "temperature": _TEMPERATURE, "seed": config.seed},
        **{"device": config.device, "dtype": config.dtype},
        **asked_by,
    ).resolved()
    described = {
        **{"samples": settings.samples, "temperature": settings.temperature, "seed": settings.seed},
        **{"max_new_tokens": settings.max_new_tokens, "dtype": settings.dtype, "task": settings.task},
        "backbone_fingerprint": backbone.fingerprint,
        **prompt_identity(backbone.tokenizer),
        **asked_by,
        **wording.identity(),
        **split.task.identity,
        "questions": hashlib.sha256("".join(map(digest, questions)).encode()).hexdigest()[:12],
    }
    folder = made(cache_folder() / "targets") / config_hash(described)
    asked = [method.asked(question) for question in questions]
    setup = Setup(settings, replace(split.task, questions=questions), method, asked)
    with Journal.open(folder, config=described, environment=environment(backbone.model.device)) as journal:
        sample_all(setup, journal, folder, watcher)
        right = [done for _, done in sorted(journal.completions.items()) if done.correct and done.stop_reason == "end"]
    chains: dict[str, list[str]] = {question.id: [] for question in questions}
    for completion in right:
        if completion.text not in chains[completion.question_id]:
            chains[completion.question_id].append(completion.text)
    return chains


def examples_of(
    kind: str, questions: Sequence[Question], chains: Mapping[str, Sequence[str]], build: ExampleBuilder
) -> list[Example]:
    """Makes the examples of one kind of targets: one of each question that has such a target, and of `self` one a chain.

    Args:
        kind: one of `scaling.training.mixture.TARGETS`.
        questions: the questions.
        chains: the backbone's own right chains by question id; empty for a kind that is not made of them.
        build: turns questions and targets into token ids.
    """
    return [
        example
        for question in questions
        for example in _of_question(kind, question, chains.get(question.id, ()), build)
    ]


def _of_question(kind: str, question: Question, chains: Sequence[str], build: ExampleBuilder) -> list[Example]:
    """The examples of one question. chains: the backbone's own right ones."""
    if kind == GOLD:
        return [build(question, build.solution(question))]
    if kind == SELF:
        return [build(question, chain) for chain in chains]
    if kind == ANSWER:
        return [build(question, build.statement(question))]
    if kind == FIRST_STEP:
        step = build.first_step(question)
        return [] if step is None else [build(question, step, end=False)]
    taught = build.taught(question, chains)
    return [] if taught is None else [taught]


def _length(example: Example) -> int:
    """How many positions an example takes in the backbone, its latent thoughts included."""
    return len(example.prefix) + example.latent + len(example.suffix) + len(example.target)
