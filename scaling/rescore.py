"""`scale-run --rescore`: reads and judges a finished run's completions anew, by today's reader and gold answers.

No model is loaded. Texts, seeds and costs stay as they are. The answers read from the texts, and whether they are correct,
are replaced in one step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from scaling.records.errors import UsageError, counted, listed
from scaling.records.journal import RUN, Journal, load_run, stored_questions
from scaling.records.records import Completion, PromptedQuestion, Question
from scaling.records.settings import Effect, Tag, run_names
from scaling.records.voters import voter_of, voter_record
from scaling.run import digest, judge_again, summary_of
from scaling.tasks.catalogue import definition_of, identity_of, task_of
from scaling.tasks.files import infer_kind
from scaling.tasks.own import IDENTITY
from scaling.tasks.task import LoadedTask, PlainTask, Task
from scaling.wording import wording_of

Tell = Callable[[str], None]
_OF_THE_DATA = ("answer", "text", "choices", "cluster")  # fields of a question that today's data decide
_DECIDES_FIGURES = ("voter", "adaptive")  # settings that change no completion, but the figures of the summary
_READ_ANEW = ("columns", "answer_kind")  # settings that may change the gold answers of the same questions


@dataclass(frozen=True)
class Stored:
    """A run as it was read from its directory.

    Attributes:
        folder: the run directory.
        run: the content of run.json.
        config: the settings in it.
        asked: all lines of questions.jsonl.
    """

    folder: Path
    run: dict[str, Any]
    config: RunConfig
    asked: list[PromptedQuestion]


def rescore(settings: RunConfig, tell: Tell, *, parent: Path = Path("runs")) -> dict[str, Any]:
    """Reads and judges the completions of a run anew, and writes its new summary.

    Args:
        settings: the settings of the run, or `out` alone.
        tell: is called with each line about what has changed.
        parent: the folder in which the run is searched, unless `out` names its directory.

    Returns:
        The new summary.

    Raises:
        UsageError: no run, or several runs, have these settings, or the run is damaged.
    """
    stored = _stored(settings.out or _only_match(settings, parent))
    stored = _with_settings(stored, settings)
    task = _task(stored, tell, needed=bool(settings.model_fields_set.intersection(_READ_ANEW)))
    gold = {question.id: question for question in task.questions}
    _refuse_other_questions(stored, gold, settings)
    # a question that is no longer in the data, or no longer asked, keeps the gold answer that it had
    gold |= {old.id: _question(old) for old in stored.asked if old.id not in gold or not old.current}
    asked = [
        replace(old, kind=task.kind, **{name: getattr(gold[old.id], name) for name in _OF_THE_DATA})
        for old in stored.asked
        if old.current
    ]
    config = {**stored.run["config"], **{key: getattr(stored.config, key) for key in _DECIDES_FIGURES}}
    if task.questions and "first_question" in config:
        config["first_question"] = digest(task.questions[0])
    voter = voter_of(stored.config.voter)
    environment = {
        **{key: value for key, value in stored.run["environment"].items() if key != "voter"},
        **voter_record(voter),
    }
    with Journal.open(stored.folder, config=config, environment=environment, questions=asked, anew=True) as journal:
        _judge_anew(journal, gold, task.definition, stored, tell)
        mapping = {key: getattr(stored.config, key) for key in _READ_ANEW if key in settings.model_fields_set}
        if IDENTITY in config:  # a user's task: from now on, the run is one of today's reader
            mapping |= {"task": stored.config.task, **task.identity}
        if mapping:
            journal.restate({**config, **mapping}, environment)
        current = replace(task, questions=tuple(gold[question.id] for question in asked) or task.questions)
        costs = journal.costs_so_far()
        summary = summary_of(stored.config, current, journal.completions, costs, stored.folder, voter=voter)
        known = journal.read_summary() or {}
        if "training" in known:  # the thinker's training data has not changed
            summary["training"] = known["training"]
        journal.write_summary(summary)
    return summary


def _judge_anew(journal: Journal, gold: dict[str, Question], task: Task, stored: Stored, tell: Tell) -> None:
    """Reads and judges all completions of known questions anew, in the journal, and tells how many have changed.

    Args:
        journal: the run's open journal.
        gold: the questions with today's gold answers, by id.
        task: reads and compares answers.
        stored: the run; its tokenizer tells where a model's answer ends, see `own_words`.
        tell: is called with each line about what has changed.
    """
    tokenizer, thinks = _chat(stored), wording_of(stored.config).thinks
    judged = [completion for completion in journal.completions.values() if completion.question_id in gold]

    def judge(completion: Completion, equal: Equal) -> Completion:
        question = gold[completion.question_id]
        said = own_words(completion.text, tokenizer)
        anew = answered(completion, question, said=said, task=task, equal=equal, thinks=thinks)
        if anew.unread:
            tell(unread(anew))
        return anew

    verdicts = judge_again(journal, judged, task, judge)
    read = sum(_answers(journal.completions[old.key]) != _answers(old) for old in judged)
    left = len(journal.completions) - len(judged)
    tell(
        f"{counted(len(judged), 'completion')} judged anew: {counted(read, 'answer')} read otherwise, "
        f"{counted(verdicts, 'verdict')} changed"
        + (f"; {left} of questions that are not known any more are left as they are" if left else "")
    )


def _answers(completion: Completion) -> tuple[str | None, str | None]:
    """The answers of both readings."""
    return completion.answer, completion.answer_strict


def _stored(folder: Path) -> Stored:
    """Reads the run in a directory. Raises UsageError if it is damaged."""
    run = load_run(folder)
    known = {key: value for key, value in run["config"].items() if key in RunConfig.model_fields}
    try:
        config = RunConfig.model_validate(known)
        decided(config, "latent_paths")  # every run has a number of paths; without one this raises ValueError
    except ValueError:
        raise UsageError(f"{folder / RUN} is damaged or not written by a run; restore it") from None
    return Stored(folder, run, config, stored_questions(folder))


def _only_match(settings: RunConfig, parent: Path) -> Path:
    """The directory in `parent` of the only run with these settings. Raises UsageError if there is none, or more.

    Only settings are compared. Fingerprints of models are not, because no model is loaded.
    """
    resolved = settings.resolved()
    matches = []
    for folder in sorted(parent.iterdir()) if parent.is_dir() else []:
        with suppress(UsageError):  # a folder without a run, or with a damaged one, does not match
            if not _apart(load_run(folder)["config"], resolved, RunConfig.model_fields):
                matches.append(folder)
    if len(matches) == 1:
        return matches[0]
    what = f"fit several runs ({listed([str(folder) for folder in matches])})" if matches else f"fit no run in {parent}"
    raise UsageError(
        f"the settings {what}: add `--out` with the directory of the run that `--rescore` is to judge anew."
    )


def _with_settings(stored: Stored, settings: RunConfig) -> Stored:
    """The stored run with the given settings that change only how it is judged or counted.

    These are the voter, `adaptive`, a user's task, and how the answers in `--data` are read. Raises UsageError if another
    given setting is not that of the run.
    """
    given = settings.model_fields_set - {"out"}
    old = stored.run["config"]
    moved = {"task"} & given if old.get(IDENTITY) and identity_of(settings.task) else set()
    moved |= given.intersection(_READ_ANEW)
    given -= moved
    extended = [key for key in run_names(Effect.SIZE) if key in given and getattr(settings, key) != old.get(key)]
    if apart := [*_apart(old, settings, given), *extended]:
        key = apart[0]
        raise UsageError(
            f"`{option(key)}` is {old.get(key)} in {stored.folder / RUN} and {getattr(settings, key)} now, and `--rescore` "
            f"judges what is there: leave it out, or give the run's value."
        )
    changed = {key: getattr(settings, key) for key in (*_DECIDES_FIGURES, *moved) if key in given | moved}
    return replace(stored, config=stored.config.model_copy(update=changed))


def _refuse_other_questions(stored: Stored, gold: Mapping[str, Question], settings: RunConfig) -> None:
    """Raises UsageError if the given columns make other questions than the run has asked. gold: today's, by id."""
    known = {asked.id for asked in stored.asked if asked.current}
    if settings.columns and gold and (other := sorted(known - set(gold))):
        raise UsageError(
            f"`--columns` must give the questions that {stored.folder} has asked, of which {listed(other)} are not among "
            f"them: name the columns of the same questions, options and ids, or start another run."
        )


def _apart(recorded: dict[str, Any], settings: RunConfig, keys: Any) -> list[str]:
    """The settings, out of `keys`, in which a run differs from the given ones.

    Settings that may change within a run are left out, and so are those that only a checkpoint or a server can decide.
    """
    given = settings.model_dump(mode="json")
    return [
        key
        for key in keys
        if key not in run_names(Effect.SIZE, Effect.FREE)
        and given[key] != recorded.get(key)
        and not (given[key] == "auto" or (given[key] is None and key in run_names(Tag.CHOSEN_LATER)))
    ]


def _task(stored: Stored, tell: Tell, *, needed: bool) -> LoadedTask:
    """The task with today's questions. If they cannot be read again, it has none, and those of the run are used.

    Args:
        stored: the run.
        tell: is called with a line if they cannot be read.
        needed: whether it is an error if they cannot be read.

    Raises:
        UsageError: the task is a user's and cannot be loaded, so that its reader of answers is missing.
    """
    config = stored.config
    identity = identity_of(config.task)
    try:
        return task_of(config)
    except UsageError as error:
        if needed or not stored.asked:
            raise
        tell(f"the questions cannot be read again, so the gold answers are those of {stored.folder}: {error}")
    if config.task:
        definition = definition_of(config.task, config.data, columns=config.columns, kind=config.answer_kind)
        return LoadedTask(definition.name, definition, (), identity)
    rows = [{"choices": asked.choices, "answer": asked.answer} for asked in stored.asked]
    kind = stored.asked[0].kind or infer_kind(rows)
    return LoadedTask(str(config.data), PlainTask(kind), ())


def _question(asked: PromptedQuestion) -> Question:
    return Question(asked.id, asked.text, asked.answer, asked.choices, cluster=asked.cluster)


def _chat(stored: Stored) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer.

    If it cannot be loaded, an object that says only whether there is a chat format. The prompts of the run show that.
    """
    try:
        return load_tokenizer(locate(stored.config.backbone), name=stored.config.backbone)
    except UsageError:
        prompt = stored.asked[0].prompt if stored.asked else ""
        plain = prompt.removesuffix(stored.config.prefill or "").rstrip().endswith("Answer:")
        return cast(PreTrainedTokenizerBase, SimpleNamespace(chat_template=None if plain else "unknown"))
