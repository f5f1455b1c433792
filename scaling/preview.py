"""`--dry-run`: the resolved settings and the first prompt with its slots marked. Loads tokenizers, never weights."""

from __future__ import annotations

from scaling import models
from scaling.config import RunConfig
from scaling.prompts import SLOT, PromptBuilder
from scaling.tasks.catalogue import task_of
from scaling.thinkers import find, with_checkpoint


def preview(config: RunConfig) -> tuple[dict[str, object], str]:
    """(resolved settings, rendered prompts of the first question), each slot shown as [k] for k = 1 .. L."""
    config = config.resolved()
    task = task_of(config)
    device = models.pick_device(config.device)
    dtype = models.pick_dtype(config.dtype, device)
    config = with_checkpoint(config, find(config)) if config.soft else config
    num_slots = config.soft_tokens or 0
    settings = {
        **config.model_dump(mode="json"),
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "num_questions": len(task.questions),
    }
    question = task.questions[0]
    tokenizer = models.load_tokenizer(models.locate(config.backbone), name=config.backbone)
    prompt = PromptBuilder(tokenizer, kind=task.kind).backbone(question, num_slots=num_slots)
    length = len(prompt.prefix) + num_slots + len(prompt.suffix)
    text = f"backbone prompt of {question.id}, {length} tokens:\n{_mark(prompt.text)}"
    if config.soft:
        tokenizer = models.load_tokenizer(models.locate(config.assistant), name=config.assistant)
        ids = PromptBuilder(tokenizer, kind=task.kind).assistant(question)
        slots = "".join(f"[{slot}]" for slot in range(1, num_slots + 1))
        text += (
            f"\n\nassistant prompt, {len(ids)} tokens, then {num_slots} slots:\n{tokenizer.decode(list(ids))}{slots}"
        )
    return settings, text


def _mark(text: str) -> str:
    parts = text.split(SLOT)
    return parts[0] + "".join(f"[{slot}]{part}" for slot, part in enumerate(parts[1:], start=1))
