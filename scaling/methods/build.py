"""From a run's settings to its method: which models are loaded, and what fills the slots. The only list of methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from scaling.config import RunConfig, is_generated
from scaling.engines.kinds import KINDS as ENGINES
from scaling.methods import thinkers
from scaling.methods.assist import AssistCoT
from scaling.methods.base import Method
from scaling.methods.cot import ChainOfThought
from scaling.methods.hints import write_hints
from scaling.methods.perturbations import Gumbel, dropout, gaussian
from scaling.methods.softcot import SoftCoT
from scaling.methods.thoughts import (
    CachedThoughts,
    Constant,
    Perturb,
    Perturbed,
    Shuffled,
    Thinking,
    Thoughts,
    digest_of,
    partners_of,
    placeholders,
)
from scaling.models import adapters, devices
from scaling.models.loading import LanguageModel
from scaling.prompts import prompt_identity
from scaling.records.errors import WARNING, UsageError
from scaling.records.overlap import digest_of as digest_of_question
from scaling.records.records import Question
from scaling.tasks.catalogue import Task, task_of

Tell = Callable[[str], None]

_MEAN_OVER = 32  # questions of the mean thought


@dataclass(frozen=True, eq=False)
class Built:
    """config: with what the checkpoint decides filled in. details: of run.json, to tell models and checkpoints apart.
    assistant: None where there is none."""

    backbone: LanguageModel
    method: Method
    config: RunConfig
    details: dict[str, Any]
    assistant: LanguageModel | None = None


@dataclass(frozen=True, eq=False)
class Parts:
    """What a method is made of besides its models: read and checked before these are loaded.

    config: with what the checkpoint decides filled in. thinker, adapter: None where there is none. exemplars: solved
    questions that stand before every asked one. exemplars_by_text: whether they are others than if ids alone were
    compared with those that are asked, as version 0.1 did.
    """

    config: RunConfig
    thinker: thinkers.Found | None = None
    adapter: adapters.Adapter | None = None
    exemplars: tuple[Question, ...] = ()
    exemplars_by_text: bool = False

    def refuse_unfit(self, backbone: LanguageModel, assistant: LanguageModel | None) -> None:
        """Raises UsageError where they do not fit the models, of which the shapes are enough; no weights are read."""
        if self.thinker and assistant:
            thinkers.check(self.config, self.thinker, backbone, assistant)
        if self.adapter:
            adapters.load(self.adapter, backbone)


def parts_of(config: RunConfig, task: Task) -> Parts:
    """Reads the parts of a resolved config's method. Raises UsageError where one is missing, or cannot be used."""
    if config.control == "shuffled":
        partners_of(_shuffled_among(config).questions)
    if config.soft:
        found = thinkers.find(config)
        return Parts(thinkers.with_checkpoint(config, found), thinker=found)
    if config.method == "lora":
        return Parts(config, adapter=adapters.find(str(config.adapter)))
    if config.method == "cot-unk":
        return Parts(config.model_copy(update={"soft_tokens": config.soft_tokens or thinkers.SOFT_TOKENS}))
    shown, by_text = _exemplars(config, task)
    return Parts(config, exemplars=tuple(shown), exemplars_by_text=by_text)


def build(config: RunConfig, task: Task, dtype: torch.dtype, tell: Tell) -> Built:
    """Loads the models of a resolved config and makes its method. Raises UsageError where something does not fit."""
    parts = parts_of(config, task)
    config = parts.config
    if config.soft:
        return _soft(parts, task, dtype, tell)
    if config.method == "assist-cot":
        backbone, assistant = devices.load_pair(config, dtype)
        wake = devices.move_to_thinking_device(config, assistant.model)
        write = partial(write_hints, assistant, tell=tell, wake=wake, exact=bool(config.exact))
        method: Method = AssistCoT(backbone, assistant, kind=task.kind, questions=task.questions, write=write)
        details = details_of(backbone) | {"assistant_fingerprint": assistant.fingerprint}
        return Built(backbone, method, config, details, assistant)
    lora = config.method == "lora"  # merges an adapter into the weights
    backbone = devices.load_backbone(config, dtype, own=lora)
    if parts.adapter:
        return _lora(config, task, backbone, parts.adapter, tell)
    if config.method == "cot":
        told = {"exemplars": [one.id for one in parts.exemplars]} if parts.exemplars_by_text else {}
        method = ChainOfThought(backbone, kind=task.kind, exemplars=parts.exemplars)
        return Built(backbone, method, config, details_of(backbone) | told)
    num_slots = config.soft_tokens or 0
    empty = Constant(placeholders(backbone, num_paths=1, num_tokens=num_slots))
    method = SoftCoT(backbone, empty, kind=task.kind, num_slots=num_slots)
    return Built(backbone, method, config, details_of(backbone))


def _exemplars(config: RunConfig, task: Task) -> tuple[list[Question], bool]:
    """The first `--shots` questions of the training split that have a rationale, none of which is asked, by id or text; and
    whether they are others than if ids alone were compared, as version 0.1 did."""
    if not config.shots:
        return [], False
    if config.data is not None and config.data.is_file():
        raise UsageError(
            f"`--shots` takes solved questions from train.jsonl beside the asked ones: give the folder of {config.data}."
        )
    generated = is_generated(config.task, config.data)  # its splits have no text in common
    limit = 2 * config.shots if generated else None
    asked = {question.id for question in task.questions}
    solved = [q for q in task_of(config, split="train", limit=limit).questions if q.rationale and q.id not in asked]
    # the whole split and not what `--limit` leaves of it, so that exemplars stay the same where a run is extended
    tested = (task if generated or config.split == "train" else task_of(config, limit=None)).questions
    texts = {digest_of_question(question) for question in tested}
    unasked = [question for question in solved if digest_of_question(question) not in texts]
    if len(unasked) < config.shots:
        raise UsageError(
            f"`--shots` {config.shots} needs that many training questions with a rationale, and there are {len(unasked)} "
            f"that are not asked: give a smaller number."
        )
    shown = unasked[: config.shots]
    return shown, shown != solved[: config.shots]


def _lora(config: RunConfig, task: Task, backbone: LanguageModel, found: adapters.Adapter, tell: Tell) -> Built:
    merged = adapters.merged(adapters.load(found, backbone), backbone)
    for doubt in adapters.mismatches(found, backbone):
        tell(f"{WARNING}{doubt}")
    return adapted(config, task, backbone.fingerprint, merged, found.sha256)


def adapted(config: RunConfig, task: Task, fingerprint: str, merged: LanguageModel, sha256: str) -> Built:
    """The prompts of `cot` for a backbone with its adapter merged. fingerprint: of the backbone without it."""
    details = {
        **details_of(merged),
        "backbone_fingerprint": fingerprint,
        "merged_fingerprint": merged.fingerprint,
        "adapter_sha256": sha256,
    }
    return Built(merged, ChainOfThought(merged, kind=task.kind), config, details)


def _soft(parts: Parts, task: Task, dtype: torch.dtype, tell: Tell) -> Built:
    found, config = parts.thinker, parts.config
    backbone, assistant = devices.load_pair(config, dtype)
    thinker = thinkers.make_thinker(config, found, backbone, assistant)
    num_slots = config.soft_tokens or thinkers.SOFT_TOKENS
    details = {
        **details_of(backbone),
        "assistant_fingerprint": assistant.fingerprint,
        "thinker_sha256": found.sha256 if found else None,
    }
    if thinkers.has_no_token(found):
        details["initial_token"] = thinkers.placeholder(assistant)[0]
        token = details["initial_token"]
        tell(f"{WARNING}the file {config.thinker} has no initial token, so the slots hold the assistant's {token}")
    own = Thinking(assistant, thinker, kind=task.kind, num_tokens=num_slots, apart=bool(config.exact))
    thoughts: Thoughts = own
    if not ENGINES[config.engine].in_process:
        made_by = {
            **{"assistant": assistant.computes, "dtype": config.dtype},
            **{"thinker": digest_of(thinker), "soft_tokens": num_slots},
        }
        wake = devices.move_to_thinking_device(config, assistant.model, thinker)
        thoughts = CachedThoughts(own, made_by=made_by, wake=wake)
    if config.perturbed:
        thoughts = Perturbed(
            thoughts,
            _perturbation(config, backbone),
            num_paths=config.latent_paths or 1,
            noise=config.noise or 0.0,
            seed=config.seed,
        )
    if config.control:
        thoughts = _controlled(config, thoughts, backbone)
    for doubt in thinkers.doubts(config, found, backbone, assistant) if found else []:
        tell(f"{WARNING}{doubt}")
    method = SoftCoT(backbone, thoughts, kind=task.kind, num_slots=num_slots)
    return Built(backbone, method, config, details, assistant)


def _perturbation(config: RunConfig, backbone: LanguageModel) -> Perturb:
    if config.method == "softcot-p":
        return gaussian
    if config.method == "softcot-dropout":
        return dropout
    return Gumbel(backbone.embeddings())


def _controlled(config: RunConfig, thoughts: Thoughts, backbone: LanguageModel) -> Thoughts:
    """The method's own thoughts replaced. Which ones does not depend on `--limit`, so a run can be extended."""
    num_paths, num_slots = config.latent_paths or 1, config.soft_tokens or 0
    device = backbone.model.device
    if config.control == "shuffled":
        return Shuffled(thoughts, partners_of(_shuffled_among(config).questions))
    if config.control == "mean":
        return Constant(_mean_thought(thoughts, task_of(config, limit=_MEAN_OVER)))
    if config.control == "unk":
        return Constant(placeholders(backbone, num_paths=num_paths, num_tokens=num_slots))
    return Constant(torch.zeros(num_paths, slots_held(config), backbone.width, device=device))


def slots_held(config: RunConfig) -> int:
    """How many of a prompt's slots hold something: all but with `--control none`."""
    return 0 if config.control == "none" else config.soft_tokens or 0


def _shuffled_among(config: RunConfig) -> Task:
    """The questions of which each gets another one's thoughts."""
    return task_of(config, limit=None if config.limit is None else config.limit + 1)


def _mean_thought(thoughts: Thoughts, task: Task) -> Tensor:
    """[N, L, D], over the first questions of the split."""
    return torch.stack([thoughts(question) for question in task.questions]).mean(0)


def details_of(backbone: LanguageModel) -> dict[str, Any]:
    """What run.json says of every run's prompts and backbone."""
    return {**prompt_identity(backbone.tokenizer), "backbone_fingerprint": backbone.fingerprint}
