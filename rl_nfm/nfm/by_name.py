"""Neural Function Modules over any network, by naming the submodules that serve as places.

Nothing of the kind is in the paper or its code, which wrote NFM into each network by hand. Forward
hooks hand a named submodule's output to the memory and put what was read in its stead, so that the
network's own `forward` stays as it is: skips, branches and heads included.

Outputs may have any rank: [B, C], [B, C, L], [B, C, H, W], [B, C, D, H, W], also mixed in one
network, where a lower rank counts as having sizes of 1; or channels last, as tokens [B, N, C].

Shapes: B batch, D and `*S` the other sizes of an output.
"""

import copy
import difflib
import threading
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rl_nfm.nfm.config import NFMConfig
from rl_nfm.nfm.module import Places
from rl_nfm.nfm.places import Memory
from rl_nfm.support.modules import in_eval_mode


class NFMWrapper(nn.Module):
    """Runs a network in passes, with NFM behind some of its submodules.

    With weights of its own for each pass the network is copied, and the copies start with equal
    weights; what earlier passes compute behind their last place goes nowhere.

    Args:
        model: any network; kept as the last pass, and the only one under `share_passes`.
        names: of the submodules, as in `model.named_modules()`; each must run once in a forward.
        example: input of the model, run once without gradients to learn order and shapes.
        config: options; `read_places` and `write_places` count the names in their running order.
        channel_dim: where the channels of the named outputs are: 1, or -1 for tokens [B, N, C].

    Raises:
        ValueError: for names that do not exist, do not run once, or do not return one tensor.
        RuntimeError: in backward, when activation checkpointing runs a named submodule again, where
            the memory is gone. The wrapper as a whole may be checkpointed.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        *,
        example: Tensor | tuple[Any, ...],
        config: NFMConfig | None = None,
        channel_dim: int = 1,
    ):
        super().__init__()
        config = config or NFMConfig()
        if channel_dim not in (1, -1):
            raise ValueError(f"channel_dim: {channel_dim} is not allowed: 1 or -1")
        shapes = _output_shapes(model, names, example)
        self.names = list(shapes)
        self.channel_dim = channel_dim
        self.places = Places(
            config,
            channels=[shape[channel_dim] for shape in shapes.values()],
            ranks=[len(shape) - 2 for shape in shapes.values()],
        )
        copies = (copy.deepcopy(model) for _ in range(config.copies - 1))
        self.passes = nn.ModuleList([*copies, model])
        self._now = _Now()
        for network in self.passes:
            for place, name in enumerate(self.names):
                network.get_submodule(name).register_forward_hook(_PlaceHook(self, place))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, in the last pass."""
        result, now = None, self._now
        now.memory, now.wrapper = [], self
        try:
            for pass_index in range(self.places.config.passes):
                now.pass_index = pass_index
                result = self.passes[pass_index % len(self.passes)](*args, **kwargs)
        finally:
            now.memory = now.wrapper = None
        return result

    def visit(self, place: int, output: Float[Tensor, "B D *S"]) -> Float[Tensor, "B D *S"]:
        """What the network goes on with instead of a place's output."""
        now = self._now
        if now.memory is None:  # a pass's network called on its own
            if torch._C._current_graph_task_id() != -1:
                raise RuntimeError(
                    f"{self.names[place]!r} runs again inside a backward pass, without the memory: "
                    "checkpoint the whole NFMWrapper, not a part of the network that holds a place"
                )
            return output
        x = output.movedim(self.channel_dim, 1)
        x = self.places(x, now.memory, pass_index=now.pass_index, place=place)
        return x.movedim(1, self.channel_dim)


class _Now(threading.local):
    """The forward that this thread is in."""

    memory: Memory | None = None
    wrapper: "NFMWrapper | None" = None
    """Whose forward it is: a replica (as of `DataParallel`) has the hooks of its original."""
    pass_index = 0

    def __reduce__(self) -> tuple[type["_Now"], tuple[()]]:
        return _Now, ()


class _PlaceHook:
    """A forward hook; an object, so that a deep copy of the wrapper gets hooks of its own."""

    def __init__(self, wrapper: NFMWrapper, place: int):
        self.wrapper = wrapper
        self.place = place

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        del module, args
        running = self.wrapper._now.wrapper
        return (self.wrapper if running is None else running).visit(self.place, output)


def _output_shapes(
    model: nn.Module, names: Sequence[str], example: Tensor | tuple[Any, ...]
) -> dict[str, torch.Size]:
    """Shapes of the named outputs, in the order in which they come."""
    known = {name for name, _ in model.named_modules() if name}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; near: {', '.join(near)}" if near else ""
            raise ValueError(f"names: {name!r} is no submodule of {type(model).__name__}{hint}")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"names: {list(names)} is not allowed: at least one, each once")
    outputs: list[tuple[str, Any]] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: outputs.append((name, output))
        )
        for name in names
    ]
    try:
        with torch.no_grad(), in_eval_mode(model):
            model(*(example if isinstance(example, tuple) else (example,)))
    finally:
        for hook in hooks:
            hook.remove()
    ran = [name for name, _ in outputs]
    for name, output in outputs:
        if not isinstance(output, Tensor) or not 2 <= output.dim() <= 5:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(f"names: {name!r} gives {got}, not one tensor of 2 to 5 dimensions")
    for name in names:
        if ran.count(name) != 1:
            raise ValueError(f"names: {name!r} ran {ran.count(name)} times in a forward, not once")
    return {name: output.shape for name, output in outputs}
