"""Writes the model card of a checkpoint: what it is, for which models, how it was made, and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contrastive.checkpoint import CARD_FILE
from scaling.methods.kinds import DEFAULT
from scaling.models.model_files import with_revision
from scaling.records.names import TITLES


def write_card(folder: Path, about: dict[str, Any]) -> None:
    """Writes the card of a thinker to its folder. about: `ThinkerConfig.about` of its checkpoint."""
    (folder / CARD_FILE).write_text(card(about))


def write_lora_card(folder: Path, about: dict[str, Any]) -> None:
    """Writes the card of an adapter to its folder. about: the content of its train.json."""
    (folder / CARD_FILE).write_text(lora_card(about))


def lora_card(about: dict[str, Any]) -> str:
    """The card of an adapter, in Markdown. about: the content of its train.json."""
    metrics = about["metrics"]
    return f"""---
library_name: peft
base_model: {with_revision(about["backbone"])[0]}
tags: [lora, softcotpp]
---

# LoRA adapter for {about["backbone"]}

Rank {about["rank"]}, alpha {2 * about["rank"]}, on all linear layers. It learned to answer questions of
{about["task"]} after the prompt of chain of thought.

```
scale-run --method lora --backbone {about["backbone"]} --adapter FOLDER
```

## Held-out questions of {about["task"]}

| figure | value |
|---|---|
| loss before training, nats a token | {metrics["before"]:.4f} |
| loss of this adapter | {metrics["loss"]:.4f} |
{_check(metrics.get("check"))}
## How it was made

| setting | value |
|---|---|
{_settings(about)}
"""


def _check(check: dict[str, Any] | None) -> str:
    """The section on questions of another task; empty without `--check-on`."""
    if check is None:
        return ""
    return f"""
## What it forgot or learned elsewhere

Greedy chain of thought on {check["questions"]} questions of {check["task"]}, which was not trained on:

| figure | value |
|---|---|
| right before training | {check["before"]:.1%} |
| right with this adapter | {check["after"]:.1%} |
| right only before | {check["only_before"]} |
| right only after | {check["only_after"]} |
| exact McNemar p | {check["p"]:.3f} |
"""


def _settings(about: dict[str, Any]) -> str:
    """Rows of a table of the settings: of all values that fit one cell."""
    return "\n".join(f"| `{key}` | {value} |" for key, value in about.items() if isinstance(value, str | int | float))


def card(about: dict[str, Any]) -> str:
    """The card of a thinker, in Markdown. about: `ThinkerConfig.about` of its checkpoint."""
    metrics = about["metrics"]
    information = metrics["another"] - metrics["loss"]
    return f"""---
library_name: softcotpp
base_model: {with_revision(about["backbone"])[0]}
tags: [softcot, latent-reasoning]
---

# {TITLES[about.get("method", DEFAULT)]} thinker for {about["backbone"]}

{_what(about)}

```
scale-run {_options(about)}--thinker FOLDER
```

## Held-out questions of {about["task"]}

| figure | value |
|---|---|
| loss with the question's thoughts, nats a token | {metrics["loss"]:.4f} |
| without thoughts | {metrics["without"]:.4f} |
| with another question's thoughts | {metrics["another"]:.4f} |
| question information | {information:+.4f} |
| mean cosine between paths | {_cosine(metrics["path_cosine"])} |
| mean cosine between questions | {_cosine(metrics["question_cosine"])} |
| effective rank of the paths | {metrics["effective_rank"]:.2f} of {about["latent_paths"]} |

## How it was made

| setting | value |
|---|---|
{_settings(about)}
"""


def _what(about: dict[str, Any]) -> str:
    """A paragraph on what a thinker is, and what it makes of a question."""
    size = f"{about['soft_tokens']} soft thoughts for each path, after which\n{about['backbone']} reasons."
    if "assistant" not in about:
        paths, title = about["latent_paths"], TITLES[about["method"]]
        return (
            f"{title}, {paths} latent path{'s' * (paths != 1)}; no frozen model is in here. It gives a question {size}"
        )
    if states := about.get("states"):
        learned = f"A projection and learned gains, on the states `{states}` of the assistant"
    else:
        learned = f"{about['latent_paths']} learned initial token sets and one projection"
    return f"{learned}; no frozen model is in here. The assistant\n{about['assistant']} turns a question into {size}"


def _options(about: dict[str, Any]) -> str:
    """The options that name the models, and the method where it is not the default."""
    method = f"--method {about['method']} " if "method" in about else ""
    assistant = f"--assistant {about['assistant']} " if "assistant" in about else ""
    return f"{method}--backbone {about['backbone']} {assistant}"


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
