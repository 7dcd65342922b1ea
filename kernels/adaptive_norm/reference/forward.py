"""Residual, norm and modulation, a run at a time.

    residual = x + gate · branch
    y        = x̂ · weight · (1 + scale) + bias · (1 + scale) + shift

with x̂ of the residual as it is rounded, so that the backward finds the same numbers.
"""

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.problem import Outputs, Problem, Statistics
from ropewalk.kernels.adaptive_norm.reference.runs import Run, factor, offset, runs, wide
from ropewalk.kernels.dtypes import statistics_dtype


def forward(problem: Problem) -> Outputs:
    """The residual where there is a branch, and the modulated norm where there is a norm."""
    p = problem
    residual = None if p.branch is None else p.fresh()
    if p.norm is None:
        for run in runs(p):
            _add(p, run, residual)
        return Outputs(residual, None, None)
    y, factors, offsets = p.fresh(), factor(p), offset(p)
    like = {"dtype": statistics_dtype(p.x.dtype), "device": p.x.device}
    rstd = torch.empty(p.x.shape[:2], **like)
    mean = torch.empty(p.x.shape[:2], **like) if p.norm == "layer" else None
    norm = _layer_norm if p.norm == "layer" else _rms_norm
    for run in runs(p):
        seen = run.of(p.x) if residual is None else _add(p, run, residual)
        rows = None if offsets is None else offsets[run.samples]
        norm(run, seen, factors[run.samples], rows, p.eps, y, mean, rstd)
    return Outputs(residual, y, Statistics(mean, rstd))


def _add(p: Problem, run: Run, residual: Tensor | None) -> Tensor:
    """Writes this run's residual; its view of it."""
    assert p.branch is not None
    assert residual is not None
    x, branch, out = run.of(p.x), run.of(p.branch), run.of(residual)
    if p.gate is None:
        return torch.add(x, branch, out=out)
    gate = p.gate[run.samples, None]
    if gate.dtype == x.dtype:  # rounded once, for half precision too
        return torch.addcmul(x, gate, branch, out=out)
    return out.copy_(wide(x).addcmul(gate, wide(branch)))


def _layer_norm(
    run: Run,
    x: Tensor,
    factors: Tensor,
    offsets: Tensor | None,
    eps: float,
    y: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
) -> None:
    assert mean is not None
    if x.shape[0] == 1:  # one modulation for all tokens, which is what a norm's own weights are
        found, means, rstds = torch.native_layer_norm(
            wide(x), x.shape[2:], factors[0], None if offsets is None else offsets[0], eps
        )
        run.of(y).copy_(found)
    else:
        found, means, rstds = torch.native_layer_norm(wide(x), x.shape[2:], None, None, eps)
        _modulate(found, factors, offsets, run.of(y))
    run.of(mean).copy_(means[..., 0])
    run.of(rstd).copy_(rstds[..., 0])


def _rms_norm(
    run: Run,
    x: Tensor,
    factors: Tensor,
    offsets: Tensor | None,
    eps: float,
    y: Tensor,
    mean: Tensor | None,
    rstd: Tensor,
) -> None:
    x = wide(x)
    rstds = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    rstds = rstds.div_(x.shape[2]).add_(eps).rsqrt_()
    run.of(rstd).copy_(rstds[..., 0])
    _modulate(x * rstds, factors, offsets, run.of(y))


def _modulate(normed: Tensor, factors: Tensor, offsets: Tensor | None, out: Tensor) -> None:
    """Writes normed · factors + offsets; `normed` is written over where it is of another dtype."""
    same = out.dtype == normed.dtype
    if offsets is None:
        found = torch.mul(normed, factors[:, None], out=out if same else normed)
    else:
        found = torch.addcmul(
            offsets[:, None], normed, factors[:, None], out=out if same else normed
        )
    if not same:
        out.copy_(found)
