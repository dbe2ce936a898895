"""Replay in the host's memory, for a GPU that has no room for it.

Priorities are kept and batches put together on the CPU; a batch then moves to the learner's device,
and an update waits for that. On a CPU it is the same as the replay on the device.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from agents.replay.batch import Batch
from agents.replay.buffer import Replay
from agents.replay.storage import register_storage

HOST = torch.device("cpu")


@register_storage("host")
class HostReplay(Replay):
    """`Replay` on the CPU, whatever the device of the learner."""

    capturable = False

    def __init__(self, *args: Any, device: torch.device, **options: Any):
        """Allocate on the CPU; arguments as for `Replay`.

        Args:
            args: see `Replay`.
            device: where batches are wanted.
            options: see `Replay`.
        """
        super().__init__(*args, device=HOST, **options)
        self.learner_device = device

    @classmethod
    def home(cls, device: torch.device) -> torch.device:
        """The CPU."""
        del device
        return HOST

    def compile(self) -> None:
        """Nothing: on a CPU drawing takes no longer than launching compiled code."""

    def write_row(self, row: Mapping[str, Shaped[Tensor, "E ..."]]) -> None:
        """See `Replay.write_row`."""
        super().write_row({name: x.to(HOST) for name, x in row.items()})

    def sample(self, batch_size: int) -> Batch:
        """See `Replay.sample`."""
        return super().sample(batch_size).to(self.learner_device)

    def recent(
        self, steps: int, num_envs: int
    ) -> tuple[UInt8[Tensor, "S B C H W"], Bool[Tensor, "S B"], dict[str, Shaped[Tensor, "S B"]]]:
        """See `Replay.recent`."""
        obs, reset, extras = super().recent(steps, num_envs)
        device = self.learner_device
        return obs.to(device), reset.to(device), {k: x.to(device) for k, x in extras.items()}

    def update_priorities(
        self,
        index: Int64[Tensor, " B"],
        td_error: Float[Tensor, "T B"],
        mask: Bool[Tensor, "T B"],
    ) -> None:
        """See `Replay.update_priorities`."""
        super().update_priorities(index.to(HOST), td_error.to(HOST), mask.to(HOST))
