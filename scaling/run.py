"""One run from its settings to its summary: questions, prompts, thoughts, completions, answers, votes, journal.

The story of `scale-run`, top to bottom. Knows no terminal: what happens is told to a `RunObserver`.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch

from scaling.config import RunConfig
from scaling.engines.base import Counters, Decoding, Engine, Workload
from scaling.engines.build import at_server, build_engine
from scaling.engines.engine_args import engine_changes, refuse_missing
from scaling.engines.kinds import KINDS as ENGINES
from scaling.engines.stops import stops_for
from scaling.methods.base import Method
from scaling.methods.build import build
from scaling.methods.hints import MAX_HINT_TOKENS
from scaling.methods.kinds import Trait, kind_of
from scaling.methods.measured import Measured
from scaling.models import devices, hardware, model_files
from scaling.models.hardware import cpu_name, peak_memory
from scaling.models.loading import LanguageModel
from scaling.prompts import check_assistant_lengths, check_lengths, stop_strings
from scaling.provenance import Provenance, provenance_of
from scaling.reading import Equal, equality, judged, reader
from scaling.records.adaptive import Stopping
from scaling.records.errors import WARNING, Interrupted
from scaling.records.journal import Journal, place_of
from scaling.records.names import TITLE
from scaling.records.records import TIMEOUTS, Completion, Costs, Key, PromptedQuestion, Question, added
from scaling.records.summary import run_summary
from scaling.records.voters import Voter, voter_of, voter_record
from scaling.sampler import Grid, sample
from scaling.tasks.catalogue import task_of
from scaling.tasks.equality import AnswerChecker
from scaling.tasks.task import LoadedTask, Task

_SUMMARY_EVERY = 30.0  # seconds


class RunObserver(Protocol):
    """Is told what happens; a progress bar, plain lines or nothing. A status that begins with WARNING is to be read."""

    def status(self, text: str) -> None: ...
    def start(self, grid: Grid, done: dict[Any, Completion], folder: Path) -> None: ...
    def completion(self, completion: Completion) -> None: ...


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything a run needs, loaded and checked; nothing has been written yet. asked: the task's questions with their
    prompts. assistant: None where there is none. provenance: what the parts of a run were trained on. details: what
    run.json says in the place of what it would say by itself, as of a part of a run."""

    config: RunConfig
    task: LoadedTask
    method: Method
    asked: list[PromptedQuestion]
    assistant: LanguageModel | None = None
    provenance: Provenance | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def backbone(self) -> LanguageModel:
        """The model that decodes."""
        return self.method.backbone


def execute(config: RunConfig, watcher: RunObserver) -> dict[str, Any]:
    """Runs `config`, or continues it, and returns its summary. Raises UsageError and Interrupted."""
    return carry_out(prepare(config, watcher), watcher)


def carry_out(setup: Setup, watcher: RunObserver, *, parent: Path = Path("runs")) -> dict[str, Any]:
    """Runs what is set up, or continues it. parent: where its directory lies, unless `out` names one."""
    config = setup.config
    kind = kind_of(config.method)
    described = {**described_by(config, setup.task), **setup.method.identity(), **setup.details}
    folder = config.out or place_of(parent, f"{setup.task.name}-{kind.name}", described, setup.asked)
    known = environment(torch.device(config.device), recorded=ENGINES[config.engine].recorded)
    known["costs"] = asdict(setup.method.costs())
    known |= (setup.provenance.to_dict() if setup.provenance else {}) | voter_record(voter_of(config.voter))
    known |= {TITLE: kind.title} if kind.factory else {}
    with Journal.open(folder, config=described, environment=known, questions=setup.asked) as journal:
        if journal.restated:
            judge_restated(journal, setup.task, watcher.status)
        return sample_all(setup, journal, folder, watcher)


def described_by(config: RunConfig, task: LoadedTask) -> dict[str, Any]:
    """What run.json says of settings and data. It says more of the models, once they are loaded."""
    changes = engine_changes(config.engine_args)
    overlap = config.overlap if config.overlap == "drop" else None  # the others change no question
    told = {"first_question": digest(task.questions[0]), "engine_changes": changes, "overlap": overlap}
    return {**config.model_dump(mode="json"), **told, **task.identity}


def judge_restated(journal: Journal, task: LoadedTask, tell: Callable[[str], None]) -> None:
    """Judges by the gold answers of today what was judged by others, without reading the texts again."""
    questions = {asked.id: Question(asked.id, asked.text, asked.answer, asked.choices) for asked in journal.restated}
    held = [one for one in journal.completions.values() if one.question_id in questions]
    verdicts = judge_again(
        journal, held, task.definition, lambda one, equal: judged(one, questions[one.question_id], equal=equal)
    )
    tell(
        f"the gold answers of {len(questions)} questions have changed: {len(held)} completions are judged anew, "
        f"{verdicts} verdicts have changed"
    )


def judge_again(
    journal: Journal, held: Sequence[Completion], task: Task, judge: Callable[[Completion, Equal], Completion]
) -> int:
    """Puts what `judge` makes of each of these completions in its place, in one step; returns how many verdicts changed.

    task: judges their answers. judge: gets a completion and what tells whether an answer is the gold answer of a question.
    """
    anew: dict[Key, Completion] = {}
    timeouts: dict[Key, int] = {}
    with AnswerChecker() as checker:
        equal = equality(checker, task)
        for one in held:
            known = checker.timeouts
            anew[one.key] = judge(one, equal)
            timeouts[one.key] = checker.timeouts - known
    journal.rejudge(anew, timeouts)
    return sum(_verdicts(anew[one.key]) != _verdicts(one) for one in held)


def _verdicts(one: Completion) -> tuple[bool, bool]:
    """Of both readings."""
    return one.correct, one.correct_strict


def prepare(config: RunConfig, watcher: RunObserver) -> Setup:
    """Loads task and models and checks that they fit each other. Raises UsageError; writes nothing."""
    config, task, dtype, provenance = begin(config)
    for warning in provenance.warnings():
        watcher.status(f"{WARNING}{warning}")
    for line in model_files.before_loading(config.backbone, *([config.assistant] if config.assisted else [])):
        watcher.status(line)
    built = build(config, task, dtype, watcher.status)
    asked = asked_of(built.method, task)
    refuse_too_long(asked, built.config, built.method.backbone, built.assistant)
    return Setup(built.config, task, built.method, asked, built.assistant, provenance)


def asked_of(method: Method, task: LoadedTask) -> list[PromptedQuestion]:
    """The task's questions as the method asks them."""
    return [replace(method.asked(question), kind=task.kind) for question in task.questions]


def begin(config: RunConfig) -> tuple[RunConfig, LoadedTask, torch.dtype, Provenance]:
    """Settings with all filled in that is known before a model is loaded, the questions, the type of the models, and what
    the run's parts were trained on.

    Raises UsageError where options clash, or where data, device, the engine's package or its server are missing.
    """
    config = config.resolved()
    voter_of(config.voter)  # a user's file that cannot be loaded is refused before any model is
    refuse_missing(config.engine)
    task, provenance = provenance_of(config, task_of(config))
    config, dtype = hardware.placed(config)
    return at_server(config), task, dtype, provenance


def refuse_too_long(
    asked: Sequence[PromptedQuestion], config: RunConfig, backbone: LanguageModel, assistant: LanguageModel | None
) -> None:
    """Raises UsageError for the first question that does not fit the context of a model that reads it."""
    check_lengths(asked, context=backbone.context, max_new_tokens=config.longest, shots=config.shots)
    if assistant:
        then = MAX_HINT_TOKENS if kind_of(config.method).has(Trait.NOTES) else config.num_slots
        tokens = {one.id: one.assistant_tokens + then for one in asked if one.assistant_tokens}
        check_assistant_lengths(tokens, context=assistant.context)


def digest(question: Question) -> str:
    """Tells a journal whose questions have changed under the same name; the first one is the same for every `--limit`."""
    return hashlib.sha256(
        f"{question.id}\0{question.text}\0{question.answer}".encode("utf-8", "surrogatepass")
    ).hexdigest()[:12]


def environment(device: torch.device, *, recorded: Sequence[str] = ()) -> dict[str, Any]:
    """Versions and hardware that a reader of the results may want to know. recorded: the engine's packages, those that are
    installed count."""
    packages = ["softcotpp", "torch", "transformers", "math-verify", *filter(_installed, recorded)]
    return {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
    }


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


def sample_all(setup: Setup, journal: Journal, folder: Path, watcher: RunObserver) -> dict[str, Any]:
    config = setup.config
    grid = Grid(setup.task.questions, config.num_paths, config.samples, config.seed, config.adaptive)
    stopping = grid.stopping(journal.completions.values())
    missing = [
        question
        for question in grid.questions
        if grid.missing(question, journal.completions) and not (stopping and stopping.decided(question.id))
    ]
    with AnswerChecker() as checker:
        if missing:
            began = time.monotonic()
            _leave_room(setup, missing, watcher)
            thinking = time.monotonic() - began
            engine = _engine(setup, watcher, drawn=len(journal.completions))
            with closing(engine):  # whose start is no part of the run's seconds
                account = _Account(setup, journal, engine.counters, checker, time.monotonic() - thinking)
                _sample_missing(setup, grid, engine, journal, account, folder, watcher, stopping)
        else:
            watcher.start(grid, journal.completions, folder)
            account = _Account(setup, journal, Counters(), checker, time.monotonic())
    summary = account.summary(folder)
    journal.write_summary(summary)
    return summary


def _leave_room(setup: Setup, missing: Sequence[Question], watcher: RunObserver) -> None:
    """Where the engine takes the device that thoughts are made on: makes all thoughts first, and frees the device."""
    if not devices.engine_takes_gpus(setup.config):
        return
    setup.method.prepare(missing, watcher.status)
    if setup.assistant:
        devices.move_off_gpu(setup.assistant.model)


def _sample_missing(
    setup: Setup,
    grid: Grid,
    engine: Engine,
    journal: Journal,
    account: _Account,
    folder: Path,
    watcher: RunObserver,
    stopping: Stopping | None,
) -> None:
    config = setup.config
    tokenizer, task = setup.backbone.tokenizer, setup.task.definition
    decoding = Decoding(
        config.temperature,
        config.top_p,
        config.top_k,
        config.longest,
        log_probs=True,
        stop=stops_for(stop_strings(tokenizer), tokenizer),
    )
    watcher.start(grid, journal.completions, folder)
    saved = time.monotonic()
    try:
        for completion in sample(
            grid,
            set(journal.completions),
            method=Measured(setup.method, num_paths=grid.num_paths, record=journal.record_thoughts),
            engine=engine,
            decoding=decoding,
            read=reader(tokenizer, task, equal=equality(account.checker, task)),
            stopping=stopping,
            window=math.ceil(2 * engine.batch_size / grid.num_paths),
        ):
            journal.append(completion, account.costs())
            watcher.completion(completion)
            if time.monotonic() - saved > _SUMMARY_EVERY:
                journal.write_summary(account.summary(folder))
                saved = time.monotonic()
    except KeyboardInterrupt:
        journal.write_summary(account.summary(folder))
        raise Interrupted(
            f"stopped: {_held(grid, journal, stopping)} samples are in {folder}; the same command continues the run."
        ) from None


def _held(grid: Grid, journal: Journal, stopping: Stopping | None) -> str:
    """How many samples there are of how many; counted here, as the summary leaves out questions that are not complete."""
    missing = {question.id: len(grid.missing(question, journal.completions)) for question in grid.questions}
    held = len(missing) * grid.num_paths * grid.num_samples - sum(missing.values())
    if stopping is None:
        return f"{held} of {held + sum(missing.values())}"
    return f"{held} of at most {held + sum(left for key, left in missing.items() if not stopping.decided(key))}"


def _engine(setup: Setup, watcher: RunObserver, *, drawn: int) -> Engine:
    longest = max(setup.asked, key=lambda asked: asked.prompt_tokens)
    tokens = longest.prompt_tokens + setup.config.longest
    workload = Workload(tokens, slots=longest.soft_tokens > 0, drawn=drawn)
    return build_engine(setup.config, setup.backbone, workload, watcher.status)


class _Account:
    """What the run has cost so far, earlier sessions on the same directory included."""

    def __init__(
        self, setup: Setup, journal: Journal, counters: Counters, checker: AnswerChecker, started: float
    ) -> None:
        self.checker = checker
        self._setup, self._journal, self._counters, self._started = setup, journal, counters, started
        self._before = journal.costs_so_far()
        self._voter = voter_of(setup.config.voter)

    def costs(self) -> Costs:
        """Of all sessions together."""
        counters = self._counters
        now = {**asdict(counters), TIMEOUTS: self.checker.timeouts}
        drew = bool(counters.prefill_computed or counters.prefill_avoided)  # else the run was complete
        now["seconds"] = time.monotonic() - self._started if drew else 0.0
        if drew and ENGINES[self._setup.config.engine].in_process:  # elsewhere it cannot be measured
            now["peak_memory_bytes"] = peak_memory(torch.device(self._setup.config.device))
        return added(self._before, now)

    def summary(self, folder: Path) -> dict[str, Any]:
        provenance = self._setup.provenance
        config, task, completions = self._setup.config, self._setup.task, self._journal.completions
        found = summary_of(config, task, completions, self.costs(), folder, voter=self._voter)
        return found | (provenance.summary() if provenance else {})


def summary_of(
    config: RunConfig,
    task: LoadedTask,
    completions: Mapping[Key, Completion],
    costs: Mapping[str, float],
    folder: Path,
    *,
    voter: Voter,
) -> dict[str, Any]:
    """What summary.json says of a run's completions and of what they cost."""
    return run_summary(
        task.questions,
        completions,
        costs,
        counters=COUNTERS,
        task=task.name,
        method=config.method,
        folder=folder,
        num_paths=config.num_paths,
        num_samples=config.samples,
        voter=voter,
        adaptive=config.adaptive,
    )


COUNTERS = tuple(one.name for one in fields(Counters))
