"""Weights of linear layers, laid out ahead for the number of rows that a CPU decodes together.

A decode step multiplies few rows by every weight, and a library call lays each weight out anew for it. Float32 weights are
packed once for MKL instead: on two AVX-512 cores 32 rows of SmolLM2's shapes ran at 190 instead of 60 GFLOP/s, 128 rows at
210 instead of 180. Bfloat16 weights are packed as float32 where the CPU is slower at bfloat16 (128 rows: 190 instead of 55
GFLOP/s; products are exact either way, sums have more digits), and in their own type where it is faster.
Values change by no more than rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType

import torch
from torch import Tensor
from torch.nn.functional import linear, pad
from transformers import PreTrainedModel

from scaling.models.hardware import available_memory, multiplies_bfloat16
from scaling.records.errors import out_of_memory

# Weights are packed for 8, 16 or a multiple of 32 rows; missing rows are filled up with zeros. A step of 8 rows took 90 ms
# in a band of 8 and 130 ms in one of 32; that of a single row takes 60 ms unpacked and 90 ms in a band of 8.
_BANDS, _BAND = (1, 8, 16), 32
_PATIENCE = 6  # steps within a band before it is packed, which takes about as long as two steps
_KEPT = 2  # bands kept: the full batch, and the one that it ends with

Product = Callable[[Tensor, int], Tensor]  # (input [rows, D], rows packed for) to output [rows, D_out]


class PackedWeights:
    """While entered, the linear layers of `model` use packed weights for inputs of as many rows as `choose` was told.

    Does nothing for models on other devices or of other types, and where memory is short. fixed: rows of every product, a
    prefill's too, whatever `choose` is told: weights are then packed at once, or not at all where this is 1.
    """

    def __init__(self, model: PreTrainedModel, *, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._linears = [module for module in model.modules() if type(module) is torch.nn.Linear]
        self._packs: dict[int, list[Product]] = {}
        self._make = _packer(model)
        self._rows = self._band = self._lasted = 0
        self._crowded = False

    def __enter__(self) -> PackedWeights:
        if self._make and self._fixed != 1:
            if self._fixed and not self._packs:
                self._packs[self._fixed] = [self._make(module, self._fixed) for module in self._linears]
            for number, module in enumerate(self._linears):
                module.forward = partial(self._product, number)  # type: ignore[method-assign]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module in self._linears:
            module.__dict__.pop("forward", None)
        self.rest()

    def choose(self, rows: int) -> None:
        """To be called before each step, with its number of rows."""
        if self._fixed:
            return
        band = next((band for band in _BANDS if rows <= band), -(-rows // _BAND) * _BAND)
        self._lasted = self._lasted + 1 if band == self._band else 1
        self._rows, self._band = rows, band
        if self._make and band > 1 and band not in self._packs and self._lasted >= _PATIENCE and self._fits():
            while len(self._packs) >= _KEPT:
                del self._packs[next(iter(self._packs))]
            try:
                self._packs[band] = [self._make(module, band) for module in self._linears]
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._crowded = True  # it goes on without

    def rest(self) -> None:
        """To be called after each step: what is computed until the next one, prompts and thoughts, must not depend on
        whether it happens to have as many rows."""
        self._rows = 0

    def _fits(self) -> bool:
        size = 4 * sum(module.weight.numel() for module in self._linears)
        return not self._crowded and bool(size < available_memory() // 4)

    def _product(self, number: int, inputs: Tensor) -> Tensor:
        module = self._linears[number]
        flat = inputs.reshape(-1, inputs.shape[-1])
        if self._fixed:
            return self._by_blocks(self._packs[self._fixed][number], flat, self._fixed).view(*inputs.shape[:-1], -1)
        packs = self._packs.get(self._band)
        # always of two axes: with three, the library would copy the weight for every row where states are not contiguous
        fits = packs is not None and len(flat) == self._rows
        out = packs[number](flat, self._band) if packs and fits else self._unpacked(module, flat)
        return out.view(*inputs.shape[:-1], -1)

    def _by_blocks(self, product: Product, flat: Tensor, rows: int) -> Tensor:
        filled = pad(flat, (0, 0, 0, -len(flat) % rows))
        return torch.cat([product(block, rows) for block in torch.split(filled, rows)])[: len(flat)]

    def _unpacked(self, module: torch.nn.Linear, inputs: Tensor) -> Tensor:
        if self._make is _packed_by_mkl and inputs.dtype != torch.float32 and len(inputs) >= 2 * _BAND:
            return linear(inputs.float(), *_float_weights(module)).to(inputs.dtype)
        return linear(inputs, module.weight, module.bias)


def _packer(model: PreTrainedModel) -> Callable[[torch.nn.Linear, int], Product] | None:
    """How to pack a layer of this model; None where nothing is gained, or where its weights are quantised already."""
    if model.device.type != "cpu" or getattr(model, "hf_quantizer", None) is not None:
        return None
    if model.dtype == torch.bfloat16 and multiplies_bfloat16():
        return _packed_by_onednn if torch.backends.mkldnn.is_available() else None  # type: ignore[no-untyped-call]
    if model.dtype in (torch.float32, torch.bfloat16) and torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return _packed_by_mkl
    return None


def _packed_by_mkl(module: torch.nn.Linear, band: int) -> Product:
    weight, bias = _float_weights(module)
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, band)
    # only the shape of the unpacked weight is looked at: a float32 copy of a bfloat16 one need not be kept
    shape = torch.empty(1).expand(weight.shape)

    def product(inputs: Tensor, rows: int) -> Tensor:
        missing = rows - len(inputs)
        filled = pad(inputs.float(), (0, 0, 0, missing)) if missing else inputs.float()
        out = torch.ops.mkl._mkl_linear(filled, packed, shape, bias, rows)
        return out[: len(inputs)].to(inputs.dtype)  # type: ignore[no-any-return]

    return product


def _float_weights(module: torch.nn.Linear) -> tuple[Tensor, Tensor | None]:
    return module.weight.detach().float(), None if module.bias is None else module.bias.detach().float()


def _packed_by_onednn(module: torch.nn.Linear, band: int) -> Product:
    packed = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach(), band)

    def product(inputs: Tensor, rows: int) -> Tensor:
        del rows
        return torch.ops.mkldnn._linear_pointwise(inputs, packed, module.bias, "none", [], "")  # type: ignore[no-any-return]

    return product
