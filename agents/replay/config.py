"""Options of the replay buffer."""

import dataclasses
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le

from rl_nfm.support.bounds import Bounded


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReplayConfig(Bounded):
    """Size and sampling of the replay buffer."""

    storage: str = "device"
    """Where steps are kept: device, beside the networks, or host, in the machine's memory, from
    which every batch is copied to a GPU."""

    capacity_steps: Annotated[int, Gt(0)] = 1_000_000
    """Agent steps kept, over all environments; 7.1 kB each."""

    min_steps: Annotated[int, Gt(0)] = 20_000
    """Agent steps gathered before learning begins."""

    batch_size: Annotated[int, Gt(0)] = 32
    """Transitions, or sequences, per update."""

    priority_exponent: Annotated[float, Ge(0), Le(1)] = 0.5
    """Exponent of prioritised replay; 0 samples uniformly."""

    priority_beta: Annotated[float, Ge(0), Le(1)] = 0.4
    """Exponent of the importance weights at the start; annealed to `priority_beta_final`."""

    priority_beta_final: Annotated[float, Ge(0), Le(1)] = 1.0
    """Exponent of the importance weights at the end of training."""

    sequence_steps: Annotated[int, Gt(0)] = 1
    """Positions T trained in one sequence (recurrent encoders)."""

    burn_in_steps: Annotated[int, Ge(0)] = 0
    """Positions before them that only warm up the recurrent state."""

    overlap_steps: Annotated[int, Ge(0)] = 0
    """Steps shared by neighbouring sequences; below `sequence_steps`."""

    initial_state: Literal["stored", "zero"] = "stored"
    """What a sequence's recurrent state begins with: the one met when acting, or zeros."""

    max_weight: Annotated[float, Ge(0), Le(1)] = 0.9
    """Priority of a sequence: this times the largest plus the rest times the mean |TD error|."""

    @property
    def stride_steps(self) -> int:
        """Rows from the beginning of one sequence to that of the next."""
        return self.sequence_steps - self.overlap_steps

    def rows(self, num_envs: int) -> int:
        """Rows kept of so many environments: whole ones, and a whole number of strides."""
        return self.capacity_steps // num_envs // self.stride_steps * self.stride_steps

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlap_steps >= self.sequence_steps:
            raise ValueError(
                f"overlap_steps: {self.overlap_steps} is not allowed: must be below "
                f"sequence_steps ({self.sequence_steps})"
            )
