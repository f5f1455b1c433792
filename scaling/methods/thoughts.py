"""The sources of soft thoughts: a thinker, a perturbation of its thoughts, or a control that carries no information.

Every source gives a question's thoughts as [N, L, D] float32: N latent paths, L soft tokens, and D the width of the
backbone's embeddings. The thoughts of a path do not depend on N. This module knows neither the backbone's prompts nor
answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from contrastive.thinker import Thinker, read
from scaling.cache import cache_folder, made
from scaling.config import RunConfig
from scaling.models.loading import LanguageModel
from scaling.prompts import PromptBuilder
from scaling.records.costs import NO_THINKER, ThinkerCosts
from scaling.records.errors import UsageError
from scaling.records.files import replaced
from scaling.records.records import PromptedQuestion, Question
from scaling.records.seeds import stream_seed
from scaling.tasks.catalogue import task_of
from scaling.tasks.task import LoadedTask, Task, counterfactual_of
from scaling.wording import Wording

Perturb = Callable[[Tensor, float, torch.Generator], Tensor]  # thought [L, D], noise, generator -> perturbed [L, D]

_COUNTERFACTUAL = "counterfactual"  # value of `--control`
_TENSOR = "thoughts"  # the name of the tensor in a file of the cache
PATH_STREAM = -1  # stands where the random stream of a sample has the sample's number: the stream of a path's noise
_MEAN_OVER = 32  # questions over which `--control mean` and `--thought-scale` average


class ThoughtSource(Protocol):
    """Makes the thoughts of a question.

    Attributes:
        num_tokens: L, the soft tokens of a thought.
        assistant: the model that is run to make them, None where there is none.
        projection: FLOPs of one soft token besides those of the assistant.
        costs: what making thoughts costs besides.
    """

    num_tokens: int
    assistant: LanguageModel | None
    projection: int
    costs: ThinkerCosts

    def __call__(self, question: Question) -> Tensor:
        """The thoughts of all paths of a question, [N, L, D] float32."""
        ...

    def reads(self, question: Question) -> int:
        """How many tokens the assistant reads before its slots."""
        ...

    def identity(self) -> dict[str, Any]:
        """What run.json says of the models and files that the thoughts are made with."""
        ...


class Thinking:
    """Thoughts as a thinker makes them, such as SoftCoT with one path and SoftCoT++ with several."""

    def __init__(
        self,
        assistant: LanguageModel | None,
        backbone: LanguageModel,
        thinker: Thinker,
        *,
        task: Task,
        num_tokens: int,
        wording: Wording | None = None,
        apart: bool = False,
        origin: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            assistant: the model whose states the thinker reads; None for a thinker without one.
            backbone: the model whose prompt a thinker without an assistant may read; of its weights only the input
                embeddings are used.
            thinker: makes the thoughts.
            task: gives the questions' texts.
            num_tokens: L, the soft tokens of a thought.
            wording: how both models are asked; None for the prompt `plain`.
            apart: whether each path has a forward pass of its own. Then not even the rounding of its thoughts depends on
                the number of paths.
            origin: what run.json says of the thinker, such as the SHA-256 of its file.
        """
        self._origin = dict(origin or {})
        self.assistant = assistant
        self.num_tokens = num_tokens
        flops = asdict(thinker.flops())
        self.projection, self.costs = flops.pop("slot"), ThinkerCosts(**flops)
        self._backbone, self._thinker, self._apart = backbone, thinker, apart
        self._questions = PromptBuilder.of_assistant(assistant, task=task, wording=wording) if assistant else None
        self._prompts = PromptBuilder.of(backbone, task=task, wording=wording) if thinker.uses_prompt else None

    @torch.inference_mode()
    def __call__(self, question: Question) -> Tensor:
        """The thoughts of a question, [N, L, D] float32 on the device where the thinker is.

        Questions are not batched, so that thoughts do not depend on which questions happen to share a batch. Raises
        UsageError where a value is NaN or infinite.
        """
        inputs = read(
            self._thinker,
            self.assistant.model if self.assistant else None,
            self._backbone.model,
            questions=[self.prompt(question)],
            prompts=[self.prompt(question)],
        )
        think = self._thinker.paths_apart if self._apart else self._thinker
        thoughts: Tensor = think(inputs, self.num_tokens)[0]
        if not bool(thoughts.isfinite().all()):
            raise UsageError(
                f"the thoughts of question {question.id} are not numbers (NaN or infinite); check the `--thinker` "
                f"checkpoint, or try `--dtype float32`."
            )
        return thoughts

    def prompt(self, question: Question) -> tuple[int, ...]:
        """The token ids that the thinker reads: those before the slots of the assistant or of the backbone, or none."""
        if self._questions:
            return self._questions.assistant(question)
        return self._prompts.backbone(question, num_slots=self.num_tokens).prefix if self._prompts else ()

    def reads(self, question: Question) -> int:
        return len(self._questions.assistant(question)) if self._questions else 0

    def identity(self) -> dict[str, Any]:
        return {**(self.assistant.identity("assistant") if self.assistant else {}), **self._origin}


class CachedThoughts:
    """A thinker's thoughts, which are made once and then read from the cache folder.

    The assistant can then leave its device to an engine, and a run that is continued or extended does not compute them
    again. The name of a file is a hash of everything that decides its content.
    """

    def __init__(self, source: Thinking, *, made_by: Mapping[str, Any], to_device: Callable[[], None]):
        """
        Args:
            source: makes the thoughts that the cache lacks.
            made_by: everything that decides the thoughts besides the prompt, such as models and thinker.
            to_device: moves the assistant to where it thinks; called only if a thought must be made.
        """
        self.assistant, self.num_tokens = source.assistant, source.num_tokens
        self.projection, self.costs = source.projection, source.costs
        self._source, self._to_device = source, to_device
        self._folder = cache_folder() / "thoughts" / _digest(made_by)

    def __call__(self, question: Question) -> Tensor:
        """The thoughts of a question, [N, L, D] float32 on the CPU."""
        file = self._folder / f"{_digest(self._source.prompt(question))}.safetensors"
        with suppress(FileNotFoundError, SafetensorError):
            return load_file(file)[_TENSOR]
        self._to_device()
        thoughts = self._source(question).cpu().contiguous()
        made(file.parent)
        with replaced(file) as written:
            save_file({_TENSOR: thoughts}, written)
        return thoughts

    def reads(self, question: Question) -> int:
        return self._source.reads(question)

    def identity(self) -> dict[str, Any]:
        return self._source.identity()


def think_ahead(thoughts: ThoughtSource, questions: Sequence[Question], tell: Callable[[str], None]) -> None:
    """Makes the thoughts of all questions now. The source must keep them.

    Args:
        thoughts: the source.
        questions: all that will be asked.
        tell: shows the user a line of text, every 50 questions.
    """
    for number, question in enumerate(questions):
        if not number % 50:
            tell(f"thinking about question {number + 1} of {len(questions)}")
        thoughts(question)


@torch.no_grad()
def digest_of(thinker: Thinker) -> str:
    """SHA-256 in hex over all tensors and settings that a thinker computes with.

    It does not depend on where the thinker is from, so untrained ones have it too.
    """
    settings = {"kind": thinker.kind, **thinker.sizes()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(thinker.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest(value: Any) -> str:
    """32 hex digits over a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Perturbed:
    """N random draws around the thought of one path. Each has a random stream of its own (run seed, question, path)."""

    def __init__(
        self, source: ThoughtSource, perturb: Perturb, *, num_paths: int, noise: float, seed: int, flops: int = 0
    ):
        """
        Args:
            source: makes the thoughts, of which the first path's is perturbed.
            perturb: the kind of noise, see `perturbations`.
            num_paths: N, the number of draws.
            noise: size of the perturbation relative to the thought.
            seed: of the run.
            flops: of one soft token of a draw.
        """
        self.assistant, self.num_tokens = source.assistant, source.num_tokens
        self.projection, self.costs = source.projection, replace(source.costs, one_thought=True, draw=flops)
        self._source, self._perturb = source, perturb
        self._num_paths, self._noise, self._seed = num_paths, noise, seed

    def __call__(self, question: Question) -> Tensor:
        thought = self._source(question)[0]
        return torch.stack([self._draw(thought, question, path) for path in range(self._num_paths)])

    def reads(self, question: Question) -> int:
        return self._source.reads(question)

    def identity(self) -> dict[str, Any]:
        return self._source.identity()

    def _draw(self, thought: Tensor, question: Question, path: int) -> Tensor:
        # on the CPU, so that a seed gives the same noise on every device
        generator = torch.Generator().manual_seed(stream_seed(self._seed, question.id, path, PATH_STREAM))
        return self._perturb(thought.cpu(), self._noise, generator).to(thought.device)


class Constant:
    """The same thoughts for every question, given in advance: zeros, placeholders, an empty tensor, or a mean thought."""

    assistant: LanguageModel | None = None
    projection, costs = 0, NO_THINKER

    def __init__(self, thoughts: Tensor, *, replaces: ThoughtSource | None = None):
        """
        Args:
            thoughts: [N, L, D] float32.
            replaces: the source in whose place a control puts these thoughts. run.json names the models of that source, so
                that a control can be compared with its method. None for CoT-Unk, which is a method of its own.
        """
        self._replaces = replaces
        self.num_tokens = thoughts.shape[1]
        self._thoughts = thoughts

    def __call__(self, question: Question) -> Tensor:  # noqa: ARG002
        return self._thoughts

    def reads(self, question: Question) -> int:  # noqa: ARG002
        return 0

    def identity(self) -> dict[str, Any]:
        return self._replaces.identity() if self._replaces else {}


class Shuffled:
    """Thoughts of another question, as `--control shuffled` uses them. A question always gets those of the same partner."""

    def __init__(self, source: ThoughtSource, partners: Mapping[str, Question]):
        """
        Args:
            source: makes the thoughts.
            partners: for each question id the question whose thoughts it gets.
        """
        self.assistant, self.num_tokens = source.assistant, source.num_tokens
        self.projection, self.costs = source.projection, source.costs
        self._source, self._partners = source, partners

    def __call__(self, question: Question) -> Tensor:
        return self._source(self._partners[question.id])

    def reads(self, question: Question) -> int:
        return self._source.reads(self._partners[question.id])

    def identity(self) -> dict[str, Any]:
        return self._source.identity()


class Edited:
    """Thoughts of the question with one number changed, as `--control counterfactual` uses them."""

    def __init__(self, source: ThoughtSource, edit: Callable[[Question], Question]):
        """
        Args:
            source: makes the thoughts.
            edit: gives the question that the source reads in place of another.
        """
        self.assistant, self.num_tokens = source.assistant, source.num_tokens
        self.projection, self.costs = source.projection, source.costs
        self._source, self._edit = source, edit

    def __call__(self, question: Question) -> Tensor:
        return self._source(self._edit(question))

    def reads(self, question: Question) -> int:
        return self._source.reads(self._edit(question))

    def identity(self) -> dict[str, Any]:
        return self._source.identity()


class Scaled:
    """Thoughts moved away from their mean, or towards it: mean + scale x (thought - mean)."""

    def __init__(self, source: ThoughtSource, mean: Tensor, scale: float):
        """
        Args:
            source: makes the thoughts.
            mean: of each path, [N, L, D].
            scale: 0 gives the mean, 1 the thoughts themselves but for rounding.
        """
        self.assistant, self.num_tokens = source.assistant, source.num_tokens
        self.projection, self.costs = source.projection, source.costs
        self._source, self._mean, self._scale = source, mean, scale

    def __call__(self, question: Question) -> Tensor:
        return self._mean + self._scale * (self._source(question) - self._mean)

    def reads(self, question: Question) -> int:
        return self._source.reads(question)

    def identity(self) -> dict[str, Any]:
        return self._source.identity()


def partners_of(questions: Sequence[Question]) -> dict[str, Question]:
    """For each question id the next question, and for the last the first. Raises UsageError if there is only one."""
    if len(questions) < 2:
        raise UsageError("`--control shuffled` takes another question's thoughts, and there is only one question.")
    others = [*questions[1:], questions[0]]
    return {question.id: other for question, other in zip(questions, others, strict=True)}


def placeholders(backbone: LanguageModel, *, num_paths: int, num_tokens: int) -> Tensor:
    """Thoughts that carry no information: every slot holds the embedding of the backbone's rarest token.

    They only give the backbone more positions to compute at, as pause tokens do (arXiv 2310.02226).

    Returns:
        [N, L, D] float32 on the backbone's device.
    """
    return backbone.rare_rows()[0].expand(num_paths, num_tokens, -1).to(backbone.model.device)


def controlled(config: RunConfig, source: ThoughtSource, backbone: LanguageModel, task: Task) -> ThoughtSource:
    """The source of thoughts that `--control` and `--thought-scale` ask for: by default the method's own.

    A replacement does not depend on `--limit`, so that a run can be extended.

    Args:
        config: resolved settings.
        source: the method's own.
        backbone: the model that reads the thoughts.
        task: of the questions.
    """
    num_paths, num_tokens = config.num_paths, source.num_tokens
    if config.thought_scale is not None:
        source = Scaled(source, _mean_of(config, source), config.thought_scale)
    if config.control is None:
        return source
    if config.control == _COUNTERFACTUAL:
        return Edited(source, lambda question: read_by_assistant(config, task, question))
    if config.control == "shuffled":
        return Shuffled(source, partners_of(shuffled_among(config).questions))
    if config.control == "mean":
        return Constant(_mean_of(config, source), replaces=source)
    if config.control == "unk":
        return Constant(placeholders(backbone, num_paths=num_paths, num_tokens=num_tokens), replaces=source)
    zeros = torch.zeros(num_paths, filled_slots(config, num_tokens), backbone.width, device=backbone.model.device)
    return Constant(zeros, replaces=source)


def _mean_of(config: RunConfig, source: ThoughtSource) -> Tensor:
    """The mean thoughts of each path over the first questions of the split, [N, L, D]."""
    first = task_of(config, limit=_MEAN_OVER).questions
    return torch.stack([source(question) for question in first]).mean(0)


def refuse_unfit_control(config: RunConfig, task: LoadedTask) -> None:
    """Raises UsageError where `--control` asks for what the questions do not have.

    Args:
        config: resolved settings.
        task: the questions that are asked.
    """
    if config.control == "shuffled":
        partners_of(shuffled_among(config).questions)
    if config.control == _COUNTERFACTUAL and all(
        read_by_assistant(config, task.definition, question) is question for question in task.questions
    ):
        raise UsageError(
            f"`--control {_COUNTERFACTUAL}` changes a number in what the assistant reads, and none of the "
            f"{len(task.questions)} questions has one in digits: take another task, or `--control shuffled`."
        )


def read_by_assistant(config: RunConfig, task: Task, question: Question) -> Question:
    """The question that thoughts are made of in place of this one: an edited one under `--control counterfactual`.

    It keeps its id, and so the random streams of the method. Where nothing can be changed, it is the question itself.
    """
    changed = counterfactual_of(task, question) if config.control == _COUNTERFACTUAL else None
    if changed is None:
        return question
    return replace(question, text=changed.text, answer=changed.answer or question.answer, rationale=())


def with_counterfactual(config: RunConfig, task: Task, question: Question, asked: PromptedQuestion) -> PromptedQuestion:
    """The record of a question with what the assistant reads in its place, if that is another question."""
    changed = counterfactual_of(task, question) if config.control == _COUNTERFACTUAL else None
    return replace(asked, counterfactual=changed.text, counterfactual_answer=changed.answer) if changed else asked


def left_alone(config: RunConfig, asked: Sequence[PromptedQuestion]) -> str | None:
    """Says how many questions `--control counterfactual` could not change; None where that is none."""
    number = sum(question.counterfactual is None for question in asked)
    if config.control != _COUNTERFACTUAL or not number:
        return None
    return f"{number} of {len(asked)} questions have no number to change, so the assistant reads them as they are"


def filled_slots(config: RunConfig, num_tokens: int) -> int:
    """How many soft tokens a prompt really holds: those of a thought, or none at all with `--control none`."""
    return 0 if config.control == "none" else num_tokens


def shuffled_among(config: RunConfig) -> LoadedTask:
    """The questions that exchange their thoughts under `--control shuffled`.

    There is one more than `--limit`, so that a partner stays the same where a run is extended.
    """
    return task_of(config, limit=None if config.limit is None else config.limit + 1)
