"""Seconds and peak memory of a training step: ours against the plain loop, on the same batch in one run.

usage: training.py [--backbone NAME] [--assistant NAME] [--questions 4] [--paths 1,4,10] [--dtype float32] [--repeats 3] ...

JSON lines on stdout, one a case; progress on stderr. Each case runs in a process of its own, so that its peak memory is its
own; one step warms it up and `--repeats` are timed.
plain: every path's whole sequence goes through both models with gradient, the paths of a question as one batch, and the
logits of all positions are kept: what a loop over transformers' models does.
ours: the keys of instruction and question are computed once a question without gradient and shared by its paths.
CPU seconds are those of the process, so that other programs count less; times_faster is of them, on a GPU of seconds.
later_epochs: the same step where the prompts were read in an epoch before, and kept (on a CPU, as trainings do).
constant, attention: the two stages of a staged training, with states pooled by attention.
--latent-steps 6: instead, a step of Coconut, in which all weights of the backbone are trained. plain: the prompt is read
again for each thought, and once more with the target. ours: it is read once, and each thought but the first is one position.
gradient_difference: of the two gradients, norm of the difference by the norm of the plain one.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from floor import timed
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy

from contrastive.assistant_thinker import AssistantThinker
from contrastive.forward import pad_right
from contrastive.objective import Objective, backward, think
from contrastive.parallel import Processes
from contrastive.prompt_cache import caching
from contrastive.target_loss import Example, Reader
from contrastive.thinker import Thinker
from scaling.models import loading
from scaling.models.hardware import available_memory, cpu_name, pick_device, pick_dtype
from scaling.models.loading import LanguageModel
from scaling.models.model_files import locate
from scaling.tasks.catalogue import load_task
from scaling.tasks.task import ask
from scaling.training.config import TrainConfig
from scaling.training.run import ROWS, new_thinker
from scaling.training.targets import ExampleBuilder

Row = dict[str, Any]
STAGES: dict[str, dict[str, str]] = {"constant": {"method": "prompt-tuning"}, "attention": {"states": "attention"}}
SLOTS = {"states": "slots"}  # what plain and ours read


def main() -> None:
    asked = arguments()
    if asked.case:
        print(json.dumps(step_case(asked)))
        return
    stages = () if asked.latent_steps else STAGES
    for paths in [1] if asked.latent_steps else map(int, asked.paths.split(",")):
        with TemporaryDirectory() as folder:
            rows = [child(case, paths, Path(folder)) for case in ("plain", "ours", *stages)]
            plain, ours = (torch.load(Path(folder) / f"{case}.pt") for case in ("plain", "ours"))
        rows[1]["gradient_difference"] = float(f"{float((ours - plain).norm() / plain.norm()):.2g}")
        for row in rows[1:]:
            unit = "cpu_seconds_per_step" if "cpu_seconds_per_step" in row else "seconds_per_step"
            for of in (row, row.get("later_epochs", {})):
                if of:
                    of["times_faster"] = round(rows[0][unit] / of[unit], 2)
        for row in rows:
            print(json.dumps(row), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="smollm2-135m")
    parser.add_argument("--assistant", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/gsm8k"), help="file or folder of questions")
    for name, default in (("questions", 4), ("soft-tokens", 4), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--latent-steps", type=int, default=0, help="thoughts of a step of Coconut")
    parser.add_argument("--paths", default="1,4,10")
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float32", "float16"))
    for hidden in ("--case", "--folder"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--num-paths", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def child(case: str, paths: int, folder: Path) -> Row:
    print(f"{case}, {paths} paths", file=sys.stderr, flush=True)
    command = [
        sys.executable,
        __file__,
        *sys.argv[1:],
        "--case",
        case,
        "--num-paths",
        str(paths),
        "--folder",
        str(folder),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def step_case(asked: argparse.Namespace) -> Row:
    device = pick_device("auto")
    dtype = pick_dtype(asked.dtype, device)
    if asked.latent_steps:
        source = locate(asked.backbone)
        backbone = loading.load(source, name=asked.backbone, device=device, dtype=dtype, own=True)
        examples = [replace(each, latent=asked.latent_steps) for each in make_examples(asked, backbone, None)]
        trained: Any = backbone.model.requires_grad_(True)
        latent = latent_plain if asked.case == "plain" else latent_ours
        return measured(asked, device, trained, examples, lambda: latent(backbone, examples))
    backbone, assistant = loading.load_pair(asked.backbone, asked.assistant, device=device, dtype=dtype)
    examples = make_examples(asked, backbone, assistant)
    sizes = {"latent_paths": asked.num_paths, "soft_tokens": asked.soft_tokens, "device": device}
    settings = TrainConfig.model_validate({**sizes, **STAGES.get(asked.case, SLOTS)})
    reads = None if settings.method == "prompt-tuning" else assistant
    thinker = new_thinker(settings, backbone, reads, examples)
    if asked.case == "attention":
        thinker.begin_from(torch.zeros(asked.num_paths, asked.soft_tokens, backbone.width, device=device))

    def loss() -> None:
        if asked.case == "plain":
            assert isinstance(thinker, AssistantThinker)
            plain(thinker, assistant, backbone, examples, asked.soft_tokens)
        else:
            ours(thinker, reads, backbone, examples, asked.soft_tokens)

    @contextmanager
    def kept() -> Iterator[None]:
        prompts = [(backbone.model, [each.prefix for each in examples])]
        prompts += [(reads.model, [each.assistant for each in examples])] if reads else []
        with caching(prompts, limit=available_memory()):
            with torch.no_grad():
                think(thinker, reads.model if reads else None, backbone.model, examples, asked.soft_tokens)
                reader_of(backbone).read_prefixes(examples)
            yield

    return measured(asked, device, thinker, examples, loss, None if asked.case == "plain" else kept)


def measured(
    asked: argparse.Namespace,
    device: str,
    trained: Module,
    examples: list[Example],
    loss: Callable[[], None],
    kept: Callable[[], AbstractContextManager[None]] | None = None,
) -> Row:
    """Times a step and saves its gradient.

    trained: what gets the gradient; loss: computes it; kept: while entered, the prompts are kept as in a later epoch.
    """

    def step() -> None:
        trained.zero_grad()
        loss()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    step()
    taken, later = [], []
    for _ in range(asked.repeats):
        taken.append(seconds_of(step))
        if kept and device == "cpu":
            with kept():
                later.append(seconds_of(step))
    gradient = torch.cat([p.grad.flatten().cpu() for p in trained.parameters() if p.grad is not None])
    torch.save(gradient, Path(asked.folder) / f"{asked.case}.pt")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    on_device = {"peak_device_memory_mb": torch.cuda.max_memory_allocated() >> 20} if device == "cuda" else {}
    return {
        "case": asked.case,
        **({"latent_steps": asked.latent_steps} if asked.latent_steps else {"paths": asked.num_paths}),
        **per_step(taken, device),
        **({"later_epochs": per_step(later, device)} if later else {}),
        "peak_memory_mb": peak >> 20,
        **on_device,
        "questions": len(examples),
        "prompt_tokens": [len(example.prefix) + len(example.suffix) for example in examples],
        "target_tokens": [len(example.target) for example in examples],
        "backbone": asked.backbone,
        **({} if asked.latent_steps else {"assistant": asked.assistant}),
        "dtype": asked.dtype,
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }


def seconds_of(step: Callable[[], None]) -> tuple[float, float]:
    """Seconds, and CPU seconds."""
    began = time.process_time()
    seconds, _ = timed(step)
    return seconds, time.process_time() - began


def per_step(taken: list[tuple[float, float]], device: str) -> Row:
    names = ("seconds", "cpu_seconds") if device == "cpu" else ("seconds",)
    columns = dict(zip(names, zip(*taken, strict=True), strict=False))
    return {
        **{f"{name}_per_step": round(statistics.median(values), 3) for name, values in columns.items()},
        **{name: [round(took, 3) for took in values] for name, values in columns.items()},
    }


def make_examples(asked: argparse.Namespace, backbone: LanguageModel, assistant: LanguageModel | None) -> list[Example]:
    data = asked.data if asked.data.exists() else None
    task = load_task("gsm8k" if data else "arithmetic", data=data, split="train", limit=asked.questions)
    build = ExampleBuilder(backbone, assistant, task=task.definition, num_slots=asked.soft_tokens if assistant else 0)
    return [build(question, ask(task.definition, "solution", question)) for question in task.questions]


@cache
def reader_of(backbone: LanguageModel) -> Reader:
    """Made once in a training: it tries the model out."""
    return Reader(backbone.model)


def ours(
    thinker: Thinker, assistant: LanguageModel | None, backbone: LanguageModel, examples: list[Example], slots: int
) -> None:
    reader = reader_of(backbone)
    objective = Objective(num_slots=slots, contrastive="none", micro_batch=-(-ROWS // thinker.num_paths))
    backward(
        thinker, assistant.model if assistant else None, reader, examples, objective, step=0, processes=Processes()
    )


def plain(
    thinker: AssistantThinker, assistant: LanguageModel, backbone: LanguageModel, examples: list[Example], slots: int
) -> None:
    tokens = sum(len(example.target) for example in examples) * thinker.num_paths
    for example in examples:
        before = embedded(assistant, example.assistant, thinker.num_paths)
        inputs = torch.cat([before, thinker.token_sets(slots).to(before.dtype)], dim=1)
        states = assistant.model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, -slots:]
        thoughts = thinker.project(states[None])[0]
        before = embedded(backbone, example.prefix, thinker.num_paths)
        after = embedded(backbone, (*example.suffix, *example.target), thinker.num_paths)
        inputs = torch.cat([before, thoughts.to(before.dtype), after], dim=1)
        logits = backbone.model(inputs_embeds=inputs, use_cache=False).logits
        count = len(example.target)
        targets = torch.tensor(example.target, device=logits.device).repeat(thinker.num_paths)
        predicted = logits[:, -count - 1 : -1].flatten(0, 1).float()
        (cross_entropy(predicted, targets, reduction="sum") / tokens).backward()  # type: ignore[no-untyped-call]


def latent_ours(backbone: LanguageModel, examples: list[Example]) -> None:
    tokens = sum(len(example.target) for example in examples)
    (reader_of(backbone).whole(examples).sum() / tokens).backward()  # type: ignore[no-untyped-call]


def latent_plain(backbone: LanguageModel, examples: list[Example]) -> None:
    """The questions are one batch, padded on the right, where causal attention never looks."""
    embed, steps, device = backbone.model.get_input_embeddings(), examples[0].latent, backbone.model.device
    lengths = torch.tensor([len(example.prefix) for example in examples], device=device)
    rows = torch.arange(len(examples), device=device)
    ids, _ = pad_right(
        [(*example.prefix, *[0] * steps, *example.suffix, *example.target) for example in examples], device
    )
    inputs, longest = embed(ids), int(lengths.max())
    for step in range(steps):
        part = inputs[:, : longest + step]
        states = backbone.model.base_model(inputs_embeds=part, use_cache=False).last_hidden_state
        inputs = inputs.index_put((rows, lengths + step), states[rows, lengths + step - 1])
    logits = backbone.model(inputs_embeds=inputs, use_cache=False).logits
    ends = [len(example.prefix) + steps + len(example.suffix) for example in examples]
    predicted = [
        row[end - 1 : end - 1 + len(each.target)] for row, end, each in zip(logits, ends, examples, strict=True)
    ]
    targets = torch.tensor([token for example in examples for token in example.target], device=device)
    cross_entropy(torch.cat(predicted).float(), targets).backward()  # type: ignore[no-untyped-call]


def embedded(model: LanguageModel, ids: tuple[int, ...], rows: int) -> Tensor:
    """[rows, T, D], the same in every row."""
    found: Tensor = model.model.get_input_embeddings()(torch.tensor(ids, device=model.model.device))
    return found.expand(rows, -1, -1)


if __name__ == "__main__":
    main()
