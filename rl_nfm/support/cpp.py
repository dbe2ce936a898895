"""When kernels of our own may run, and how their C++ files are built into the user's cache."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_SUM_FREELY = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
_FLAGS = ("-O3", "-march=native", *_SUM_FREELY, "-std=c++17", "-fopenmp", "-fPIC", "-shared")
_log = logging.getLogger(__name__)


def runs_eagerly(*tensors: Tensor | None) -> bool:
    """Whether operations on these tensors are executed here and now, and nothing else happens.

    A kernel that is handed addresses is seen by nothing in PyTorch that records operations
    (`torch.compile`, `torch.export`, `torch.jit.trace`, `make_fx`), transforms them (`torch.func`,
    forward-mode derivatives, functionalisation) or fakes them (fake and meta tensors, subclasses,
    modes). There a kernel must stand aside for plain operations, or be an operator of PyTorch's
    dispatcher. Autograd in the ordinary, reverse mode does not count: what a kernel computes is
    hidden from it by `torch.autograd.Function`.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        and not torch._C._are_functorch_transforms_active()
        and not is_in_torch_dispatch_mode()
        and not _is_in_function_mode()
        and all(_is_ordinary(tensor) for tensor in tensors if tensor is not None)
    )


def _is_ordinary(tensor: Tensor) -> bool:
    """Whether the tensor is no more than its numbers, which lie in memory."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not torch._is_functional_tensor(tensor)  # pyright: ignore[reportPrivateImportUsage]
        and (forward_ad._current_level < 0 or forward_ad.unpack_dual(tensor).tangent is None)
    )


def _is_in_function_mode() -> bool:
    """Whether a mode sees each call. One that sets the device of new tensors does not count."""
    if torch._C._len_torch_function_stack() == 0:
        return False
    modes: list[TorchFunctionMode] = torch.overrides._get_current_function_mode_stack()
    return any(not isinstance(mode, DeviceContext) for mode in modes)


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The built file; None where such kernels are switched off or cannot be built."""
    if os.environ.get("RL_NFM_KERNELS", "1") == "0":
        return None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        _log.warning("no C++ compiler: slower without %s", source.name)
        return None
    try:
        return ctypes.CDLL(str(build(source, compiler)))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.warning("slower without %s: %s", source.name, reason)
        return None


def build(source: Path, compiler: str) -> Path:
    """Path of the shared library, built unless the cache has it."""
    # What -march=native stands for here: another machine on the same home needs its own build.
    target = subprocess.run(
        [compiler, *_FLAGS, "-E", "-v", "-x", "c++", os.devnull],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    key = hashlib.sha256(source.read_bytes() + target.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rl_nfm"
    path = folder / f"{source.parent.name}-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            subprocess.run(
                [compiler, *_FLAGS, str(source), "-o", str(built)],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            built.replace(path)
    return path
