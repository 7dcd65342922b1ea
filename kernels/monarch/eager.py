"""The product without the operator, for plain tensors outside of compilers (`kernels/plain.py`)."""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.monarch.op import gradients, product
from ropewalk.kernels.monarch.problem import Needs, Problem
from ropewalk.kernels.once import once


def eager_product(problem: Problem, keep_hidden: bool, backend: str) -> Tensor:
    """The result, differentiable once."""
    p = problem
    if not torch.is_grad_enabled():
        return product(p, False, backend)[0]
    return _Product.apply(
        p.x, p.right, p.left, p.bias, p.activation, p.block_major, keep_hidden, backend
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        right: Tensor,
        left: Tensor,
        bias: Tensor | None,
        activation: str | None,
        block_major: bool,
        keep_hidden: bool,
        backend: str,
    ) -> Tensor:
        problem = Problem(x, right, left, bias, activation, block_major)
        y, hidden = product(problem, keep_hidden, backend)
        ctx.save_for_backward(x, right, left, bias, hidden)
        ctx.constants = (activation, block_major, backend)
        return y

    @staticmethod
    def backward(ctx: Any, *y_grads: Tensor) -> tuple[Any, ...]:
        x, right, left, bias, hidden = ctx.saved_tensors
        activation, block_major, backend = ctx.constants
        problem = Problem(x, right, left, bias, activation, block_major)
        needs = Needs(*map(bool, ctx.needs_input_grad[:4]))
        with torch.no_grad():
            found = gradients(problem, hidden, y_grads[0], needs, backend)
        sources = (x, right, left, bias, y_grads[0])
        return *once(found, *sources, instead="take backend='dense'"), *(None,) * 4
