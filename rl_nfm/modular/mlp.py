"""The MLP beside the modular networks: randomly pruned before training."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from rl_nfm.modular.networks import Noise


class PrunedMLP(nn.Module):
    """MLP with ReLU of which a random part of all weights is fixed at zero from the start.

    Weights have uniform random scores; those below one global percentile are pruned. A bias is
    pruned only if all weights of its row are.

    Args:
        arch: sizes from input to output; with several tasks the input ends in a one-hot task.
        pruning_ratio: percent of all weights.
        num_tasks: T.

    Raises:
        ValueError: a ratio outside [0, 100), or fewer than two sizes.
    """

    def __init__(self, arch: Sequence[int], pruning_ratio: float = 0.0, *, num_tasks: int = 1):
        super().__init__()
        if not 0 <= pruning_ratio < 100:
            raise ValueError(
                f"pruning_ratio: {pruning_ratio} is not allowed (allowed: 0 to below 100 percent)"
            )
        if len(arch) < 2:
            raise ValueError(f"arch: {tuple(arch)} is not allowed: sizes of an input and an output")
        self.num_tasks = num_tasks
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(arch))
        scores = [torch.rand(o, i) for i, o in pairwise(arch)]
        every = torch.cat([score.flatten() for score in scores])
        pruned = round(len(every) * pruning_ratio / 100)
        threshold = every.sort().values[pruned - 1] if pruned else -1.0
        for index, score in enumerate(scores):
            mask = score > threshold
            self.register_buffer(f"weight_mask_{index}", mask.float())
            self.register_buffer(f"bias_mask_{index}", mask.any(1).float())

    def forward(
        self, x: Tensor, task_id: Tensor | None = None, noise: Noise | None = None
    ) -> Tensor:
        """Logits [B, outputs] of x [B, N] or [B, N, F]; `noise` is not used."""
        del noise
        x = x.flatten(1)
        if self.num_tasks > 1:
            if task_id is None:
                task_id = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            tasks = torch.arange(self.num_tasks, device=x.device)
            x = torch.cat([x, (task_id[:, None] == tasks).to(x.dtype)], dim=1)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, nn.Linear)
            if index > 0:
                x = x.relu()
            weight = layer.weight * self.get_buffer(f"weight_mask_{index}")
            x = nn.functional.linear(x, weight, layer.bias * self.get_buffer(f"bias_mask_{index}"))
        return x

    def noise_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        """None: nothing here is routed."""
        del batch_size
        return []
