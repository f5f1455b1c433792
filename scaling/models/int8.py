"""`--quantize int8`: linear layers whose weights are int8, and whose inputs are rounded to int8 as they come.

A weight has one scale for each of its outputs, an input one for each of its rows. Products of int8 are summed as integers,
without rounding, so a row's result is the same bits whatever rows are beside it. torch's own dynamic layers
(`quantized.linear_dynamic`) have one scale for all rows of an input, and take a tensor type that torch is about to remove
(https://github.com/pytorch/pytorch/issues/184982). So the kernel of torch's compiler is used, which takes plain tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from contrastive.forward import finely
from scaling.models.loading import LanguageModel
from scaling.models.usable import why_not_usable
from scaling.records.errors import UsageError

LARGEST = 127  # of an int8 weight or input
_ZERO = 128  # is added to inputs, as the fast kernels take unsigned ones
_SMALLEST = 1e-30  # scale of a row of zeros
_FINE = 3  # times that inputs are rounded where they are rounded finely: to 2^-21 of their largest value
_INSTEAD = "leave it out"


class Int8Linear(nn.Module):
    """A linear layer with int8 weights. Its values are near those of the layer that it is made from.

    With weights w [D_out, D_in] and an input x, both are rounded to the nearest multiple of their scale: |w_o| / 127 at most
    for output o, |x| / 127 at most for a row. So each is wrong by 1/254 of its largest value at most.

    Attributes:
        in_features, out_features: D_in and D_out.
        bias: [D_out] float32, None where the layer has none.
        fine: whether what rounding leaves of inputs is multiplied, too, which takes three times as long; see
            `contrastive.forward.finely`.
    """

    def __init__(self, layer: nn.Module) -> None:
        """layer: of the type `torch.nn.Linear`, or transformers' `Conv1D`, whose weight is [D_in, D_out]."""
        super().__init__()
        weight: Tensor = layer.weight.detach().float()  # type: ignore[operator]
        weight = weight.T if type(layer) is Conv1D else weight
        self.out_features, self.in_features = weight.shape
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        self.bias = None if bias is None else bias.detach().float()
        self.fine = False
        self._scales = _scales(weight)[:, 0]
        self._zeros = torch.zeros(self.out_features, dtype=torch.int32)
        rounded = (weight / self._scales[:, None]).round().to(torch.int8).contiguous()
        # no buffer, as a packed tensor can be neither moved nor saved
        self._packed: Tensor = torch.ops.onednn.qlinear_prepack(rounded, None)

    def forward(self, inputs: Tensor) -> Tensor:
        """Outputs [..., D_out] of inputs [..., D_in], in their dtype."""
        rows = inputs.reshape(-1, self.in_features).float()
        out = self._finely(rows) if self.fine else self._product(*_rounded(rows))
        out = out if self.bias is None else out.add_(self.bias)
        return out.to(inputs.dtype).view(*inputs.shape[:-1], self.out_features)

    def _product(self, rounded: Tensor, scales: Tensor) -> Tensor:
        """Outputs [R, D_out] float32 of rows [R, D_in] int8 with scales [R, 1], which are changed."""
        out: Tensor = torch.ops.onednn.qlinear_pointwise(
            *(rounded.view(torch.uint8).add_(_ZERO), 1.0, _ZERO),  # adding wraps around, and so has the right bits
            *(self._packed, self._scales, self._zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        return out.mul_(scales)

    def _finely(self, rows: Tensor) -> Tensor:
        out = torch.zeros(len(rows), self.out_features)
        for _ in range(_FINE):
            rounded, scales = _rounded(rows)
            rows = rows - rounded * scales
            out += self._product(rounded, scales)
        return out


def _scales(rows: Tensor) -> Tensor:
    """What rows [R, D] are to be multiples of, [R, 1] float32."""
    return (rows.abs().amax(1, keepdim=True) / LARGEST).clamp(min=_SMALLEST)


def _rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [R, D] float32 as int8, and their scales [R, 1]."""
    scales = _scales(rows)
    return (rows / scales).round_().to(torch.int8), scales


def quantise(backbone: LanguageModel) -> None:
    """Replaces the linear layers of a model, its output layer among them, in place. Their own weights are freed.

    Its FLOPs and its fingerprint stay as they were. Input embeddings, norms and the stacked matrices of experts keep their
    type. Does nothing where it was done before.

    Args:
        backbone: a model that nobody else uses.

    Raises:
        UsageError: its weights are quantised already, it has no such layers, or cannot be used with them.
    """
    model = backbone.model
    if is_int8(model):
        return
    if backbone.quantisation:
        raise UsageError(
            f"`--quantize int8` rounds plain weights, and those of `--backbone` {backbone.name} are quantised "
            f"({backbone.quantisation}): {_INSTEAD}."
        )
    _ = backbone.costs  # cached now, as it is computed from the shapes of the weights
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) in (nn.Linear, Conv1D):
                setattr(parent, name, Int8Linear(layer))
    with finely(model):
        why = why_not_usable(model) if is_int8(model) else "it has no linear layers of the usual kind"
    if why:
        raise UsageError(f"`--quantize int8` cannot be used with `--backbone` {backbone.name}: {why}; {_INSTEAD}.")


def is_int8(model: PreTrainedModel) -> bool:
    """Whether `quantise` has replaced layers of this model."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def refuse_unfit(device: str) -> None:
    """Raises UsageError where int8 weights are of no use: on other devices than a CPU, and on CPUs that sum them wrongly.

    device: of the backbone.
    """
    if not device.startswith("cpu"):
        raise UsageError(
            f"`--quantize int8` is for a CPU, and `--device` is {device}: {_INSTEAD}, take a backbone that is published "
            f"quantised, or add `--device cpu`."
        )
    if not multiplies_int8():
        raise UsageError(
            f"`--quantize int8` needs a processor with int8 instructions (VNNI or AMX) and torch with oneDNN, which are not "
            f"here: {_INSTEAD}."
        )


@torch.inference_mode()
def multiplies_int8() -> bool:
    """Whether products of int8 can be computed here, and their sums are exact.

    Processors without instructions for them add pairs of products in 16 bits, which the largest values do not fit.
    """
    layer = nn.Linear(256, 2, bias=False)
    layer.weight.copy_(torch.tensor([[1.0], [-1.0]]))
    try:
        found = Int8Linear(layer)(torch.ones(2, 256))
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.allclose(found, torch.tensor([256.0, -256.0]))
