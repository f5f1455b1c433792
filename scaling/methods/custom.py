"""A method of the user's own: `--method FILE.py:NAME`, `MODULE:NAME`, or an entry point of the group `softcotpp.methods`.

The user's factory is called as `factory(surroundings, **method_args)`. What it returns may have:

    thoughts(question)        [N, L, D] of one question, or
    batch_thoughts(questions) [Q, N, L, D] of several; `questions_at_once` says how many are given together (8)
    decoder                   a `LanguageModel` that decodes in the backbone's place; needs Trait.LOCAL
    flops_per_slot            FLOPs of a thought besides those of the assistant (0)
    assistant_tokens(question) tokens that the assistant reads before the slots (0)
    identity()                what else decides the thoughts, such as the checksum of a file; goes into run.json

A method without thoughts has the prompts of chain of thought, so it must have a decoder.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scaling.config import RunConfig
from scaling.engines.kinds import KINDS as ENGINES
from scaling.methods.base import Method, Parts, Surroundings
from scaling.methods.cot import ChainOfThought
from scaling.methods.kinds import MethodKind, Trait, has_thoughts, kind_of
from scaling.methods.softcot import SoftCoT
from scaling.methods.thinkers import SOFT_TOKENS
from scaling.methods.thoughts import controlled, refuse_unfit_control
from scaling.models import devices
from scaling.models.loading import LanguageModel, fingerprint_of
from scaling.records.errors import UsageError
from scaling.records.plugins import refuse_unfit_arguments, users_code
from scaling.records.records import Question
from scaling.tasks.task import LoadedTask

_AT_ONCE = 8


class CustomThoughts:
    """The thoughts of a user's own method, each checked before it is used."""

    def __init__(
        self, made: Any, surroundings: Surroundings, *, width: int, identity: dict[str, Any], call: Callable[..., Any]
    ):
        """
        Args:
            made: what the user's factory returned.
            width: D of the model that decodes.
            identity: what run.json says of the method.
            call: calls a function of the user's, so that its errors name the file and the line.
        """
        config = surroundings.config
        self.num_tokens = surroundings.soft_tokens
        self.assistant = surroundings.assistant if config.assisted else None
        self.projection = int(getattr(made, "flops_per_slot", 0))
        self._made, self._identity, self._call = made, identity, call
        self._shape = (surroundings.num_paths, self.num_tokens, width)
        self._method, self._questions = config.method, surroundings.task.questions
        self._places = {question.id: place for place, question in enumerate(self._questions)}
        # the engine takes the device once all thoughts are there
        self._keeps_all = devices.engine_takes_gpus(config)
        self._known: dict[str, Tensor] = {}
        modules = [self.assistant.model] if self.assistant and not ENGINES[config.engine].in_process else []
        self._to_device = surroundings.to_thinking_device(*modules)

    def __call__(self, question: Question) -> Tensor:
        if question.id not in self._known:
            thoughts = self._compute(question)
            self._known = {**self._known, **thoughts} if self._keeps_all else thoughts
        return self._known[question.id]

    def reads(self, question: Question) -> int:
        if not hasattr(self._made, "assistant_tokens"):
            return 0
        return int(self._call(self._made.assistant_tokens, question))

    def identity(self) -> dict[str, Any]:
        return self._identity

    @torch.no_grad()
    def _compute(self, question: Question) -> dict[str, Tensor]:
        """Of the question, and of those that are always given to the method together with it."""
        self._to_device()
        if not hasattr(self._made, "batch_thoughts"):
            return {question.id: self._checked(self._call(self._made.thoughts, question), self._shape, [question])}
        together = self._batch(question)
        thoughts = self._call(self._made.batch_thoughts, together)
        whole = self._checked(thoughts, (len(together), *self._shape), together)
        return {one.id: own for one, own in zip(together, whole, strict=True)}

    def _batch(self, question: Question) -> Sequence[Question]:
        """The same for a question whatever is asked before it. A question that the task does not have is alone."""
        place, number = self._places.get(question.id), int(getattr(self._made, "questions_at_once", _AT_ONCE))
        if place is None:
            return [question]
        start = place - place % number
        return self._questions[start : start + number]

    def _checked(self, thoughts: Any, shape: tuple[int, ...], questions: Sequence[Question]) -> Tensor:
        """float32 on the device where they are. Raises UsageError for anything but finite numbers of this shape."""
        of = f"the thoughts of question {questions[0].id} by `--method` {self._method}"
        if not isinstance(thoughts, Tensor):
            raise UsageError(f"{of} are a {type(thoughts).__name__}: return a torch.Tensor of shape {list(shape)}.")
        if tuple(thoughts.shape) != shape:
            names = "[questions, N, L, D]" if len(shape) == 4 else "[N, L, D]"
            raise UsageError(
                f"{of} have the shape {list(thoughts.shape)}, and {list(shape)} is needed, which is {names}: N is "
                f"`--latent-paths`, L `--soft-tokens`, D the width of the model that decodes."
            )
        if not thoughts.is_floating_point():
            raise UsageError(f"{of} are of type {thoughts.dtype}: return floating-point numbers, as float32.")
        if not bool(thoughts.isfinite().all()):
            raise UsageError(f"{of} are not numbers (NaN or infinite): mend the method, or try `--dtype float32`.")
        return thoughts.detach().float()


@dataclass(frozen=True, eq=False, kw_only=True)
class CustomParts(Parts):
    """kind: what is known of the method before it is made, its factory included."""

    kind: MethodKind

    @classmethod
    def read(cls, config: RunConfig, task: LoadedTask) -> CustomParts:  # noqa: ARG003
        kind = kind_of(config.method)
        refuse_unfit_control(config)
        refuse_unfit_arguments(kind.factory, config.method_args or {}, config.method, option="--method-args")
        if kind.has(Trait.SLOTS):
            num_slots = config.soft_tokens or kind.soft_tokens or SOFT_TOKENS
            config = config.model_copy(update={"soft_tokens": num_slots})
        return cls(config, kind=kind)

    def identity(self) -> dict[str, Any]:
        return {"method_sha256": self.kind.sha256}

    def build(self, surroundings: Surroundings) -> Method:
        made = self._call(self.kind.factory, surroundings, **(self.config.method_args or {}))
        decoder = self._decoder(made, surroundings)
        identity = self._identity_of(made, decoder, surroundings)
        task = surroundings.task.definition
        if not self.kind.has(Trait.THOUGHTS):
            return ChainOfThought(decoder, task=task, identity=identity)
        if not has_thoughts(type(made)):
            raise self._refused(f"made a {type(made).__name__}, which has no method `thoughts`")
        source = CustomThoughts(made, surroundings, width=decoder.width, identity=identity, call=self._call)
        thoughts = controlled(self.config, source, decoder)
        return SoftCoT(decoder, thoughts, task=task, num_slots=surroundings.soft_tokens)

    def _decoder(self, made: Any, surroundings: Surroundings) -> LanguageModel:
        """The model that decodes: the method's own, or the backbone, whose weights must be as they were."""
        backbone = surroundings.loaded_backbone
        changed = backbone and ENGINES[self.config.engine].in_process and fingerprint_of(backbone.model)
        if backbone and changed and changed != backbone.fingerprint:
            raise self._refused(
                "has changed the weights of `surroundings.backbone`, which others use: change those of "
                "`surroundings.own_backbone()`, and return them as `decoder`"
            )
        decoder = getattr(made, "decoder", None)
        if decoder is None:
            return surroundings.backbone
        if not isinstance(decoder, LanguageModel):
            raise self._refused(f"has a `decoder` of type {type(decoder).__name__}, and a LanguageModel is needed")
        if not self.kind.has(Trait.LOCAL):
            raise self._refused("has a `decoder`: add Trait.LOCAL to its `traits`")
        return decoder

    def _identity_of(self, made: Any, decoder: LanguageModel, surroundings: Surroundings) -> dict[str, Any]:
        identity = {**self.identity(), "backbone_fingerprint": surroundings.backbone_fingerprint}
        if getattr(made, "decoder", None) is not None:
            identity["decoder_fingerprint"] = fingerprint_of(decoder.model)
        if self.kind.has(Trait.ASSISTANT):
            identity["assistant_fingerprint"] = surroundings.assistant.fingerprint
        if hasattr(made, "identity"):
            told = self._call(made.identity)
            try:
                identity["method_identity"] = json.loads(json.dumps(told, allow_nan=False))
            except (TypeError, ValueError) as error:
                raise self._refused(f"has an `identity()` that JSON cannot hold ({error})") from None
        return identity

    def _call(self, function: Any, *values: Any, **named: Any) -> Any:
        with users_code(self.config.method, option="--method", file=self.kind.file):
            return function(*values, **named)

    def _refused(self, why: str) -> UsageError:
        return UsageError(f"`--method` {self.config.method} {why}.")
