"""Contenders that run in turns, each in its own process with its own allocator."""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Mapping
from typing import Any

Times = list[float]
Make = Callable[[], Callable[[], Any]]
"""Builds a contender in its process and returns the function to time. It must be picklable."""


def take_turns(
    contenders: Mapping[str, Make], *, rounds: int, seconds: float, threads: int
) -> dict[str, Times]:
    """Seconds of single calls of each contender, after a warm-up.

    Contenders take turns of this many seconds, so that other work on the machine disturbs all
    alike. With one thread, processor time is measured, which excludes other work; with more, wall
    time.
    """
    context = multiprocessing.get_context("spawn")
    times: dict[str, Times] = {name: [] for name in contenders}
    with contextlib.ExitStack() as stack:
        pipes: dict[str, Any] = {}
        for name, make in contenders.items():
            pipes[name], theirs = context.Pipe()
            process = context.Process(target=_serve, args=(make, threads, theirs), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(pipes[name].close)
        for turn in range(1 + rounds):
            for name, pipe in pipes.items():
                pipe.send(seconds if turn else min(seconds, 1.0))
                measured = pipe.recv()
                times[name] += measured if turn else []
    return times


def _serve(make: Make, threads: int, pipe: Any) -> None:
    import torch

    torch.set_num_threads(threads)
    call = make()
    for _ in range(3):
        call()
    clock = time.process_time if threads == 1 else time.perf_counter
    with contextlib.suppress(EOFError):
        while True:
            end = time.perf_counter() + pipe.recv()
            times = []
            while not times or time.perf_counter() < end:
                began = clock()
                call()
                times.append(clock() - began)
            pipe.send(times)
