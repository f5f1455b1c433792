"""How hard the contrastive losses pull at the thoughts of an untrained thinker, beside the language loss.

usage: contrast.py [--latent-paths 8] [--backbone NAME] [--assistant NAME]

The paper's form takes plain inner products: where a thought's squared length is far above its inner products with the other
paths, the softmax is saturated and the gradient is nothing. A temperature of about a third of that length brings it back.
JSON lines on stdout: first lengths, then a line for each contrastive loss, and at last the language loss. Gradients are
norms over the thoughts of one question: the median and the largest of 8.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import torch
from torch import Tensor

from contrastive import losses
from contrastive.objective import think
from scaling.models import loading
from scaling.training.config import TrainConfig
from scaling.training.mixture import GOLD
from scaling.training.run import new_thinker, reader_of
from scaling.training.targets import ExampleBuilder, examples_of, split_of
from scaling.wording import wording_of

Form = Callable[[Tensor, int], Tensor]  # the loss [1] of the question with this number, from its thoughts
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # of the paper's form


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latent-paths", type=int, default=8)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--assistant", default="smollm2-135m")
    config = TrainConfig(**vars(parser.parse_args()), states="slots", limit=64, validation=8, device="cpu").resolved()
    backbone, assistant = loading.load_pair(config.backbone, config.assistant, device="cpu", dtype=torch.float32)
    split = split_of(config)
    build = ExampleBuilder(
        backbone, assistant, task=split.task.definition, num_slots=config.soft_tokens, wording=wording_of(config)
    )
    learn, asked = (examples_of(GOLD, questions, {}, build) for questions in (split.train, split.validation))
    thinker = new_thinker(config, backbone, assistant, learn)
    with torch.no_grad():
        thoughts = think(thinker, assistant.model, backbone.model, asked, config.soft_tokens)
    products = thoughts.flatten(2) @ thoughts.flatten(2).transpose(1, 2)
    lengths, apart = products.diagonal(dim1=1, dim2=2), ~torch.eye(config.latent_paths, dtype=torch.bool)
    print(json.dumps({"squared_length": lengths.mean().item(), "inner_product": products[:, apart].mean().item()}))

    reader = reader_of(backbone)
    forms: dict[str, Form] = {
        "view": lambda rows, _: losses.view_loss(rows, dropout(rows)),
        "uniform": lambda rows, _: losses.uniform_loss(rows),
        **{f"paper, t = {t:g}": lambda rows, _, t=t: losses.paper_loss(rows, temperature=t) for t in TEMPERATURES},  # type: ignore[misc]
        "language": lambda rows, n: reader.losses([asked[n]], rows).mean(1) / len(asked[n].target),
    }
    for name, form in forms.items():
        pairs = [gradient_of(form, number, thoughts[number, None]) for number in range(len(asked))]
        loss, norms = torch.stack([loss for loss, _ in pairs]), torch.stack([norm for _, norm in pairs])
        figures = {"loss": loss.mean(), "gradient": norms.median(), "largest": norms.max()}
        print(
            json.dumps({"form": name} | {key: float(f"{value.item():.2g}") for key, value in figures.items()}),
            flush=True,
        )


def gradient_of(form: Form, number: int, thoughts: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of a question and the norm of its gradient. thoughts: [1, N, L, D]."""
    rows = thoughts.clone().requires_grad_()
    loss = form(rows, number)
    (gradient,) = torch.autograd.grad(loss.sum(), rows)
    return loss.detach()[0], gradient.norm()


def dropout(thoughts: Tensor) -> Tensor:
    return torch.rand(thoughts.shape, generator=torch.Generator().manual_seed(0)) >= 0.5


if __name__ == "__main__":
    main()
