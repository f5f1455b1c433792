"""A frozen model reads a prefix once, without gradient, and continues it with gradient for what follows.

Only what stands after the soft tokens depends on what is trained. The keys and values of everything before are computed
once for a question and shared by its paths. That takes a model with plain keys and values, and masks from outside;
`continues` tries whether one is. `states_after` serves every other causal model, too: it reads the prefix anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from contrastive.windows import lengths, narrowed, setting

Output = Callable[..., Tensor]  # a model's forward pass: (model, inputs_embeds=..., ...) to [B, S, *]
MISFITS = (NotImplementedError, ValueError, TypeError, AttributeError, RuntimeError, LookupError, AssertionError)


class CaptureCache(Cache):
    """A cache that only keeps what passes through it. keys, values: [B, H, T, d] a layer."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        assert layer_idx == len(self.keys), "layers must come in order"
        self.keys.append(key_states)
        self.values.append(value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return 0


@dataclass(frozen=True, eq=False)
class Prefix:
    """keys, values: [B, H, P, d] a layer, without gradient; seen: [B, P] bool, False for padding, which is on the right."""

    keys: list[Tensor]
    values: list[Tensor]
    seen: Tensor

    @property
    def lengths(self) -> Tensor:
        """Tokens of each prefix, [B] int64."""
        return self.seen.sum(-1)


class _Continued(Cache):
    """Gives every row its prefix's keys before its own, and keeps nothing: a layer computed again sees the same."""

    def __init__(self, prefix: Prefix) -> None:
        super().__init__(layers=[])
        self._prefix = prefix

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        keys, values = self._prefix.keys[layer_idx], self._prefix.values[layer_idx]
        return _after(keys, key_states), _after(values, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        del layer_idx
        return int(self._prefix.seen.shape[1])


def _after(prefix: Tensor, own: Tensor) -> Tensor:
    """prefix: [B, H, P, d], own: [B * n, H, S, d], n rows of each in turn; [B * n, H, P + S, d]."""
    times = len(own) // len(prefix)
    return torch.cat([prefix.repeat_interleave(times, dim=0) if times > 1 else prefix, own], dim=2)


@torch.no_grad()
def read(model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor) -> Prefix:
    """Keys and values of a frozen model for input_ids [B, P] int64, padded on the right; attention_mask: [B, P] int64."""
    caught = CaptureCache()
    body(model)(
        inputs_embeds=model.get_input_embeddings()(input_ids),
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=caught,
        use_cache=True,
    )
    return Prefix(caught.keys, caught.values, attention_mask.bool())


def go_on(
    model: PreTrainedModel,
    prefix: Prefix,
    inputs: Tensor,
    positions: Tensor,
    allowed: Tensor,
    *,
    output: Output | None = None,
) -> Tensor:
    """What `output` makes of what follows the prefixes, [B * n, S, *], n rows of each in turn, with gradient by the inputs.

    inputs: [B * n, S, D] embeddings; positions: [B * n, S] int64; allowed: [S, S] bool, True where a query (row) may see a
    key (column) of its own row. The whole prefix is seen by all. output: `hidden_states`, unless another is given.
    """
    rows, length = inputs.shape[:2]
    before = prefix.seen.repeat_interleave(rows // len(prefix.seen), dim=0)
    seen = torch.cat([before[:, None].expand(-1, length, -1), allowed.expand(rows, -1, -1)], dim=2)
    behind = torch.arange(before.shape[1], device=inputs.device).expand(rows, -1)
    return (output or hidden_states)(
        model,
        inputs_embeds=inputs,
        attention_mask=attention_masks(
            model.config, seen, positions, inputs.dtype, torch.cat([behind, positions], dim=1)
        ),
        position_ids=positions,
        past_key_values=_Continued(prefix),
        use_cache=True,
    )


def states_after(
    model: PreTrainedModel,
    prefixes: Sequence[Sequence[int]],
    inputs: Tensor,
    *,
    output: Output | None = None,
) -> Tensor:
    """What `output` makes of n continuations of each prefix, [B, n, S, *], with gradient by the inputs.

    prefixes: token ids; inputs: [B, n, S, D] embeddings, padded on the right where a continuation is shorter. Right for
    every causal model: the sequences of one prefix have one length, so nothing is padded on the left, and none is masked.
    """
    batch, times, length, width = inputs.shape
    longest = max(map(len, prefixes)) + length
    if continues(model, longest=longest):
        ids, mask = padded(prefixes, inputs.device)
        before = read(model, ids, mask)
        steps = torch.arange(length, device=inputs.device)
        positions = (before.lengths[:, None] + steps).repeat_interleave(times, dim=0)
        causal = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
        found = go_on(model, before, inputs.view(-1, length, width), positions, causal, output=output)
        return found.view(batch, times, length, -1)
    return torch.stack([_anew(model, *each, output or hidden_states) for each in zip(prefixes, inputs, strict=True)])


def _anew(model: PreTrainedModel, prefix: Sequence[int], inputs: Tensor, output: Output) -> Tensor:
    """[n, S, *] for the continuations [n, S, D] of one prefix, without any cache."""
    ids = torch.tensor([prefix], dtype=torch.long, device=inputs.device)
    before = model.get_input_embeddings()(ids).to(inputs.dtype).expand(len(inputs), -1, -1)
    return output(model, inputs_embeds=torch.cat([before, inputs], dim=1), use_cache=False)[:, len(prefix) :]


def body(model: PreTrainedModel) -> Any:
    """The part of a model that computes its last hidden states: the model itself where it has no such part."""
    found = model.base_model
    return model.get_decoder() if found is model else found


def hidden_states(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """A model's last hidden states, [B, S, D]."""
    found: Tensor | None = getattr(body(model)(**inputs), "last_hidden_state", None)
    if found is None:
        found = model(**inputs, output_hidden_states=True).hidden_states[-1]
    return found


_tried: WeakKeyDictionary[PreTrainedModel, dict[frozenset[int], bool]] = WeakKeyDictionary()


def continues(model: PreTrainedModel, *, longest: int | None = None) -> bool:
    """Whether `read` and `go_on` give a model's own states for sequences of at most `longest` tokens.

    Tried once on a few tokens, beyond the model's windows where `longest` is, against a forward pass without cache.
    """
    known = _tried.setdefault(model, {})
    beyond = lengths(model, longest=longest)
    if beyond not in known:
        known[beyond] = _continues(model, longest)
    return known[beyond]


@torch.no_grad()
def _continues(model: PreTrainedModel, longest: int | None) -> bool:
    """Two prefixes of different lengths, and after each two paths in one row, as the thinker lays them out."""
    paths, steps = 2, 3
    size = model.config.get_text_config().vocab_size
    ids = (torch.arange(3, 300, 7, device=model.device) % size).tolist()
    prefixes = [ids[:11], ids[11:14]]  # beyond a window of the trial, and within it
    inputs = model.get_input_embeddings()(torch.tensor(ids[14 : 14 + 2 * paths * steps], device=model.device))
    inputs = inputs.view(2, paths, steps, -1)
    with narrowed(model, longest=longest):
        expected = torch.stack([_anew(model, *each, hidden_states) for each in zip(prefixes, inputs, strict=True)])
        try:
            before = read(model, *padded(prefixes, model.device))
            positions = before.lengths[:, None] + torch.arange(steps, device=model.device).repeat(paths)
            found = go_on(
                model, before, inputs.flatten(1, 2), positions, path_mask(paths, steps, model.device)
            ).view_as(expected)
        except MISFITS as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return False
    return agree(found.flatten(0, 1), expected.flatten(0, 1))


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two ways of computing the rows [R, S, *] differ by no more than rounding explains.

    In half precision a single row may be thrown far off by rounding alone, whichever way it is computed.
    """
    off = differences(found, expected)
    if expected.dtype.itemsize >= 4:
        return float(off.max()) < 1e-3
    by_row = off.mean(dim=1).sort().values
    return float(by_row[-2 if len(by_row) > 2 else -1]) < 0.05


def differences(found: Tensor, expected: Tensor) -> Tensor:
    """How far off the vectors of the rows [R, S, *] are, relative to the expected ones' lengths, [R, S] float32."""
    found, expected = found.float(), expected.float()
    off: Tensor = (found - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=1e-30)
    return off.nan_to_num(nan=torch.inf)


def path_mask(num_paths: int, num_slots: int, device: torch.device) -> Tensor:
    """[N * L, N * L] bool, True where a slot (row) may see a slot (column): those of its own path up to itself."""
    path = torch.arange(num_paths, device=device).repeat_interleave(num_slots)
    return (path[:, None] == path).tril()


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and mask, [B, T] int64, padded on the right, where causal attention never looks."""
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return pad_sequence(ids, batch_first=True).to(device), mask.to(device)


def attention_masks(
    config: Any, allowed: Tensor, positions: Tensor, dtype: torch.dtype, key_positions: Tensor | None = None
) -> Any:
    """The additive masks [B, 1, Q, K] that a transformers model takes, one per kind of layer where it has several.

    allowed: [B, Q, K] bool; positions: [B, Q] of the queries; key_positions: [B, K], or None for 0 .. K-1. Layers with a
    sliding window see only keys less than a window behind, and those with chunks only keys of the query's own chunk.
    """
    config = config.get_text_config()
    lowest = torch.finfo(dtype).min
    full = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, lowest).unsqueeze(1)
    kinds = set(getattr(config, "layer_types", None) or ())
    window, chunk = setting(config, "sliding_window"), setting(config, "attention_chunk_size")
    if kinds == {"full_attention"} or (window is None and chunk is None):
        return full
    if key_positions is None:
        key_positions = torch.arange(allowed.shape[2], device=positions.device)[None]
    queries, keys = positions[:, :, None], key_positions[:, None, :]
    masks = {"full_attention": full}
    if window is not None:
        masks["sliding_attention"] = full.masked_fill((queries - keys >= window).unsqueeze(1), lowest)
    if chunk is not None:
        masks["chunked_attention"] = full.masked_fill((queries // chunk != keys // chunk).unsqueeze(1), lowest)
    return masks if kinds else masks.get("sliding_attention", full)


@contextmanager
def recomputed(model: PreTrainedModel, *, active: bool) -> Iterator[None]:
    """While entered, each layer's activations are computed again in the backward pass instead of being kept."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if active else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
