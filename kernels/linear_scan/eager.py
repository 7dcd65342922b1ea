"""The scan without the operator, for plain tensors outside of compilers (`kernels/plain.py`)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ropewalk.kernels.linear_scan.op import gradients, states_of
from ropewalk.kernels.linear_scan.problem import Needs, Problem


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
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator's type)
        ctx: Any, *grads: Tensor
    ) -> tuple[Any, ...]:
        a, initial, cu_seqlens, states = ctx.saved_tensors
        reverse, backend = ctx.constants
        problem = Problem(a, states, initial, reverse, cu_seqlens)
        needs = Needs(*map(bool, ctx.needs_input_grad[:3]))
        return *gradients(problem, states, grads[0], needs, backend), None, None, None
