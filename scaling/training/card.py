"""The model card beside a checkpoint: what it is, for which models, how it was made, how good it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from contrastive.checkpoint import CARD_FILE


def write_card(folder: Path, about: dict[str, Any]) -> None:
    """about: as in the checkpoint's config."""
    (folder / CARD_FILE).write_text(card(about))


def card(about: dict[str, Any]) -> str:
    metrics = about["metrics"]
    information = metrics["another"] - metrics["loss"]
    settings = "\n".join(
        f"| `{key}` | {value} |" for key, value in about.items() if isinstance(value, str | int | float)
    )
    return f"""---
library_name: softcotpp
base_model: {about["backbone"]}
tags: [softcot, latent-reasoning]
---

# SoftCoT++ thinker for {about["backbone"]}

{about["latent_paths"]} learned initial token sets and one projection; no frozen model is in here. The assistant
{about["assistant"]} turns a question into {about["soft_tokens"]} soft thoughts for each path, after which
{about["backbone"]} reasons.

```
scale-run --backbone {about["backbone"]} --assistant {about["assistant"]} --thinker FOLDER
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
{settings}
"""


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
