"""Contemplation tokens: continuous tokens that stand for a chain of thought, compressed (CCoT, arXiv 2412.13171).

Three sets of weights share one model. The frozen model reads the question. The adapter CONTEMPLATE makes the contemplation
tokens: each gets as its input the state that the one before it has after layer l, and the first one that of the question's
last token. The adapter DECODE reads the question's last token once more, and answers. Answers see the keys and values that
each part has left. Knows token ids and tensors, no tasks and no texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.functional import binary_cross_entropy_with_logits, pad
from transformers import PreTrainedModel

from contrastive.forward import pad_right
from contrastive.layers import LayerCache, calls_after, can_run_layers, layers_of, read_up_to
from contrastive.prefix import Prefix, can_extend
from contrastive.target_loss import Example, UnsupportedModel

CONTEMPLATE, DECODE = "contemplate", "decode"  # names of the adapters


def prompt_of(example: Example) -> tuple[int, ...]:
    """The tokens of the question, as the model reads them."""
    return (*example.prefix, *example.suffix)


def chain_of(example: Example) -> tuple[int, ...]:
    """The tokens of the gold chain: those of the target that are not scored."""
    return example.target[: example.given]


def as_decoded(example: Example) -> Example:
    """An example as the decoder sees it: without the chain, and with the question's last token once more."""
    answer = None if example.answer is None else tuple(place - example.given for place in example.answer)
    after = replace(example, prefix=prompt_of(example), suffix=prompt_of(example)[-1:], target=example.scored, given=0)
    return replace(after, answer=None if answer is None or answer[0] < 0 else (answer[0], answer[1]))


def activate(model: PreTrainedModel, adapter: str | None) -> None:
    """Lets a model compute with one of its adapters from now on, or with none of them."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # here, as importing it takes long

    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            if adapter is None and module.disable_adapters:
                return  # as all of them are switched together
            if adapter is not None and not module.disable_adapters and module.active_adapters == [adapter]:
                return
            if adapter is not None:
                module.set_adapter([adapter])
            module.enable_adapters(adapter is not None)


def parameters_of(module: nn.Module, adapter: str) -> list[Parameter]:
    """The parameters of an adapter in a model, or in one of its layers."""
    return [parameter for name, parameter in module.named_parameters() if f".{adapter}." in name]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Contemplation tokens of B questions.

    Attributes:
        keys: of each layer, [B, H, K, d].
        values: the same for values.
        states: of the last layer, before the model's final norm, [B, K, D].
        seen: [B, K] bool, False for padding, which is on the right.
    """

    keys: list[Tensor]
    values: list[Tensor]
    states: Tensor
    seen: Tensor


class Contemplation(nn.Module):
    """Makes contemplation tokens with a model that has both adapters.

    Attributes:
        model: the model.
        layer: l, 1 for the first: after which layer a state becomes the next token's input.
        stop: says by the last layer's state of a token whether it is the last one.
        pause: a learned input, [D], that all tokens have in place of a state; None for contemplation itself.
    """

    def __init__(self, model: PreTrainedModel, layer: int, *, pause: bool = False) -> None:
        """pause: whether constant pause tokens stand in the place of contemplation. Raises UnsupportedModel."""
        super().__init__()
        refuse_unsupported(model)
        # held in a list, so that its weights are no part of this module
        self._held = [model]
        self.layer = layer
        width = model.get_input_embeddings().weight.shape[1]
        self.stop = nn.Linear(width, 1)
        nn.init.zeros_(self.stop.weight)
        nn.init.zeros_(self.stop.bias)
        self.pause: Parameter | None = Parameter(torch.zeros(width)) if pause else None
        self.to(model.device)

    @property
    def model(self) -> PreTrainedModel:
        return self._held[0]

    def read(self, prompts: Sequence[Sequence[int]]) -> tuple[Prefix, Tensor]:
        """Reads questions with the frozen model: their keys and values, and the input of the first token, [B, D]."""
        activate(self.model, None)
        return read_up_to(self.model, *pad_right(prompts, self.model.device), self.layer)

    @torch.no_grad()
    def inputs(self, prefix: Prefix, first: Tensor, count: int) -> Tensor:
        """The inputs of contemplation tokens, each made by the token before it, [B, count, D].

        Only the layers up to l are run, and the keys and values of the others are not needed.

        Args:
            prefix: the questions, as read by the frozen model.
            first: the input of the first token, [B, D].
            count: number of tokens.
        """
        made, cache = [first], LayerCache(prefix.keys, prefix.values)
        activate(self.model, CONTEMPLATE)
        while len(made) < count:
            cache = LayerCache(prefix.keys, prefix.values, before=cache.own)
            calls = calls_after(self.model, prefix.seen, made[-1][:, None], cache, read=len(made) - 1)
            made.append(calls.run(calls.inputs, 0, self.layer)[:, 0])
        return torch.stack(made, dim=1)[:, :count]

    def tokens(self, prefix: Prefix, inputs: Tensor, seen: Tensor) -> Tokens:
        """Runs contemplation tokens whose inputs are known, all at once, with gradient for the layers after l.

        Args:
            prefix: the questions, as read by the frozen model.
            inputs: [B, K, D]; with pause tokens they are not looked at.
            seen: [B, K] bool, False for padding.
        """
        if self.pause is not None:
            inputs = self.pause.to(prefix.keys[0].dtype).expand(*inputs.shape[:2], -1)
        activate(self.model, CONTEMPLATE)
        cache = LayerCache(prefix.keys, prefix.values)
        calls = calls_after(self.model, prefix.seen, inputs, cache)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.pause is not None):
            states = calls.run(calls.inputs, 0, self.layer)
        states = calls.run(states, self.layer, len(layers_of(self.model)))
        keys, values = zip(*(cache.own[number] for number in range(len(cache.own))), strict=True)
        return Tokens(list(keys), list(values), states, seen)

    def stop_scores(self, states: Tensor) -> Tensor:
        """How sure it is that tokens are the last ones: log-odds [...] of states [..., D]. States have no gradient."""
        states = states.detach().to(self.stop.weight.dtype)
        scale = states.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=1e-6)
        scores: Tensor = self.stop(states / scale)[..., 0]
        return scores

    def stop_losses(self, tokens: Tokens) -> Tensor:
        """The loss of each token's stop score, [B, K] float32: the last token of a question is to stop, the others are not.

        It is 0 for padding.
        """
        counts = tokens.seen.sum(-1, keepdim=True)
        last = torch.arange(tokens.seen.shape[1], device=counts.device) == counts - 1
        losses = binary_cross_entropy_with_logits(self.stop_scores(tokens.states), last.float(), reduction="none")
        return losses * tokens.seen

    @torch.no_grad()
    def generate(self, prompt: Sequence[int], most: int) -> tuple[Prefix, Tensor]:
        """Reads one question and contemplates until the stop head says so.

        Args:
            prompt: the question's token ids.
            most: number of tokens after which it stops in any case; 0 for the question alone.

        Returns:
            The keys and values of the question and the k tokens after it, and the last layer's states of these, [k, D].
        """
        prefix, first = self.read([prompt])
        if not most:
            return prefix, first[:0]
        activate(self.model, CONTEMPLATE)
        cache, states, following = LayerCache(), list[Tensor](), first
        while len(states) < most and not (states and float(self.stop_scores(states[-1])) > 0):
            cache = LayerCache(prefix.keys, prefix.values, before=cache.own)
            given = following if self.pause is None else self.pause.to(first.dtype)[None]
            calls = calls_after(self.model, prefix.seen, given[:, None], cache, read=len(states))
            middle = calls.run(calls.inputs, 0, self.layer)
            following = middle[:, 0]
            states.append(calls.run(middle, self.layer, len(layers_of(self.model)))[0, 0])
        keys, values = zip(*(cache.own[number] for number in range(len(cache.own))), strict=True)
        seen = torch.ones(1, len(states), dtype=torch.bool, device=prefix.seen.device)
        found = torch.stack(states)
        return joined(prefix, Tokens(list(keys), list(values), found[None], seen)), found


def refuse_unsupported(model: PreTrainedModel) -> None:
    """Raises UnsupportedModel for a model whose layers cannot be run one at a time, or that cannot go on from a prefix."""
    if not can_extend(model):
        raise UnsupportedModel(f"{type(model).__name__} does not go on from keys and values that it is given")
    width = model.get_input_embeddings().weight.shape[1]
    if not can_run_layers(model) or width != model.config.get_text_config().hidden_size:
        raise UnsupportedModel(
            f"the layers of {type(model).__name__} cannot be run one at a time, or take no state as an input"
        )


def joined(prefix: Prefix, tokens: Tokens) -> Prefix:
    """Questions and the contemplation tokens after them as one prefix, padded on the right. Gradients flow through."""
    seen = torch.cat([prefix.seen, tokens.seen], dim=1)
    order = (~seen).long().argsort(dim=1, stable=True)[:, : int(seen.sum(-1).max())]

    def in_order(parts: Sequence[Tensor]) -> Tensor:
        states = torch.cat(list(parts), dim=2)
        places = order[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
        return states.gather(2, places)

    return Prefix(
        [in_order(pair) for pair in zip(prefix.keys, tokens.keys, strict=True)],
        [in_order(pair) for pair in zip(prefix.values, tokens.values, strict=True)],
        seen.gather(1, order),
    )


@torch.no_grad()
def gold_tokens(model: PreTrainedModel, prefix: Prefix, gold: Sequence[Tensor]) -> Tokens:
    """What contemplation tokens would be if they were the gold states: their keys and values by the frozen model.

    Args:
        model: the model with its adapters.
        prefix: the questions, as read by the frozen model.
        gold: of each question, the gold states before each layer and after the last one, [layers + 1, k, D].
    """
    activate(model, None)
    counts = [states.shape[1] for states in gold]
    most = max(counts)
    padded = torch.stack([pad(states, (0, 0, 0, most - states.shape[1])) for states in gold], dim=1).to(model.device)
    cache = LayerCache(prefix.keys, prefix.values)
    calls = calls_after(model, prefix.seen, padded[0], cache)
    for number in range(len(padded) - 1):
        calls.run(padded[number], number, number + 1)
    keys, values = zip(*(cache.own[number] for number in range(len(cache.own))), strict=True)
    seen = torch.arange(most, device=model.device) < torch.tensor(counts, device=model.device)[:, None]
    return Tokens(list(keys), list(values), padded[-1], seen)
