"""Trains a LoRA adapter: its initial weights, what is particular to its training, and its files."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file

from scaling.models import adapters, loading, model_files
from scaling.models.loading import LanguageModel
from scaling.records.errors import UsageError, one_line
from scaling.training.backbone import BackboneTrainer


@dataclass(eq=False, kw_only=True)
class LoraTrainer(BackboneTrainer):
    """Trains an adapter on a frozen backbone.

    Attributes:
        model: the backbone with the adapter.
    """

    model: PeftModel

    def __post_init__(self) -> None:
        self.reader.untrained = self.model.disable_adapter  # a teacher is the backbone without the adapter


def new_adapter(backbone: LanguageModel, *, rank: int, seed: int, tokens: Sequence[int] = ()) -> PeftModel:
    """Puts a single adapter on a backbone. Arguments as of `new_adapters`. rank: of the adapter."""
    return new_adapters(backbone, {"default": rank}, seed=seed, tokens=tokens)


@torch.no_grad()
def new_adapters(
    backbone: LanguageModel, ranks: Mapping[str, int], *, seed: int, tokens: Sequence[int] = ()
) -> PeftModel:
    """Puts adapters on all linear layers of a backbone but the output layer. The first one is active.

    They change nothing yet: of an adapter's two matrices (arXiv 2106.09685, section 4.1), A is random and B is zero. The
    backbone's model is changed in place.

    Args:
        backbone: the model that gets the adapters.
        ranks: of the adapters by name; alpha is twice that.
        seed: of the random matrices.
        tokens: ids of tokens whose embeddings are trained, too.

    Raises:
        UsageError: for a model without linear layers.
    """
    (first, rank), *others = ranks.items()
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        trainable_token_indices=list(tokens) or None,
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
