"""RIMs in JAX: the variant `official` as pure functions over a tree of parameters.

`run(params, x, state, num_active=4)` gives what `RIMLSTMCell.run` (or `RIMGRUCell.run`) gives in
evaluation mode, with the same gradients; `rl_nfm.rims.cells` has the method, its source and its
deviations, and this file follows the same steps in JAX's own terms: one sample, `jax.vmap` over the
batch, `jax.lax.scan` over time, `jax.grad` for the backward. `from_torch` and `to_torch` convert
weights. Only this file needs JAX (`pip install rl-nfm[jax]`); nothing else imports it.

Not here: dropout, the other variants, `reset` and `valid`, stacks of layers (`run` calls stack as
any function does: hand on `output * active`).

Shapes: T time steps, B batch, F input size, n RIMs of size s, H = n s, h heads of the communication
with keys of d and values of e.
"""

# JAX is an extra, and may be absent:
# pyright: reportMissingImports=false

from typing import Any, NamedTuple

import torch

try:
    import jax
    import jax.numpy as jnp
    from jax import Array, lax
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}: pip install 'rl-nfm[jax]'", name=error.name) from None

from rl_nfm.rims.cells import RIMGRUCell, RIMLSTMCell
from rl_nfm.rims.variants import VARIANTS

FORM = VARIANTS["official"]


class Params(NamedTuple):
    """Parameters of one layer, in the layout of our cells; G = 4 s (LSTM) or 3 s (GRU)."""

    query: Array
    """[n, s, 64]."""
    key: Array
    """[F, 64]."""
    value: Array
    """[F, 4 s]."""
    weight_ih: Array
    """[4 s, n, G]."""
    weight_hh: Array
    """[n, s, G]."""
    bias_ih: Array
    """[n, G]."""
    bias_hh: Array
    """[n, G]."""
    project: Array
    """[n, s, h (2 d + e)]: queries, keys, values."""
    output: Array
    """[1, h e, 2 s]: update and its gate."""
    output_bias: Array
    """[2 s]."""


State = tuple[Array, ...]
"""Hidden state [B, H], and of an LSTM the cell state."""


def init(
    rng: Array, input_size: int, hidden_size: int, num_rims: int, *, cell: str = "lstm"
) -> Params:
    """Fresh parameters, distributed as those of our cells (there: `reset_parameters`).

    Raises:
        ValueError: another cell than lstm and gru, or sizes that do not fit.
    """
    for name, count in (("input_size", input_size), ("num_rims", num_rims)):
        if count < 1:
            raise ValueError(f"{name}: {count} is not allowed: must be at least 1")
    if cell not in ("lstm", "gru"):
        raise ValueError(f"cell: {cell!r} is not allowed (allowed: lstm, gru)")
    if hidden_size < 1 or hidden_size % num_rims:
        raise ValueError(f"hidden_size: {hidden_size} is not a multiple of num_rims ({num_rims})")
    size = hidden_size // num_rims
    gates = (4 if cell == "lstm" else 3) * size
    read = FORM.heads * (FORM.value_size or size)
    keys = iter(jax.random.split(rng, len(Params._fields)))

    def normal(*shape: int) -> Array:
        return 0.01 * jax.random.normal(next(keys), shape)

    def uniform(fan_in: int, *shape: int) -> Array:
        return jax.random.uniform(next(keys), shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)

    return Params(
        query=normal(num_rims, size, FORM.input_key_size),
        key=normal(input_size, FORM.input_key_size),
        value=normal(input_size, 4 * size),
        weight_ih=uniform(hidden_size, 4 * size, num_rims, gates),
        weight_hh=uniform(hidden_size, num_rims, size, gates),
        bias_ih=uniform(hidden_size, num_rims, gates),
        bias_hh=uniform(hidden_size, num_rims, gates),
        project=normal(num_rims, size, FORM.heads * 2 * FORM.key_size + read),
        output=uniform(read, 1, read, 2 * size),
        output_bias=uniform(read, 2 * size),
    )


def run(
    params: Params, x: Array, state: State | None = None, *, num_active: int
) -> tuple[Array, State, Array]:
    """All steps.

    Args:
        params: of one layer; those of an LSTM or of a GRU, which their shapes tell.
        x: [T, B, F], of the parameters' type.
        state: before the first step; None: zeros.
        num_active: RIMs that are updated at a step (static under `jax.jit`).

    Returns:
        hidden states [T, B, H], the last state, and which RIMs were updated, bool [T, B, n].

    Raises:
        ValueError: x or state of another type or without steps or samples, or not 1 to n RIMs.
    """
    n, size = params.query.shape[:2]
    dtype = params.query.dtype
    if not 1 <= num_active <= n:
        raise ValueError(f"num_active: {num_active} is not allowed: must be 1 to {n}")
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(
            f"x: shape {x.shape} is not allowed: must be [T, B, F] with none of them 0"
        )
    if state is None:
        parts = 2 if params.weight_hh.shape[-1] == 4 * size else 1
        state = (jnp.zeros((x.shape[1], n * size), dtype),) * parts
    for name, array in (("x", x), *(("state", part) for part in state)):
        if array.dtype != dtype:
            raise ValueError(
                f"{name}: {array.dtype} is not allowed: must be {dtype}, as parameters"
            )
    split = tuple(part.reshape(-1, n, size) for part in state)
    # What does not depend on the state: queries of the keys, and the input's part of the gates.
    # Half precision would choose other RIMs now and then, so it does not choose.
    wide = jnp.promote_types(dtype, jnp.float32)
    keys = x.astype(wide) @ params.key.astype(wide)
    key_query = jnp.einsum("tbk,nsk->tbns", keys, params.query.astype(wide))
    key_query = key_query / FORM.input_key_size**0.5
    drive = jnp.einsum("tbv,vng->tbng", x @ params.value, params.weight_ih)
    one_step = jax.vmap(lambda *sample: _step(params, num_active, *sample))

    def scanned(before: State, inputs: tuple[Array, Array]) -> tuple[State, tuple[Array, Array]]:
        after, active = one_step(before, *inputs)
        return after, (after[0], active)

    last, (hidden, active) = lax.scan(scanned, split, (key_query, drive))
    joined = tuple(part.reshape(len(part), -1) for part in last)
    return hidden.reshape(*hidden.shape[:2], -1), joined, active


def _step(
    params: Params, num_active: int, state: State, key_query: Array, drive: Array
) -> tuple[State, Array]:
    """One step of one sample: states [n, s], key_query [n, s], drive [n, G]; bool [n]."""
    hidden, *memory = state
    logit = (hidden * key_query).sum(-1)
    # Weights of input and null slot are sigmoids of the logit, whose highest are active; `top_k`
    # prefers the lower index among equals, as our cells do.
    _, chosen = lax.top_k(lax.stop_gradient(logit), num_active)
    active = jnp.zeros(len(logit), bool).at[chosen].set(True)
    pre = drive * jax.nn.sigmoid(logit).astype(drive.dtype)[:, None] + params.bias_ih
    product = jnp.einsum("ns,nsg->ng", hidden, params.weight_hh) + params.bias_hh
    candidate = _lstm(pre + product, *memory) if memory else _gru(pre, product, hidden)
    mask = active[:, None]
    # What the others read from an inactive RIM sends no gradient into its state.
    shown = jnp.where(mask, candidate[0], lax.stop_gradient(candidate[0]))
    updated = candidate[0] + _communicate(params, shown)
    new = (updated, *candidate[1:])
    return tuple(jnp.where(mask, a, b) for a, b in zip(new, state, strict=True)), active


def _lstm(gates: Array, cell: Array) -> State:
    i, f, g, o = jnp.split(gates, 4, -1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def _gru(pre: Array, product: Array, hidden: Array) -> State:
    (r, z, new), (hidden_r, hidden_z, hidden_new) = (jnp.split(p, 3, -1) for p in (pre, product))
    r, z = jax.nn.sigmoid(r + hidden_r), jax.nn.sigmoid(z + hidden_z)
    new = jnp.tanh(new + r * hidden_new)
    return (new + z * (hidden - new),)


def _communicate(params: Params, shown: Array) -> Array:
    """What each RIM makes of what the others show, [n, s]."""
    n, width = len(shown), FORM.heads * FORM.key_size
    projected = jnp.einsum("ns,nsp->np", shown, params.project)
    q, k, v = (
        part.reshape(n, FORM.heads, -1) for part in jnp.split(projected, (width, 2 * width), -1)
    )
    weights = jax.nn.softmax(jnp.einsum("nhd,mhd->hnm", q, k) / FORM.key_size**0.5)
    read = jnp.einsum("hnm,mhe->nhe", weights, v).reshape(n, -1)
    update, gate = jnp.split(read @ params.output[0] + params.output_bias, 2, -1)
    return jnp.tanh(update) * jax.nn.sigmoid(gate)


def from_torch(cell: RIMLSTMCell | RIMGRUCell) -> Params:
    """The weights of one of our cells.

    Raises:
        ValueError: it is of another variant.
    """
    _check_variant(cell)
    named = {name: p.detach().cpu() for name, p in cell.named_parameters()}
    kind = str(named["query"].dtype).removeprefix("torch.")
    wide = {name: p.to(torch.promote_types(p.dtype, torch.float32)) for name, p in named.items()}
    return Params(*(jnp.asarray(wide[name].numpy(), kind) for name in Params._fields))


def to_torch(params: Params, cell: RIMLSTMCell | RIMGRUCell) -> None:
    """Write weights into one of our cells of the same sizes.

    Raises:
        ValueError: the cell is of another variant.
        RuntimeError: other sizes.
    """
    _check_variant(cell)
    arrays: dict[str, Any] = params._asdict()
    wide = {k: v.astype(jnp.promote_types(v.dtype, jnp.float32)) for k, v in arrays.items()}
    cell.load_state_dict({k: torch.tensor(jax.device_get(v)) for k, v in wide.items()})


def _check_variant(cell: RIMLSTMCell | RIMGRUCell) -> None:
    if cell.variant != FORM:
        raise ValueError("variant: only 'official' is allowed in JAX")
