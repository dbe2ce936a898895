"""The output block of an NFM place, from what the heads read to what is added to the state.

Paper: linear, norm, ReLU, linear. Published code: 3x3 convolutions instead of the linear layers; in
the GAN the first of them also sees the state.
"""

from torch import Tensor, nn

from rl_nfm.backbones.norms import fuse, make_norm
from rl_nfm.nfm.config import NFMConfig


class OutBlock(nn.ModuleList):
    """[B, P, H * V (+ C)] to [B, P, C]: positions come as rows, with channels last."""

    def __init__(self, config: NFMConfig, *, channels: int, rank: int):
        inputs = config.heads * config.value_size + (channels if config.cat_input else 0)
        layers = [_make_map(inputs, channels, config.out_kernel, rank)]
        if config.out_layers == 2:
            if config.out_norm != "none":
                layers.append(make_norm(config.out_norm, channels, rank=rank))
            layers += [nn.ReLU(), _make_map(channels, channels, config.out_kernel, rank)]
        super().__init__(layers)

    def forward(self, rows: Tensor, sizes: tuple[int, ...]) -> Tensor:
        """Rows are the positions of `sizes`, which convolutions and norms need to know."""
        for layer in fuse(self):
            if isinstance(layer, (nn.Linear, nn.ReLU)):
                rows = layer(rows)
            else:
                rows = layer(rows.transpose(1, 2).unflatten(2, sizes)).flatten(2).transpose(1, 2)
        return rows


def _make_map(inputs: int, outputs: int, kernel: int, rank: int) -> nn.Module:
    if kernel == 1 or rank == 0:
        return nn.Linear(inputs, outputs)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    return conv(inputs, outputs, kernel, padding=kernel // 2)
