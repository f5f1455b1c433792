"""`--dry-run`: the resolved settings and the first prompt with its slots marked. Loads tokenizers, never weights."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from scaling import hardware, model_files, models
from scaling.config import RunConfig
from scaling.errors import WARNING
from scaling.methods.build import exemplars
from scaling.prompts import SLOT, PromptBuilder
from scaling.provenance import provenance_of
from scaling.tasks.catalogue import Task, task_of
from scaling.thinkers import SOFT_TOKENS, find, with_checkpoint

_NOTES = "[what the assistant writes]"
_REPLACED = {
    "zero": "zeros",
    "mean": "the mean thoughts of the first questions",
    "shuffled": "the thoughts of another question",
    "unk": "the embedding of the backbone's rarest token",
    "none": "nothing: the markers stand side by side",
}


def preview(config: RunConfig) -> tuple[dict[str, object], str]:
    """(resolved settings, rendered prompts of the first question), each slot shown as [k] for k = 1 .. L."""
    config = config.resolved()
    task, provenance = provenance_of(config, task_of(config))
    config, _ = hardware.placed(config)
    config = with_checkpoint(config, find(config)) if config.soft else config
    settings = {**config.model_dump(mode="json"), "num_questions": len(task.questions)}
    parts = [_backbone(config, task), *([_assistant(config, task)] if config.assisted else [])]
    if config.control:
        parts.append(f"control {config.control}: the slots hold {_REPLACED[config.control]}")
    parts += [f"{WARNING}{warning}." for warning in provenance.warnings()]
    return settings, "\n\n".join(parts)


def _backbone(config: RunConfig, task: Task) -> str:
    question = task.questions[0]
    builder = PromptBuilder(_tokenizer(config.backbone), kind=task.kind, exemplars=exemplars(config, task))
    num_slots = _num_slots(config)
    prompt = builder.backbone(question, num_slots=num_slots, notes=_NOTES if config.method == "assist-cot" else "")
    length = len(prompt.prefix) + num_slots + len(prompt.suffix)
    counted = "" if config.method == "assist-cot" else f", {length} tokens"
    return f"backbone prompt of {question.id}{counted}:\n{_mark(prompt.text)}"


def _assistant(config: RunConfig, task: Task) -> str:
    question = task.questions[0]
    tokenizer = _tokenizer(config.assistant)
    builder = PromptBuilder(tokenizer, kind=task.kind)
    num_slots = _num_slots(config)
    if not num_slots:
        ids, then, slots = builder.hint_request(question), "it writes", ""
    else:
        ids, then = builder.assistant(question), f"{num_slots} slots"
        slots = "".join(f"[{slot}]" for slot in range(1, num_slots + 1))
    return f"assistant prompt, {len(ids)} tokens, then {then}:\n{tokenizer.decode(list(ids))}{slots}"


def _num_slots(config: RunConfig) -> int:
    return config.soft_tokens or (SOFT_TOKENS if config.soft or config.method == "cot-unk" else 0)


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    return models.load_tokenizer(model_files.locate(name), name=name)


def _mark(text: str) -> str:
    parts = text.split(SLOT)
    return parts[0] + "".join(f"[{slot}]{part}" for slot, part in enumerate(parts[1:], start=1))
