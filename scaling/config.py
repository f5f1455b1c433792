"""The settings of a run: one pydantic model for the command line and the YAML file.

torch is not imported, so that help and error messages appear at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from scaling.engines.engine_args import pairs, refuse_unfit, refuse_unfit_address, without_secrets
from scaling.engines.kinds import KINDS as ENGINES
from scaling.methods.kinds import DEFAULT, KINDS, MethodKind, Trait, kind_of, known_method
from scaling.records.errors import UsageError, nearest, one_line
from scaling.records.names import CONTEMPLATION, LATENT_TRAINING
from scaling.records.settings import Differs, Effect, Setting, Tag, settings_of
from scaling.records.voters import OF_RUNS, is_voter, what_a_voter_is
from scaling.tasks import columns
from scaling.tasks.kinds import KINDS as ANSWER_KINDS

if TYPE_CHECKING:
    from scaling.tasks.task import Task

DEFAULT_MODEL = "smollm2-135m"
PLAIN_PROMPT = "plain"  # the template of runs that name none
DEFAULT_THINKER, UNTRAINED = "trained-default", "untrained"  # values of `--thinker` that are no folder, file or Hub id

# the groups of options, in the order in which the help shows them
_RUN, _MODELS, _PATHS, _DECODING = "What to run", "Models", "Paths and samples", "Decoding"
PROMPT = "Prompt"
OUTPUT, _ENGINE = "Where and how", "Engines"
_SIZE, _FREE, _METHODS, _SEEDS = Effect.SIZE, Effect.FREE, Differs.METHODS, Differs.SEEDS
_WORDING = (PROMPT, Tag.WORDING, Tag.VALIDATION)
_THOUGHTS = "methods with soft thoughts"
_Count = Annotated[int, Field(ge=1)]
_Place = Annotated[str, BeforeValidator(str)]
ColumnNames = Annotated[dict[str, str], BeforeValidator(columns.parse)]
Switch = Annotated[  # YAML reads `on` and `off` as truth values
    Literal["on", "off"], BeforeValidator(lambda value: {True: "on", False: "off"}.get(value, value))
]
if TYPE_CHECKING:
    EngineName = str
    AnswerKind = str
else:
    EngineName = Literal[tuple(ENGINES)]
    AnswerKind = Literal[tuple(ANSWER_KINDS)]


def known_voter(name: str) -> str:
    """The name itself, if it may be that of a voter. A pydantic error if not. No voter is loaded."""
    if not is_voter(name):
        raise PydanticCustomError("voter", f"input should be {what_a_voter_is()}")
    return name


class RunConfig(BaseModel):
    """All options of `scale-run`. Their names are those of the command line, with `_` for `-`.

    None means that the value is not decided yet. `resolved` decides it if it follows from other settings, and the
    checkpoint of thinker or adapter decides the rest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Annotated[
        str,
        AfterValidator(known_method),
        Setting(
            "softcot++ (default), softcot, softcot-p, -dropout, -gumbel, prompt-tuning, proposer, refiner, cot, cot-unk, "
            "assist-cot, lora, coconut, ccot, or FILE.py:NAME.",
            *(_RUN, _METHODS, Tag.NAMED, Tag.VALIDATION),
            values=KINDS,
            content="method_sha256",
            facts=("method_identity", "decoder_fingerprint"),
        ),
    ] = DEFAULT
    method_args: Annotated[
        Annotated[dict[str, Any], BeforeValidator(pairs)] | None,
        Setting(
            'Arguments of a method of your own: "steps=4 scale=0.5".',
            *(_RUN, _METHODS),
            used_by=Trait.ARGUMENTS,
            whose="a method of your own",
        ),
    ] = None
    task: Annotated[
        str | None,
        Setting(
            "arithmetic (default), countdown, prosqa, gsm8k ... (docs/tasks.md), FILE.py:NAME or FILE.yaml.",
            *(_RUN, Tag.QUESTIONS, Tag.HARNESS),
            content="task_sha256",
        ),
    ] = None
    data: Annotated[
        Path | None,
        Setting(
            "Questions: a file (JSONL, JSON, CSV, Parquet), a folder of splits, or hf:OWNER/NAME[:CONFIG].",
            *(_RUN, Tag.QUESTIONS, Tag.HARNESS),
        ),
    ] = None
    columns: Annotated[
        ColumnNames | None,
        Setting('Columns of --data: "question=Body+Question answer=Answer".', _RUN, Tag.QUESTIONS, Tag.HARNESS),
    ] = None
    answer_kind: Annotated[
        AnswerKind | None,
        Setting("Answers of --data. Default: as they look.", _RUN, Tag.QUESTIONS, Tag.HARNESS),
    ] = None
    limit: Annotated[
        _Count | None,
        Setting("First questions only. Default 20 if they are generated, else all.", _RUN, _SIZE, _SEEDS, Tag.HARNESS),
    ] = None
    split: Annotated[str, Setting("test (default), train or validation.", _RUN, Tag.QUESTIONS, Tag.HARNESS)] = "test"
    difficulty: Annotated[
        int,
        Field(ge=1, le=4),
        Setting("Of generated questions: 1 (default) to 4 at most.", _RUN, Tag.QUESTIONS, Tag.HARNESS),
    ] = 1
    backbone: Annotated[
        str,
        Setting(
            "Folder, GGUF file, Hub id (owner/name@revision), or smollm2-135m (default).",
            *(_MODELS, Tag.HUB, Tag.LOADED, Tag.VALIDATION),
            content="backbone_fingerprint",
            facts=("backbone_quantization",),
        ),
    ] = DEFAULT_MODEL
    assistant: Annotated[
        str,
        Setting(
            "The same, for the model that thinks.",
            *(_MODELS, _METHODS, Tag.HUB, Tag.LOADED),
            used_by=Trait.ASSISTANT,
            content="assistant_fingerprint",
            facts=("assistant_quantization",),
        ),
    ] = DEFAULT_MODEL
    thinker: Annotated[
        _Place | None,
        Setting(
            "Folder, Hub id or untrained. Default: the default models' own, trained.",
            *(_MODELS, _SEEDS, Tag.HUB, Tag.VALIDATION),
            used_by=Trait.THINKER,
            whose=_THOUGHTS,
            content="thinker_sha256",
        ),
    ] = None
    adapter: Annotated[
        _Place | None,
        Setting(
            "For lora, coconut and ccot: folder or Hub id of an adapter of the backbone.",
            *(_MODELS, _SEEDS, Tag.HUB, Tag.VALIDATION),
            used_by=Trait.ADAPTER,
            whose="`lora`, `coconut` and `ccot`",
            content="adapter_sha256",
            facts=("merged_fingerprint", CONTEMPLATION),
        ),
    ] = None
    latent_paths: Annotated[
        _Count | None,
        Setting(
            "Latent paths N. Default 8, or the checkpoint's; 1 without ++.",
            *(_PATHS, _SIZE, _METHODS, Tag.VALIDATION),
            used_by=Trait.PATHS,
            symbol="N",
        ),
    ] = None
    samples: Annotated[_Count, Setting("Samples M of each path. Default 4.", _PATHS, _SIZE, _METHODS, symbol="M")] = 4
    soft_tokens: Annotated[
        _Count | None,
        Setting(
            "Soft tokens L. Default: the checkpoint's, else 4.",
            *(_PATHS, _METHODS, Tag.CHOSEN_LATER),
            used_by=Trait.SLOTS,
            whose="methods with slots",
            facts=("initial_token",),
            symbol="L",
        ),
    ] = None
    noise: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False),
        Setting(
            "Size of softcot-p's, -dropout's, -gumbel's or coconut's change, relative to thoughts. Default 0.2; coconut 0.",
            *(_PATHS, _METHODS, Tag.VALIDATION),
            used_by=Trait.PERTURBED,
            whose="the methods that perturb thoughts (softcot-p, softcot-dropout, softcot-gumbel, coconut)",
        ),
    ] = None
    noise_kind: Annotated[
        Literal["gaussian", "dropout"] | None,
        Setting(
            "How --noise changes each of coconut's thoughts: gaussian (default) or dropout.",
            *(_PATHS, _METHODS, Tag.VALIDATION),
            used_by=Trait.LATENT,
            whose="`coconut`",
        ),
    ] = None
    latent_steps: Annotated[
        int | None,
        Field(ge=0),
        Setting(
            "Thoughts that coconut feeds back one after another. Default: the checkpoint's.",
            *(_PATHS, _METHODS, Tag.NAMED, Tag.VALIDATION, Tag.CHOSEN_LATER),
            used_by=Trait.LATENT,
            whose="`coconut`",
            symbol="S",
        ),
    ] = None
    latent_tokens: Annotated[
        str | None,
        Setting(
            'Tokens before and after coconut\'s thoughts: "BEGIN END", or "BEGIN END PAUSE". Default: the checkpoint\'s.',
            *(_PATHS, _METHODS, Tag.VALIDATION, Tag.CHOSEN_LATER),
            used_by=Trait.LATENT,
            whose="`coconut`",
            facts=("latent_thought", LATENT_TRAINING),
        ),
    ] = None
    refine_steps: Annotated[
        int | None,
        Field(ge=0),
        Setting(
            "Rounds in which refiner refines its thoughts. Default: the checkpoint's, else 3.",
            *(_PATHS, _METHODS, Tag.NAMED, Tag.VALIDATION, Tag.CHOSEN_LATER),
            used_by=Trait.REFINED,
            whose="`refiner`",
            symbol="R",
        ),
    ] = None
    control: Annotated[
        Literal["zero", "mean", "shuffled", "counterfactual", "unk", "none"] | None,
        Setting(
            "What replaces the thoughts: zero, mean, shuffled or counterfactual (of other questions), unk or none.",
            *(_PATHS, _METHODS, Tag.NAMED, Tag.VALIDATION),
            used_by=Trait.THOUGHTS,
            whose=_THOUGHTS,
        ),
    ] = None
    thought_scale: Annotated[
        float | None,
        Field(ge=0, allow_inf_nan=False),
        Setting(
            "Distance of thoughts from their mean over questions: 0, 0.5, 1 (default), 1.5 ... times their own.",
            *(_PATHS, _METHODS, Tag.NAMED, Tag.VALIDATION),
            used_by=Trait.THOUGHTS,
            whose=_THOUGHTS,
        ),
    ] = None
    shots: Annotated[
        int,
        Field(ge=0),
        Setting(
            "Solved questions before each one, for cot. Default 0.",
            *(_PATHS, _METHODS, Tag.NAMED, Tag.HARNESS),
            used_by=Trait.SHOTS,
            whose="`cot`",
            facts=("exemplars",),
        ),
    ] = 0
    shot_format: Annotated[
        Literal["turns", "text"] | None,
        Setting(
            "Solved questions as turns of the chat (default), or as text in the user's turn.",
            *(*_WORDING, Tag.HARNESS),
            used_by=Trait.SHOTS,
            whose="`cot`",
        ),
    ] = None
    rationale: Annotated[
        Literal["text", "equations"] | None,
        Setting(
            "Of solved questions: text (default), or equations: their calculator annotations (<<16-3-4=9>>) alone.",
            *(_PATHS, Tag.HARNESS),
            used_by=Trait.SHOTS,
            whose="`cot`",
        ),
    ] = None
    prompt: Annotated[
        _Place | None,
        Setting(
            "plain (default), paper, direct, boxed, or a file: a template of the prompt.",
            *(*_WORDING, _METHODS, Tag.NAMED),
            content="prompt_sha256",
        ),
    ] = None
    system_prompt: Annotated[
        str | None, Setting("The system turn. Default: the template's, mostly none.", *_WORDING)
    ] = None
    instruction: Annotated[str | None, Setting("The request for the answer, in place of the task's.", *_WORDING)] = None
    thinking: Annotated[
        Switch | None,
        Setting("on: a model that can writes a thought first, and its answer after it. Default off.", *_WORDING),
    ] = None
    prefill: Annotated[str | None, Setting("The beginning of the answer, which the model continues.", *_WORDING)] = None
    assistant_prompt: Annotated[
        _Place | None,
        Setting(
            "For the assistant: answer, or a template as for --prompt. Default: to note what matters.",
            *_WORDING,
            used_by=Trait.ASSISTANT,
            whose="methods with an assistant",
            content="assistant_prompt_sha256",
        ),
    ] = None
    adaptive: Annotated[
        float | None,
        Field(gt=0.5, le=1),
        Setting(
            "Stop a question once its vote is this sure: above 0.5, to 1. Default: never.",
            *(_PATHS, _FREE, Tag.HARNESS),
            not_in_sweeps="curves need every sample",
        ),
    ] = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False), Setting("Default 0.5; 0 is greedy.", _DECODING)] = (
        0.5
    )
    top_p: Annotated[float, Field(gt=0, le=1), Setting("Nucleus mass. Default 1, which is off.", _DECODING)] = 1.0
    top_k: Annotated[int, Field(ge=0), Setting("Most probable tokens kept. Default 0, which is off.", _DECODING)] = 0
    max_new_tokens: Annotated[
        _Count | None, Setting("Longest completion. Default: the task's, at most 512.", _DECODING)
    ] = None
    batch_size: Annotated[
        _Count | Literal["auto"], Setting("Completions decoded together, or auto (default).", OUTPUT, _FREE)
    ] = "auto"
    max_batch_tokens: Annotated[
        _Count | Literal["auto"],
        Setting(
            "Tokens whose keys and values are held at once, or auto (default): half of free memory.",
            *(OUTPUT, _FREE),
        ),
    ] = "auto"
    exact: Annotated[
        bool | None,
        Setting(
            "The same tokens in every batch, bit for bit, in every type; slower.",
            OUTPUT,
        ),
    ] = None
    engine: Annotated[
        EngineName,
        Setting("transformers (default), vllm, or openai: a server at --base-url.", _ENGINE, Tag.HARNESS),
    ] = "transformers"
    engine_args: Annotated[
        Annotated[dict[str, Any], BeforeValidator(pairs)] | None,
        Setting('vLLM\'s own settings: "tensor_parallel_size=2 max_num_seqs=256".', _ENGINE, _FREE),
    ] = None
    engine_seeds: Annotated[
        Literal["streams", "one"] | None,
        Setting(
            "vllm, openai: streams (default), a seed for every completion, or one for all: faster.",
            _ENGINE,
        ),
    ] = None
    base_url: Annotated[
        str | None,
        Setting("openai: the server, http://HOST:PORT/v1. Its key: OPENAI_API_KEY.", _ENGINE, _FREE),
    ] = None
    served_model: Annotated[
        str | None, Setting("openai: the backbone's name there. Default: the only one.", _ENGINE, Tag.CHOSEN_LATER)
    ] = None
    device: Annotated[
        str,
        Setting(
            "auto (default), cpu, cuda, cuda:1 ...",
            *(OUTPUT, _FREE),
        ),
    ] = "auto"
    assistant_device: Annotated[
        str | None,
        Setting(
            "vllm, openai: where the assistant thinks, and stays. Default: auto.",
            *(_ENGINE, _FREE),
            used_by=Trait.ASSISTANT,
            whose="methods with an assistant",
        ),
    ] = None
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Setting("auto (default), float32, bfloat16 or float16.", OUTPUT, Tag.LOADED),
    ] = "auto"
    quantize: Annotated[
        Literal["int8"] | None,
        Setting(
            "int8: the backbone's linear layers with 8-bit weights, on a CPU; other tokens. Default: none.",
            *(OUTPUT, _METHODS, Tag.NAMED, Tag.VALIDATION, Tag.LOADED),
        ),
    ] = None
    seed: Annotated[int, Setting("Start of all random streams. Default 0.", _DECODING, _SEEDS)] = 0
    voter: Annotated[
        str,
        AfterValidator(known_voter),
        Setting(
            "flat (default), hierarchical, ... or file.py:function.",
            *(_DECODING, _FREE),
            values=OF_RUNS,
            not_in_sweeps="every vote is reported",
        ),
    ] = "flat"
    overlap: Annotated[
        Literal["warn", "refuse", "drop"] | None,
        Setting(
            "Questions that the thinker or adapter was trained on: warn (default), refuse, or drop them.",
            *(_RUN, _METHODS, Tag.HARNESS),
        ),
    ] = None
    out: Annotated[
        Path | None,
        Setting(
            "Run directory. Default: under runs/, named by the settings.",
            *(OUTPUT, _FREE, Tag.HARNESS),
            not_in_sweeps="every run and training gets a folder of the sweep",
        ),
    ] = None

    @property
    def soft(self) -> bool:
        """Whether the method has a thinker, and so soft thoughts."""
        return kind_of(self.method).has(Trait.THINKER)

    @property
    def assisted(self) -> bool:
        """Whether the method has an assistant."""
        return kind_of(self.method).has(Trait.ASSISTANT)

    @property
    def slots(self) -> bool:
        """Whether the prompts have slots, for thoughts or for placeholders."""
        return kind_of(self.method).has(Trait.SLOTS)

    @property
    def perturbed(self) -> bool:
        """Whether the latent paths are random changes of the thoughts of one path."""
        return kind_of(self.method).has(Trait.PERTURBED)

    @property
    def num_paths(self) -> int:
        """N, the number of latent paths. Raises ValueError if it is not decided yet, as the next three properties do."""
        return int(decided(self, "latent_paths"))

    @property
    def num_slots(self) -> int:
        """L, the number of slots in a prompt; 0 if the method has none."""
        return int(decided(self, "soft_tokens")) if self.slots else 0

    @property
    def longest(self) -> int:
        """The most new tokens of a completion."""
        return int(decided(self, "max_new_tokens"))

    @property
    def noise_size(self) -> float:
        """The size of the changes of a method that perturbs thoughts, relative to the thoughts."""
        return float(decided(self, "noise"))

    @property
    def thinking_device(self) -> str:
        """The device of the assistant and the thinker. Valid once `device` is no longer "auto"."""
        return self.assistant_device or self.device

    def resolved(self) -> RunConfig:
        """The same settings with the defaults that depend on other settings. Raises UsageError if settings contradict."""
        if self.latent_paths not in (None, 1) and "latent_paths" in idle_options(self.method):
            raise UsageError(
                f"`--latent-paths` {self.latent_paths} needs a method with several paths, and `{self.method}` has one: "
                f"use `--method softcot++`, or `--samples` for more chains."
            )
        if self.temperature == 0 and self.samples > 1:
            raise UsageError("`--temperature` 0 is greedy, so all samples of a path are equal: add `--samples 1`.")
        self._refuse_idle()
        self._refuse_unfit_engine()
        if kind_of(self.method).needs_adapter and not self.adapter:
            raise UsageError(
                f"`--method {self.method}` needs `--adapter`, a folder that `scale-train --method {self.method}` wrote, or "
                f"a Hub id: add it."
            )
        if self.shot_format and not self.shots:
            raise UsageError(
                f"`--shot-format` {self.shot_format} says where solved questions stand, and `--shots` is 0: raise it, or "
                f"leave the format out."
            )
        if self.rationale and not self.shots:
            raise UsageError(
                f"`--rationale` {self.rationale} says what solved questions show, and `--shots` is 0: raise it, or leave "
                f"the rationale out."
            )
        self._refuse_unfit_noise()
        if self.latent_tokens and len(self.latent_tokens.split()) not in (2, 3):
            raise UsageError(
                f"`--latent-tokens` is {self.latent_tokens!r}: give the tokens before and after the thoughts, with a space "
                f"between them, and a third where it is one to pause."
            )
        if self.latent_tokens and len(set(self.latent_tokens.split()[:2])) == 1:
            raise UsageError(
                f"`--latent-tokens` {self.latent_tokens!r} begins and ends thoughts with the same token: give two that "
                f"differ."
            )
        if self.thought_scale is not None and self.control not in (None, "shuffled", "counterfactual"):
            raise UsageError(
                f"`--thought-scale` {self.thought_scale} scales thoughts that `--control {self.control}` replaces by "
                f"the same ones for every question: leave one of them out."
            )
        refuse_unfit_prompt(self)
        if self.adaptive is not None and self.voter != "flat":
            raise UsageError(
                f"`--adaptive` {self.adaptive} stops where the flat vote is decided, and `--voter` is {self.voter}: "
                f"use `--voter flat`, or leave `--adaptive` out."
            )
        return self.model_copy(update=filled_in(dict(self)))

    def _refuse_idle(self) -> None:
        """Raises UsageError for a given option that the method does not use."""
        for key in self._given(idle_options(self.method)):
            if whose := settings_of(RunConfig)[key].whose:
                raise UsageError(f"`{option(key)}` is for {whose}, and `--method` is `{self.method}`: leave it out.")

    def _refuse_unfit_noise(self) -> None:
        """Raises UsageError for latent steps that noise was forgotten of, or that has a kind and no size."""
        if not kind_of(self.method).has(Trait.LATENT):
            return
        if self.latent_paths not in (None, 1) and self.noise is None:
            raise UsageError(
                f"`--latent-paths` {self.latent_paths} of `{self.method}` differ by noise alone: add `--noise 0.2`, or "
                f"`--samples` for more chains of one path."
            )
        if self.noise_kind and not self.noise:
            raise UsageError(
                f"`--noise-kind {self.noise_kind}` says how `--noise` changes thoughts, and that is 0: add `--noise 0.2`, "
                f"or leave the kind out."
            )

    def _refuse_unfit_engine(self) -> None:
        """Raises UsageError for an option that the engine does not use, or for a method that it cannot run."""
        engine = ENGINES[self.engine]
        for key in self._given(type(self).model_fields):
            if why := engine.does_not_take(key):
                raise UsageError(why)
        refuse_unfit(self.engine_args or {}, batch_size=self.batch_size)
        if why := engine.cannot_serve(kind_of(self.method), dict(self)):
            raise UsageError(why)
        if self.base_url:
            refuse_unfit_address(self.base_url)

    def _given(self, keys: Collection[str]) -> list[str]:
        """The options, out of `keys`, whose value is not the default."""
        fields = type(self).model_fields
        return [key for key in fields if key in keys and getattr(self, key) != fields[key].default]


_NOISE = 0.2  # relative to the thoughts: the best of 0.1, 0.2 and 0.35 on validation questions; see docs/methods.md


def task_of_settings(
    task: str | None, data: Any, columns: Mapping[str, str] | None = None, answer_kind: str | None = None
) -> Task:
    """The task of a run's settings, without its questions. Raises UsageError if there is none."""
    from scaling.tasks.catalogue import definition_of  # imported here, because tasks import this module to read YAML

    return definition_of(task, Path(data) if data else None, columns=columns, kind=answer_kind)


def refuse_unfit_prompt(config: BaseModel) -> None:
    """Raises UsageError if the template of a run or a training is missing, or is none."""
    from scaling.wording import wording_of  # imported here, because it imports tasks, and those import this module

    wording_of(config).check()


def is_generated(task: str | None, data: Any) -> bool:
    """Whether a run's questions are generated without end and need no file."""
    return task_of_settings(task, data).generated


def default_thinker(kind: MethodKind, backbone: str, assistant: str) -> str:
    """The default of `--thinker`: the trained one that comes with the default models, else an untrained one.

    The default thinker has an assistant, so that methods without one have no trained default.
    """
    if not kind.has(Trait.ASSISTANT):
        return UNTRAINED
    return DEFAULT_THINKER if backbone == assistant == DEFAULT_MODEL else UNTRAINED


def filled_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The values of settings whose defaults depend on other settings. A setting that was given keeps its value.

    Args:
        settings: all settings of a `RunConfig`, by name.

    Returns:
        The new values by name, of these settings only.
    """
    kind = kind_of(settings["method"])
    task = task_of_settings(settings["task"], settings["data"], settings["columns"], settings["answer_kind"])
    soft = kind.has(Trait.THINKER)
    models = (settings["backbone"], settings["assistant"])
    thinker = (settings["thinker"] or default_thinker(kind, *models)) if soft else None
    paths = kind.latent_paths or (1 if not kind.has(Trait.PATHS) else 8 if thinker == UNTRAINED else None)
    noise = settings["noise"]
    if noise is None and kind.has(Trait.PERTURBED):
        noise = 0.0 if kind.has(Trait.LATENT) else _NOISE  # a single path of latent steps is meant without noise
    seeds = "streams" if "engine_seeds" in ENGINES[settings["engine"]].settings else None
    return {
        "task": settings["task"] or (task.name if task.generated else None),
        "limit": settings["limit"] or task.limit,
        "thinker": thinker,
        "latent_paths": settings["latent_paths"] or paths,
        "max_new_tokens": settings["max_new_tokens"] or task.max_new_tokens,
        "noise": noise,
        "noise_kind": settings["noise_kind"] or ("gaussian" if kind.has(Trait.LATENT) and noise else None),
        # None lets the engine decide, because it knows whether it must share the device
        "assistant_device": None if settings["assistant_device"] == "auto" else settings["assistant_device"],
        "engine_seeds": settings["engine_seeds"] or seeds,
        "overlap": None if settings["overlap"] == "warn" else settings["overlap"],
        # None where it is as in version 0.1, so that its runs keep their hash
        "prompt": None if settings["prompt"] == PLAIN_PROMPT else settings["prompt"],
        "thinking": None if settings["thinking"] == "off" else settings["thinking"],
        "shot_format": None if settings["shot_format"] == "turns" else settings["shot_format"],
        "rationale": None if settings["rationale"] == "text" else settings["rationale"],
        "thought_scale": None if settings["thought_scale"] == 1 else settings["thought_scale"],
        "exact": settings["exact"] or None,  # None is left out of the hash, so runs from before this option keep theirs
    }


def decided(settings: BaseModel, key: str) -> Any:
    """The value of a setting. Raises ValueError if it is still None, that is, before `resolved` or the checkpoint set it."""
    value = getattr(settings, key)
    if value is None:
        raise ValueError(
            f"`{key}` is not decided yet: resolve the settings, and read the checkpoint, before it is used"
        )
    return value


def idle_options(method: str, model: type[BaseModel] = RunConfig) -> frozenset[str]:
    """The names of the settings that a method does not use. model: the settings of a run, or of a training."""
    return _idle(kind_of(method), model)


@cache
def _idle(kind: MethodKind, model: type[BaseModel]) -> frozenset[str]:
    return frozenset(
        key for key, setting in settings_of(model).items() if setting.used_by and not kind.has(setting.used_by)
    )


def option(key: str) -> str:
    """The command-line spelling of a config key."""
    return f"--{key.replace('_', '-')}"


Settings = TypeVar("Settings", bound=BaseModel)


def load_config(file: str | Path | None, given: dict[str, Any], kind: type[Settings]) -> Settings:
    """Makes settings of a YAML file and the command line, which overrides the file.

    Args:
        file: the YAML file; None for none.
        given: the values from the command line, by name.
        kind: the class of the settings.

    Raises:
        UsageError: the file cannot be read, or a key or a value is wrong. The message names the option.
    """
    if isinstance(file, str) and not file.strip():
        raise UsageError("`--config` is empty: give a file, or leave it out.")
    values = {**(_read_yaml(Path(file)) if file else {}), **given}
    unknown = [key for key in values if key not in kind.model_fields]
    if unknown:
        raise UsageError(f"unknown key `{unknown[0]}` in {file}.{nearest(str(unknown[0]), kind.model_fields)}")
    empty = [
        key for key, value in values.items() if isinstance(value, str) and not value.strip() and key != _MAY_BE_EMPTY
    ]
    if empty:
        raise UsageError(f"`{option(empty[0])}` is empty: give a value, or leave it out.")
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        # a union of types, as of `--batch-size`, gives one error for each type
        several = len(error.errors()) > 1 and all(str(entry["loc"][0]) == key for entry in error.errors())
        advice = "give a whole number from 1, or `auto`" if several else _said(first["msg"])
        shown = without_secrets(repr(values[key]))
        known = settings_of(kind)[key].values or _fixed_values(kind.model_fields[key].annotation)
        meant = nearest(str(values[key]), known)
        raise UsageError(f"`{option(key)}` is {shown}: {advice}.{meant}") from None


_MAY_BE_EMPTY = "engine_args"  # an empty text means no arguments


def _fixed_values(annotation: Any) -> list[str]:
    """The words that an annotation lists as possible values."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(value) for value in inner]
    return [value for part in inner for value in _fixed_values(part)]


def _said(message: str) -> str:
    message = message.removeprefix("Value error, ")  # which pydantic writes before the sentence of a check
    return message[0].lower() + message[1:]


_MERGE = "tag:yaml.org,2002:merge"


class _Strict(yaml.SafeLoader):
    """A YAML loader that refuses a mapping with the same key twice. YAML would silently take the last value."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # before `<<` is replaced by the keys that it merges
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key `{twice}` stands there twice", node.start_mark
            )
        return node


def parse_yaml(text: str) -> Any:
    """Parses the text of a YAML file.

    Raises:
        yaml.YAMLError: it is no YAML, or has the same key twice.
        ValueError: it has an impossible date.
    """
    try:
        return yaml.load(text, _Strict)
    except RecursionError:
        raise yaml.YAMLError("lists in lists, too many for any setting") from None


def _read_yaml(file: Path) -> dict[str, Any]:
    """The settings in a YAML file by name, not checked yet. Raises UsageError if the file cannot be read."""
    try:
        values = parse_yaml(file.read_text()) or {}
    except OSError as error:
        raise UsageError(f"`--config` {file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"`--config` {file} is not valid YAML: {one_line(error, limit=None)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"`--config` {file} must hold `key: value` lines, one per option.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}
