"""RIMs in JAX against our PyTorch cells: forward and backward, CPU time, one thread, in turn."""

# JAX is an extra, and may be absent:
# pyright: reportMissingImports=false

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks._options import positive
from rl_nfm.rims import RIMGRUCell, RIMLSTMCell


def main(argv: list[str]) -> None:
    """Print a line for each kind of block."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=positive, default=12)
    args = parser.parse_args(argv)
    # Read when JAX is imported.
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    torch.set_num_threads(1)
    for kind, cell in (("LSTM", RIMLSTMCell), ("GRU", RIMGRUCell)):
        ours, theirs = _contenders(cell(600, 600, 6, 4).eval())
        for call in (ours, theirs, theirs):
            call()  # builds, compiles
        pairs = [(_cpu_seconds(ours), _cpu_seconds(theirs)) for _ in range(args.repeats)]
        torch_ms, jax_ms = (1000 * statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = [jax_s / torch_s for torch_s, jax_s in pairs]
        print(
            f"RIM {kind}: PyTorch {torch_ms:.0f} ms, JAX {jax_ms:.0f} ms; JAX / PyTorch "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )


def _contenders(cell: RIMLSTMCell | RIMGRUCell) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Gradients of parameters and input, for 20 steps of 64 sequences."""
    import jax
    import jax.numpy as jnp

    from rl_nfm.rims import in_jax

    x = torch.randn(20, 64, cell.input_size, requires_grad=True)
    leaves = [x, *cell.parameters()]
    params, inputs = in_jax.from_torch(cell), jnp.asarray(x.detach().numpy())

    def loss(params: in_jax.Params, x: Any) -> Any:
        return jnp.square(in_jax.run(params, x, num_active=cell.num_active)[0]).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    return (
        lambda: torch.autograd.grad(cell.run(x)[0].square().sum(), leaves),
        lambda: jax.block_until_ready(gradient(params, inputs)),
    )


def _cpu_seconds(call: Callable[[], Any]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin
