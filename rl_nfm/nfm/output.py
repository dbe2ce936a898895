"""The output block of an NFM place, from what the heads read to what is added to the state.

Paper: linear, norm, ReLU, linear. Published code: 3x3 convolutions instead of the linear layers; in
the GAN the first of them also sees the state.

Shapes: B batch, P positions, R = H * V (+ C) numbers read by a position, C channels of the layer.
"""

import functools
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from rl_nfm.backbones.norms import fuse, make_norm
from rl_nfm.nfm.config import NFMConfig
from rl_nfm.nfm.linear import run_linear
from rl_nfm.support.modules import is_untouched

_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class OutBlock(nn.ModuleList):
    """[B, P, H * V (+ C)] to [B, P, C]: positions come as rows, with channels last.

    Linear layers are handed rows [B, P, C], convolutions and norms maps [B, C, T..]: decided when
    building, so that anything may take a layer's place that takes and gives the same.
    """

    def __init__(self, config: NFMConfig, *, channels: int, rank: int):
        inputs = config.heads * config.value_size + (channels if config.cat_input else 0)
        layers = [_make_map(inputs, channels, config.out_kernel, rank)]
        if config.out_layers == 2:
            if config.out_norm != "none":
                layers.append(make_norm(config.out_norm, channels, rank=rank))
            layers += [nn.ReLU(), _make_map(channels, channels, config.out_kernel, rank)]
        super().__init__(layers)
        self.maps_take_rows = config.out_kernel == 1 or rank == 0
        self.middle_takes_rows = config.out_norm == "none"

    def forward(
        self,
        rows: Float[Tensor, "B P R"],
        sizes: tuple[int, ...],
        factor: Float[Tensor, ""] | None = None,
    ) -> Float[Tensor, "B P C"]:
        """Rows are the positions of `sizes`, which convolutions and norms need to know.

        A `factor` of the result goes into the last layer's weights: on a GPU it would otherwise
        cost as much traffic as the layer, and its gradient more.
        """
        *middle, last = self
        if middle:
            first, *middle = middle
            relu = is_untouched(first, nn.Linear) and is_untouched(middle[0], nn.ReLU)
            run = functools.partial(run_linear, first, relu=relu) if self.maps_take_rows else first
            rows = _run(run, rows, sizes, self.maps_take_rows)
            middle = middle[relu:]
        for layer in fuse(middle):
            rows = _run(layer, rows, sizes, self.middle_takes_rows)
        if self.maps_take_rows and is_untouched(last, nn.Linear):
            return run_linear(last, rows, factor=factor)
        if factor is not None and is_untouched(last, *_CONVS):
            scaled = functools.partial(_scaled_conv, last, factor)
            return _run(scaled, rows, sizes, False)
        rows = _run(last, rows, sizes, self.maps_take_rows)
        return rows if factor is None else factor * rows


def _run(
    layer: Callable[[Tensor], Tensor], rows: Tensor, sizes: tuple[int, ...], takes_rows: bool
) -> Tensor:
    if takes_rows:
        return layer(rows)
    return layer(rows.transpose(1, 2).unflatten(2, sizes)).flatten(2).transpose(1, 2)


def _scaled_conv(layer: Any, factor: Tensor, x: Tensor) -> Tensor:
    """`factor * layer(x)` for one of `_CONVS`."""
    return layer._conv_forward(x, factor * layer.weight, factor * layer.bias)


def _make_map(inputs: int, outputs: int, kernel: int, rank: int) -> nn.Module:
    if kernel == 1 or rank == 0:
        return nn.Linear(inputs, outputs)
    return _CONVS[rank - 1](inputs, outputs, kernel, padding=kernel // 2)
