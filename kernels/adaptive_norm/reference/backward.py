"""Gradients, a run at a time; only sums over a sample's tokens leave it beside them.

With f = weight · (1 + scale) and g = dy · f:

    dr       = rstd · (g − mean(g) − x̂ · mean(g · x̂)) + the residual's own gradient
    dx = dr,   dbranch = gate · dr,   dgate = Σ branch · dr
    a = Σ dy · x̂,   b = Σ dy                               by sample, over its tokens
    dshift = b,   dscale = a · weight + b · bias
    dweight = Σ a · (1 + scale),   dbias = Σ b · (1 + scale)   over the samples

mean(g) is left out for the root mean square. The normed values are computed again, from the
residual and each token's statistics.
"""

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.problem import (
    Gradients,
    Needs,
    Problem,
    Statistics,
    Upstream,
)
from ropewalk.kernels.adaptive_norm.reference.runs import factor, runs, wide, wide_rows
from ropewalk.kernels.dtypes import statistics_dtype


def backward(
    problem: Problem, statistics: Statistics | None, upstream: Upstream, needs: Needs
) -> Gradients:
    """Those that `needs` asks for; see `problem.Gradients` for what is none beside them."""
    p = problem
    normed = upstream.y is not None
    x_grad = p.fresh() if normed and (needs.x or (needs.branch and p.gate is None)) else None
    branch_grad = p.fresh() if needs.branch and p.gate is not None else None
    sums = torch.zeros((3, p.samples, p.dim), dtype=statistics_dtype(p.x.dtype), device=p.x.device)
    factors = factor(p) if normed else None
    differentiate = _layer_norm if p.norm == "layer" else _rms_norm
    for run in runs(p):
        whole = None if upstream.residual is None else run.of(upstream.residual)
        if upstream.y is not None and statistics is not None and factors is not None:
            along, straight = (
                part[run.samples] if wanted else None
                for part, wanted in zip(sums, _sums_needed(p, needs), strict=False)
            )
            own = differentiate(
                wide(run.of(p.x)), wide(run.of(upstream.y)), factors[run.samples],
                Statistics(*(None if s is None else run.of(s) for s in statistics)),
                along, straight,
            )  # fmt: skip
            whole = own if whole is None else own.add_(whole)
        assert whole is not None
        if x_grad is not None:
            run.of(x_grad).copy_(whole)
        if branch_grad is not None and p.gate is not None:
            torch.mul(whole, p.gate[run.samples, None], out=run.of(branch_grad))
        if needs.gate and p.branch is not None:
            product = wide(whole) * run.of(p.branch)
            torch.sum(product, 1, out=sums[2][run.samples])
    return finish(p, Gradients(x_grad, branch_grad, *(None,) * 5), sums, upstream, needs)


def finish(
    p: Problem, so_far: Gradients, sums: Tensor, upstream: Upstream, needs: Needs
) -> Gradients:
    """All gradients, from the sums over each sample's tokens: (a, b, dgate), (3, samples, dim)."""
    along, straight, gate = sums
    shift = scale = weight = bias = None
    if upstream.y is not None:
        if needs.shift:
            shift = straight
        if needs.scale:
            scale = along if p.weight is None else along * p.weight
            scale = scale if p.bias is None else scale + straight * p.bias
        one_and_scale = wide_rows(p, p.scale, 0.0) + 1
        if needs.weight:
            weight = (along * one_and_scale).sum(0)
        if needs.bias:
            bias = (straight * one_and_scale).sum(0)
    found = (gate if needs.gate else None, shift, scale, weight, bias)
    of = (p.gate, p.shift, p.scale, p.weight, p.bias)
    rounded = (
        None if grad is None or given is None else grad.to(given.dtype, copy=True)
        for grad, given in zip(found, of, strict=True)
    )
    return Gradients(so_far.x, so_far.branch, *rounded)


def _sums_needed(p: Problem, needs: Needs) -> tuple[bool, bool]:
    """Whether a, and whether b, goes into a gradient that is wanted."""
    return (
        needs.scale or needs.weight,
        needs.shift or needs.bias or (needs.scale and p.bias is not None),
    )


def _layer_norm(
    x: Tensor,
    grad: Tensor,
    factors: Tensor,
    statistics: Statistics,
    along: Tensor | None,
    straight: Tensor | None,
) -> Tensor:
    """The gradient of what was normed; writes the sums a and b where there is memory for them."""
    mean, rstd = statistics
    assert mean is not None
    shape, mean, rstd = x.shape[2:], mean[..., None], rstd[..., None]
    if x.shape[0] == 1:
        mask = [True, along is not None, straight is not None]
        found, a, b = torch.ops.aten.native_layer_norm_backward(
            grad, x, shape, mean, rstd, factors[0], factors[0], mask
        )
        if along is not None:
            along[0].copy_(a)
        if straight is not None:
            straight[0].copy_(b)
        return found
    if along is not None:
        normed = (x - mean).mul_(rstd)
        torch.sum(normed.mul_(grad), 1, out=along)
    if straight is not None:
        torch.sum(grad, 1, out=straight)
    own = grad * factors[:, None]
    found, _, _ = torch.ops.aten.native_layer_norm_backward(
        own, x, shape, mean, rstd, None, None, [True, False, False]
    )
    return found


def _rms_norm(
    x: Tensor,
    grad: Tensor,
    factors: Tensor,
    statistics: Statistics,
    along: Tensor | None,
    straight: Tensor | None,
) -> Tensor:
    """The same of the root mean square."""
    rstd = statistics.rstd[..., None]
    normed = x * rstd
    product = grad * normed
    if along is not None:
        torch.sum(product, 1, out=along)
    if straight is not None:
        torch.sum(grad, 1, out=straight)
    mean = (product @ factors[..., None]).div_(x.shape[2])
    return (
        torch.mul(grad, factors[:, None], out=product).addcmul_(normed, mean, value=-1).mul_(rstd)
    )
