"""Thinkers that read the question themselves, from the backbone's own input embeddings, without an assistant.

A proposer is a small transformer without a causal mask. Each path has a group of L learned queries, which see the prompt and
each other, and no other group: a path does not depend on how many there are. A refiner goes on from there: one further block
is applied again and again with the same weights, so that more rounds are more computation and no more parameters.

The letters of the shapes are explained in `contrastive.thinker`. d is the width of the blocks, S = N L.
"""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from contrastive.thinker import ConstantPerSlot, Flops, Inputs, Thoughts, rare_constants

WIDTH = 256  # of the blocks of an untrained thinker
HEADS, BLOCKS = 4, 2
GATE = 0.1  # size of what is computed in an untrained thinker, relative to the embeddings
ROUNDS = 3  # of refinement
_INNER = 4  # updates of the inner state in each round
PENALTY = 0.01  # weight of the mean square of what the refinement changes, in units of the embeddings' scale

Keys = tuple[Tensor, Tensor]  # keys and values of a context, [B, H, P, d / H] each


class Block(nn.Module):
    """A pre-norm transformer block. Which positions see which is up to the caller."""

    def __init__(self, width: int) -> None:
        """width: d, a multiple of the number of heads."""
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention_in = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_in = nn.Linear(width, 4 * width, bias=False)
        self.mlp_out = nn.Linear(4 * width, width, bias=False)

    @staticmethod
    def shapes(width: int) -> dict[str, list[int]]:
        """Shape of each tensor by name."""
        return {
            "norm_attention.weight": [width],
            "norm_mlp.weight": [width],
            "attention_in.weight": [3 * width, width],
            "attention_out.weight": [width, width],
            "mlp_in.weight": [4 * width, width],
            "mlp_out.weight": [width, 4 * width],
        }

    def keys(self, context: Tensor) -> Keys:
        """Keys and values of positions that others will see. context: [B, P, d]."""
        width = context.shape[-1]
        values = self.norm_attention(context) @ self.attention_in.weight[width:].T
        return _heads(values[..., :width]), _heads(values[..., width:])

    def forward(self, inputs: Tensor, allowed: Tensor, context: Keys | None = None) -> tuple[Tensor, Keys]:
        """Computes the block's output, and the keys and values of its inputs.

        Args:
            inputs: [B, S, d].
            allowed: [B, 1, S, P + S] bool, True where an input (row) may see the context or an input (column).
            context: keys and values of P positions besides the inputs; None for none.
        """
        query, *own = map(_heads, self.attention_in(self.norm_attention(inputs)).chunk(3, dim=-1))
        key, value = (
            (torch.cat([before, new], dim=2) for before, new in zip(context, own, strict=True)) if context else own
        )
        seen = scaled_dot_product_attention(query, key, value, attn_mask=allowed)
        states = inputs + self.attention_out(seen.transpose(1, 2).flatten(2))
        states = states + self.mlp_out(gelu(self.mlp_in(self.norm_mlp(states))))
        return states, (own[0], own[1])


def _heads(rows: Tensor) -> Tensor:
    """Splits [B, S, d] into heads, [B, H, S, d / H]."""
    return rows.view(*rows.shape[:2], HEADS, -1).transpose(1, 2)


class Proposer(ConstantPerSlot):
    """Thoughts T^k = c^k + s g U n(q^k), where q^k are the queries of path k after they have seen the question's prompt.

    c is a learned constant for each path and slot, s the scale of the embeddings, g a learned gate that begins small, U the
    projection from d to D, and n the root-mean-square norm. The contrast of paths compares the part besides c.

    The queries of a path see each other. With fewer slots than it was trained with, see `first_slots`, all K queries are
    therefore computed, and the first L give the thoughts.
    """

    kind: ClassVar[str] = "proposer"
    uses_prompt: ClassVar[bool] = True
    of_path: ClassVar[tuple[str, ...]] = ("offset", "queries")
    scale: Tensor

    def __init__(self, constant: Tensor, queries: Tensor, *, scale: float) -> None:
        """Makes the modules; their weights are set by `untrained` or come from a file.

        Args:
            constant: c, [N, L, D].
            queries: [N, K, d], with K at least L.
            scale: s, root mean square of the backbone's input embeddings.
        """
        super().__init__(constant)
        width, backbone_width = queries.shape[-1], constant.shape[-1]
        self.queries = nn.Parameter(queries.detach().float().clone())
        self.register_buffer("scale", torch.tensor(scale, dtype=torch.float32))
        self.down = nn.Linear(backbone_width, width, bias=False)
        self.blocks = nn.ModuleList(Block(width) for _ in range(BLOCKS))
        self.norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, backbone_width, bias=False)
        self.gate = nn.Parameter(torch.tensor(GATE))

    @classmethod
    def untrained(
        cls, rare_rows: Tensor, *, num_paths: int, num_slots: int, scale: float, width: int = WIDTH
    ) -> Proposer:
        """Makes a thinker before any training. The same sizes always give the same weights.

        Args:
            rare_rows: as of `rare_constants`, and so the next three.
            num_paths: N.
            num_slots: L.
            scale: see there.
            width: d.
        """
        constant = rare_constants(rare_rows, num_paths=num_paths, num_slots=num_slots, scale=scale)
        queries = [
            torch.randn(num_slots, width, generator=torch.Generator().manual_seed(path)) for path in range(num_paths)
        ]
        thinker = cls(constant, torch.stack(queries), scale=scale)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for module in thinker.modules():
                if isinstance(module, nn.Linear):
                    module.weight.normal_(0.0, module.in_features**-0.5, generator=generator)
        return thinker

    def sizes(self) -> dict[str, Any]:
        computed = {"computed_slots": self.queries.shape[1]} if self._computed_slots else {}
        return {"width": self.queries.shape[-1], **computed}

    @property
    def _computed_slots(self) -> int:
        """K where it is more than L, else 0."""
        return 0 if self.queries.shape[1] == self.vectors_per_path else self.queries.shape[1]

    @classmethod
    def shapes(  # type: ignore[override]
        cls, num_paths: int, soft_tokens: int, backbone_width: int, *, width: int, computed_slots: int | None = None
    ) -> dict[str, list[int]]:
        if width % HEADS:
            raise ValueError(f"width={width} is no multiple of {HEADS}, the number of heads")
        if computed_slots is not None and computed_slots <= soft_tokens:
            raise ValueError(f"computed_slots={computed_slots} must be more than soft_tokens={soft_tokens}")
        blocks = {f"blocks.{n}.{name}": shape for n in range(BLOCKS) for name, shape in Block.shapes(width).items()}
        return {
            "offset": [num_paths, soft_tokens, backbone_width],
            "queries": [num_paths, computed_slots or soft_tokens, width],
            "scale": [],
            "gate": [],
            "down.weight": [width, backbone_width],
            "norm.weight": [width],
            "up.weight": [backbone_width, width],
            **blocks,
        }

    @classmethod
    def empty(  # type: ignore[override]
        cls, num_paths: int, soft_tokens: int, backbone_width: int, *, width: int, computed_slots: int | None = None
    ) -> Proposer:
        constant = torch.zeros(num_paths, soft_tokens, backbone_width)
        return cls(constant, torch.zeros(num_paths, computed_slots or soft_tokens, width), scale=1.0)

    def flops(self) -> Flops:
        width, products = self.queries.shape[-1], 2 * self.queries.shape[-1] * self.width
        whole, attention = _block_flops(width)
        return Flops(
            slot=BLOCKS * whole + products,
            position=products
            + (BLOCKS - 1) * whole
            + 4 * width**2,  # of the last block only keys and values are needed
            pair=(BLOCKS - 1) * attention,
            slot_position=BLOCKS * attention,
            slot_slot=BLOCKS * attention,
            computed_slots=self._computed_slots,
        )

    def residual(self, inputs: Inputs, num_slots: int) -> Tensor:
        queries, _, _ = self._propose(inputs, num_slots)
        return self._proposed(queries)[:, :, :num_slots]

    def compute(self, inputs: Inputs, num_slots: int) -> Thoughts:
        residual = self.residual(inputs, num_slots)
        return Thoughts(self.with_constant(residual), residual)

    def _propose(self, inputs: Inputs, num_slots: int) -> tuple[Tensor, Tensor, Tensor]:
        """Lets the queries read the prompts: all of them, even where only the first `num_slots` of a path are used.

        Returns:
            The queries [B, S, d], the prompts as the last block has read them [B, P, d], and what a query may see of both,
            [B, 1, S, P + S] bool.
        """
        per_path = self.queries.shape[1]
        if per_path not in (1, num_slots) and num_slots != self.vectors_per_path:
            raise ValueError(f"there are {per_path} queries a path, which cannot fill {num_slots} slots")
        computed = max(per_path, num_slots)
        embeddings, seen = inputs.prompt()
        prompt = self.down(embeddings / self.scale)
        prompt = prompt + _positions(prompt.shape[1], prompt.shape[2], prompt.device)
        queries = self.queries.expand(-1, computed, -1).flatten(0, 1).expand(inputs.size, -1, -1)
        path = torch.arange(self.num_paths, device=seen.device).repeat_interleave(computed)
        same = (path[:, None] == path).expand(inputs.size, -1, -1)
        allowed = torch.cat([seen[:, None].expand(-1, len(path), -1), same], dim=2)[:, None]
        first, last = list(self.blocks)[:-1], cast(Block, self.blocks[-1])
        for block in first:
            following, keys = block(prompt, seen[:, None, None].expand(-1, 1, prompt.shape[1], -1))
            queries, _ = block(queries, allowed, keys)
            prompt = following
        queries, _ = last(queries, allowed, last.keys(prompt))
        return queries, prompt, allowed

    def _proposed(self, queries: Tensor) -> Tensor:
        """The residual [B, N, L, D] of the queries [B, S, d]."""
        return self._by_path(self.scale * self.gate * self.up(self.norm(queries)))

    def _by_path(self, rows: Tensor) -> Tensor:
        """Splits [B, S, D] into paths, [B, N, L, D]."""
        return rows.view(len(rows), self.num_paths, -1, rows.shape[-1])


class Refiner(Proposer):
    """A proposer whose thoughts are refined: T^k = proposed + D^k, D = s g' U' z after R rounds of a block f.

    Each round computes z_L <- f(z_L + z_H + u) four times, and then z_H <- f(z_H + z_L), where u are the queries of the
    proposer, z_L begins as zero and z_H as u, and f ends with a root-mean-square norm, so that any number of rounds is
    stable. In training the gradient flows through the last round alone. The loss gets `PENALTY` times the mean square of
    D / s, which keeps D small where it is of no use. The contrast of paths compares D.
    """

    kind: ClassVar[str] = "refiner"
    refine_steps: int = ROUNDS

    def __init__(self, constant: Tensor, queries: Tensor, *, scale: float) -> None:
        super().__init__(constant, queries, scale=scale)
        width = queries.shape[-1]
        self.refine, self.refine_norm = Block(width), nn.RMSNorm(width)
        self.refine_up = nn.Linear(width, constant.shape[-1], bias=False)
        self.refine_gate = nn.Parameter(torch.tensor(GATE))

    def sizes(self) -> dict[str, Any]:
        return {**super().sizes(), "refine_steps": self.refine_steps}

    @classmethod
    def shapes(  # type: ignore[override]
        cls,
        num_paths: int,
        soft_tokens: int,
        backbone_width: int,
        *,
        width: int,
        refine_steps: int,
        computed_slots: int | None = None,
    ) -> dict[str, list[int]]:
        del refine_steps
        return {
            **super().shapes(num_paths, soft_tokens, backbone_width, width=width, computed_slots=computed_slots),
            **{f"refine.{name}": shape for name, shape in Block.shapes(width).items()},
            "refine_norm.weight": [width],
            "refine_up.weight": [backbone_width, width],
            "refine_gate": [],
        }

    @classmethod
    def empty(  # type: ignore[override]
        cls, num_paths: int, soft_tokens: int, backbone_width: int, *, refine_steps: int, **sizes: Any
    ) -> Proposer:
        return super().empty(num_paths, soft_tokens, backbone_width, **sizes).with_steps(refine_steps)

    def flops(self) -> Flops:
        proposed = super().flops()
        if not self.refine_steps:
            return proposed
        width = self.queries.shape[-1]
        whole, attention = _block_flops(width)
        updates = self.refine_steps * (_INNER + 1)
        return Flops(
            slot=proposed.slot + updates * whole + 2 * width * self.width,
            position=proposed.position + 4 * width**2,  # keys and values are the same in all rounds
            pair=proposed.pair,
            slot_position=proposed.slot_position + updates * attention,
            slot_slot=proposed.slot_slot + updates * attention,
            computed_slots=proposed.computed_slots,
        )

    def residual(self, inputs: Inputs, num_slots: int) -> Tensor:
        proposed, change = self._refined(inputs, num_slots)
        return (proposed + change)[:, :, :num_slots]

    def compute(self, inputs: Inputs, num_slots: int) -> Thoughts:
        proposed, change = (part[:, :, :num_slots] for part in self._refined(inputs, num_slots))
        penalty = PENALTY * (change / self.scale).pow(2).flatten(1).mean(1)
        return Thoughts(self.with_constant(proposed + change), change, penalty)

    def _refined(self, inputs: Inputs, num_slots: int) -> tuple[Tensor, Tensor]:
        """What is proposed, and how the refinement changes it, both [B, N, K, D]."""
        queries, prompt, allowed = self._propose(inputs, num_slots)
        proposed = self._proposed(queries)
        if not self.refine_steps:
            return proposed, torch.zeros_like(proposed)
        start = self.norm(queries)
        outer, inner = start, torch.zeros_like(start)
        keys = self.refine.keys(prompt)
        for left in reversed(range(self.refine_steps)):
            with torch.set_grad_enabled(torch.is_grad_enabled() and not left):
                for _ in range(_INNER):
                    inner = self._update(inner + outer + start, allowed, keys)
                outer = self._update(outer + inner, allowed, keys)
        return proposed, self._by_path(self.scale * self.refine_gate * self.refine_up(outer))

    def _update(self, states: Tensor, allowed: Tensor, keys: Keys) -> Tensor:
        """f: one application of the refining block. states: [B, S, d]."""
        updated: Tensor = self.refine_norm(self.refine(states, allowed, keys)[0])
        return updated


def _block_flops(width: int) -> tuple[int, int]:
    """FLOPs of a block: of its matrices for one position, and of attention for one pair of positions."""
    return 24 * width**2, 4 * width


def _positions(length: int, width: int, device: torch.device) -> Tensor:
    """Sines and cosines that tell positions apart (arXiv 1706.03762), [length, width]."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(length, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
