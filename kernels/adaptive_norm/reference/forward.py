"""Residual, norm and modulation, a run at a time.

    residual = x + gate · branch
    y        = x̂ · weight · (1 + scale) + bias · (1 + scale) + shift

with x̂ of the residual as it is rounded, so that the backward finds the same numbers.
"""

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.problem import Outputs, Problem, Statistics
from ropewalk.kernels.adaptive_norm.reference.runs import factor, is_one_run, offset, runs, wide
from ropewalk.kernels.dtypes import statistics_dtype

NARROW = 256
"""Columns up to which a few operations of torch on a CPU are faster than its layer norm."""


def forward(problem: Problem) -> Outputs:
    """The residual where there is a branch, and the modulated norm where there is a norm."""
    p = problem
    if is_one_run(p, in_place=True):
        return _run(p, None, None)
    residual = None if p.branch is None else p.fresh()
    y, mean, rstd = None, None, None
    if p.norm is not None:
        like = {"dtype": statistics_dtype(p.x.dtype), "device": p.x.device}
        y, rstd = p.fresh(), torch.empty(p.x.shape[:2], **like)
        mean = torch.empty(p.x.shape[:2], **like) if p.norm == "layer" else None
    for run in runs(p):
        _, _, statistics = _run(run.part(p), run.stream(residual), run.stream(y))
        if statistics is not None:
            for target, found in zip((mean, rstd), statistics, strict=True):
                if target is not None and found is not None:
                    target[run.batch, run.tokens] = found
    return Outputs(residual, y, None if rstd is None else Statistics(mean, rstd))


def _run(p: Problem, residual: Tensor | None, y: Tensor | None) -> Outputs:
    """A run's results, in the memory that is given, if any is."""
    seen = p.x
    if p.branch is not None:
        seen = residual = _gated_sum(p.x, p.branch, p.gate, residual)
    if p.norm is None:
        return Outputs(residual, None, None)
    norm = _layer_norm if p.norm == "layer" else _rms_norm
    y, statistics = norm(seen, factor(p), offset(p), p.eps, y)
    return Outputs(residual, y, statistics)


def _gated_sum(x: Tensor, branch: Tensor, gate: Tensor | None, out: Tensor | None) -> Tensor:
    """The new residual, rounded once, for half precision too."""
    if gate is None:
        return torch.add(x, branch, out=out).contiguous()
    if gate.dtype == x.dtype:
        return torch.addcmul(x, gate[:, None], branch, out=out).contiguous()
    return _write(wide(x) + gate[:, None] * branch, x.dtype, out)


def _write(found: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """Rounded to its dtype, in the memory that is given, if any is."""
    if found is out:
        return found
    return found.to(dtype).contiguous() if out is None else out.copy_(found)


def _layer_norm(
    x: Tensor, factors: Tensor | None, offsets: Tensor | None, eps: float, out: Tensor | None
) -> tuple[Tensor, Statistics]:
    shape = x.shape[2:]
    shared = all(rows is None or rows.ndim == 1 or len(rows) == 1 for rows in (factors, offsets))
    if shared:  # by all tokens, as a norm's own weight and bias are
        weight, bias = (None if rows is None else rows.view(shape) for rows in (factors, offsets))
        # Half precision without weights in float32 would have statistics like itself.
        values = wide(x) if factors is None else x
        found, mean, rstd = torch.native_layer_norm(values, shape, weight, bias, eps)
    else:
        found, mean, rstd = _normed(wide(x), eps)
        found = _modulated(found, factors, offsets, x.dtype, out)
    return _write(found, x.dtype, out), Statistics(mean[..., 0], rstd[..., 0])


def _normed(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """The normed values, and every token's mean and 1 / deviation, (batch, tokens, 1)."""
    if x.shape[2] > NARROW:
        return torch.native_layer_norm(x, x.shape[2:], None, None, eps)
    mean = x.mean(-1, keepdim=True)
    away = x - mean
    rstd = _inverse_root_mean_square(away, eps)
    return away.mul_(rstd), mean, rstd


def _inverse_root_mean_square(x: Tensor, eps: float) -> Tensor:
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    return square.div_(x.shape[2]).add_(eps).rsqrt_()


def _rms_norm(
    x: Tensor, factors: Tensor | None, offsets: Tensor | None, eps: float, out: Tensor | None
) -> tuple[Tensor, Statistics]:
    values = wide(x)
    rstd = _inverse_root_mean_square(values, eps)
    found = _modulated(values * rstd, factors, offsets, x.dtype, out)
    return _write(found, x.dtype, out), Statistics(None, rstd[..., 0])


def _modulated(
    normed: Tensor,
    factors: Tensor | None,
    offsets: Tensor | None,
    dtype: torch.dtype,
    out: Tensor | None,
) -> Tensor:
    """The values times factors plus offsets, at its place if that is of the same dtype."""
    target = normed if out is None or dtype != normed.dtype else out
    if factors is None:
        return normed if offsets is None else torch.add(normed, _by_token(offsets), out=target)
    if offsets is None:
        return torch.mul(normed, _by_token(factors), out=target)
    return torch.addcmul(_by_token(offsets), normed, _by_token(factors), out=target)


def _by_token(rows: Tensor) -> Tensor:
    return rows if rows.ndim == 1 else rows[:, None]
