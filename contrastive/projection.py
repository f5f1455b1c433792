"""The projection: an affine layer that maps the assistant's states into the backbone's embedding space.

T = W h + b (arXiv 2502.12134, section 3.3), with h an assistant's hidden state and T a soft thought.
"""

from __future__ import annotations

import torch
from torch import nn


def new_projection(assistant_width: int, backbone_width: int, *, scale: float) -> nn.Linear:
    """Makes an untrained projection [D, D_a], float32, that maps states of RMS 1 to thoughts of RMS `scale`.

    The entries of W are independent and have the variance scale^2 / D_a, so each output has the variance scale^2. The same
    widths always give the same weights, so that an untrained thinker can be reproduced without a file.

    Args:
        assistant_width: D_a.
        backbone_width: D.
        scale: root mean square of the thoughts.
    """
    projection = nn.Linear(assistant_width, backbone_width)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        projection.weight.normal_(0.0, scale / assistant_width**0.5, generator=generator)
        projection.bias.zero_()
    return projection
