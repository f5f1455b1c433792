"""LoRA (arXiv 2106.09685): the prompts of chain of thought, and a backbone with an adapter merged into its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scaling.config import RunConfig
from scaling.methods.base import Method, Parts, Surroundings
from scaling.methods.cot import ChainOfThought
from scaling.models import adapters
from scaling.models.loading import LanguageModel
from scaling.records.errors import WARNING
from scaling.tasks.catalogue import Task


@dataclass(frozen=True, eq=False, kw_only=True)
class LoraParts(Parts):
    """adapter: as it lies on disk."""

    adapter: adapters.AdapterFiles

    @classmethod
    def read(cls, config: RunConfig, task: Task) -> LoraParts:  # noqa: ARG003
        return cls(config, adapter=adapters.find(str(config.adapter)))

    def build(self, surroundings: Surroundings) -> Method:
        backbone = surroundings.own_backbone()
        merged = adapters.merged(adapters.load(self.adapter, backbone), backbone)
        for warning in adapters.mismatches(self.adapter, backbone):
            surroundings.tell(f"{WARNING}{warning}")
        return with_adapter(
            merged, kind=surroundings.task.kind, fingerprint=backbone.fingerprint, sha256=self.adapter.sha256
        )

    def identity(self) -> dict[str, Any]:
        return {"adapter_sha256": self.adapter.sha256}

    def refuse_unfit(self, backbone: LanguageModel, assistant: LanguageModel | None) -> None:  # noqa: ARG002
        adapters.load(self.adapter, backbone)


def with_adapter(merged: LanguageModel, *, kind: str, fingerprint: str, sha256: str) -> ChainOfThought:
    """The prompts of chain of thought for a backbone with its adapter merged.

    Args:
        kind: of the task's answers.
        fingerprint: of the backbone without the adapter.
        sha256: of the adapter's file.
    """
    identity = {
        "backbone_fingerprint": fingerprint,
        "merged_fingerprint": merged.fingerprint,
        "adapter_sha256": sha256,
    }
    return ChainOfThought(merged, kind=kind, identity=identity)
