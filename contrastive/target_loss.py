"""Computes how far the frozen backbone is from a target text, with thoughts in its prompt or without.

The loss of a target is its negative log-likelihood. Where an example has a reference, it is the distance from what the same
backbone predicts after that reference, its *teacher*. Knows token ids, no texts and no tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div
from transformers import PreTrainedModel

from contrastive import prompt_cache
from contrastive.forward import MODEL_ERRORS, hidden_states, pad_right
from contrastive.latent_steps import rows_of, think
from contrastive.losses import token_divergences, token_losses
from contrastive.prefix import Prefix, can_extend, states_after
from contrastive.windows import switches


@dataclass(frozen=True)
class Example:
    """One question with a text that answers it, as token ids.

    Attributes:
        question: id of the question; several examples may have the same question.
        assistant: what the assistant reads before its slots.
        prefix: what stands before the thoughts in the backbone's prompt.
        suffix: what stands after the thoughts in the backbone's prompt.
        target: what the backbone is to say, such as rationale, answer and end token.
        template: the same for questions that differ only in numbers and names; empty where that is not known.
        weight: of this target's loss beside those of others. Only the ratio of weights counts, see `weighted_tokens`.
        given: number of tokens at the beginning of the target that the backbone only reads. The others are scored.
        reference: what the teacher reads before the scored tokens, prompt included. None where the loss is the negative
            log-likelihood of these tokens.
        answer: where the answer's own tokens stand in the target, as the first place and the one after the last; None
            where that is not known.
        latent: thoughts between prefix and suffix that the backbone has by itself, see `contrastive.latent_steps`.
    """

    question: str
    assistant: tuple[int, ...]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    target: tuple[int, ...]
    template: str = ""
    weight: float = 1
    given: int = 0
    reference: tuple[int, ...] | None = None
    answer: tuple[int, int] | None = None
    latent: int = 0

    @property
    def scored(self) -> tuple[int, ...]:
        """The tokens of the target that have a loss."""
        return self.target[self.given :]


def weighted_tokens(examples: Sequence[Example]) -> float:
    """By what a sum of weighted losses is divided to be in nats a token: sum(weight * scored tokens) over the examples."""
    return sum(example.weight * len(example.scored) for example in examples)


def answer_tokens(example: Example) -> range:
    """The places in the target of the answer's own tokens, such as those of "18" in "The answer is 18.".

    There are none where it is not known where they stand, and none for an example with a reference, whose loss is another.
    """
    return range(0) if example.answer is None or example.reference is not None else range(*example.answer)


def weights_of(examples: Sequence[Example], device: torch.device) -> Tensor:
    """The weights of B examples, [B, 1] float32, to multiply their losses with."""
    return torch.tensor([[example.weight] for example in examples], dtype=torch.float32, device=device)


class UnsupportedModel(Exception):
    """A backbone whose losses cannot be computed. The message says why."""


class Reader:
    """Computes losses of target texts with a backbone."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        """backbone: frozen and in evaluation mode. Raises UnsupportedModel where it computes no logits for embeddings.

        Where something in the backbone is trained after all, `untrained` must be set to what takes that away while it is
        entered: a teacher is the backbone as it was.
        """
        self.backbone = backbone
        self.untrained: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._switches = switches(backbone)
        self._cap = getattr(backbone.config.get_text_config(), "final_logit_softcapping", None)
        # Usually the logits are those of the output layer on the last hidden states: then only the states of the target
        # tokens go through that layer. A model that does more to its logits computes them at all positions, in more memory.
        self._output = hidden_states if self._logits_are_the_layers() else logits

    @property
    def _head(self) -> Tensor | None:
        """The weight of the output layer. It is made anew each time where some of its rows are trained."""
        return getattr(self.backbone.get_output_embeddings(), "weight", None)

    @property
    def _bias(self) -> Tensor | None:
        return getattr(self.backbone.get_output_embeddings(), "bias", None)

    def read_prefixes(self, examples: Sequence[Example]) -> Prefix | None:
        """Keys and values of the examples' prefixes, for `losses`; None for a model that cannot go on from them."""
        if not can_extend(self.backbone):
            return None
        ids, mask = pad_right([example.prefix for example in examples], self.backbone.device)
        return prompt_cache.prefill(self.backbone, ids, mask)

    def losses(self, examples: Sequence[Example], thoughts: Tensor, *, before: Prefix | None = None) -> Tensor:
        """Loss of each example's target after each path's thoughts, summed over its scored tokens, in nats.

        That is their negative log-likelihood, or for an example with a reference the Kullback-Leibler divergence from the
        teacher's prediction to the one after the thoughts, KL(teacher || student), at temperature 1.

        Only the thoughts get a gradient.

        Args:
            examples: B of them.
            thoughts: [B, N, L, D]. With L = 0 the prompt is the same one without thoughts.
            before: what `read_prefixes` returned for these examples, so that prefixes are not read again.

        Returns:
            [B, N] float32, without the examples' weights.
        """
        return _summed(self._after_thoughts(examples, thoughts, before), [len(example.scored) for example in examples])

    def losses_and_answers(
        self, examples: Sequence[Example], thoughts: Tensor, *, before: Prefix | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `losses`, and besides the same sums over the answers' own tokens alone, see `answer_tokens`; both [B, N]."""
        return _with_answers(self._after_thoughts(examples, thoughts, before), examples)

    def whole(self, examples: Sequence[Example]) -> Tensor:
        """Loss of each example's target after its prompt alone, summed over its scored tokens, [B], in nats.

        Unlike in `losses`, a gradient flows through all positions: this is for training the backbone itself. Where an
        example has latent thoughts, the backbone computes these first, and the gradient flows through them, too.
        """
        return _summed(self._by_itself(examples), [len(example.scored) for example in examples])[:, 0]

    def whole_and_answers(self, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
        """As `whole`, and besides the same sums over the answers' own tokens alone, see `answer_tokens`; both [B]."""
        losses, of_answers = _with_answers(self._by_itself(examples), examples)
        return losses[:, 0], of_answers[:, 0]

    def _by_itself(self, examples: Sequence[Example]) -> Tensor:
        """The losses of all scored tokens after what the backbone reads and thinks, [tokens, 1]."""
        by_example: dict[int, Tensor] = {}
        apart = self._apart(examples, max((example.latent for example in examples), default=0))
        keys = [(example.latent, place if apart else 0) for place, example in enumerate(examples)]
        for key in sorted(set(keys)):
            steps, places = key[0], [place for place, own in enumerate(keys) if own == key]
            part = [examples[place] for place in places]
            losses = self._after_latent_steps(part, steps) if steps else self._after_prompts(part)
            by_example |= zip(places, torch.split(losses, [len(example.scored) for example in part]), strict=True)
        return torch.cat([by_example[place] for place in range(len(examples))])

    def _after_latent_steps(self, examples: Sequence[Example], steps: int) -> Tensor:
        """As `_after_prompts`, for examples that all have so many latent thoughts."""
        device, teachers = self.backbone.device, self._teachers(examples)
        tails, _ = pad_right([(*example.suffix, *example.target[:-1]) for example in examples], device)
        prefixes = [example.prefix for example in examples]
        rows = rows_of(self.backbone, prefixes, more=steps + tails.shape[1])
        thoughts = think(rows, steps=steps)
        after = self.backbone.get_input_embeddings()(tails)[:, None]
        states = rows.read(torch.cat([thoughts[:, :, -1:], after], dim=2), output=self._output)
        # the first position is the last thought
        return self._by_token(states, examples, [len(each.suffix) + each.given for each in examples], teachers)

    def _after_prompts(self, examples: Sequence[Example]) -> Tensor:
        """The losses of all scored tokens without thoughts, [tokens, 1] float32, with a gradient everywhere."""
        teachers = self._teachers(examples)
        ids, mask = pad_right(
            [(*example.prefix, *example.suffix, *example.target[:-1]) for example in examples], self.backbone.device
        )
        states = self._output(self.backbone, input_ids=ids, attention_mask=mask, use_cache=False)
        starts = [len(example.prefix) + len(example.suffix) + example.given - 1 for example in examples]
        return self._by_token(states[:, None], examples, starts, teachers)

    def _after_thoughts(self, examples: Sequence[Example], thoughts: Tensor, before: Prefix | None) -> Tensor:
        """The losses of all scored tokens, [tokens, N] float32. Arguments as of `losses`."""
        _, paths, slots, _ = thoughts.shape
        if len(examples) > 1 and self._apart(examples, slots):
            alone = zip(examples, thoughts, strict=True)
            return torch.cat([self._after_thoughts([example], own[None], None) for example, own in alone])
        device, embed = self.backbone.device, self.backbone.get_input_embeddings()
        teachers = self._teachers(examples)
        # the last target token is only predicted, so that the model need not read it
        tails, _ = pad_right([(*example.suffix, *example.target[:-1]) for example in examples], device)
        after = embed(tails)[:, None].expand(-1, paths, -1, -1)
        inputs = torch.cat([thoughts.to(after.dtype), after], dim=2)
        before = before or self.read_prefixes(examples)
        prefixes = [example.prefix for example in examples]
        states = states_after(self.backbone, prefixes, inputs, output=self._output, before=before)
        # the state before the first scored token predicts it: the last one of the suffix, or of what is given
        starts = [slots + len(example.suffix) + example.given - 1 for example in examples]
        return self._by_token(states, examples, starts, teachers)

    def _apart(self, examples: Sequence[Example], thoughts: int) -> bool:
        """Whether examples are to be run one at a time: where the model computes other keys for long texts, and padding may
        make short ones long.

        Args:
            examples: B of them.
            thoughts: as many as any of them has.
        """
        if not self._switches:
            return False
        prompt = max(len(example.prefix) for example in examples) + thoughts
        tail = max(len(example.suffix) + len(example.target) for example in examples)
        taught = max(len(example.reference or ()) + len(example.scored) for example in examples)
        return min(self._switches) < max(prompt + tail, taught) - 1  # the last token is only predicted

    @torch.no_grad()
    def _teachers(self, examples: Sequence[Example]) -> Tensor | None:
        """The teacher's states before each scored token of the examples that have a reference; None where none has.

        They are computed once an example, however many paths it has.

        Returns:
            [tokens, D], or logits [tokens, V] where the model's own are used.
        """
        taught = [(example.reference, example) for example in examples if example.reference is not None]
        if not taught:
            return None
        ids, mask = pad_right([(*read, *example.scored[:-1]) for read, example in taught], self.backbone.device)
        with self.untrained():
            states = self._output(self.backbone, input_ids=ids, attention_mask=mask, use_cache=False)
        rows = [
            states[row, len(read) - 1 : len(read) - 1 + len(example.scored)]
            for row, (read, example) in enumerate(taught)
        ]
        return torch.cat(rows)

    def _by_token(
        self, states: Tensor, examples: Sequence[Example], starts: Sequence[int], teachers: Tensor | None
    ) -> Tensor:
        """The losses of the scored tokens, those of the first example first, [tokens, N] float32.

        Args:
            states: [B, N, S, D], or logits [B, N, S, V] where the model's own are used.
            examples: B of them.
            starts: for each example, where in S the state is that predicts the first scored token.
            teachers: what `_teachers` returned for these examples.
        """
        paths, device = states.shape[1], states.device
        counts = torch.tensor([len(example.scored) for example in examples], device=device)
        question = torch.arange(len(examples), device=device).repeat_interleave(counts)
        place = torch.cat(
            [start + torch.arange(n, device=device) for start, n in zip(starts, counts.tolist(), strict=True)]
        )
        targets = torch.tensor([token for example in examples for token in example.scored], device=device)
        chosen = states.transpose(1, 2)[question, place].flatten(0, 1)  # [tokens * N, D]
        if teachers is None:
            return self._token_losses(chosen, targets.repeat_interleave(paths)).view(-1, paths)
        taught = torch.tensor([example.reference is not None for example in examples], device=device)
        of_teacher = taught[question].repeat_interleave(paths)
        told = self._token_losses(chosen[~of_teacher], targets.repeat_interleave(paths)[~of_teacher])
        matched = self._divergences(chosen[of_teacher], teachers.repeat_interleave(paths, dim=0))
        losses = told.new_zeros(len(chosen)).masked_scatter(~of_teacher, told).masked_scatter(of_teacher, matched)
        return losses.view(-1, paths)

    def _divergences(self, states: Tensor, teachers: Tensor) -> Tensor:
        """KL(teacher || student) at each position, [T] float32. states and teachers: [T, D], or logits [T, V]."""
        if self._output is logits:
            student, teacher = states.float().log_softmax(-1), teachers.float().log_softmax(-1)
            return kl_div(student, teacher, reduction="none", log_target=True).sum(-1)
        head = self._head
        assert head is not None  # as in `_token_losses`
        return token_divergences(states, teachers, head, self._bias, cap=self._cap)

    def _token_losses(self, states: Tensor, targets: Tensor) -> Tensor:
        """Loss of each target token, [T] float32. states: [T, D], or logits [T, V]; targets: [T] int64."""
        if self._output is logits:
            return cross_entropy(states.float(), targets, reduction="none")
        head = self._head
        assert head is not None  # without an output layer, the model's own logits are used
        return token_losses(states, head, self._bias, targets, cap=self._cap)

    @torch.no_grad()
    def _logits_are_the_layers(self) -> bool:
        """Whether the model's logits are just its output layer on its last hidden states; tried on a few tokens."""
        ids = torch.arange(5, 13, device=self.backbone.device)[None]
        embedded = self.backbone.get_input_embeddings()(ids)
        try:
            expected = logits(self.backbone, inputs_embeds=embedded, use_cache=False)[0, :-1]
        except MODEL_ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = str(error).partition("\n")[0]
            raise UnsupportedModel(
                f"{type(self.backbone).__name__} gives no logits for embeddings: {reason}"
            ) from error
        try:
            states = hidden_states(self.backbone, inputs_embeds=embedded, use_cache=False)[0, :-1]
            actual = token_losses(states, self._head, self._bias, ids[0, 1:], cap=self._cap)  # type: ignore[arg-type]
        except MODEL_ERRORS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
        expected_losses = cross_entropy(expected.float(), ids[0, 1:], reduction="none")
        return torch.allclose(actual.float(), expected_losses, rtol=0.02, atol=0.02)


def _summed(by_token: Tensor, counts: Sequence[int]) -> Tensor:
    """Sums over the tokens of each example, [B, N]. by_token: [tokens, N]; counts: tokens of each example."""
    question = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(by_token.device)
    return by_token.new_zeros(len(counts), by_token.shape[1]).index_add(0, question, by_token)


def _with_answers(by_token: Tensor, examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Sums over the scored tokens of each example, and over its answer's own tokens; both [B, N]. by_token: [tokens, N]."""
    counts = [len(example.scored) for example in examples]
    own = [
        place in answer_tokens(example) for example in examples for place in range(example.given, len(example.target))
    ]
    of_answers = by_token * torch.tensor(own, device=by_token.device)[:, None]
    return _summed(by_token, counts), _summed(of_answers, counts)


def logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Computes a model's logits at all positions, [B, S, V]. inputs: as of the model's own forward pass."""
    values: Tensor = model(**inputs).logits
    return values
