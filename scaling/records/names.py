"""What a run's method is called, as the papers call it, and what its questions are called. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TITLE = "method_title"  # in a run's environment: of a method that does not come with the package
UNKNOWN = "unknown"  # what a thinker or an adapter was trained on that does not say
TITLES = {  # of the methods that come with the package, as the papers call them
    **{"cot": "CoT", "cot-unk": "CoT-Unk", "assist-cot": "Assist-CoT", "lora": "LoRA", "softcot": "SoftCoT"},
    **{"softcot-p": "SoftCoT-P", "softcot-dropout": "SoftCoT-Dropout", "softcot-gumbel": "SoftCoT-Gumbel"},
    "softcot++": "SoftCoT++",
}
_SPLITS = ("train", "test", "validation", "dev", "valid")
_TRAINING = re.compile(r" \[(?:untrained|trained on [^\],]+)(?:, ([^\]]+))?\]")


def called(config: Mapping[str, Any], environment: Mapping[str, Any] | None = None) -> str:
    """-SC for self-consistency, several samples of one path; in brackets how it was trained, unless that was on the run's
    own questions, and a control. environment: of run.json; without it only what the config says is known."""
    method = str(config.get("method"))
    title = (environment or {}).get(TITLE) or TITLES.get(method, method)
    several = "-SC" if int(config.get("latent_paths") or 1) == 1 and int(config.get("samples") or 1) > 1 else ""
    shots = f", {config['shots']}-shot" if config.get("shots") else ""
    details = [str(one) for one in (training_of(config, environment or {}), config.get("control")) if one]
    brackets = f" [{', '.join(details)}]" if details else ""
    return f"{title}{several}{shots}{brackets}"


def training_of(config: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """`untrained`, `trained on X` where that is another task than the run's own, else empty.

    Runs of version 0.1 say nothing of it in their environment, but their config tells the thinkers that it had names for.
    """
    thinker = config.get("thinker")
    if thinker == "untrained":
        return "untrained"
    if thinker:
        trained_on = environment.get("thinker_trained_on") or ("arithmetic" if thinker == "trained-default" else None)
    else:
        trained_on = environment.get("adapter_trained_on") if config.get("adapter") else None
    asked = environment.get("task") or questions_called(config.get("task"), config.get("data"))
    if trained_on in (None, UNKNOWN, asked):
        return ""
    return f"trained on {re.sub(r'[][,=]', '-', str(trained_on))}"


def without_training(name: str) -> str:
    """The name that a method of `called` would have had it been trained on the run's own questions."""
    return _TRAINING.sub(lambda match: f" [{match[1]}]" if match[1] else "", name)


def questions_called(task: str | None, data: Any) -> str:
    """The task, or what the file or folder of its questions is called; for a file like train.jsonl that is its folder."""
    place = Path(str(data)) if data else None
    stem = place.stem if place and place.suffix == ".jsonl" else place.name if place else ""
    if place is None or task not in (None, stem):
        return task or "arithmetic"
    return place.parent.name if stem in _SPLITS and place.parent.name else stem
