"""Where soft thoughts come from: a thinker, a perturbation of its thoughts, or a control that has nothing to say.

Whatever makes them, a question's thoughts are [N, L, D] float32, path k's the same for every N. Knows no prompts of the
backbone and no answers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from contrastive.thinker import Thinker
from scaling.cache import cache_folder, made
from scaling.config import RunConfig
from scaling.models.loading import LanguageModel
from scaling.prompts import PromptBuilder
from scaling.records.errors import UsageError
from scaling.records.files import replaced
from scaling.records.records import Question
from scaling.records.seeds import stream_seed
from scaling.tasks.catalogue import task_of
from scaling.tasks.task import LoadedTask, Task

Perturb = Callable[[Tensor, float, torch.Generator], Tensor]

_TENSOR = "thoughts"  # the name of the tensor in a file of the cache
_PATH_STREAM = -1  # in place of a sample's number: the stream of the path's own noise
_MEAN_OVER = 32  # questions of the mean thought


class ThoughtSource(Protocol):
    """Makes thoughts.

    Attributes:
        num_tokens: L.
        assistant: the model that is run for them, None where none is.
        projection: FLOPs of a slot besides those of the assistant.
    """

    num_tokens: int
    assistant: LanguageModel | None
    projection: int

    def __call__(self, question: Question) -> Tensor:
        """All paths' thoughts of a question, [N, L, D] float32."""
        ...

    def reads(self, question: Question) -> int:
        """Tokens that the assistant reads before its slots."""
        ...

    def identity(self) -> dict[str, Any]:
        """What run.json says of the models and files that the thoughts are made with."""
        ...


class Thinking:
    """A thinker's own thoughts: SoftCoT with one path, SoftCoT++ with several."""

    def __init__(
        self,
        assistant: LanguageModel,
        thinker: Thinker,
        *,
        task: Task,
        num_tokens: int,
        apart: bool = False,
        origin: Mapping[str, Any] | None = None,
    ):
        """
        Args:
            task: whose words the assistant's prompts have.
            num_tokens: L.
            apart: whether each path thinks in a pass of its own, so that not even the rounding of its thoughts depends on
                how many paths there are.
            origin: what run.json says of the thinker, such as the SHA-256 of its file.
        """
        self._origin = dict(origin or {})
        self.assistant: LanguageModel | None = assistant
        self.num_tokens = num_tokens
        self.projection = 2 * thinker.projection.weight.numel()
        self._model, self._thinker, self._apart = assistant.model, thinker, apart
        self._prompts = PromptBuilder.of(assistant, task=task)

    @torch.inference_mode()
    def __call__(self, question: Question) -> Tensor:
        """One question at a time, so that thoughts do not depend on which questions happen to share a batch. Raises
        UsageError where they are not numbers."""
        ids = torch.tensor([self.prompt(question)], device=self._model.device)
        think = self._thinker.paths_apart if self._apart else self._thinker
        thoughts: Tensor = think(self._model, ids, torch.ones_like(ids), self.num_tokens)[0]
        if not bool(thoughts.isfinite().all()):
            raise UsageError(
                f"the thoughts of question {question.id} are not numbers (NaN or infinite); check the `--thinker` "
                f"checkpoint, or try `--dtype float32`."
            )
        return thoughts

    def prompt(self, question: Question) -> tuple[int, ...]:
        """The token ids that the assistant reads before its slots."""
        return self._prompts.assistant(question)

    def reads(self, question: Question) -> int:
        return len(self.prompt(question))

    def identity(self) -> dict[str, Any]:
        assert self.assistant is not None
        return {"assistant_fingerprint": self.assistant.fingerprint} | self._origin


class CachedThoughts:
    """A thinker's thoughts, made once and then read from the cache folder, so that the assistant may leave its device to an
    engine, and a run that is continued or extended does not think again.

    A file has the name of a hash of all that decides what is in it.
    """

    def __init__(self, source: Thinking, *, made_by: Mapping[str, Any], to_device: Callable[[], None]):
        """
        Args:
            made_by: what decides the thoughts besides the prompt.
            to_device: moves the assistant to where it thinks.
        """
        self.assistant, self.num_tokens, self.projection = source.assistant, source.num_tokens, source.projection
        self._source, self._to_device = source, to_device
        self._folder = cache_folder() / "thoughts" / _digest(made_by)

    def __call__(self, question: Question) -> Tensor:
        """On the CPU."""
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
    """Makes the thoughts of all questions, for a source that keeps them."""
    for number, question in enumerate(questions):
        if not number % 50:
            tell(f"thinking about question {number + 1} of {len(questions)}")
        thoughts(question)


@torch.no_grad()
def digest_of(thinker: Thinker) -> str:
    """Hex digits over all that a thinker computes with, whatever checkpoint it is from, or none."""
    digest = hashlib.sha256(f"normalise={thinker.normalise}".encode())
    for name, tensor in sorted(thinker.state_dict().items()):
        digest.update(f"{name}{list(tensor.shape)}".encode() + tensor.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _digest(of: Any) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Perturbed:
    """N draws around the thought of one path, each from a random stream of its own (run seed, question, path)."""

    def __init__(self, source: ThoughtSource, perturb: Perturb, *, num_paths: int, noise: float, seed: int):
        self.assistant, self.num_tokens, self.projection = source.assistant, source.num_tokens, source.projection
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
        # on the CPU, so that the same seed is the same noise on every device
        generator = torch.Generator().manual_seed(stream_seed(self._seed, question.id, path, _PATH_STREAM))
        return self._perturb(thought.cpu(), self._noise, generator).to(thought.device)


class Constant:
    """The same thoughts for every question, made without an assistant: zeros, placeholders, nothing, or a mean."""

    assistant: LanguageModel | None = None
    projection = 0

    def __init__(self, thoughts: Tensor, *, replaces: ThoughtSource | None = None):
        """
        Args:
            thoughts: [N, L, D] float32.
            replaces: the source that these are a control of, None for a method of their own. A control's run.json names the
                models of its method, so that the two can be compared.
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
    """Another question's thoughts: those of its partner, which is the same whatever else is asked."""

    def __init__(self, source: ThoughtSource, partners: Mapping[str, Question]):
        """partners: for each question id another question."""
        self.assistant, self.num_tokens, self.projection = source.assistant, source.num_tokens, source.projection
        self._source, self._partners = source, partners

    def __call__(self, question: Question) -> Tensor:
        return self._source(self._partners[question.id])

    def reads(self, question: Question) -> int:
        return self._source.reads(self._partners[question.id])

    def identity(self) -> dict[str, Any]:
        return self._source.identity()


def partners_of(questions: Sequence[Question]) -> dict[str, Question]:
    """Each question's next one; the last one's is the first. Raises UsageError for a single question."""
    if len(questions) < 2:
        raise UsageError("`--control shuffled` takes another question's thoughts, and there is only one question.")
    others = [*questions[1:], questions[0]]
    return {question.id: other for question, other in zip(questions, others, strict=True)}


def placeholders(backbone: LanguageModel, *, num_paths: int, num_tokens: int) -> Tensor:
    """Raw embeddings of the backbone's rarest token in every slot, [N, L, D]: extra positions that say nothing ("pause
    tokens", arXiv 2310.02226)."""
    return backbone.rare_rows()[0].expand(num_paths, num_tokens, -1).to(backbone.model.device)


def controlled(config: RunConfig, source: ThoughtSource, backbone: LanguageModel) -> ThoughtSource:
    """The source, or what `--control` puts in its place. That does not depend on `--limit`, so a run can be extended."""
    num_paths, num_tokens = config.num_paths, config.num_slots
    if config.control is None:
        return source
    if config.control == "shuffled":
        return Shuffled(source, partners_of(shuffled_among(config).questions))
    if config.control == "mean":
        first = task_of(config, limit=_MEAN_OVER).questions
        return Constant(torch.stack([source(question) for question in first]).mean(0), replaces=source)
    if config.control == "unk":
        return Constant(placeholders(backbone, num_paths=num_paths, num_tokens=num_tokens), replaces=source)
    zeros = torch.zeros(num_paths, filled_slots(config), backbone.width, device=backbone.model.device)
    return Constant(zeros, replaces=source)


def refuse_unfit_control(config: RunConfig) -> None:
    """Raises UsageError where `--control` asks for what the questions do not have."""
    if config.control == "shuffled":
        partners_of(shuffled_among(config).questions)


def filled_slots(config: RunConfig) -> int:
    """How many of a prompt's slots hold something: all but with `--control none`."""
    return 0 if config.control == "none" else config.num_slots


def shuffled_among(config: RunConfig) -> LoadedTask:
    """The questions of which each gets another one's thoughts."""
    return task_of(config, limit=None if config.limit is None else config.limit + 1)
