"""An adapter while it is trained: how it begins, a step's gradient, what validation says, its files. Knows no questions."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from contrastive.forward import gradient_checkpointing
from contrastive.health import Validation
from contrastive.target_loss import Example, Reader
from contrastive.train import Loop, digest, under
from scaling.models import adapters, loading, model_files
from scaling.models.loading import LanguageModel
from scaling.records.errors import UsageError, one_line

_ADAPTER = "adapter."


@dataclass(frozen=True)
class Figures(Validation):
    """before: the loss before the first step, when the adapter changes nothing, nats a token."""

    before: float


@dataclass(eq=False, kw_only=True)
class LoraTrainer(Loop[Figures]):
    """Trains an adapter on a frozen backbone. reader: of the backbone that the adapter is on.

    micro_batch: targets whose activations are kept at once. recompute: layers' activations are computed twice, not kept.
    """

    model: PeftModel
    reader: Reader
    micro_batch: int
    recompute: bool = False
    loss_before: float = math.nan

    def trained(self) -> list[Parameter]:
        return list(self._named().values())

    def _named(self) -> dict[str, Parameter]:
        """By their names in the backbone."""
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
        """The loss is a mean over the target tokens of the whole batch, however it is split."""
        own, tokens = self.processes.share(batch), sum(len(example.target) for example in batch)
        total = torch.zeros((), device=self.reader.backbone.device)
        for start in range(0, len(own), self.micro_batch):
            with gradient_checkpointing(self.reader.backbone, active=self.recompute):
                loss = self.reader.whole(own[start : start + self.micro_batch]).sum() / tokens
                loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        for parameter in self.trained():
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        self.processes.add_up([*(p.grad for p in self.trained() if p.grad is not None), total])
        return {"language": float(total)}, tokens

    @torch.no_grad()
    def examine(self) -> Figures:
        """Takes one example at a time, so that the result depends neither on batches nor on processes."""
        places = self.processes.share(range(len(self.validation)))
        sums = self.processes.collect({n: float(self.reader.whole([self.validation[n]])) for n in places})
        loss = math.fsum(sums.values()) / sum(len(example.target) for example in self.validation)
        if math.isnan(self.loss_before):
            self.loss_before = loss
        return Figures(loss=loss, before=self.loss_before)


@torch.no_grad()
def new_adapter(backbone: LanguageModel, *, rank: int, seed: int) -> PeftModel:
    """An adapter on all linear layers but the output layer that changes nothing yet: A is random by `seed`, B is zero.

    The backbone's model changes in place. Raises UsageError for one without linear layers.
    """
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    try:
        model = adapters.attach(backbone, config)
    except ValueError as error:
        raise UsageError(f"`--backbone` {backbone.name} takes no adapter: {one_line(error)}.") from None
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            drawn = torch.empty(parameter.shape)
            parameter.copy_(torch.nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator))
    return model


def save_adapter(model: PeftModel, folder: Path, *, backbone: str) -> None:
    """Weights and config as `peft` reads them. Each file replaces its predecessor in one step. backbone: as it was named."""
    work = folder / f".{adapters.CONFIG_FILE}"
    work.mkdir(exist_ok=True)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, work / adapters.WEIGHTS_FILE)
    config = copy.copy(model.peft_config["default"])
    config.base_model_name_or_path, config.inference_mode = backbone, True
    config.target_modules = sorted(config.target_modules)
    config.save_pretrained(str(work))
    for name in (adapters.WEIGHTS_FILE, adapters.CONFIG_FILE):
        (work / name).replace(folder / name)
    shutil.rmtree(work)


def save_merged(whole: LanguageModel, folder: Path) -> None:
    """The merged model with its tokenizer, as it was before this program added anything; replaces what was there."""
    work = folder.with_name(f".{folder.name}")
    shutil.rmtree(work, ignore_errors=True)
    whole.model.save_pretrained(work)
    loading.load_tokenizer(model_files.locate(whole.name), name=whole.name).save_pretrained(work)
    shutil.rmtree(folder, ignore_errors=True)
    work.replace(folder)
