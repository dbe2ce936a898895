"""Which device a `--device` means."""

import torch


def choose_device(name: str) -> torch.device:
    """The device of `auto`, `cpu` or `cuda`; auto: CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: 'cuda' is not available on this machine (allowed: auto, cpu)")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)
