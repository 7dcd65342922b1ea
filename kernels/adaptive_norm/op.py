"""`ropewalk::adaptive_norm` as a torch operator: schema, fake tensors and autograd.

One operator for all three functions: what is not there has no elements. The backward is an operator
of its own, which cannot be differentiated again.
"""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.backend import implementation
from ropewalk.kernels.adaptive_norm.problem import (
    Gradients,
    Needs,
    Outputs,
    Problem,
    Statistics,
    Upstream,
)
from ropewalk.kernels.autocast import suspended
from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.packing import check_numbers


def outputs(problem: Problem, backend: str) -> Outputs:
    """What the implementation gives.

    Raises:
        ValueError: bounds of packed samples that are none; a backend that cannot run.
    """
    if problem.cu_seqlens is not None:
        check_numbers("cu_seqlens", problem.cu_seqlens, problem.tokens)
    with suspended(problem.x):
        return implementation(problem.x, backend).forward(problem)


def gradients(
    problem: Problem,
    statistics: Statistics | None,
    upstream: Upstream,
    needs: Needs,
    backend: str,
) -> Gradients:
    """Those of the implementation; x of the problem is the residual."""
    with suspended(problem.x):
        return implementation(problem.x, backend).backward(problem, statistics, upstream, needs)


def shared(found: Gradients, upstream: Upstream, needs: Needs) -> Gradients:
    """The same with the gradients that are one tensor in two places."""
    x = found.x if found.x is not None else upstream.residual
    branch = found.branch if found.branch is not None else x
    return found._replace(x=x if needs.x else None, branch=branch if needs.branch else None)


@torch.library.custom_op("ropewalk::adaptive_norm", mutates_args=())
def adaptive_norm_op(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Residual, y, and every token's mean and 1 / deviation; see `problem.Problem`."""
    problem = Problem(x, branch, gate, shift, scale, weight, bias, cu_seqlens, norm, eps)
    residual, y, statistics = outputs(problem, backend)
    mean, rstd = (None, None) if statistics is None else statistics
    return (
        x.new_empty(0) if residual is None else residual,
        x.new_empty(0) if y is None else y,
        x.new_empty(0) if mean is None else mean,
        x.new_empty(0) if rstd is None else rstd,
    )


@adaptive_norm_op.register_fake
def _(x: Tensor, branch: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    norm, dtype = arguments[6], statistics_dtype(x.dtype)
    none = x.new_empty(0)
    return (
        none if branch is None else x.new_empty(x.shape),
        none.clone() if norm is None else x.new_empty(x.shape),
        x.new_empty(x.shape[:2], dtype=dtype) if norm == "layer" else none.clone(),
        none.clone() if norm is None else x.new_empty(x.shape[:2], dtype=dtype),
    )


@torch.library.custom_op("ropewalk::adaptive_norm_backward", mutates_args=())
def adaptive_norm_backward_op(
    residual: Tensor,
    branch: Tensor | None,
    gate: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    cu_seqlens: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    residual_grad: Tensor | None,
    y_grad: Tensor | None,
    needs: list[bool],
    norm: str | None,
    eps: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of `problem.Gradients`, without elements where they are none."""
    problem = Problem(residual, branch, gate, shift, scale, weight, bias, cu_seqlens, norm, eps)
    statistics = None if norm is None else Statistics(mean if norm == "layer" else None, rstd)
    upstream = Upstream(residual_grad, y_grad)
    found = gradients(problem, statistics, upstream, Needs(*needs), backend)
    a, b, c, d, e, f, g = (residual.new_empty(0) if grad is None else grad for grad in found)
    return a, b, c, d, e, f, g


@adaptive_norm_backward_op.register_fake
def _(
    residual: Tensor, branch: Tensor | None, gate: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    shift, scale, weight, bias = arguments[:4]
    y_grad, needs = arguments[8], Needs(*arguments[9])
    normed = y_grad is not None
    made = needs.made(gate is not None, normed)
    made = (
        (residual, made.x),
        (residual, made.branch),
        (gate, needs.gate),
        (shift, needs.shift and normed),
        (scale, needs.scale and normed),
        (weight, needs.weight and normed),
        (bias, needs.bias and normed),
    )
    a, b, c, d, e, f, g = (
        torch.empty(like.shape, dtype=like.dtype, device=like.device)
        if wanted and like is not None
        else residual.new_empty(0)
        for like, wanted in made
    )
    return a, b, c, d, e, f, g


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, branch, gate, *rows, norm, eps, backend = inputs
    residual, y, mean, rstd = output
    # The branch is read for the gate's gradient alone.
    kept = branch if gate is not None and ctx.needs_input_grad[2] else None
    # Without a norm it does not matter to any gradient what was summed.
    seen = None if norm is None else x if branch is None else residual
    ctx.save_for_backward(seen, kept, gate, *rows, mean, rstd)
    ctx.constants = (norm, eps, backend)
    ctx.mark_non_differentiable(
        mean, rstd, *([residual] if branch is None else []), *([y] if norm is None else [])
    )
    ctx.set_materialize_grads(False)


def _backward(
    ctx: Any, residual_grad: Tensor | None, y_grad: Tensor | None, *_: Tensor | None
) -> tuple[Any, ...]:
    none = (None,) * 4
    if residual_grad is None and y_grad is None:
        return (*(None,) * 7, *none)
    needs = Needs(*map(bool, ctx.needs_input_grad[:7]))
    seen, branch, gate, *rest = ctx.saved_tensors
    seen = residual_grad if seen is None else seen
    found = adaptive_norm_backward_op(
        seen, branch, gate, *rest, residual_grad, y_grad, list(needs), *ctx.constants
    )
    normed, gated = y_grad is not None, gate is not None
    wanted = (
        *needs.made(gated, normed),
        needs.gate,
        *(need and normed for need in needs[3:]),
    )
    made = Gradients(*(grad if want else None for grad, want in zip(found, wanted, strict=True)))
    return *shared(made, Upstream(residual_grad, y_grad), needs), *none


adaptive_norm_op.register_autograd(_backward, setup_context=_save)
