"""`--dry-run`: the resolved settings and the first prompt with its slots marked, after all that a run checks before it loads
weights. Loads tokenizers and shapes of models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from scaling.config import RunConfig
from scaling.engines.base import Workload
from scaling.engines.build import refuse_unfit
from scaling.engines.kinds import KINDS as ENGINES
from scaling.methods.base import Parts
from scaling.methods.build import parts_of
from scaling.methods.hints import MAX_HINT_TOKENS
from scaling.methods.kinds import Trait, kind_of
from scaling.methods.thoughts import filled_slots
from scaling.models import loading, model_files
from scaling.models.loading import LanguageModel
from scaling.prompts import SLOT, PromptBuilder, as_asked, prompt_identity
from scaling.records.errors import WARNING, UsageError
from scaling.records.journal import refuse_unfit_folder
from scaling.records.records import PromptedQuestion
from scaling.run import begin, described_by, refuse_too_long
from scaling.tasks.task import LoadedTask

_NOTES = "[what the assistant writes]"
_REPLACED = {
    "zero": "zeros",
    "mean": "the mean thoughts of the first questions",
    "shuffled": "the thoughts of another question",
    "unk": "the embedding of the backbone's rarest token",
    "none": "nothing: the markers stand side by side",
}


def preview(config: RunConfig) -> tuple[dict[str, object], str]:
    """(resolved settings, rendered prompts of the first question), each slot shown as [k] for k = 1 .. L.

    Raises UsageError where a run with these settings would, as far as that can be told without weights.
    """
    config, task, dtype, provenance = begin(config)
    parts = parts_of(config, task)
    config = parts.config
    backbone = _unread(config, "backbone", dtype)
    assistant = _unread(config, "assistant", dtype) if config.assisted else None
    parts.refuse_unfit(backbone, assistant)
    _refuse_unfit(parts, task, backbone, assistant)
    settings = {**config.model_dump(mode="json"), "num_questions": len(task.questions)}
    prompts = [_backbone(parts, task, backbone)]
    if assistant and (config.soft or _writes_notes(config)):  # what a user's own method asks it, only that method knows
        prompts.append(_assistant(config, task, assistant))
    if config.control:
        prompts.append(f"control {config.control}: the slots hold {_REPLACED[config.control]}")
    prompts += [f"{WARNING}{warning}." for warning in provenance.warnings()]
    return settings, "\n\n".join(prompts)


def _unread(config: RunConfig, role: str, dtype: torch.dtype) -> LanguageModel:
    """A model without its weights. Raises UsageError where a folder lacks a part that the run will read."""
    name = getattr(config, role)
    model = loading.load_shapes_only(name, dtype=dtype)
    read = role == "assistant" or ENGINES[config.engine].local_weights or config.slots
    source = Path(model_files.locate(name))
    if read and source.is_dir() and (incomplete := model_files.why_incomplete(source)):
        raise UsageError(incomplete)
    return model


def _refuse_unfit(parts: Parts, task: LoadedTask, backbone: LanguageModel, assistant: LanguageModel | None) -> None:
    """Raises UsageError for prompts, an engine or a directory that the run would refuse."""
    config = parts.config
    asked = _asked(parts, task, backbone, assistant)
    refuse_too_long(asked, config, backbone, assistant)
    longest = max(one.prompt_tokens for one in asked) + config.longest
    refuse_unfit(config, backbone, Workload(longest, slots=filled_slots(config) > 0))
    if config.out:
        known = {**described_by(config, task), **prompt_identity(backbone.tokenizer), **parts.identity()}
        refuse_unfit_folder(config.out, known, asked)


def _asked(
    parts: Parts, task: LoadedTask, backbone: LanguageModel, assistant: LanguageModel | None
) -> list[PromptedQuestion]:
    """The questions with the lengths of their prompts, the assistant's notes as short as they can be."""
    config = parts.config
    builder = PromptBuilder.of(backbone, task=task.definition, exemplars=parts.exemplars)
    notes = "." if _writes_notes(config) else ""
    thinking = PromptBuilder.of(assistant, task=task.definition) if assistant else None
    asked = []
    for question in task.questions:
        read = 0
        if thinking and config.soft:
            read = len(thinking.assistant(question))
        elif thinking and notes:
            read = len(thinking.hint_request(question))
        prompt = builder.backbone(question, num_slots=config.num_slots, notes=notes)
        one = as_asked(question, prompt, num_slots=filled_slots(config), assistant_tokens=read)
        asked.append(replace(one, kind=task.kind))
    return asked


def _backbone(parts: Parts, task: LoadedTask, backbone: LanguageModel) -> str:
    config, question = parts.config, task.questions[0]
    builder = PromptBuilder.of(backbone, task=task.definition, exemplars=parts.exemplars)
    num_slots = config.num_slots
    prompt = builder.backbone(question, num_slots=num_slots, notes=_NOTES if _writes_notes(config) else "")
    length = len(prompt.prefix) + num_slots + len(prompt.suffix)
    counted = "" if _writes_notes(config) else f", {length} tokens"
    return f"backbone prompt of {question.id}{counted}:\n{_mark(prompt.text)}"


def _assistant(config: RunConfig, task: LoadedTask, assistant: LanguageModel) -> str:
    question = task.questions[0]
    builder = PromptBuilder.of(assistant, task=task.definition)
    num_slots = config.num_slots
    if not num_slots:
        ids, then, slots = builder.hint_request(question), f"it writes at most {MAX_HINT_TOKENS}", ""
    else:
        ids, then = builder.assistant(question), f"{num_slots} slots"
        slots = "".join(f"[{slot}]" for slot in range(1, num_slots + 1))
    return f"assistant prompt, {len(ids)} tokens, then {then}:\n{assistant.tokenizer.decode(list(ids))}{slots}"


def _writes_notes(config: RunConfig) -> bool:
    """Whether the assistant's own words stand in the backbone's prompt."""
    return kind_of(config.method).has(Trait.NOTES)


def _mark(text: str) -> str:
    parts = text.split(SLOT)
    return parts[0] + "".join(f"[{slot}]{part}" for slot, part in enumerate(parts[1:], start=1))
