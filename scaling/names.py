"""What a run's method is called, as the papers call it. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {
    **{"cot": "CoT", "cot-unk": "CoT-Unk", "assist-cot": "Assist-CoT", "lora": "LoRA", "softcot": "SoftCoT"},
    **{"softcot-p": "SoftCoT-P", "softcot-dropout": "SoftCoT-Dropout", "softcot-gumbel": "SoftCoT-Gumbel"},
    "softcot++": "SoftCoT++",
}


def called(config: Mapping[str, Any]) -> str:
    """-SC for self-consistency, several samples of one path; a control in brackets."""
    method = str(config.get("method"))
    several = "-SC" if int(config.get("latent_paths") or 1) == 1 and int(config.get("samples") or 1) > 1 else ""
    shots = f", {config['shots']}-shot" if config.get("shots") else ""
    control = f" [{config['control']}]" if config.get("control") else ""
    return f"{_NAMES.get(method, method)}{several}{shots}{control}"
