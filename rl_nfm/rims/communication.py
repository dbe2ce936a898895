"""Communication: RIMs read from each other with attention. Forward and hand-written backward.

Equations, of one head; dX is the gradient of the loss by X:

    q, k, v = shown P                       dv = A^T dr,   dA = dr v^T
    A = softmax(q k^T / sqrt(d)), over RIMs dS = A * (dA - rowsum(A * dA)) / sqrt(d)
    r = A v                                 dq = dS k,     dk = dS^T q
    y, w = r O + bias                       dr = (dy, dw) O^T
    u = tanh(y) * sigmoid(w)                dy = du sigmoid(w) (1 - tanh(y)^2)
                                            dw = du tanh(y) sigmoid(w) (1 - sigmoid(w))
    dshown = (dq, dk, dv) P^T, and to the weights dP = shown^T (dq, dk, dv), dO = r^T (dy, dw)

Without a gate u = y. Dropout multiplies y, and so dy.

Shapes: n RIMs, B batch, s hidden size of one RIM, h heads, d and e sizes of a head's keys and
values, Q = h (2 d + e) queries, keys and values, m weight matrices (n, or 1 that all RIMs share),
U = s or, with a gate, 2 s.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

sigmoid_backward = torch.ops.aten.sigmoid_backward
tanh_backward = torch.ops.aten.tanh_backward


class CommunicationWeights(NamedTuple):
    """Parameters of the communication."""

    project: Float[Tensor, "n s Q"]
    """To queries, keys and values."""
    output: Float[Tensor, "m he U"]
    """To the update and, where there is one, its gate."""
    bias: Float[Tensor, "1 1 U"] | None


def communicate(
    weights: CommunicationWeights,
    heads: int,
    key_size: int,
    shown: Float[Tensor, "n B s"],
    dropout: Float[Tensor, "n B s"] | None,
) -> tuple[Float[Tensor, "n B s"], tuple[Tensor, ...]]:
    """The update of the RIMs' states by what they show each other, and what the backward needs.

    sigmoid(gate) * tanh(linear) with a gate, linear without; `dropout` multiplies the linear part.
    What is saved begins with what the heads read, [n, B, h e].
    """
    n, batch, size = shown.shape
    projected = torch.bmm(shown, weights.project)
    split = 2 * heads * key_size
    q, k = _by_head(projected[..., :split], (2, heads)).unbind()
    v = _by_head(projected[..., split:], (1, heads))[0]
    probs = (torch.bmm(q, k.transpose(1, 2)) * key_size**-0.5).softmax(-1)  # [B h, n, n]
    read = _by_rim(torch.bmm(probs, v), heads)
    maps = len(weights.output)
    flat = read.view(maps, n * batch // maps, read.shape[-1])
    if weights.bias is None:
        update = torch.bmm(flat, weights.output)
    else:
        update = torch.baddbmm(weights.bias, flat, weights.output)
    update = update.view(n, batch, update.shape[-1])
    linear = update[..., :size]
    if dropout is not None:
        linear = linear * dropout
    if update.shape[-1] == size:
        return linear, (read, q, k, v, probs)
    squashed, gate = linear.tanh(), update[..., size:].sigmoid()
    return squashed * gate, (read, q, k, v, probs, squashed, gate)


def communicate_backward(
    weights: CommunicationWeights,
    heads: int,
    key_size: int,
    saved: tuple[Tensor, ...],
    dropout: Float[Tensor, "n B s"] | None,
    grad_update: Float[Tensor, "n B s"],
) -> tuple[Float[Tensor, "n B s"], Float[Tensor, "n B Q"], Float[Tensor, "n B U"]]:
    """Gradients of what was shown, of its projections and of the product with `output`."""
    n, batch, _ = grad_update.shape
    _, q, k, v, probs, *gated = saved
    grad_out, of_gate = grad_update, ()
    if gated:
        squashed, gate = gated
        grad_out = tanh_backward(grad_update * gate, squashed)
        of_gate = (sigmoid_backward(grad_update * squashed, gate),)
    if dropout is not None:
        grad_out = grad_out * dropout
    grad_out = torch.cat((grad_out, *of_gate), -1)
    maps, width, _ = weights.output.shape
    flat = grad_out.view(maps, n * batch // maps, grad_out.shape[-1])
    grad_read = torch.bmm(flat, weights.output.transpose(1, 2)).view(n, batch, width)
    grad_read = _by_head(grad_read, (1, heads))[0]
    weighted = probs * torch.bmm(grad_read, v.transpose(1, 2))
    grad_scores = torch.addcmul(weighted, probs, weighted.sum(-1, keepdim=True), value=-1)
    grad_scores = grad_scores * key_size**-0.5
    grads = (
        torch.bmm(grad_scores, k),
        torch.bmm(grad_scores.transpose(1, 2), q),
        torch.bmm(probs.transpose(1, 2), grad_read),
    )
    grad_projected = torch.cat([_by_rim(grad, heads) for grad in grads], -1)
    return torch.bmm(grad_projected, weights.project.transpose(1, 2)), grad_projected, grad_out


def _by_head(x: Tensor, parts: tuple[int, int]) -> Tensor:
    """[n, B, p h d], p parts of h heads, to [p, B h, n, d]."""
    n, batch, width = x.shape
    each = width // (parts[0] * parts[1])
    x = x.view(n, batch, *parts, each).permute(2, 1, 3, 0, 4)
    return x.reshape(parts[0], batch * parts[1], n, each)


def _by_rim(x: Tensor, heads: int) -> Tensor:
    """[B h, n, d] to [n, B, h d]."""
    return x.transpose(0, 1).reshape(x.shape[1], x.shape[0] // heads, heads * x.shape[2])
