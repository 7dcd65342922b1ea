"""Launches of the backward: the mirrored products, and an outer product for each factor.

    gz = y_grad · act'(z)             z again from the hidden values; y_grad itself without one
    gL[l] = gz[l]ᵀ h[l]               gb = Σ gz
    gh = gz by the mirrored right     the first product of the mirror
    gR[k] = gh[k]ᵀ x[k]               gx = gh by the mirrored left

gz is written once and in the dtype of x; the bias has its sums before they are rounded.
"""

import torch
from torch import Tensor

from ropewalk.kernels.monarch.problem import Gradients, Needs, Problem
from ropewalk.kernels.monarch.triton.forward import first_product, forward
from ropewalk.kernels.monarch.triton.layout import hidden_blocks
from ropewalk.kernels.monarch.triton.products import Upstream, outer_product, product


def backward(problem: Problem, hidden: Tensor | None, y_grad: Tensor, needs: Needs) -> Gradients:
    """The gradients that are wanted; see `ropewalk.kernels.monarch.problem`."""
    p = problem
    if hidden is None and p.tokens and (needs.left or p.activation is not None):
        hidden = p.x.new_empty(p.tokens * p.width)
        first_product(p, hidden)
    z_grad, bias_grad = _before_activation(p, hidden, p.blocks_of(y_grad), needs)
    left_grad = None
    if needs.left:
        inner = p.x.new_empty(0) if hidden is None else hidden
        left_grad = outer_product(z_grad, hidden_blocks(inner, p).flatten(2))
    x_grad, right_grad = _through_mirror(p, z_grad, needs)
    return Gradients(x_grad, right_grad, left_grad, bias_grad)


def _before_activation(
    p: Problem, hidden: Tensor | None, y_grad: Tensor, needs: Needs
) -> tuple[Tensor, Tensor | None]:
    """The gradient of what the activation takes, (tokens, l, s), and that of the bias."""
    wants_bias = needs.bias and p.bias is not None
    if p.activation is None or hidden is None:
        total = y_grad.sum(0, dtype=torch.float32) if wants_bias else None
        z_grad = y_grad
    else:
        z_grad = y_grad.new_empty(y_grad.shape)
        total = product(
            hidden_blocks(hidden, p).flatten(2),
            p.left,
            z_grad[..., None],
            bias=p.bias,
            activation=p.activation,
            upstream=Upstream(y_grad, wants_bias),
        )
    if total is None or not wants_bias:
        return z_grad, None
    return z_grad, total.flatten().to(p.x.dtype)


def _through_mirror(
    p: Problem, z_grad: Tensor, needs: Needs
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of x and of the right factor."""
    if not needs.x and not needs.right:
        return None, None
    mirror, x_grad = p.mirrored(z_grad), None
    if needs.x:
        flat, hidden_grad = forward(mirror, keep_hidden=needs.right)
        x_grad = flat.view(p.x.shape)
    else:
        hidden_grad = p.x.new_empty(p.tokens * p.width)
        first_product(mirror, hidden_grad)
    if not needs.right or hidden_grad is None:
        return x_grad, None
    inner = hidden_blocks(hidden_grad, mirror).flatten(2)
    return x_grad, outer_product(inner, p.x)
