"""The scan without the operator, for plain tensors outside of compilers (`kernels/plain.py`)."""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.newton_scan.op import gradients, scanned
from ropewalk.kernels.newton_scan.problem import Needs, Options, Problem, Scanned
from ropewalk.kernels.once import once


def eager_scan(problem: Problem, options: Options, backend: str) -> Scanned:
    """States, differentiable once, with iterations and residuals."""
    p = problem
    if not torch.is_grad_enabled():
        return scanned(p, options, backend)
    return Scanned(
        *_Scan.apply(p.inputs, p.weights, p.initial, p.cu_seqlens, p.cell, options, backend)
    )


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weights: Tensor,
        initial: Tensor | None,
        cu_seqlens: Tensor | None,
        cell: str,
        options: Options,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        problem = Problem(inputs, weights, initial, cell, cu_seqlens)
        states, iterations, residual = scanned(problem, options, backend)
        ctx.save_for_backward(inputs, weights, initial, cu_seqlens, states)
        ctx.constants = (cell, options, backend)
        ctx.mark_non_differentiable(iterations, residual)
        ctx.set_materialize_grads(False)
        return states, iterations, residual

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if grads[0] is None:
            return (None,) * 7
        inputs, weights, initial, cu_seqlens, states = ctx.saved_tensors
        cell, options, backend = ctx.constants
        problem = Problem(inputs, weights, initial, cell, cu_seqlens)
        needs = Needs(*map(bool, ctx.needs_input_grad[:3]))
        with torch.no_grad():
            found = gradients(problem, states, grads[0], needs, options, backend)
        sources = (inputs, weights, initial, states, grads[0])
        found = once(found, *sources, instead="use the transforms of torch.func")
        return *found, *(None,) * 4
