"""`scale-run --rescore`: a run's journal judged anew by today's answer reader and gold answers. Loads no model.

Texts, seeds and costs stay as they are; the answers read from the texts and the verdicts on them are replaced in one step.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from scaling.config import RunConfig, decided, option
from scaling.display import unread
from scaling.models.loading import load_tokenizer
from scaling.models.model_files import locate
from scaling.prompts import own_words
from scaling.reading import Equal, answered
from scaling.records.errors import UsageError, listed
from scaling.records.journal import RUN, Journal, load_run, stored_questions
from scaling.records.records import Completion, PromptedQuestion, Question
from scaling.records.settings import Effect, run_names
from scaling.records.voters import voter_of, voter_record
from scaling.run import digest, judge_again, summary_of
from scaling.tasks.catalogue import definition_of, identity_of, task_of
from scaling.tasks.files import infer_kind
from scaling.tasks.own import IDENTITY
from scaling.tasks.task import LoadedTask, PlainTask, Task

Tell = Callable[[str], None]
_CHOSEN_LATER = ("soft_tokens", "served_model")  # where they are not given, by the checkpoint and the server
_DECIDES_FIGURES = ("voter", "adaptive")  # FREE settings that no completion depends on, but the summary does


@dataclass(frozen=True)
class Stored:
    """A run as its directory tells it. asked: all lines of questions.jsonl."""

    folder: Path
    run: dict[str, Any]
    config: RunConfig
    asked: list[PromptedQuestion]


def rescore(settings: RunConfig, tell: Tell, *, parent: Path = Path("runs")) -> dict[str, Any]:
    """Judges the run anew, and returns its summary. Raises UsageError.

    settings: those of the run, or `out` alone. parent: where its directory lies, unless `out` names one. tell: gets a line
    on what has changed.
    """
    stored = _stored(settings.out or _only_match(settings, parent))
    stored = _with_settings(stored, settings)
    task = _task(stored, tell)
    gold = {question.id: question for question in task.questions}
    # what is gone from the data, or no longer asked, keeps the gold answer that it was asked with
    gold |= {one.id: _question(one) for one in stored.asked if one.id not in gold or not one.current}
    asked = [
        replace(one, answer=gold[one.id].answer, text=gold[one.id].text, choices=gold[one.id].choices, kind=task.kind)
        for one in stored.asked
        if one.current
    ]
    config = {**stored.run["config"], **{key: getattr(stored.config, key) for key in _DECIDES_FIGURES}}
    if task.questions and "first_question" in config:
        config["first_question"] = digest(task.questions[0])
    voter = voter_of(stored.config.voter)
    environment = {
        **{key: value for key, value in stored.run["environment"].items() if key != "voter"},
        **voter_record(voter),
    }
    with Journal.open(stored.folder, config=config, environment=environment, questions=asked) as journal:
        _judge_anew(journal, gold, task.definition, _chat(stored), tell)
        if IDENTITY in config:  # another reader is that of the run from now on
            journal.restate({**config, "task": stored.config.task, **task.identity}, environment)
        current = replace(task, questions=tuple(gold[one.id] for one in asked) or task.questions)
        costs = journal.costs_so_far()
        summary = summary_of(stored.config, current, journal.completions, costs, stored.folder, voter=voter)
        known = journal.read_summary() or {}
        if "training" in known:  # what thinkers were trained on has not changed
            summary["training"] = known["training"]
        journal.write_summary(summary)
    return summary


def _judge_anew(
    journal: Journal, gold: dict[str, Question], task: Task, tokenizer: PreTrainedTokenizerBase, tell: Tell
) -> None:
    known = [one for one in journal.completions.values() if one.question_id in gold]

    def judge(one: Completion, equal: Equal) -> Completion:
        question = gold[one.question_id]
        said = own_words(one.text, tokenizer)
        anew = answered(one, question, said=said, task=task, equal=equal)
        if anew.unread:
            tell(unread(anew))
        return anew

    verdicts = judge_again(journal, known, task, judge)
    read = sum(_answers(journal.completions[one.key]) != _answers(one) for one in known)
    left = len(journal.completions) - len(known)
    tell(
        f"{len(known)} completions are judged anew: {read} answers are read otherwise, {verdicts} verdicts have changed"
        + (f"; {left} of questions that are not known any more are left as they are" if left else "")
    )


def _answers(one: Completion) -> tuple[str | None, str | None]:
    """Of both readings."""
    return one.answer, one.answer_strict


def _stored(folder: Path) -> Stored:
    run = load_run(folder)
    known = {key: value for key, value in run["config"].items() if key in RunConfig.model_fields}
    try:
        config = RunConfig.model_validate(known)
        decided(config, "latent_paths")  # as it is in every run
    except ValueError:
        raise UsageError(f"{folder / RUN} is damaged or not written by a run; restore it") from None
    return Stored(folder, run, config, stored_questions(folder))


def _only_match(settings: RunConfig, parent: Path) -> Path:
    """The run in `parent` that these settings made. Without models, fingerprints are not known: settings have to do."""
    wanted = settings.resolved()
    found = []
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        with suppress(UsageError):  # what is no run, or a damaged one, is not the one that is meant
            if not _apart(load_run(folder)["config"], wanted, RunConfig.model_fields):
                found.append(folder)
    if len(found) == 1:
        return found[0]
    what = f"fit several runs ({listed([str(one) for one in found])})" if found else f"fit no run in {parent}"
    raise UsageError(
        f"the settings {what}: add `--out` with the directory of the run that `--rescore` is to judge anew."
    )


def _with_settings(stored: Stored, settings: RunConfig) -> Stored:
    """The stored run with what was given and decides figures alone. Raises UsageError for given settings of another run."""
    given = settings.model_fields_set - {"out"}
    own = stored.run["config"]
    moved = {"task"} & given if own.get(IDENTITY) and identity_of(settings.task) else set()
    given -= moved
    extended = [key for key in run_names(Effect.SIZE) if key in given and getattr(settings, key) != own.get(key)]
    if apart := [*_apart(own, settings, given), *extended]:
        key = apart[0]
        raise UsageError(
            f"`{option(key)}` is {own.get(key)} in {stored.folder / RUN} and {getattr(settings, key)} now, and `--rescore` "
            f"judges what is there: leave it out, or give the run's value."
        )
    changed = {key: getattr(settings, key) for key in (*_DECIDES_FIGURES, *moved) if key in given | moved}
    return replace(stored, config=stored.config.model_copy(update=changed))


def _apart(own: dict[str, Any], settings: RunConfig, keys: Any) -> list[str]:
    """Settings that the run in question does not have; those that only models decide are left out."""
    given = settings.model_dump(mode="json")
    return [
        key
        for key in keys
        if key not in run_names(Effect.SIZE, Effect.FREE)
        and given[key] != own.get(key)
        and not (given[key] == "auto" or (given[key] is None and key in _CHOSEN_LATER))
    ]


def _task(stored: Stored, tell: Tell) -> LoadedTask:
    """The questions of today; those of the run where its data is not at hand. Raises UsageError where a user's task, and
    with it its reader, is gone."""
    config = stored.config
    identity = identity_of(config.task)
    try:
        return task_of(config)
    except UsageError as error:
        if not stored.asked:
            raise
        tell(f"the questions cannot be read again, so the gold answers are those of {stored.folder}: {error}")
    if config.task:
        definition = definition_of(config.task, config.data)
        return LoadedTask(definition.name, definition, (), identity)
    rows = [{"choices": asked.choices, "answer": asked.answer} for asked in stored.asked]
    kind = stored.asked[0].kind or infer_kind(rows)
    return LoadedTask(str(config.data), PlainTask(kind), ())


def _question(asked: PromptedQuestion) -> Question:
    return Question(asked.id, asked.text, asked.answer, asked.choices)


def _chat(stored: Stored) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer. Where it is not at hand, what stands for one without a chat format: its prompts tell."""
    try:
        return load_tokenizer(locate(stored.config.backbone), name=stored.config.backbone)
    except UsageError:
        plain = bool(stored.asked) and stored.asked[0].prompt.endswith("Answer:")
        return cast(PreTrainedTokenizerBase, SimpleNamespace(chat_template=None if plain else "unknown"))
