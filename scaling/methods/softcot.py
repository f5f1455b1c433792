"""SoftCoT (one latent path, arXiv 2502.12134) and SoftCoT++ (N latent paths, arXiv 2505.11484)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from contrastive.thinker import Thinker
from scaling.costs import RunCosts
from scaling.engines.base import SoftPrompt
from scaling.errors import UsageError
from scaling.models import LanguageModel
from scaling.prompts import PromptBuilder, as_asked
from scaling.records import Asked, Question


class SoftCoT:
    """Soft thoughts of a thinker between the hint markers; path k is the thinker's k-th token set.

    One path is SoftCoT, several are SoftCoT++: nothing else differs.
    """

    def __init__(
        self, backbone: LanguageModel, assistant: LanguageModel, thinker: Thinker, *, kind: str, num_slots: int
    ):
        self._backbone = backbone
        self._assistant = assistant
        self._thinker = thinker
        self._num_slots = num_slots
        self._backbone_prompts = PromptBuilder(backbone.tokenizer, kind=kind)
        self._assistant_prompts = PromptBuilder(assistant.tokenizer, kind=kind)

    def prompts(self, question: Question, paths: Sequence[int]) -> list[SoftPrompt]:
        prompt = self._backbone_prompts.backbone(question, num_slots=self._num_slots)
        thoughts = self.thoughts(question)
        return [SoftPrompt(question.id, path, prompt.prefix, thoughts[path], prompt.suffix) for path in paths]

    def asked(self, question: Question) -> Asked:
        prompt = self._backbone_prompts.backbone(question, num_slots=self._num_slots)
        read = len(self._assistant_prompts.assistant(question))
        return as_asked(question, prompt, num_slots=self._num_slots, assistant_tokens=read)

    def costs(self) -> RunCosts:
        projection = 2 * self._thinker.projection.weight.numel()
        return RunCosts(self._backbone.costs, self._assistant.costs, projection)

    @torch.inference_mode()
    def thoughts(self, question: Question) -> Tensor:
        """All paths' thoughts of one question, [N, L, D] float32, in one pass of the assistant.

        One question at a time, so that its thoughts do not depend on which questions happen to share a batch.
        """
        ids = torch.tensor([self._assistant_prompts.assistant(question)], device=self._assistant.model.device)
        thoughts: Tensor = self._thinker(self._assistant.model, ids, torch.ones_like(ids), self._num_slots)[0]
        if not bool(thoughts.isfinite().all()):
            raise UsageError(
                f"the thoughts of question {question.id} are not numbers (NaN or infinite); check the `--thinker` "
                f"checkpoint, or try `--dtype float32`."
            )
        return thoughts
