"""LSTM and GRU blocks of all RIMs at once: PyTorch's equations, forward and backward.

Shapes: n RIMs, B batch, s hidden size of one RIM, G = 4 s (LSTM: i, f, g, o) or 3 s (GRU: r, z, n).
`pre` is the input's part of the gates with its bias, [n, B, G].

Equations, with p = h U, S = sigmoid, * elementwise and dX the gradient of the loss by X; S'(y) is
y (1 - y) and T'(y) is 1 - y^2 of the value y of a sigmoid or tanh:

    LSTM                                    dc~ = dc' + dh' o * T'(tanh(c'))
    i, f, o = S(pre + p), g = tanh(pre + p) di = dc~ g S'(i),   df = dc~ c S'(f)
    c' = f c + i g                          dg = dc~ i T'(g),   do = dh' tanh(c') S'(o)
    h' = o tanh(c')                         dc = dc~ f          dpre = dp = (di, df, dg, do)

    GRU, q = the last third of p + bias     dn = (1 - z) dh' T'(n)
    r, z = S(pre + p + bias)                dr = dn q S'(r),    dz = dh' (h - n) S'(z)
    n  = tanh(pre + r q)                    dpre = (dr, dz, dn)
    h' = (1 - z) n + z h                    dp = (dr, dz, r dn) and z dh' straight into dh
"""

import torch
from jaxtyping import Float
from torch import Tensor

sigmoid_backward = torch.ops.aten.sigmoid_backward
tanh_backward = torch.ops.aten.tanh_backward


def lstm_forward(
    pre: Float[Tensor, "n B G"],
    hidden: Float[Tensor, "n B s"],
    cell: Float[Tensor, "n B s"],
    weight: Float[Tensor, "n s G"],
) -> tuple[
    Float[Tensor, "n B s"],
    Float[Tensor, "n B s"],
    tuple[Float[Tensor, "n B G"], Float[Tensor, "n B s"]],
]:
    """New hidden and cell state, and what the backward needs."""
    size = hidden.shape[-1]
    gates = torch.baddbmm(pre, hidden, weight)
    i_f, g, o = gates.split((2 * size, size, size), -1)
    acts = torch.cat((i_f.sigmoid(), g.tanh(), o.sigmoid()), -1)
    i, f, g, o = acts.chunk(4, -1)
    new_cell = torch.addcmul(f * cell, i, g)
    squashed = new_cell.tanh()
    return o * squashed, new_cell, (acts, squashed)


def lstm_backward(
    acts: Float[Tensor, "n B G"],
    squashed: Float[Tensor, "n B s"],
    cell: Float[Tensor, "n B s"],
    grad_hidden: Float[Tensor, "n B s"],
    grad_cell: Float[Tensor, "n B s"],
) -> tuple[Float[Tensor, "n B G"], Float[Tensor, "n B s"]]:
    """Gradients of the gates before their nonlinearity and of the old cell state."""
    i, f, g, o = acts.chunk(4, -1)
    grad_cell = grad_cell + tanh_backward(grad_hidden * o, squashed)
    grad_gates = torch.cat(
        (
            sigmoid_backward(grad_cell * g, i),
            sigmoid_backward(grad_cell * cell, f),
            tanh_backward(grad_cell * i, g),
            sigmoid_backward(grad_hidden * squashed, o),
        ),
        -1,
    )
    return grad_gates, grad_cell * f


def gru_forward(
    pre: Float[Tensor, "n B G"],
    hidden: Float[Tensor, "n B s"],
    weight: Float[Tensor, "n s G"],
    bias: Float[Tensor, "n 1 G"] | None,
) -> tuple[Float[Tensor, "n B s"], tuple[Float[Tensor, "n B G"], Float[Tensor, "n B s"]]]:
    """New hidden state and what the backward needs."""
    size = hidden.shape[-1]
    product = torch.bmm(hidden, weight)
    if bias is not None:
        product = product + bias
    gates = (pre[..., : 2 * size] + product[..., : 2 * size]).sigmoid()
    r, z = gates.chunk(2, -1)
    inner = product[..., 2 * size :]
    new = torch.addcmul(pre[..., 2 * size :], r, inner).tanh()
    return torch.addcmul(new, z, hidden - new), (torch.cat((gates, new), -1), inner)


def gru_backward(
    acts: Float[Tensor, "n B G"],
    inner: Float[Tensor, "n B s"],
    hidden: Float[Tensor, "n B s"],
    grad_hidden: Float[Tensor, "n B s"],
) -> tuple[Float[Tensor, "n B G"], Float[Tensor, "n B G"], Float[Tensor, "n B s"]]:
    """Gradients of `pre`, of the hidden product and of the old state where it is mixed in."""
    r, z, new = acts.chunk(3, -1)
    mixed = grad_hidden * z
    grad_new = tanh_backward(grad_hidden - mixed, new)
    grad_r = sigmoid_backward(grad_new * inner, r)
    grad_z = sigmoid_backward(grad_hidden * (hidden - new), z)
    into_pre = torch.cat((grad_r, grad_z, grad_new), -1)
    return into_pre, torch.cat((grad_r, grad_z, grad_new * r), -1), mixed
