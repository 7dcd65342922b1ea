"""The scan without the operator, for plain tensors outside of compilers (`kernels/plain.py`)."""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.linear_scan.op import gradients, states_of
from ropewalk.kernels.linear_scan.problem import Needs, Problem
from ropewalk.kernels.once import once


def eager_scan(problem: Problem, backend: str) -> Tensor:
    """States, differentiable once."""
    p = problem
    if not torch.is_grad_enabled():
        return states_of(p, backend)
    return _Scan.apply(p.a, p.b, p.initial, p.cu_seqlens, p.reverse, backend)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        a: Tensor,
        b: Tensor,
        initial: Tensor | None,
        cu_seqlens: Tensor | None,
        reverse: bool,
        backend: str,
    ) -> Tensor:
        states = states_of(Problem(a, b, initial, reverse, cu_seqlens), backend)
        ctx.save_for_backward(a, initial, cu_seqlens, states)
        ctx.constants = (reverse, backend)
        return states

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        a, initial, cu_seqlens, states = ctx.saved_tensors
        reverse, backend = ctx.constants
        problem = Problem(a, states, initial, reverse, cu_seqlens)
        needs = Needs(*map(bool, ctx.needs_input_grad[:3]))
        with torch.no_grad():
            found = gradients(problem, states, grads[0], needs, backend)
        found = once(
            found, a, initial, states, grads[0], instead="use the transforms of torch.func"
        )
        return *found, None, None, None
