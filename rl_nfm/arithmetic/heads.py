"""A NAC, NALU or linear head on any convolutional backbone.

The call is that of a public implementation (see `cells`). Deviations: `hidden_dims` may be any
sequence (there: a list), `num_outputs` defaults to 1 for regression (there: to 2, refused), more
outputs than one may be regressed, and there is a linear head to compare with.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from rl_nfm.arithmetic.cells import NAC, NALU, check_sizes


def linear_stack(*dims: int) -> nn.Sequential:
    """Linear layers with ReLU between them, of the given sizes."""
    check_sizes("linear", dims)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(dims):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


HEADS = {"NAC": NAC, "NALU": NALU, "linear": linear_stack}


class BuildHead(nn.Module):
    """Backbone, 1x1 convolution, average over positions, arithmetic head.

    Args:
        conv_model: [B, C, H, W] to [B, op_channels, h, w].
        op_channels: channels the backbone puts out.
        hidden_dims: sizes of the head's input and hidden layers.
        task: "classification" ends in log_softmax, "regression" in plain values.
        num_outputs: classes or values; by default 2 and 1.
        head_type: "NALU", "NAC" or "linear".

    Raises:
        ValueError: a value that is not allowed.
    """

    def __init__(
        self,
        conv_model: nn.Module,
        op_channels: int,
        hidden_dims: Sequence[int],
        task: Literal["classification", "regression"] = "classification",
        num_outputs: int | None = None,
        head_type: Literal["NALU", "NAC", "linear"] = "NALU",
    ):
        super().__init__()
        if task not in ("classification", "regression"):
            raise ValueError(f"task: {task!r} is not one of classification, regression")
        if head_type not in HEADS:
            raise ValueError(f"head_type: {head_type!r} is not one of {', '.join(HEADS)}")
        if num_outputs is None:
            num_outputs = 2 if task == "classification" else 1
        check_sizes("BuildHead", (op_channels, *hidden_dims, num_outputs))
        if not hidden_dims:
            raise ValueError("hidden_dims: at least one size, the input of the head, is needed")
        self.task = task
        self.conv_model = conv_model
        self.pool = nn.Sequential(
            nn.Conv2d(op_channels, hidden_dims[0], 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = HEADS[head_type](*hidden_dims, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, num_outputs]."""
        out = self.head(self.pool(self.conv_model(x)))
        return F.log_softmax(out, dim=1) if self.task == "classification" else out
