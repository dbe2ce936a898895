"""Options of the update."""

import dataclasses
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le

from rl_nfm.support.bounds import Bounded
from rl_nfm.support.flags import PAIRS


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnerConfig(Bounded):
    """Options of the update."""

    steps_per_update: Annotated[float, Gt(0)] = 4.0
    """Agent steps, over all environments, per gradient update."""

    discount: Annotated[float, Gt(0), Le(1)] = 0.99
    """gamma, per agent step."""

    n_steps: Annotated[int, Gt(0)] = 3
    """Steps of the return before it bootstraps."""

    reward_clip: Annotated[float, Gt(0)] | None = 1.0
    """Rewards are clipped to plus or minus this; none: raw rewards."""

    double: bool = True
    """The online network selects the action whose value the target network gives."""

    munchausen: bool = False
    """Add the scaled log-policy to the reward and use soft values; refused with `double`."""

    munchausen_alpha: Annotated[float, Ge(0), Le(1)] = 0.9
    """Scale of the log-policy bonus."""

    munchausen_temperature: Annotated[float, Gt(0)] = 0.03
    """Temperature of the softmax policy."""

    munchausen_clip: Annotated[float, Le(0)] = -1.0
    """Lower bound of the log-policy bonus before scaling."""

    value_rescaling_eps: Annotated[float, Ge(0)] | None = None
    """Learn values rescaled by R2D2's h(x) = sign(x) (sqrt(|x| + 1) - 1) + eps x, for raw rewards
    (published: 1e-3); none: values as they are. Refused with `munchausen`."""

    priority: Literal["td_error", "loss"] = "td_error"
    """What a transition's priority is: the mean |TD error|, or its loss (as in SABER)."""

    num_quantiles: Annotated[int, Gt(0)] = 64
    """N: fractions drawn for the online network."""

    num_target_quantiles: Annotated[int, Gt(0)] = 64
    """N': fractions drawn for the target network."""

    num_action_quantiles: Annotated[int, Gt(0)] = 32
    """K: fractions averaged to choose an action, in selection, acting and evaluation."""

    sequence_loss: Literal["mean", "sum"] = "mean"
    """The loss of a sequence, over its steps that count: their mean, or their sum as in R2D2's code
    (where clipping and Adam's epsilon are absolute, it decides how much they do)."""

    kappa: Annotated[float, Ge(0)] = 1.0
    """Huber threshold; 0: plain quantile loss, or squared error without quantiles."""

    learning_rate: Annotated[float, Gt(0)] = 6.25e-5
    """Adam's, at the start."""

    learning_rate_final: Annotated[float, Ge(0)] | None = None
    """Learning rate at the end of training, reached linearly; none: constant."""

    adam_eps: Annotated[float, Gt(0)] = 1.5e-4
    """Adam's epsilon."""

    max_grad_norm: Annotated[float, Gt(0)] | None = 10.0
    """Global gradient norm is clipped to this; none: not clipped."""

    target_every_updates: Annotated[int, Gt(0)] = 2000
    """Updates between hard copies to the target network."""

    target_tau: Annotated[float, Gt(0), Le(1)] | None = None
    """Share of the online weights mixed into the target at every update; none: hard copies. Not
    with spectral norm."""

    acting_lag: Annotated[int, Ge(0), Le(1)] | None = None
    """1: acting uses the weights from before the updates in flight, so that both run at the same
    time; 0: it waits for them. None: 1 on a GPU, 0 on a CPU."""

    auxiliary: Annotated[dict[str, Annotated[float, Gt(0)]], PAIRS] = dataclasses.field(
        default_factory=dict
    )
    """Auxiliary losses and their weights, such as future_frame 1.0: the prediction of a small
    picture of the frame n steps ahead."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 autocast where the processor computes in it natively, else fp32. With bf16 on a
    GPU, matrix products that autocast leaves alone take TF32."""

    compile: bool | Literal["auto", "cpu"] = False
    """torch.compile the loss, which takes a C++ compiler. cpu: in runs of 20,000 updates or more on
    a CPU, if the first of them show it to be quicker (about a minute; the answer is kept in
    ~/.cache/rl_nfm/compiling); auto: as cpu, and on every GPU. Presets say so where it was
    measured to pay."""

    cuda_graph: bool = True
    """Capture the update as one CUDA graph (on a GPU only)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.munchausen and self.double:
            raise ValueError("munchausen: True is not allowed together with double (set it False)")
        if self.munchausen and self.value_rescaling_eps is not None:
            raise ValueError(
                f"value_rescaling_eps: {self.value_rescaling_eps} is not allowed together with "
                "munchausen, whose log-policy is in units of the reward (allowed: none)"
            )


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products run in hardware there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported())


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """bf16, or None for plain fp32."""
    use = precision == "bf16" or (precision == "auto" and native_bf16(device))
    return torch.bfloat16 if use else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplorationConfig(Bounded):
    """Epsilon-greedy exploration, beside noisy layers or instead of them."""

    epsilon_start: Annotated[float, Ge(0), Le(1)] = 1.0
    """Probability of a random action when learning begins (before `min_steps`, all are random)."""

    epsilon_final: Annotated[float, Ge(0), Le(1)] = 0.01
    """Probability once the decay is over."""

    epsilon_decay_steps: Annotated[int, Gt(0)] = 250_000
    """Agent steps, over all environments, of the linear decay after `min_steps`."""

    epsilon_power: Annotated[float, Ge(0)] = 0.0
    """Environment i of n uses epsilon^(1 + power * i / (n - 1)); 0: the same for all (Ape-X: 7)."""

    epsilon_min: Annotated[float, Ge(0), Le(1)] = 0.0
    """Lower bound after the power."""
