"""The op without the operator, for plain tensors outside of compilers (`kernels/plain.py`)."""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.composite import composite_gradients
from ropewalk.kernels.adaptive_norm.op import gradients, outputs, shared
from ropewalk.kernels.adaptive_norm.problem import Needs, Problem, Statistics, Upstream


def eager(problem: Problem, backend: str) -> tuple[Tensor | None, Tensor | None]:
    """The residual and y, differentiable as often as wanted."""
    p = problem
    if not torch.is_grad_enabled():
        return outputs(p, backend)[:2]
    return _AdaptiveNorm.apply(
        p.x, p.branch, p.gate, p.shift, p.scale, p.weight, p.bias,
        p.cu_seqlens, p.norm, p.eps, backend,
    )  # fmt: skip


class _AdaptiveNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        branch: Tensor | None,
        gate: Tensor | None,
        shift: Tensor | None,
        scale: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        cu_seqlens: Tensor | None,
        norm: str | None,
        eps: float,
        backend: str,
    ) -> tuple[Tensor | None, Tensor | None]:
        rows = (shift, scale, weight, bias, cu_seqlens)
        residual, y, statistics = outputs(Problem(x, branch, gate, *rows, norm, eps), backend)
        # The branch is read for the gate's gradient alone.
        kept = branch if gate is not None and ctx.needs_input_grad[2] else None
        # Without a norm it does not matter to any gradient what was summed.
        seen = None if norm is None else x if branch is None else residual
        ctx.save_for_backward(seen, kept, gate, *rows, *(statistics or (None, None)))
        ctx.constants = (norm, eps, backend)
        ctx.set_materialize_grads(False)
        return residual, y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        upstream = Upstream(*grads)
        none = (None,) * 4
        if upstream.residual is None and upstream.y is None:
            return (*(None,) * 7, *none)
        seen, branch, gate, shift, scale, weight, bias, cu_seqlens, mean, rstd = ctx.saved_tensors
        norm, eps, backend = ctx.constants
        seen = upstream.residual if seen is None else seen
        assert seen is not None
        rows = (shift, scale, weight, bias, cu_seqlens)
        problem = Problem(seen, branch, gate, *rows, norm, eps)
        needs = Needs(*map(bool, ctx.needs_input_grad[:7]))
        if torch.is_grad_enabled():
            found = composite_gradients(problem, upstream, needs)
        else:
            statistics = None if rstd is None else Statistics(mean, rstd)
            found = gradients(problem, statistics, upstream, needs, backend)
        return *shared(found, upstream, needs), *none
