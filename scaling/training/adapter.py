"""Trains a LoRA adapter: its initial weights, the gradient of a step, its validation, and its files.

Knows examples as token ids, no questions and no tasks.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from contrastive.forward import gradient_checkpointing
from contrastive.health import PerQuestion, Validation, over_answers, questions_of
from contrastive.target_loss import Example, Reader, weighted_tokens, weights_of
from contrastive.train import Loop, digest, under
from scaling.models import adapters, loading, model_files
from scaling.models.loading import LanguageModel
from scaling.records.errors import UsageError, one_line

_ADAPTER = "adapter."  # begins the names of the adapter's tensors in the state of a training


@dataclass(frozen=True, kw_only=True)
class Figures(Validation):
    """Figures of an adapter over the validation examples.

    Attributes:
        before: the loss before the first step, when the adapter changes nothing yet, in nats a token.
    """

    before: float


@dataclass(eq=False, kw_only=True)
class LoraTrainer(Loop[Figures]):
    """Trains an adapter on a frozen backbone.

    Attributes:
        model: the backbone with the adapter.
        reader: computes losses with that same backbone.
        micro_batch: targets whose activations are in memory at once.
        recompute: compute activations again in the backward pass instead of keeping them (gradient checkpointing).
        loss_before: the validation loss before the first step, in nats a token; NaN until it is known.
    """

    model: PeftModel
    reader: Reader
    micro_batch: int
    recompute: bool = False
    loss_before: float = math.nan

    def __post_init__(self) -> None:
        self.reader.untrained = self.model.disable_adapter  # a teacher is the backbone without the adapter

    def trained(self) -> list[Parameter]:
        return list(self._named().values())

    def _named(self) -> dict[str, Parameter]:
        """The adapter's parameters, by their names in the backbone."""
        named = self.reader.backbone.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def frozen(self) -> Sequence[tuple[int, ...]]:
        return [digest(self.reader.backbone, but=self._named())]

    def learned(self) -> dict[str, Tensor]:
        before = {"before": torch.tensor(self.loss_before, dtype=torch.float64)}
        return before | {f"{_ADAPTER}{name}": tensor for name, tensor in self._named().items()}

    @torch.no_grad()
    def restore(self, tensors: dict[str, Tensor]) -> None:
        self.loss_before = float(tensors["before"])
        saved = under(_ADAPTER, tensors)
        for name, parameter in self._named().items():
            parameter.copy_(saved[name])

    def backward(self, batch: Sequence[Example], *, step: int) -> tuple[dict[str, Any], int]:  # noqa: ARG002
        """See `Loop.backward`. The loss is a weighted mean over the scored tokens of the batch, however it is split."""
        examples, tokens = self.processes.share(batch), weighted_tokens(batch)
        total = torch.zeros((), device=self.reader.backbone.device)
        for start in range(0, len(examples), self.micro_batch):
            with gradient_checkpointing(self.reader.backbone, active=self.recompute):
                part = examples[start : start + self.micro_batch]
                losses = self.reader.whole(part)
                loss = (losses * weights_of(part, losses.device)[:, 0]).sum() / tokens
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        for parameter in self.trained():  # a process without examples has no gradient, and yet takes part in the sum
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.processes.add_up([*(p.grad for p in self.trained() if p.grad is not None), total])
        return {"language": float(total)}, sum(len(example.scored) for example in batch)

    @torch.no_grad()
    def examine(self) -> Figures:
        """Computes the validation loss, one example at a time: it depends neither on batch size nor on processes."""
        places = self.processes.share(range(len(self.validation)))
        found = self.processes.collect({n: self._losses(self.validation[n]) for n in places})
        sums = {n: self.validation[n].weight * loss for n, (loss, _) in found.items()}
        groups = questions_of(self.validation)
        per_question = PerQuestion(
            ids=tuple(self.validation[group[0]].question for group in groups),
            tokens=tuple(weighted_tokens([self.validation[n] for n in group]) for group in groups),
            own=tuple(math.fsum(sums[n] for n in group) for group in groups),
        )
        loss = math.fsum(sums.values()) / sum(per_question.tokens)
        if math.isnan(self.loss_before):
            self.loss_before = loss
        answer = over_answers([found[n][1] for n in range(len(self.validation))], self.validation)
        return Figures(loss=loss, answer=answer, before=self.loss_before, per_question=per_question)

    def _losses(self, example: Example) -> tuple[float, float]:
        """Losses summed over the target's scored tokens, and over the answer's own ones."""
        loss, of_answer = self.reader.whole_and_answers([example])
        return float(loss), float(of_answer)


def new_adapter(backbone: LanguageModel, *, rank: int, seed: int) -> PeftModel:
    """Puts a single adapter on a backbone. Arguments as of `new_adapters`. rank: of the adapter."""
    return new_adapters(backbone, {"default": rank}, seed=seed)


@torch.no_grad()
def new_adapters(backbone: LanguageModel, ranks: Mapping[str, int], *, seed: int) -> PeftModel:
    """Puts adapters on all linear layers of a backbone but the output layer. The first one is active.

    They change nothing yet: of an adapter's two matrices (arXiv 2106.09685, section 4.1), A is random and B is zero. The
    backbone's model is changed in place.

    Args:
        backbone: the model that gets the adapters.
        ranks: of the adapters by name; alpha is twice that.
        seed: of the random matrices.

    Raises:
        UsageError: for a model without linear layers.
    """
    (first, rank), *others = ranks.items()
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    try:
        model = adapters.attach(backbone, config, name=first)
        for name, rank in others:  # on the same layers, by their names
            own = copy.copy(model.peft_config[first])
            own.r, own.lora_alpha = rank, 2 * rank
            adapters.attach_another(model, own, name=name)
    except ValueError as error:
        raise UsageError(f"`--backbone` {backbone.name} takes no adapter: {one_line(error)}.") from None
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            # drawn on the CPU and as `peft` does, so that the same seed gives the same weights on every device
            weights = torch.empty(parameter.shape)
            parameter.copy_(torch.nn.init.kaiming_uniform_(weights, a=math.sqrt(5), generator=generator))
    return model


def save_adapter(model: PeftModel, folder: Path, *, backbone: str, name: str = "default") -> None:
    """Writes an adapter's weights and config in the format of `peft`.

    Each file replaces the one before it in one step, so that an interruption never leaves half a file.

    Args:
        model: the backbone with the adapter.
        folder: where the files are written.
        backbone: the backbone's name as the user gave it, for the config.
        name: of the adapter on the backbone.
    """
    work = folder / f".{adapters.CONFIG_FILE}"
    work.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, work / adapters.WEIGHTS_FILE)
    config = copy.copy(model.peft_config[name])
    config.base_model_name_or_path, revision = model_files.with_revision(backbone)
    config.revision = None if revision == "main" else revision
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(work))
    for name in (adapters.WEIGHTS_FILE, adapters.CONFIG_FILE):
        (work / name).replace(folder / name)
    shutil.rmtree(work)


def save_merged(whole: LanguageModel, folder: Path) -> None:
    """Writes a merged model and its tokenizer to a folder, in the place of what was there.

    The tokenizer is loaded again: that of `whole` may have been changed by this program.
    """
    work = folder.with_name(f".{folder.name}")
    shutil.rmtree(work, ignore_errors=True)
    whole.model.save_pretrained(work)
    loading.load_tokenizer(model_files.locate(whole.name), name=whole.name).save_pretrained(work)
    shutil.rmtree(folder, ignore_errors=True)
    work.replace(folder)
