"""Baselines of Sort-of-CLEVR: a CNN that sees the question late, and the Relation Network.

From Santoro et al. 2017 (arXiv 1706.01427, section 4.2 and its supplement): four convolutions of
24 kernels 3x3 with stride 2, ReLU and batch norm; the Relation Network sums g(o_i, o_j, q) over
all ordered pairs of cells and applies f. Sizes of the widely used public version: g 4 x 256, f 256,
256, dropout. `NFMAnswerer` is the NFM authors' network for the same task.

Differs: each image's features are computed once for all its questions; cell coordinates are
(row - centre) / 2 and (column - centre) / 2 (the public version divides the row without rounding,
so its "row" depends on the column); the first layer of g is applied to its three inputs separately
and added, which is the same function at a tenth of its cost.

Letters: B images, Q questions an image, C channels, P = H * W cells, D question bits.
"""

import torch
from torch import Tensor, nn

from rl_nfm.nfm import NeuralFunctionModule, NFMConfig

PAIRS_AT_ONCE = 2500
"""Pairs that a CPU takes through g together: 1.3 MB a layer at 256 units in half precision."""


def conv_stage(inputs: int, outputs: int) -> nn.Sequential:
    """A 3x3 convolution with stride 2, ReLU and batch norm, in this order."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU(), nn.BatchNorm2d(outputs)
    )


def conv_stack(width: int, stages: int = 4) -> nn.Sequential:
    """RGB images to [B, width, H/2^stages, W/2^stages] (rounded up)."""
    return nn.Sequential(*(conv_stage(width if i else 3, width) for i in range(stages)))


class AnswerHead(nn.Module):
    """Image features joined with each question, then three linear layers.

    Args:
        features: size of the image's features.
        question_bits: D.
        answers: number of answers.
        width: of the two hidden layers.
    """

    def __init__(self, features: int, question_bits: int, answers: int, width: int = 256):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features + question_bits, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(width, answers),
        )

    def forward(self, features: Tensor, questions: Tensor) -> Tensor:
        """Logits [B, Q, answers] of features [B, F] and questions [B, Q, D]."""
        repeated = features[:, None].expand(-1, questions.shape[1], -1)
        return self.net(torch.cat([repeated, questions], dim=-1))


class ConvAnswerer(nn.Module):
    """CNN, features flattened, joined with the question."""

    def __init__(self, *, width: int, size: int, question_bits: int, answers: int):
        super().__init__()
        self.convs = conv_stack(width)
        side = -(-size // 16)
        self.head = AnswerHead(width * side * side, question_bits, answers)

    def forward(self, images: Tensor, questions: Tensor) -> Tensor:
        """Logits [B, Q, answers] of images [B, 3, H, W] and questions [B, Q, D]."""
        return self.head(self.convs(images).flatten(1), questions)


class NFMAnswerer(nn.Module):
    """A CNN run K times with NFM after each convolution, then a 1x1 convolution, then the question.

    As the NFM authors published it, but with 24, 48, 96 and 192 channels (paper; their code: twice
    as many), the whole last feature map (their code pools 5x5 to 1x1 and repeats it 25 times) and
    dropout in training only.
    """

    def __init__(
        self, config: NFMConfig, *, width: int, size: int, question_bits: int, answers: int
    ):
        super().__init__()
        channels = [width * 2**stage for stage in range(4)]
        inputs = [3, *channels[:-1]]
        lists = [
            [conv_stage(i, o) for i, o in zip(inputs, channels, strict=True)]
            for _ in range(config.copies)
        ]
        self.trunk = NeuralFunctionModule(lists, channels=channels, config=config)
        self.reduce = nn.Conv2d(channels[-1], 64, 1)
        side = -(-size // 16)
        self.head = AnswerHead(64 * side * side, question_bits, answers)

    def forward(self, images: Tensor, questions: Tensor) -> Tensor:
        """Logits [B, Q, answers] of images [B, 3, H, W] and questions [B, Q, D]."""
        return self.head(self.reduce(self.trunk(images)).flatten(1), questions)


class RelationNetwork(nn.Module):
    """f(sum over pairs of g(o_i, o_j, q)) over the cells of a CNN's last feature map."""

    def __init__(
        self,
        *,
        width: int,
        question_bits: int,
        answers: int,
        g_width: int = 256,
        g_layers: int = 4,
    ):
        super().__init__()
        self.convs = conv_stack(width)
        cell = width + 2
        self.g_first = nn.Linear(cell, g_width)
        self.g_second = nn.Linear(cell, g_width, bias=False)
        self.g_question = nn.Linear(question_bits, g_width, bias=False)
        layers = [nn.Linear(g_width, g_width) for _ in range(g_layers - 1)]
        self.g_rest = nn.ModuleList(layers)
        self.f = nn.Sequential(
            nn.Linear(g_width, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, answers),
        )
        self._init_first_layer(2 * cell + question_bits)

    def _init_first_layer(self, inputs: int) -> None:
        """Initialise the three parts as one linear layer over all their inputs would be."""
        bound = inputs**-0.5
        for part in (self.g_first, self.g_second, self.g_question):
            nn.init.uniform_(part.weight, -bound, bound)
        nn.init.uniform_(self.g_first.bias, -bound, bound)

    def forward(self, images: Tensor, questions: Tensor) -> Tensor:
        """Logits [B, Q, answers] of images [B, 3, H, W] and questions [B, Q, D]."""
        cells = self._cells(self.convs(images))  # [B, P, C + 2]
        first = self.g_first(cells)[:, None, :, None]  # [B, 1, P, 1, G]
        asked = self.g_question(questions)[:, :, None, None]  # [B, Q, 1, 1, G]
        second = self.g_second(cells)[:, None, None]  # [B, 1, 1, P, G]
        at_once = len(images)
        if images.device.type == "cpu":  # the pairs of so many images stay in a core's cache
            at_once = max(1, PAIRS_AT_ONCE // (questions.shape[1] * cells.shape[1] ** 2))
        parts = (part.split(at_once) for part in (first, asked, second))
        return self.f(torch.cat([self._sum_of_pairs(*part) for part in zip(*parts, strict=True)]))

    def _sum_of_pairs(self, first: Tensor, asked: Tensor, second: Tensor) -> Tensor:
        """Sum over all pairs of g [B, Q, G], of the three parts of its first layer."""
        pairs = (first + asked + second).relu_()  # [B, Q, P, P, G]
        for layer in self.g_rest:
            pairs = layer(pairs).relu_()
        return pairs.sum(dim=(2, 3))

    @staticmethod
    def _cells(maps: Tensor) -> Tensor:
        """Feature maps [B, C, H, W] as cells with their coordinates [B, P, C + 2]."""
        batch, _, height, width = maps.shape
        rows = (torch.arange(height, device=maps.device) - (height - 1) / 2) / 2
        columns = (torch.arange(width, device=maps.device) - (width - 1) / 2) / 2
        grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))  # [2, H, W]
        joined = torch.cat([maps, grid.to(maps.dtype).expand(batch, -1, -1, -1)], dim=1)
        return joined.flatten(2).transpose(1, 2)
