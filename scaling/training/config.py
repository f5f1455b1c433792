"""The settings of a training: one model for command line and YAML file. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from scaling.config import is_generated, option
from scaling.methods.kinds import Trait, kind_of
from scaling.records.errors import UsageError

FREE = ("out", "resume", "device", "log_with", "push_to_hub", "gradient_checkpointing", "grad_accumulation")
# settings of one method alone: they are no part of what describes a training by the other
OF_THOUGHTS = (
    *("assistant", "latent_paths", "soft_tokens", "vector_per_slot", "normalise", "standardise", "path_offset"),
    *("freeze_token_sets", "contrastive", "contrastive_weight", "contrastive_temperature", "question_weight"),
)
OF_LORA = ("rank", "merge", "check_on", "check_limit")
_LR = {"softcot++": 2e-3, "lora": 2e-4}
_RANK, _CHECKED = 16, 50


class TrainConfig(BaseModel):
    """Every option of `scale-train`; names as on the command line with `_` for `-`, and as in `RunConfig` where they mean
    the same. None means "chosen by `resolved`"."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Literal["softcot++", "lora"] = "softcot++"
    task: str | None = None
    data: Path | None = None
    limit: int | None = Field(None, ge=2)
    validation: int = Field(32, ge=2)
    difficulty: int = Field(1, ge=1, le=4)
    targets: Literal["gold", "self"] = "gold"
    chains: int = Field(4, ge=1)
    backbone: str = "smollm2-135m"
    assistant: str = "smollm2-135m"
    latent_paths: int = Field(8, ge=1)
    soft_tokens: int = Field(4, ge=1)
    vector_per_slot: bool = False
    normalise: bool = True
    standardise: bool = True
    path_offset: bool = True
    freeze_token_sets: bool = False
    contrastive: Literal["paper", "view", "uniform", "none"] = "view"
    contrastive_weight: float = Field(1.0, ge=0, allow_inf_nan=False)
    contrastive_temperature: float | None = Field(None, gt=0, allow_inf_nan=False)
    question_weight: float = Field(0.0, ge=0, allow_inf_nan=False)
    rank: int | None = Field(None, ge=1)
    merge: bool = False
    check_on: Path | None = None
    check_limit: int | None = Field(None, ge=1)
    epochs: int | None = Field(None, ge=1)
    max_steps: int | None = Field(None, ge=1)
    batch_size: int = Field(8, ge=1)
    grad_accumulation: int | None = Field(None, ge=1)
    gradient_checkpointing: bool = False
    lr: float | None = Field(None, gt=0, allow_inf_nan=False)
    warmup: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    clip: float = Field(1.0, gt=0, allow_inf_nan=False)
    validate_every: int | None = Field(None, ge=1)
    patience: int = Field(0, ge=0)
    seed: int = 0
    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    out: Path | None = None
    resume: bool = False
    log_with: Literal["tensorboard", "wandb", "trackio"] | None = None
    push_to_hub: str | None = None

    def resolved(self) -> TrainConfig:
        """The same settings with every default that depends on others filled in. Raises UsageError where they clash."""
        own_task = is_generated(self.task, self.data)
        if self.epochs and self.max_steps:
            raise UsageError(f"`--epochs` {self.epochs} and `--max-steps` {self.max_steps}: give one of them.")
        if self.grad_accumulation and self.grad_accumulation > self.batch_size:
            raise UsageError(
                f"`--grad-accumulation` {self.grad_accumulation} parts need as many questions, and `--batch-size` is "
                f"{self.batch_size}: lower the one or raise the other."
            )
        common = {
            "task": self.task or ("arithmetic" if own_task else None),
            "limit": self.limit or (512 if own_task else None),
            "epochs": self.epochs or (None if self.max_steps else 3),
            "lr": self.lr or _LR[self.method],
        }
        return self.model_copy(
            update=common | (self._lora() if kind_of(self.method).has(Trait.ADAPTER) else self._thoughts())
        )

    def _lora(self) -> dict[str, Any]:
        """The defaults of LoRA alone. Raises UsageError for an option that it would have to ignore."""
        given = [key for key in OF_THOUGHTS if key in self.model_fields_set]
        if given:
            raise UsageError(
                f"`{option(given[0])}` is for the thoughts of `--method softcot++`, and `--method` is lora, which has none: "
                f"leave it out."
            )
        if self.check_limit and self.check_on is None:
            raise UsageError(
                f"`--check-limit` {self.check_limit} counts questions of `--check-on`, which is not given: name a file of "
                f"questions that are not trained on, or leave it out."
            )
        return {"rank": self.rank or _RANK, "check_limit": self.check_limit or (_CHECKED if self.check_on else None)}

    def _thoughts(self) -> dict[str, Any]:
        """The defaults of a thinker alone. Raises UsageError where options clash, or are of LoRA."""
        given = [key for key in OF_LORA if getattr(self, key)]
        if given:
            raise UsageError(
                f"`{option(given[0])}` is for `--method lora`, and `--method` is {self.method}: add `--method lora`, or "
                f"leave it out."
            )
        if self.standardise and not self.normalise:
            raise UsageError(
                "`--no-normalise` changes nothing where states are standardised: add `--no-standardise`, or leave it out."
            )
        if self.contrastive == "none" and self.contrastive_temperature is not None:
            raise UsageError("`--contrastive-temperature` is given and `--contrastive` is none: leave one of them out.")
        if self.latent_paths == 1 and self.contrastive != "none" and "contrastive" in self.model_fields_set:
            raise UsageError(
                f"`--contrastive` {self.contrastive} drives paths apart, and there is one: leave it out, or raise "
                f"`--latent-paths`."
            )
        return {"contrastive": self.contrastive if self.latent_paths > 1 else "none"}
