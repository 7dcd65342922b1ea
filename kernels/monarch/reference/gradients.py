"""Backward: the product with the mirrored factors, and an outer product for each block.

    gz = gy · activation'(z),  z from the hidden values that were kept
    gL[l] = gz[l]ᵀ h[l]           gR[k] = gh[k]ᵀ x[k]
    gx    = gz by the mirrored factors, whose hidden values are gh

Chunk by chunk, so that a chunk's gradient of the hidden values is still in the cache when it is
used; the factors' gradients are summed over chunks in float32 for half precision.
"""

import torch
from torch import Tensor

from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.monarch.activation import derivative
from ropewalk.kernels.monarch.problem import Gradients, Needs, Problem
from ropewalk.kernels.monarch.reference.chunks import hidden_of, token_chunks
from ropewalk.kernels.monarch.reference.products import (
    first_product,
    hidden_view,
    ranks_first,
    second_product,
)


def backward(problem: Problem, hidden: Tensor | None, y_grad: Tensor, needs: Needs) -> Gradients:
    """The gradients that are wanted; see `ropewalk.kernels.monarch.problem`."""
    x = problem.x
    y_grad = problem.blocks_of(y_grad)
    mirror = problem.mirrored(y_grad)
    rows = ranks_first(mirror)
    x_grad = x.new_empty(x.shape) if needs.x else None
    right_sum = left_sum = None
    bias_sum = None
    if needs.bias:
        bias_sum = y_grad.new_zeros(y_grad.shape[1:], dtype=statistics_dtype(x.dtype))
    for chunk in token_chunks(problem):
        z_grad, inner = y_grad[chunk], None
        if hidden is not None and (needs.left or problem.activation is not None):
            inner = hidden_view(problem, hidden_of(hidden, chunk, problem.width))
        if inner is not None and problem.activation is not None:
            # In float32: 1 − bend² and its like cancel in half precision.
            z = second_product(problem, inner, torch.empty_like(z_grad, dtype=x.dtype))
            slope = derivative(z.to(statistics_dtype(x.dtype)), problem.activation)
            z_grad = (z_grad * slope).to(x.dtype)
        if bias_sum is not None:
            bias_sum += z_grad.sum(0, dtype=bias_sum.dtype)
        if needs.left and inner is not None:
            left_sum = _plus_product(left_sum, z_grad.permute(1, 2, 0), inner.permute(1, 2, 0))
        if not (needs.x or needs.right):
            continue
        inner_grad = first_product(mirror, rows, z_grad, None)
        if needs.right:
            right_sum = _plus_product(
                right_sum, inner_grad.transpose(0, 1), x[chunk].transpose(0, 1)
            )
        if x_grad is not None:
            second_product(mirror, inner_grad, x_grad[chunk])
    return Gradients(
        x_grad,
        _as_factor(right_sum, problem.right) if needs.right else None,
        _as_factor(left_sum, problem.left) if needs.left else None,
        None if bias_sum is None else bias_sum.to(x.dtype).flatten(),
    )


def _plus_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Adds a @ b, the sum being wider than the product in half precision."""
    if total is None:
        return torch.bmm(a, b).to(statistics_dtype(a.dtype))
    if total.dtype == a.dtype:
        return total.baddbmm_(a, b)
    return total.add_(torch.bmm(a, b))


def _as_factor(total: Tensor | None, factor: Tensor) -> Tensor:
    """The sum in the factor's dtype; zeros where there were no tokens."""
    return factor.new_zeros(factor.shape) if total is None else total.to(factor.dtype)
