"""Builds `kernels.cpp` with the system's C++ compiler, into the user's cache."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("kernels.cpp")
_SUM_FREELY = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
_FLAGS = ("-O3", "-march=native", *_SUM_FREELY, "-std=c++17", "-fopenmp", "-fPIC", "-shared")
_log = logging.getLogger(__name__)


@cache
def library() -> ctypes.CDLL | None:
    """The built kernels; None where they are switched off or cannot be built."""
    if os.environ.get("RL_NFM_KERNELS", "1") == "0":
        return None
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        _log.warning("no C++ compiler: NFM runs without its CPU kernels, slower")
        return None
    try:
        return ctypes.CDLL(str(build(compiler)))
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        _log.warning("NFM runs without its CPU kernels, slower: %s", reason)
        return None


def build(compiler: str) -> Path:
    """Path of the shared library, built unless the cache has it."""
    # What -march=native stands for here: another machine on the same home needs its own build.
    target = subprocess.run(
        [compiler, *_FLAGS, "-E", "-v", "-x", "c++", os.devnull],
        check=True, capture_output=True, text=True,
    ).stderr  # fmt: skip
    key = hashlib.sha256(_SOURCE.read_bytes() + target.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rl_nfm"
    path = folder / f"kernels-{key}.so"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            built = Path(scratch) / path.name
            subprocess.run(
                [compiler, *_FLAGS, str(_SOURCE), "-o", str(built)],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            built.replace(path)
    return path
