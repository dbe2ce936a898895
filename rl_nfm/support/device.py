"""From the option `--device` to a device."""

import torch


def choose_device(name: str) -> torch.device:
    """The device named by `auto`, `cpu` or `cuda`; `auto` is CUDA if it is available.

    Raises:
        ValueError: CUDA was requested and is not available.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' is not available on this machine (allowed: auto, cpu)")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
