"""`ropewalk::linear_scan` as a torch operator: schema, fake tensors and autograd.

The backward is an operator of its own; it cannot be differentiated again.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.linear_scan.backend import implementation
from ropewalk.kernels.linear_scan.problem import Gradients, Needs, Problem
from ropewalk.kernels.packing import check_numbers


def states_of(problem: Problem, backend: str) -> Tensor:
    """Those of the implementation."""
    if problem.cu_seqlens is not None:
        check_numbers("cu_seqlens", problem.cu_seqlens, problem.time)
    with suspended(problem.b):
        return implementation(problem.a, backend).forward(problem)


def gradients(
    problem: Problem, states: Tensor, grad: Tensor, needs: Needs, backend: str
) -> Gradients:
    """Those of the implementation."""
    with suspended(problem.b):
        return implementation(problem.a, backend).backward(problem, states, grad, needs)


@torch.library.custom_op("ropewalk::linear_scan", mutates_args=())
def linear_scan_op(
    a: Tensor,
    b: Tensor,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    reverse: bool,
    backend: str,
) -> Tensor:
    """States; see `Problem` for the arguments."""
    return states_of(Problem(a, b, initial, reverse, cu_seqlens), backend)


@linear_scan_op.register_fake
def _(a: Tensor, b: Tensor, *_: Any) -> Tensor:
    return b.new_empty(b.shape)


@torch.library.custom_op("ropewalk::linear_scan_backward", mutates_args=())
def linear_scan_backward_op(
    a: Tensor,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    grad: Tensor,
    needs: list[bool],
    reverse: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a, b and the initial states, empty where `needs` does not ask for them."""
    # Of b only the shape and dtype are wanted, which the states have too.
    problem = Problem(a, states, initial, reverse, cu_seqlens)
    found = gradients(problem, states, grad, Needs(*needs), backend)
    of_a, of_b, of_initial = (states.new_empty(0) if x is None else x.contiguous() for x in found)
    return of_a, of_b, of_initial


@linear_scan_backward_op.register_fake
def _(
    a: Tensor,
    initial: Tensor | None,
    cu_seqlens: Tensor | None,
    states: Tensor,
    grad: Tensor,
    needs: list[bool],
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    of = (a, states, states if initial is None else initial)
    of_a, of_b, of_initial = (
        states.new_empty(x.shape if needed else 0) for x, needed in zip(of, needs, strict=True)
    )
    return of_a, of_b, of_initial


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, _, initial, cu_seqlens, reverse, backend = inputs
    ctx.save_for_backward(a, initial, cu_seqlens, output)
    ctx.constants = (reverse, backend)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = [bool(needed) for needed in ctx.needs_input_grad[:3]]
    found = linear_scan_backward_op(*ctx.saved_tensors, grad, needs, *ctx.constants)
    wanted = (x if needed else None for x, needed in zip(found, needs, strict=True))
    return *wanted, None, None, None


linear_scan_op.register_autograd(_backward, setup_context=_save)
