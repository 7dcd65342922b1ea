"""The equation in ordinary torch: all of torch sees through it, and it keeps what torch keeps.

For transforms of torch.func, forward differentiation, and derivatives of derivatives. It is also
the shortest way to read what the op does.
"""

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.problem import Gradients, Needs, Problem, Upstream
from ropewalk.kernels.dtypes import statistics_dtype


def composite(problem: Problem) -> tuple[Tensor, Tensor | None]:
    """The residual, and the modulated norm if there is one."""
    residual = _residual(problem)
    return residual, None if problem.norm is None else _modulated(problem, residual)


def composite_gradients(problem: Problem, upstream: Upstream, needs: Needs) -> Gradients:
    """Gradients that can be differentiated again; x is the residual that the norm saw."""
    p, residual = problem, problem.x
    whole, shift, scale, weight, bias = upstream.residual, None, None, None, None
    if upstream.y is not None:
        # Views, so that an argument which was given twice has two gradients.
        modulation = {
            name: getattr(p, name).view_as(getattr(p, name))
            for name in ("shift", "scale", "weight", "bias")
            if getattr(p, name) is not None and getattr(needs, name)
        }
        seen = residual.view_as(residual)
        wanted = [x for x in (seen, *modulation.values()) if x.requires_grad]
        with torch.enable_grad():
            y = _modulated(p._replace(**modulation), seen)
        found = torch.autograd.grad(
            y, wanted, upstream.y, create_graph=True, materialize_grads=True
        )
        by_tensor = {id(x): grad for x, grad in zip(wanted, found, strict=True)}
        shift, scale, weight, bias = (
            by_tensor[id(modulation[name])] if name in modulation else None
            for name in ("shift", "scale", "weight", "bias")
        )
        normed = by_tensor.get(id(seen))
        whole = normed if whole is None or normed is None else whole + normed
    gate, branch = None, None
    if p.gate is not None and whole is not None:
        wide = whole.to(statistics_dtype(whole.dtype))
        if needs.branch:
            branch = (_by_token(p, p.gate) * wide).to(whole.dtype)
        if needs.gate and p.branch is not None:
            gate = _sum_of_samples(p, wide * p.branch).to(p.gate.dtype)
    return Gradients(whole, branch, gate, shift, scale, weight, bias)


def _residual(p: Problem) -> Tensor:
    if p.branch is None:
        return p.x
    if p.gate is None:
        return p.x + p.branch
    dtype = statistics_dtype(p.x.dtype)
    return (p.x.to(dtype) + _by_token(p, p.gate) * p.branch).to(p.x.dtype)


def _modulated(p: Problem, residual: Tensor) -> Tensor:
    wide = residual.to(statistics_dtype(residual.dtype))
    if p.norm == "layer":
        wide = wide - wide.mean(-1, keepdim=True)
    y = wide * (wide.square().mean(-1, keepdim=True) + p.eps).rsqrt()
    if p.weight is not None:
        y = y * p.weight
    if p.bias is not None:
        y = y + p.bias
    if p.scale is not None:
        y = y * (1 + _by_token(p, p.scale))
    if p.shift is not None:
        y = y + _by_token(p, p.shift)
    return y.to(residual.dtype)


def _by_token(p: Problem, rows: Tensor) -> Tensor:
    """(samples, dim) → (batch, 1 or tokens, dim), in what is computed in."""
    rows = rows.to(statistics_dtype(p.x.dtype))
    return rows[:, None] if p.cu_seqlens is None else rows[_sample_of_tokens(p)][None]


def _sum_of_samples(p: Problem, x: Tensor) -> Tensor:
    """(batch, tokens, dim) → (samples, dim)."""
    if p.cu_seqlens is None:
        return x.sum(1)
    return x.new_zeros(p.samples, p.dim).index_add(0, _sample_of_tokens(p), x[0])


def _sample_of_tokens(p: Problem) -> Tensor:
    assert p.cu_seqlens is not None
    tokens = torch.arange(p.tokens, device=p.x.device, dtype=p.cu_seqlens.dtype)
    return torch.bucketize(tokens, p.cu_seqlens[1:], right=True)
