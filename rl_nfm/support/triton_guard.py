"""Decides where a Triton kernel is used instead of plain PyTorch.

CUDA builds of PyTorch bring Triton, which is not a dependency of ours. A kernel is used on a device
after its results on a small input agree with those of plain PyTorch there. If Triton is missing, a
launch fails or the results differ, plain PyTorch is used and one warning says why.

`RL_NFM_KERNELS=0` in the environment switches such kernels off. With `RL_NFM_KERNELS=triton` and
`TRITON_INTERPRET=1` they also run on the CPU, in Triton's interpreter: slow, for tests and
rehearsals without a GPU.
"""

import contextlib
import logging
import os
from collections.abc import Callable, Hashable, Iterable, Iterator

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

_TOLERANCES = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}
"""Largest relative error of norms by the kernel's type; several times the rounding error."""
_log = logging.getLogger(__name__)


class TritonGuard:
    """Remembers on which devices, and in which cases, a kernel agrees with the plain path.

    Args:
        name: the kernel's name, for the warning.
        check: runs the kernel and plain PyTorch on a small input, for a device and a case; returns
            pairs of results, including gradients, with the plain ones preferably in float64. It
            imports Triton itself, draws its input from a separate generator, and calls no module:
            a caller's hooks on all modules (a counter of FLOPs sets them) would run in the check.
    """

    _is_missing = False
    """Whether Triton is known to be missing: said once, for all kernels."""

    def __init__(self, name: str, check: Callable[..., Iterable[tuple[Tensor, Tensor]]]):
        self.name = name
        self._check = check
        self._verdicts: dict[Hashable, bool] = {}
        self._warned = False

    def ready(self, device: torch.device, *case: Hashable) -> bool:
        """Whether the kernel may be used; the first call for a device and a case checks it.

        Nothing can be checked while a CUDA graph is being captured, and a kernel that was not
        checked before is not used. The warm-up before a capture should therefore call this.

        Args:
            device: holds the tensors.
            *case: what else the kernel is compiled for, such as types and sizes of heads.
        """
        if not switched_on(device):
            return False
        key = (device.type, device.index, *case)
        if key not in self._verdicts:
            if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
                return False
            passes = self._passes(device, case)
            self._verdicts[key] = passes and self._verdicts.get(key, True)
        return self._verdicts[key]

    def may_launch(self, device: torch.device, *case: Hashable) -> bool:
        """Whether no launch has failed so far, checked or not: for inside of the kernels' calls."""
        return self._verdicts.get((device.type, device.index, *case), True)

    def give_up(self, device: torch.device, *case: Hashable, error: object) -> None:
        """Use plain PyTorch from now on, because a launch failed after the check."""
        self._verdicts[(device.type, device.index, *case)] = False
        missing = isinstance(error, ModuleNotFoundError) and error.name == "triton"
        if self._warned or (missing and TritonGuard._is_missing):
            return
        self._warned, TritonGuard._is_missing = True, TritonGuard._is_missing or missing
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        what = "Triton" if missing else f"the Triton {self.name}"
        _log.warning("slower on %s without %s: %s", device, what, reason)

    @contextlib.contextmanager
    def falling_back(
        self, device: torch.device, *case: Hashable, raising: tuple[type[Exception], ...] = ()
    ) -> Iterator[None]:
        """Swallow whatever a launch inside raises, and give up; the plain path follows the block.

        Args:
            device: as in `ready`.
            *case: likewise.
            raising: errors that the caller is told of, as they are none of the launch.

        Raises:
            torch.cuda.OutOfMemoryError: nothing is wrong with the kernel, and plain PyTorch needs
                more memory.
        """
        try:
            yield
        except (torch.cuda.OutOfMemoryError, *raising):
            raise
        except Exception as error:  # whatever Triton, its compiler or the driver may raise
            self.give_up(device, *case, error=error)

    def _passes(self, device: torch.device, case: tuple[Hashable, ...]) -> bool:
        try:
            with _undisturbed(device):
                for ours, plain in self._check(device, *case):
                    error = _relative_error(ours, plain)
                    if not error <= _TOLERANCES[ours.dtype]:  # also for NaN
                        raise ArithmeticError(f"differs from the plain path by {error:.1e}")
        except Exception as error:  # whatever Triton, its compiler or the driver may raise
            self.give_up(device, *case, error=error)
            return False
        return True


def switched_on(device: torch.device | None = None) -> bool:
    """Whether kernels are switched on: any of them, or Triton's on a device."""
    switch = os.environ.get("RL_NFM_KERNELS", "1")
    if device is None:
        return switch != "0"
    return switch == "triton" if device.type == "cpu" else device.type == "cuda" and switch != "0"


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Run a check with gradients and without autocast, whatever modes the caller has set.

    Modes that record, count or fake operations or choose a default device do not see the check.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch._C.DisableTorchFunction())
        stack.enter_context(_disable_current_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
            if mode := torch.cuda.get_sync_debug_mode():  # setting it warns, even to the default
                torch.cuda.set_sync_debug_mode("default")  # comparing has to wait for results
                stack.callback(torch.cuda.set_sync_debug_mode, mode)
        yield


def _relative_error(ours: Tensor, plain: Tensor) -> float:
    ours, plain = ours.detach().double(), plain.detach().double()
    return float((ours - plain).norm() / plain.norm().clamp(min=1e-3))
