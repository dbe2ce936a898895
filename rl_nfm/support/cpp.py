"""Builds the C++ files of this package with the system's compiler, into the user's cache."""

import ctypes
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SUM_FREELY = ("-fassociative-math", "-fno-signed-zeros", "-fno-trapping-math")
_FLAGS = ("-O3", "-march=native", *_SUM_FREELY, "-std=c++17", "-fopenmp", "-fPIC", "-shared")
_log = logging.getLogger(__name__)


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
