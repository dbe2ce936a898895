"""When a module's result may be computed from its parameters instead of by calling it."""

from torch import Tensor, nn


def is_untouched(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether `module` is exactly one of `kinds`, and nothing was hung on it or put in its place.

    Users replace a layer by an adapter or a subclass, parametrise or quantise its weights, hang
    hooks on it or give it another `forward`. All of that only acts when the module is called.
    """
    return (
        type(module) in kinds
        and "forward" not in module.__dict__
        and not (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
        )
        and all(
            type(x) in (Tensor, nn.Parameter) for x in module._parameters.values() if x is not None
        )
    )
