"""`ropewalk::monarch` as a torch operator: schema, fake tensors and autograd.

The backward is an operator of its own; it cannot be differentiated again.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.monarch.backend import implementation
from ropewalk.kernels.monarch.problem import Gradients, Needs, Problem


def product(problem: Problem, keep_hidden: bool, backend: str) -> tuple[Tensor, Tensor | None]:
    """The result of the implementation, and the hidden values if they are to be kept."""
    with suspended(problem.x):
        return implementation(problem.x, backend).forward(problem, keep_hidden)


def gradients(
    problem: Problem, hidden: Tensor | None, y_grad: Tensor, needs: Needs, backend: str
) -> Gradients:
    """Those of the implementation; hidden values that were not kept are computed again."""
    with suspended(problem.x):
        module = implementation(problem.x, backend)
        if hidden is None and (needs.left or problem.activation is not None):
            _, hidden = module.forward(problem, True)
        return module.backward(problem, hidden, y_grad, needs)


@torch.library.custom_op("ropewalk::monarch", mutates_args=())
def monarch_op(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    activation: str | None,
    block_major: bool,
    keep_hidden: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The result, and the hidden values for the backward, empty unless they are to be kept."""
    problem = Problem(x, right, left, bias, activation, block_major)
    y, hidden = product(problem, keep_hidden, backend)
    return y, x.new_empty(0) if hidden is None else hidden


@monarch_op.register_fake
def _(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    activation: str | None,
    block_major: bool,
    keep_hidden: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    tokens, (blocks, size, _) = x.shape[0], left.shape
    shape = (blocks, tokens, size) if block_major else (tokens, blocks * size)
    kept = tokens * right.shape[0] * right.shape[1] if keep_hidden else 0
    return x.new_empty(shape), x.new_empty(kept)


@torch.library.custom_op("ropewalk::monarch_backward", mutates_args=())
def monarch_backward_op(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    hidden: Tensor,
    y_grad: Tensor,
    needs: list[bool],
    activation: str | None,
    block_major: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, right, left and bias, empty where `needs` does not ask for them."""
    problem = Problem(x, right, left, bias, activation, block_major)
    kept = hidden if hidden.numel() else None
    found = gradients(problem, kept, y_grad, Needs(*needs), backend)
    x_grad, right_grad, left_grad, bias_grad = (
        x.new_empty(0) if grad is None else grad for grad in found
    )
    return x_grad, right_grad, left_grad, bias_grad


@monarch_backward_op.register_fake
def _(
    x: Tensor,
    right: Tensor,
    left: Tensor,
    bias: Tensor | None,
    hidden: Tensor,
    y_grad: Tensor,
    needs: list[bool],
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of = (x, right, left, x if bias is None else bias)
    x_grad, right_grad, left_grad, bias_grad = (
        x.new_empty(tensor.shape if needed else 0) for tensor, needed in zip(of, needs, strict=True)
    )
    return x_grad, right_grad, left_grad, bias_grad


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, right, left, bias, activation, block_major, _, backend = inputs
    ctx.save_for_backward(x, right, left, bias, output[1])
    ctx.constants = (activation, block_major, backend)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for the hidden values would be as large as they are


def _backward(ctx: Any, y_grad: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if y_grad is None:
        return (None,) * 8
    needs = [bool(needed) for needed in ctx.needs_input_grad[:4]]
    found = monarch_backward_op(*ctx.saved_tensors, y_grad, needs, *ctx.constants)
    gradients = (grad if needed else None for grad, needed in zip(found, needs, strict=True))
    return *gradients, *(None,) * 4


monarch_op.register_autograd(_backward, setup_context=_save)
