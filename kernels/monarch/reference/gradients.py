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
    second_product,
)


def backward(problem: Problem, hidden: Tensor | None, y_grad: Tensor, needs: Needs) -> Gradients:
    """The gradients that are wanted; see `ropewalk.kernels.monarch.problem`."""
    x = problem.x
    y_grad = problem.blocks_of(y_grad)
    mirror = problem.mirrored(y_grad)
    x_grad = x.new_empty(x.shape) if needs.x else None
    right_sum = _sum_like(problem.right) if needs.right else None
    left_sum = _sum_like(problem.left) if needs.left else None
    bias_sum = _sum_like(y_grad.new_empty(y_grad.shape[1:])) if needs.bias else None
    for chunk in token_chunks(problem):
        z_grad, inner = y_grad[chunk], None
        if hidden is not None and (left_sum is not None or problem.activation is not None):
            inner = hidden_view(problem, hidden_of(hidden, chunk, problem.width))
        if inner is not None and problem.activation is not None:
            # In float32: 1 − bend² and its like cancel in half precision.
            z = second_product(problem, inner).to(statistics_dtype(x.dtype))
            slope = derivative(z, problem.activation).transpose(0, 1)
            z_grad = (z_grad * slope).to(x.dtype)
        if bias_sum is not None:
            bias_sum += z_grad.sum(0, dtype=bias_sum.dtype)
        if left_sum is not None and inner is not None:
            _add_product(left_sum, z_grad.permute(1, 2, 0), inner.permute(1, 2, 0))
        if x_grad is None and right_sum is None:
            continue
        inner_grad = first_product(mirror, z_grad, None)
        if right_sum is not None:
            _add_product(right_sum, inner_grad.transpose(0, 1), x[chunk].transpose(0, 1))
        if x_grad is not None:
            x_grad[chunk].copy_(second_product(mirror, inner_grad).transpose(0, 1))
    return Gradients(
        x_grad,
        None if right_sum is None else right_sum.to(x.dtype),
        None if left_sum is None else left_sum.to(x.dtype),
        None if bias_sum is None else bias_sum.to(x.dtype).flatten(),
    )


def _sum_like(factor: Tensor) -> Tensor:
    return factor.new_zeros(factor.shape, dtype=statistics_dtype(factor.dtype))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b to a sum that is wider than the product in half precision."""
    if total.dtype == a.dtype:
        total.baddbmm_(a, b)
    else:
        total += torch.bmm(a, b)
