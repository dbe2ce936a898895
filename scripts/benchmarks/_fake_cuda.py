"""CUDA tensors without numbers, on a machine without a GPU: shapes, types and layouts only.

PyTorch's fake tensors take any device, but autograd and autocast ask a device's runtime a few
questions. A CPU build cannot answer them for CUDA. A small C++ library does, which is loaded into
this process before PyTorch is imported.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rl_nfm.support.cache import cache_folder  # imports no PyTorch

SOURCE = Path(__file__).with_suffix(".cpp")


def enable() -> None:
    """Make fake CUDA tensors usable in this process; call it before PyTorch is imported.

    Raises:
        RuntimeError: PyTorch is imported already, or there is no C++ compiler.
    """
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    home = Path(spec.origin).parent
    if not (home / "lib" / "libtorch_cuda.so").exists():
        if "torch" in sys.modules:
            raise RuntimeError("fake CUDA tensors must be enabled before PyTorch is imported")
        ctypes.CDLL(str(_build(home)))
    import torch

    if torch.version.cuda and not torch.cuda.is_available():
        raise RuntimeError("a CUDA build of PyTorch needs a GPU here; a CPU build does not")
    torch.autograd.set_multithreading_enabled(False)  # its thread needs a real device
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True


def _build(torch_home: Path) -> Path:
    """The shared library, which is built unless it is in the cache."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise RuntimeError("fake CUDA tensors need a C++ compiler, and there is none")
    lib = torch_home / "lib"
    version = (torch_home / "version.py").read_bytes()
    key = hashlib.sha256(SOURCE.read_bytes() + version + bytes(torch_home)).hexdigest()[:16]
    folder = cache_folder("fake_cuda")
    path = folder / f"{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            subprocess.run(
                [compiler, "-O0", "-std=c++20", "-fPIC", "-shared", str(SOURCE), "-o", str(built),
                 f"-I{torch_home / 'include'}", f"-L{lib}", "-lc10", "-ltorch_cpu",
                 f"-Wl,-rpath,{lib}"],
                check=True,
            )  # fmt: skip
            built.replace(path)
    return path
