"""The settings of a run: one model for command line and YAML file. Imports no torch, so that help and errors are fast."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from scaling.engines.engine_args import pairs, refuse_unfit, refuse_unfit_address, without_secrets
from scaling.methods.kinds import KINDS, Trait, kind_of, known_method
from scaling.records.errors import UsageError, nearest, one_line
from scaling.records.voters import is_voter, what_a_voter_is

DEFAULT_MODEL = "smollm2-135m"
PERTURBED = tuple(name for name, kind in KINDS.items() if kind.has(Trait.PERTURBED))
DEFAULT_THINKER, UNTRAINED = "trained-default", "untrained"  # names beside folders, files and Hub ids


def known_voter(name: str) -> str:
    """The name, of a built-in voter or of something that can be loaded; nothing is loaded yet."""
    if not is_voter(name):
        raise PydanticCustomError("voter", f"input should be {what_a_voter_is()}")  # type: ignore[arg-type]
    return name


class RunConfig(BaseModel):
    """Every option of `scale-run`; the names are those of the command line with `_` for `-`.

    None means "chosen by `resolved`", which fills in what depends on other settings, or by the checkpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Annotated[str, AfterValidator(known_method)] = "softcot++"
    method_args: Annotated[dict[str, Any], BeforeValidator(pairs)] | None = None
    task: str | None = None
    data: Path | None = None
    limit: int | None = Field(None, ge=1)
    split: str = "test"
    difficulty: int = Field(1, ge=1, le=4)
    backbone: str = DEFAULT_MODEL
    assistant: str = DEFAULT_MODEL
    thinker: Annotated[str, BeforeValidator(str)] | None = None
    adapter: Annotated[str, BeforeValidator(str)] | None = None
    latent_paths: int | None = Field(None, ge=1)
    samples: int = Field(4, ge=1)
    soft_tokens: int | None = Field(None, ge=1)
    noise: float | None = Field(None, ge=0, allow_inf_nan=False)
    control: Literal["zero", "mean", "shuffled", "unk", "none"] | None = None
    shots: int = Field(0, ge=0)
    adaptive: float | None = Field(None, gt=0.5, le=1)
    temperature: float = Field(0.5, ge=0, allow_inf_nan=False)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: int | None = Field(None, ge=1)
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    max_batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    exact: bool | None = None
    engine: Literal["transformers", "vllm", "openai"] = "transformers"
    engine_args: Annotated[dict[str, Any], BeforeValidator(pairs)] | None = None
    engine_seeds: Literal["streams", "one"] | None = None
    base_url: str | None = None
    served_model: str | None = None
    device: str = "auto"
    assistant_device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    voter: Annotated[Literal["flat", "hierarchical"] | str, AfterValidator(known_voter)] = "flat"
    overlap: Literal["warn", "refuse", "drop"] | None = None
    seed: int = 0
    out: Path | None = None

    @property
    def soft(self) -> bool:
        """Whether the method has a thinker, hence an assistant and soft thoughts."""
        return kind_of(self.method).has(Trait.THINKER)

    @property
    def assisted(self) -> bool:
        """Whether an assistant is needed."""
        return kind_of(self.method).has(Trait.ASSISTANT)

    @property
    def slots(self) -> bool:
        """Whether prompts have soft tokens: thoughts, or placeholders."""
        return kind_of(self.method).has(Trait.SLOTS)

    @property
    def perturbed(self) -> bool:
        """Whether the latent paths are random draws around the thought of one."""
        return kind_of(self.method).has(Trait.PERTURBED)

    @property
    def several(self) -> bool:
        """Whether the method has more than one latent path to offer."""
        return kind_of(self.method).has(Trait.PATHS)

    @property
    def thinking_device(self) -> str:
        """Where the assistant and the thinker run, once `device` is chosen."""
        return self.assistant_device or self.device

    def resolved(self) -> RunConfig:
        """The same settings with every default that depends on others filled in. Raises UsageError where they clash."""
        if self.latent_paths not in (None, 1) and not self.several:
            raise UsageError(
                f"`--latent-paths` {self.latent_paths} needs a method with several paths, and `{self.method}` has one: "
                f"use `--method softcot++`, or `--samples` for more chains."
            )
        if self.temperature == 0 and self.samples > 1:
            raise UsageError("`--temperature` 0 is greedy, so all samples of a path are equal: add `--samples 1`.")
        self._refuse_idle()
        self._refuse_unfit_engine()
        if kind_of(self.method).has(Trait.ADAPTER) and not self.adapter:
            raise UsageError(
                "`--method lora` needs `--adapter`, a folder that `scale-train --method lora` wrote, or a Hub id: add it."
            )
        if self.adaptive is not None and self.voter != "flat":
            raise UsageError(
                f"`--adaptive` {self.adaptive} stops where the flat vote is decided, and `--voter` is {self.voter}: "
                f"use `--voter flat`, or leave `--adaptive` out."
            )
        return self.model_copy(update=filled_in(dict(self)))

    def _refuse_idle(self) -> None:
        """Raises UsageError for an option that the method would have to ignore."""
        for key, (used, whose) in self._users().items():
            if not used and getattr(self, key) != type(self).model_fields[key].default:
                raise UsageError(f"`{option(key)}` is for {whose}, and `--method` is `{self.method}`: leave it out.")

    def _refuse_unfit_engine(self) -> None:
        """Raises UsageError for an option that the engine would have to ignore, or lacks."""
        others = ("vllm", "openai")
        users = {
            **{"engine_args": ("vllm",), "engine_seeds": others, "base_url": ("openai",), "served_model": ("openai",)},
            **{"assistant_device": others, "device": ("transformers",), "max_batch_tokens": ("transformers",)},
            "exact": ("transformers",),
        }
        for key, engines in users.items():
            if self.engine not in engines and getattr(self, key) != type(self).model_fields[key].default:
                fit = " or ".join(f"`{engine}`" for engine in engines)
                instead = _INSTEAD.get((self.engine, key), "leave it out")
                raise UsageError(f"`{option(key)}` is for {fit}, and `--engine` is `{self.engine}`: {instead}.")
        refuse_unfit(self.engine_args or {}, batch_size=self.batch_size, slots=self.slots)
        if kind_of(self.method).has(Trait.LOCAL) and self.engine != "transformers":
            why = "merges its adapter" if kind_of(self.method).has(Trait.ADAPTER) else "runs weights of the backbone"
            raise UsageError(f"`--method {self.method}` {why} here, so it needs `--engine transformers`.")
        if self.engine == "openai" and not self.base_url:
            raise UsageError("`--engine openai` needs `--base-url`, as in `http://localhost:8000/v1`: add it.")
        if self.base_url:
            refuse_unfit_address(self.base_url)

    def _users(self) -> dict[str, tuple[bool, str]]:
        """For options that not every method has a use for: whether this one has, and which have."""
        kind = kind_of(self.method)
        thoughts = "methods with soft thoughts"
        perturbing = "the methods that perturb thoughts (softcot-p, softcot-dropout, softcot-gumbel)"
        return {
            "method_args": (kind.factory is not None, "a method of your own"),
            "thinker": (self.soft, thoughts),
            "soft_tokens": (self.slots, "methods with slots"),
            "control": (kind.has(Trait.THOUGHTS), thoughts),
            "noise": (self.perturbed, perturbing),
            "adapter": (kind.has(Trait.ADAPTER), "`lora`"),
            "shots": (kind.has(Trait.SHOTS), "`cot`"),
            "assistant_device": (self.assisted, "methods with an assistant"),
        }


_INSTEAD = {
    ("vllm", "device"): "vLLM takes the GPUs that CUDA_VISIBLE_DEVICES names; `--assistant-device` is the assistant's",
    ("openai", "device"): "give `--assistant-device` for the assistant",
    **dict.fromkeys(
        (("vllm", "exact"), ("openai", "exact")),
        "other engines do not promise the same tokens in every batch; leave it out",
    ),
    ("vllm", "max_batch_tokens"): 'give `--engine-args "gpu_memory_utilization=0.8"`',
}
OWN_LIMIT = 20  # questions of the generated task, whose stream has no end
_NOISE = 0.2  # relative to the thoughts: the best of 0.1, 0.2 and 0.35 on validation questions; see docs/methods.md


def is_generated(task: str | None, data: Any) -> bool:
    """Whether a run's questions are those of the generated task, which is there without any file."""
    return task in (None, "arithmetic") and data is None


def default_thinker(backbone: str, assistant: str) -> str:
    """The thinker where none is given: there is a trained one for the bundled model."""
    return DEFAULT_THINKER if backbone == assistant == DEFAULT_MODEL else UNTRAINED


def filled_in(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What stands for settings of a run that were not given, where that depends on others. settings: all of RunConfig's."""
    kind = kind_of(settings["method"])
    soft, several = kind.has(Trait.THINKER), kind.has(Trait.PATHS)
    own_task = is_generated(settings["task"], settings["data"])
    thinker = (settings["thinker"] or default_thinker(settings["backbone"], settings["assistant"])) if soft else None
    paths = kind.latent_paths or (1 if not several else 8 if thinker == UNTRAINED else None)
    seeds = None if settings["engine"] == "transformers" else "streams"
    return {
        "task": settings["task"] or ("arithmetic" if own_task else None),
        "limit": settings["limit"] or (OWN_LIMIT if own_task else None),
        "thinker": thinker,
        "latent_paths": settings["latent_paths"] or paths,
        "max_new_tokens": settings["max_new_tokens"] or (96 if own_task else 512),
        "noise": _NOISE if settings["noise"] is None and kind.has(Trait.PERTURBED) else settings["noise"],
        # where nothing is said the engine decides, as it knows whether the device must be shared
        "assistant_device": None if settings["assistant_device"] == "auto" else settings["assistant_device"],
        "engine_seeds": settings["engine_seeds"] or seeds,
        "overlap": None if settings["overlap"] == "warn" else settings["overlap"],
        "exact": settings["exact"] or None,  # as runs have it that were made before there was a choice
    }


@cache
def idle_options(method: str) -> frozenset[str]:
    """Keys of the settings that a method has no use for. Raises ValidationError for an unknown method."""
    config = RunConfig.model_validate({"method": method})
    idle = {key for key, (used, _) in config._users().items() if not used}
    idle |= set() if config.several else {"latent_paths"}
    return frozenset(idle if config.assisted else idle | {"assistant"})


def option(key: str) -> str:
    """The command-line spelling of a config key."""
    return f"--{key.replace('_', '-')}"


Settings = TypeVar("Settings", bound=BaseModel)


def load_config(file: str | Path | None, given: dict[str, Any], kind: type[Settings]) -> Settings:
    """Settings from a YAML file, overridden by what was given on the command line. Raises UsageError."""
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
        several = len(error.errors()) > 1 and all(str(one["loc"][0]) == key for one in error.errors())
        said = "give a whole number from 1, or `auto`" if several else _said(first["msg"])
        shown = without_secrets(repr(values[key]))
        meant = nearest(str(values[key]), _fixed_values(kind.model_fields[key].annotation))
        raise UsageError(f"`{option(key)}` is {shown}: {said}.{meant}") from None


_MAY_BE_EMPTY = "engine_args"  # pairs, of which there may be none


def _fixed_values(annotation: Any) -> list[str]:
    """What a setting may be, as far as that is a list of words."""
    inner = get_args(annotation)
    if get_origin(annotation) is Literal:
        return [str(value) for value in inner]
    return [value for part in inner for value in _fixed_values(part)]


def _said(message: str) -> str:
    return message[0].lower() + message[1:]


_MERGE = "tag:yaml.org,2002:merge"


class _Strict(yaml.SafeLoader):
    """Refuses a mapping with one key twice, of which the first would be passed over."""

    def compose_mapping_node(self, anchor: dict[Any, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)  # as it is written: `<<` is not yet replaced by what it merges
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        twice = next((key for number, key in enumerate(keys) if key in keys[:number]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key `{twice}` stands there twice", node.start_mark
            )
        return node


def parse_yaml(text: str) -> Any:
    """What a YAML file says. Raises yaml.YAMLError, also for one key twice, and ValueError for a day that no month has."""
    try:
        return yaml.load(text, _Strict)
    except RecursionError:
        raise yaml.YAMLError("lists in lists, too many for any setting") from None


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(file.read_text()) or {}
    except OSError as error:
        raise UsageError(f"`--config` {file} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError) as error:
        raise UsageError(f"`--config` {file} is not valid YAML: {one_line(error, limit=None)}") from None
    if not isinstance(values, dict):
        raise UsageError(f"`--config` {file} must hold `key: value` lines, one per option.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}
