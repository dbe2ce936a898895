"""When the C++ kernels of this project may run, and how they are built into the user's cache."""

import ctypes
import hashlib
import logging
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from rl_nfm.support.cache import cache_folder

_SUM_FREELY = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
_FLAGS = ("-O3", "-march=native", *_SUM_FREELY, "-std=c++17", "-fopenmp", "-fPIC", "-shared")
COMPILER_TIMEOUT_S = 300
_log = logging.getLogger(__name__)


def runs_eagerly(*tensors: Tensor | None) -> bool:
    """Whether operations on these tensors are executed at once, and nothing else happens to them.

    A kernel that receives memory addresses is invisible to the parts of PyTorch that record
    operations (`torch.compile`, `torch.export`, `torch.jit.trace`, `make_fx`), transform them
    (`torch.func`, forward-mode derivatives, functionalisation) or fake them (fake and meta tensors,
    subclasses, modes). In those cases plain operations must run instead of the kernel, unless the
    kernel is an operator of PyTorch's dispatcher. Ordinary reverse-mode autograd is no such case,
    because `torch.autograd.Function` hides from it what the kernel computes.
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
    """Whether the tensor is an ordinary one, whose numbers lie in memory."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.layout is torch.strided
        and not tensor.is_meta
        and not torch._is_functional_tensor(tensor)  # pyright: ignore[reportPrivateImportUsage]
        and (forward_ad._current_level < 0 or forward_ad.unpack_dual(tensor).tangent is None)
    )


def _is_in_function_mode() -> bool:
    """Whether a mode intercepts each call, other than the one that sets default devices."""
    if torch._C._len_torch_function_stack() == 0:
        return False
    modes: list[TorchFunctionMode] = torch.overrides._get_current_function_mode_stack()
    return any(not isinstance(mode, DeviceContext) for mode in modes)


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The loaded library; None if kernels are switched off or cannot be built."""
    if os.environ.get("RL_NFM_KERNELS", "1") == "0":
        return None
    try:
        compiler = shlex.split(os.environ.get("CXX", "")) or _installed_compiler()
        return ctypes.CDLL(str(build(source, compiler)))
    except (OSError, RuntimeError, ValueError) as error:
        _log.warning("slower without %s: %s", source.name, error)
        return None


def build(source: Path, compiler: Sequence[str]) -> Path:
    """Path of the shared library, which is built unless it is in the cache.

    The file's name ends in a digest of its content. A file that does not match its digest, because
    it was truncated or changed, is removed and built again: loading a truncated library would kill
    the process.

    Args:
        source: the C++ file.
        compiler: the compiler's command and its options.

    Raises:
        OSError: the cache cannot be written to, or other users may write to it.
        RuntimeError: the compiler fails, or takes longer than `COMPILER_TIMEOUT_S`.
    """
    folder = _private_folder()
    with tempfile.TemporaryDirectory() as scratch:
        # What -march=native means here: another machine with the same home needs its own build.
        target = _compile([*compiler, *_FLAGS, "-E", "-v", "-x", "c++", os.devnull], scratch)
    key = hashlib.sha256(source.read_bytes() + target).hexdigest()[:16]
    name = f"{source.parent.name}-{key}"
    for path in sorted(folder.glob(f"{name}-*.so")):
        if path.name == f"{name}-{_digest(path)}.so":
            return path
        path.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        built = Path(scratch) / "built.so"
        what = f"{source.parent.name}/{source.name}"
        print(f"compiling {what}, once on this machine: ten seconds to a minute", file=sys.stderr)
        _compile([*compiler, *_FLAGS, str(source), "-o", str(built)], scratch)
        return built.replace(folder / f"{name}-{_digest(built)}.so")


def _installed_compiler() -> list[str]:
    for name in ("g++", "clang++"):
        if (path := shutil.which(name)) is not None:
            return [path]
    raise RuntimeError("no C++ compiler")


def _private_folder() -> Path:
    """The cache folder. Its files run as code in this process, so no one else may write to it."""
    folder = cache_folder("kernels")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise OSError(
            f"{folder} is not a folder that only this user can write to "
            f"(remove it, or set XDG_CACHE_HOME)"
        )
    return folder


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:32]


def _compile(command: Sequence[str], scratch: str) -> bytes:
    """Run the compiler and return its messages.

    The messages go to a file instead of a pipe, because a child process of the compiler that hangs
    would keep the pipe open. The time limit ends those child processes as well.
    """
    with (Path(scratch) / "messages").open("w+b") as messages:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=messages,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(COMPILER_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise RuntimeError(
                f"{command[0]} takes longer than {COMPILER_TIMEOUT_S} seconds"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        messages.seek(0)
        said = messages.read()
    if code != 0:
        words = said.decode(errors="replace").strip()[:1000]
        raise RuntimeError(f"{command[0]} ends with {code}: {words}")
    return said
