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

from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.problem import (
    Gradients,
    Needs,
    Problem,
    Statistics,
    Sums,
    SumsNeeded,
    Upstream,
    modulation_gradients,
)
from ropewalk.kernels.adaptive_norm.reference.runs import factor, is_one_run, runs, wide
from ropewalk.kernels.dtypes import statistics_dtype


def backward(
    problem: Problem, statistics: Statistics | None, upstream: Upstream, needs: Needs
) -> Gradients:
    """Those that `needs` asks for; see `problem.Gradients` for what is none beside them."""
    p = problem
    if is_one_run(p):
        found = _run(p, statistics, upstream, needs, _Memory(None, None))
        return Gradients(*found.memory, *modulation_gradients(p, found.sums, needs))
    normed = upstream.y is not None
    made = needs.made(p.gate is not None, normed)
    memory = _Memory(p.fresh() if made.x else None, p.fresh() if made.branch else None)
    like = {"dtype": statistics_dtype(p.x.dtype), "device": p.x.device}
    sums = Sums(
        *(
            torch.zeros(p.samples, p.dim, **like) if wanted else None
            for wanted in needs.sums(p.bias is not None, normed)
        )
    )
    for run in runs(p):
        found = _run(
            run.part(p),
            statistics and Statistics(run.stream(statistics.mean), run.part_of(statistics.rstd)),
            Upstream(*map(run.stream, upstream)),
            needs,
            _Memory(*map(run.stream, memory)),
        )
        for target, rows in zip(sums, found.sums, strict=True):
            if target is not None and rows is not None:
                target[run.samples] = rows
    return Gradients(*memory, *modulation_gradients(p, sums, needs))


class _Memory(NamedTuple):
    """Gradients of a stream and a branch: where they are to be written, or what was found."""

    x: Tensor | None
    branch: Tensor | None


class _Found(NamedTuple):
    memory: _Memory
    sums: Sums


def _run(
    p: Problem,
    statistics: Statistics | None,
    upstream: Upstream,
    needs: Needs,
    out: _Memory,
) -> _Found:
    """A run's gradients, in the memory that is given, if any is, and its sums."""
    whole, along, straight, gate = upstream.residual, None, None, None
    x_grad, branch_grad = None, None
    normed = upstream.y is not None
    made, sums = needs.made(p.gate is not None, normed), needs.sums(p.bias is not None, normed)
    if upstream.y is not None and statistics is not None:
        differentiate = _layer_norm if p.norm == "layer" else _rms_norm
        grad = wide(upstream.y)
        own, along, straight = differentiate(wide(p.x), grad, factor(p), statistics, sums)
        if straight is None and sums.straight:
            straight = grad.sum(1)
        whole = own if whole is None else own.add_(whole)
    assert whole is not None
    if made.x:
        x_grad = whole.to(p.x.dtype).contiguous() if out.x is None else out.x.copy_(whole)
    if made.branch and p.gate is not None:
        branch_grad = torch.mul(whole, p.gate[:, None], out=out.branch).to(p.x.dtype)
        branch_grad = branch_grad.contiguous()
    if sums.gate and p.branch is not None:
        gate = (wide(whole) * p.branch).sum(1)
    return _Found(_Memory(x_grad, branch_grad), Sums(along, straight, gate))


def _layer_norm(
    x: Tensor, grad: Tensor, factors: Tensor | None, statistics: Statistics, sums: SumsNeeded
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradient of what was normed, and the sums that came with it."""
    mean, rstd = statistics
    assert mean is not None
    shape, mean, rstd = x.shape[2:], mean[..., None], rstd[..., None]
    differentiate = torch.ops.aten.native_layer_norm_backward
    if len(x) == 1:
        factors = x.new_ones(shape) if factors is None else factors.view(shape)
        mask = [True, sums.along, sums.straight]
        found, a, b = differentiate(grad, x, shape, mean, rstd, factors, factors, mask)
        return found, a[None] if sums.along else None, b[None] if sums.straight else None
    along = ((x - mean).mul_(rstd).mul_(grad)).sum(1) if sums.along else None
    if factors is not None:
        grad = grad * (factors if factors.ndim == 1 else factors[:, None])
    found, _, _ = differentiate(grad, x, shape, mean, rstd, None, None, [True, False, False])
    return found, along, None


def _rms_norm(
    x: Tensor, grad: Tensor, factors: Tensor | None, statistics: Statistics, sums: SumsNeeded
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The same of the root mean square."""
    rstd = statistics.rstd[..., None]
    normed = x * rstd
    product = grad * normed
    along = product.sum(1) if sums.along else None
    if factors is None:
        mean, own = product.mean(-1, keepdim=True), product.copy_(grad)
    else:
        mean = (product @ factors[..., None]).div_(x.shape[2])
        own = torch.mul(grad, factors if factors.ndim == 1 else factors[:, None], out=product)
    return own.addcmul_(normed, mean, value=-1).mul_(rstd), along, None
