"""Modules as they are found: evaluated and put back, or left to whoever has changed them."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook


@contextlib.contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Inside, all of `module` is in eval mode; each submodule then gets its own mode back."""
    training = {part: part.training for part in module.modules()}
    try:
        yield module.eval()
    finally:
        for part, flag in training.items():
            part.training = flag


def is_untouched(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether `module` is exactly of one of `kinds`, and nothing changes what calling it does.

    Users replace a layer by an adapter or a subclass, parametrise or quantise its weights, register
    hooks on it (or on all modules) or give it another `forward`. All of these take effect only when
    the module is called.
    """
    return (
        type(module) in kinds
        and "forward" not in module.__dict__
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or _has_any_global_hook()
        )
        and all(
            type(x) in (Tensor, nn.Parameter) for x in module._parameters.values() if x is not None
        )
    )
