"""A check of encoders of other packages: one forward pass before anything is trained."""

from typing import Any

import torch
from torch import Tensor

from rl_nfm.encoders.base import Encoder
from rl_nfm.support.modules import in_eval_mode

_T, _B = 2, 3  # unlike, so that no axis can stand for another


def check_encoder(encoder: Any, obs_shape: tuple[int, int, int]) -> None:
    """Run an encoder on zeros, and compare what comes out with the contract of `Encoder`.

    Raises:
        ValueError: what it has or gives, and what it must.
    """
    if not isinstance(encoder, Encoder):
        raise ValueError(f"its builder gave {type(encoder).__name__}, must be a rl_nfm Encoder")
    size = getattr(encoder, "feature_dim", None)
    if not hasattr(size, "__index__"):  # NumPy's whole numbers will do
        raise ValueError(f"feature_dim is {size!r}, must be the number of features")
    with torch.no_grad(), in_eval_mode(encoder), torch.random.fork_rng(devices=[]):
        state = encoder.initial_state(_B)
        _check_state("initial_state", state, state)
        extras = {
            "last_action": torch.zeros(_T, _B, dtype=torch.int64),
            "last_reward": torch.zeros(_T, _B),
            "episode_step": torch.zeros(_T, _B, dtype=torch.int64),
        }
        obs = torch.zeros(_T, _B, *obs_shape, dtype=torch.uint8)
        out = encoder(obs, state, torch.zeros(_T, _B, dtype=torch.bool), extras)
    if not isinstance(out, tuple) or len(out) != 2:
        raise ValueError(f"forward gave {_described(out)}, must be (features, state)")
    like = next((p for p in encoder.parameters() if p.is_floating_point()), torch.zeros(()))
    _check_tensor("features", out[0], (_T, _B, size), "[T, B, feature_dim]", like)
    _check_state("the state after a step", out[1], state)


def _check_state(name: str, state: Any, first: Any) -> None:
    if not isinstance(state, tuple) or len(state) != len(first):
        count = len(first) if isinstance(first, tuple) else "none or more"
        raise ValueError(f"{name} is {_described(state)}, must be a tuple of {count} tensors")
    for part, begun in zip(state, first, strict=True):
        shape = (_B, *begun.shape[1:]) if isinstance(begun, Tensor) else (_B,)
        _check_tensor(name, part, shape, "[B, ...] as initial_state", begun)


def _check_tensor(name: str, value: Any, shape: tuple[Any, ...], meaning: str, like: Any) -> None:
    dtype = like.dtype if isinstance(like, Tensor) else torch.float32
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
        kind = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{name}: {_described(value)}, must be {kind} {meaning} = {list(shape)} for a batch "
            f"of {_B} and {_T} steps"
        )


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_described, value))})"
    return type(value).__name__
