"""The settings of a probe, for the command line and for YAML files. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from scaling.config import (
    DEFAULT_MODEL,
    OUTPUT,
    PLAIN_PROMPT,
    PROMPT,
    AnswerKind,
    ColumnNames,
    refuse_unfit_prompt,
    task_of_settings,
)
from scaling.records.errors import UsageError
from scaling.records.settings import Setting, Tag

_DATA, _MODELS, _MEASURES = "What to ask", "Models", "What to measure"
_Amount = Annotated[int, Field(ge=0)]
_Count = Annotated[int, Field(ge=1)]


def _as_text(value: Any) -> Any:
    """A number or a list of numbers, as YAML reads it, as the command line has it."""
    listed = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return ",".join(map(str, listed))


class ProbeConfig(BaseModel):
    """Every option of `scale-probe`.

    Names are those of the command line with `_` for `-`. An option that `scale-train` has, too, has the same name in
    `TrainConfig`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: Annotated[str | None, Setting("As in scale-run; arithmetic by default.", _DATA)] = None
    data: Annotated[
        Path | None, Setting("Questions as in scale-run: a folder with a train split, or a file.", _DATA)
    ] = None
    columns: Annotated[ColumnNames | None, Setting("Columns of --data, as in scale-run.", _DATA)] = None
    answer_kind: Annotated[AnswerKind | None, Setting("Answers of --data. Default: as they look.", _DATA)] = None
    limit: Annotated[
        int, Field(ge=10), Setting("Questions to measure on, never of the test split. Default 200.", _DATA)
    ] = 200
    difficulty: Annotated[
        int, Field(ge=1, le=4), Setting("Of generated questions: 1 (default) to 4 at most.", _DATA)
    ] = 1
    targets: Annotated[
        Literal["gold", "self"], Setting("gold rationales (default), or self: the backbone's own right chains.", _DATA)
    ] = "gold"
    chains: Annotated[_Count, Setting("Chains sampled per question for self targets. Default 4.", _DATA)] = 4
    prompt: Annotated[str | None, Setting("A template of the prompt, as in scale-run.", PROMPT)] = None
    assistant_prompt: Annotated[str | None, Setting("How the assistant is asked, as in scale-run.", PROMPT)] = None
    backbone: Annotated[
        str,
        Setting("Folder, GGUF file, Hub id (owner/name@revision), or smollm2-135m (default).", _MODELS, Tag.HUB),
    ] = DEFAULT_MODEL
    assistant: Annotated[str, Setting("The same, for the model that thinks.", _MODELS, Tag.HUB)] = DEFAULT_MODEL
    soft_tokens: Annotated[_Count, Setting("Soft tokens L. Default 4.", _MEASURES)] = 4
    layers: Annotated[
        Annotated[str, BeforeValidator(_as_text)] | None,
        Setting("Layers of the assistant to read: 8,16,30. Default: four, up to the last.", _MEASURES),
    ] = None
    constant_steps: Annotated[
        _Amount, Setting("Steps, of 8 questions, of the best constant prompt. Default 60; 0: none.", _MEASURES)
    ] = 60
    oracle_questions: Annotated[
        _Amount, Setting("Questions whose thoughts are optimised. Default 16; 0: none.", _MEASURES)
    ] = 16
    oracle_steps: Annotated[_Count, Setting("Steps for each of them. Default 50.", _MEASURES)] = 50
    device: Annotated[str, Setting("auto (default), cpu, cuda, cuda:1 ...", OUTPUT)] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Setting("Of the models: auto (default), float32, bfloat16.", OUTPUT),
    ] = "auto"

    def resolved(self) -> ProbeConfig:
        """The same settings with all defaults that depend on other settings. Raises UsageError where settings contradict."""
        task = task_of_settings(self.task, self.data)
        refuse_unfit_prompt(self)
        self.layer_numbers()
        if self.oracle_questions == 1:
            raise UsageError("`--oracle-questions` must be 0 or at least 2, not 1: one question shows no spread.")
        if self.oracle_questions > self.limit:
            raise UsageError(
                f"`--oracle-questions` {self.oracle_questions} are taken from the `--limit` {self.limit} questions that are "
                f"measured: lower the one or raise the other."
            )
        return self.model_copy(
            update={
                "task": self.task or (task.name if task.generated else None),
                "prompt": None if self.prompt == PLAIN_PROMPT else self.prompt,
            }
        )

    def layer_numbers(self, *, last: int | None = None) -> tuple[int, ...]:
        """The layers to read, in order; without `--layers`, the quarters of the assistant.

        Args:
            last: the assistant's number of layers, whose output is the last hidden state; None before that is known.

        Raises:
            UsageError: `--layers` is no list of layers that the assistant has.
        """
        if self.layers is None:
            return tuple(sorted({-(-last * part // 4) for part in (1, 2, 3, 4)})) if last else ()
        try:
            numbers = tuple(sorted({int(number) for number in self.layers.split(",")}))
        except ValueError:
            numbers = (-1,)
        if numbers[0] < 0 or (last is not None and numbers[-1] > last):
            highest = f" to {last}, those of the assistant" if last else ""
            raise UsageError(
                f"`--layers` must be layers from 0 (the embeddings){highest}, with commas between them, not {self.layers}: "
                f"give some such as 8,16."
            )
        return numbers
