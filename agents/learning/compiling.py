"""Whether the loss is compiled: always, never, or where its first updates show that to be quicker.

On a CPU compiling takes half a minute or more, and makes some updates slower. What a measurement
found is kept in the user's cache, so that each network is measured once on a machine.
"""

import hashlib
import json
import math
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch

from agents.learning.config import LearnerConfig
from rl_nfm.support.cache import cache_folder
from rl_nfm.support.commit import release
from rl_nfm.support.errors import named_line
from rl_nfm.support.output_files import made_folder, write_json

FEWEST_UPDATES = 20_000
"""Of a run for which measuring pays: compiling takes as long as some thousand updates."""

WARM_UP_UPDATES, MEASURED_UPDATES = 8, 40
"""Of each kind. The first compiled ones compile."""

TOGETHER = 8
"""Updates of a kind whose mean is one measurement: 16 turns give both kinds the same places."""

LEAST_GAIN = 1.03
"""By which compiled updates have to be quicker: medians err by a few hundredths."""

Compile = Literal["never", "always", "measured"]
Result = TypeVar("Result")


def how_to_compile(config: LearnerConfig, device: torch.device, updates: float) -> Compile:
    """What the option asks for on this device.

    Args:
        config: whose `compile` it is.
        device: where updates run.
        updates: how many the run makes.
    """
    option = config.compile
    if isinstance(option, bool):
        return "always" if option else "never"
    if device.type == "cuda":
        return "always" if option == "auto" else "never"
    return "measured" if updates >= FEWEST_UPDATES else "never"


class Compiling:
    """Gives each update its loss, as it is or compiled; where compiling fails, as it is."""

    def __init__(self, loss: Callable[..., Any], how: Compile = "never", *, about: str = ""):
        """Compile nothing yet.

        Args:
            loss: what to compile.
            how: measured: both kinds take turns during the first updates, and the quicker stays.
            about: what times depend on, beside the processor.
        """
        self.loss, self.how = loss, how
        self._compiled: Callable[..., Any] | None = None
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        self._notice: str | None = None
        self._kept: Path | None = None
        if how == "measured":
            self._kept = _kept_in(about)
            if (ratio := _ratio(self._kept)) is not None:
                self._settle(ratio)
        if self.how == "measured":
            self._notice = (
                "compiling the update, to see whether it becomes faster: half a minute to a few"
            )
        elif self.how == "always":
            self._notice = "compiling the update: about a minute, less when Inductor's cache has it"

    def notice(self) -> str | None:
        """What is worth a line before the next update; once."""
        notice, self._notice = self._notice, None
        return notice

    def __call__(self, update: Callable[[Callable[..., Any]], Result]) -> Result:
        """What `update` returns for the loss whose turn it is; called again if that fails."""
        if self.how == "never":
            return update(self.loss)
        if self.how == "always":
            return self._run_compiled(update)
        compiled = _is_compiled(turn=sum(map(len, self._seconds.values())))
        begin = time.perf_counter()
        result = self._run_compiled(update) if compiled else update(self.loss)
        self._seconds[compiled].append(time.perf_counter() - begin)
        if min(map(len, self._seconds.values())) == WARM_UP_UPDATES + MEASURED_UPDATES:
            self._choose()
        return result

    def _run_compiled(self, update: Callable[[Callable[..., Any]], Result]) -> Result:
        self._compiled = self._compiled or torch.compile(self.loss)
        try:
            return update(self._compiled)
        except Exception as error:  # whatever the compiler, or the one of C++, may raise
            self.how, self._compiled = "never", None
            warnings.warn(
                f"the update cannot be compiled and stays as it is ({named_line(error)})",
                RuntimeWarning,
                stacklevel=2,
            )
            return update(self.loss)

    def _choose(self) -> None:
        """Keep the quicker kind, here and in the cache."""
        eager, compiled = (1e3 * _typical(self._seconds[kind]) for kind in (False, True))
        ratio = compiled / eager
        self._settle(ratio)
        stays = "stays compiled" if self.how == "always" else "is not compiled"
        self._notice = f"compiled, an update takes {ratio:.2f} of its time: it {stays}"
        if self._kept is None:
            return
        with suppress(OSError, ValueError), made_folder("the cache", self._kept.parent):
            write_json(self._kept, {"eager_ms": eager, "compiled_ms": compiled})

    def _settle(self, ratio: float) -> None:
        """Decide, by the time of a compiled update over that of another."""
        if ratio * LEAST_GAIN <= 1:
            self.how = "always"
        else:
            self.how, self._compiled = "never", None


def _is_compiled(turn: int) -> bool:
    """Whether this update of a measurement is a compiled one: the Thue-Morse sequence.

    The loop makes several updates after each step, and emulators work beside the first of them. If
    both kinds simply alternated, that would always be the same kind, and seem slower.
    """
    return turn.bit_count() % 2 == 1


def _typical(seconds: list[float]) -> float:
    """Of one update, without the first ones."""
    begins = range(WARM_UP_UPDATES, len(seconds), TOGETHER)
    return statistics.median(statistics.fmean(seconds[i : i + TOGETHER]) for i in begins)


def _kept_in(about: str) -> Path | None:
    """The file of the cache for this processor and what else times depend on.

    None: this user has no home, as in a container that was given just a number.
    """
    kernels = os.environ.get("RL_NFM_KERNELS")
    where = f"{torch.__version__} {release()} {_processor()} {torch.get_num_threads()} {kernels}"
    key = hashlib.sha256(f"{where} {about}".encode()).hexdigest()[:24]
    try:
        return cache_folder("compiling") / f"{key}.json"
    except RuntimeError:
        return None


def _ratio(kept: Path | None) -> float | None:
    """Time of a compiled update over that of another, if the cache has it."""
    if kept is None:
        return None
    try:
        found = json.loads(kept.read_text(encoding="utf-8"))
        ratio = float(found["compiled_ms"]) / float(found["eager_ms"])
    except (OSError, ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return None
    return ratio if 0 < ratio < math.inf else None


def _processor() -> str:
    """Its name, and what PyTorch uses of it."""
    name = platform.processor()
    with suppress(OSError):  # only Linux has the file, and only there the name is so general
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line for line in lines if line.startswith("model name")), name)
    return f"{name} {torch.backends.cpu.get_cpu_capability()}"
