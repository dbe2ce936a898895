"""Whether the tensors of a layer fit each other: what compiled kernels rely on."""

import torch
from torch import Tensor

from rl_nfm.rims.products import LayerCall, SequenceInputs
from rl_nfm.rims.step import not_none


def check_states(sequence: SequenceInputs, hidden: Tensor, cell: Tensor | None) -> None:
    """Raise ValueError unless states and flags fit the inputs: broadcast, they would do harm."""
    rows = tuple(sequence.value.shape[:2])
    for name, state in (("hidden", hidden), ("cell", cell)):
        if state is not None and state.shape[1] != rows[1]:
            raise ValueError(
                f"{name}: of {state.shape[1]} is not allowed, the batch is of {rows[1]}"
            )
    for name, flags in (("valid", sequence.valid), ("reset", sequence.reset)):
        if flags is not None and (flags.shape != rows or flags.dtype != torch.bool):
            found = f"{flags.dtype} {tuple(flags.shape)}"
            raise ValueError(f"{name}: {found} is not allowed, must be torch.bool {rows}")


def check_layer(layer: LayerCall, hidden: Tensor, cell: Tensor | None) -> None:
    """Raise ValueError unless sizes and types fit each other, which the kernels never look at."""
    spec, weights, sequence, drive = layer
    n, steps, batch, gates = drive.shape
    size = weights.hidden.shape[1]
    state, each = (n, batch, size), (n, steps, batch, size)
    expected = [
        ("drive", drive, (n, steps, batch, (4 if spec.cell == "lstm" else 3) * size)),
        ("hidden", hidden, state),
        ("cell", cell, state),
        ("weights.hidden", weights.hidden, (n, size, gates)),
        ("weights.base", weights.base, (n, 1, gates)),
        ("weights.hidden_bias", weights.hidden_bias, (n, 1, gates)),
        ("weights.rank_query", weights.rank_query, (n, 1, size)),
        ("key_query", sequence.key_query, each),
        ("dropout", sequence.dropout, each),
        ("valid", sequence.valid, (steps, batch)),
        ("reset", sequence.reset, (steps, batch)),
    ]
    if spec.heads:
        project, output = not_none(weights.project), not_none(weights.output)
        read, update = output.shape[1:]
        queries = 2 * spec.heads * spec.key_size
        expected += [
            ("weights.project", project, (n, size, queries + read)),
            ("weights.output", output, (n if len(output) > 1 else 1, read, update)),
            ("weights.output_bias", weights.output_bias, (1, 1, update)),
        ]
        if read % spec.heads or update not in (size, 2 * size):
            raise ValueError(f"weights.output: shape {tuple(output.shape)} is not allowed")
    for name, tensor, shape in expected:
        if tensor is None:
            continue
        dtype = torch.bool if name in ("valid", "reset") else drive.dtype
        if tensor.shape != shape or tensor.dtype != dtype:
            found = f"{tensor.dtype} {tuple(tensor.shape)}"
            raise ValueError(f"{name}: {found} is not allowed, must be {dtype} {shape}")
    if spec.cell == "lstm" and cell is None:
        raise ValueError("cell: an LSTM needs one")
    if (spec.gate is None) != (sequence.key_query is None):
        raise ValueError(f"key_query: needed by an input gate, and by nothing else ({spec.gate})")
