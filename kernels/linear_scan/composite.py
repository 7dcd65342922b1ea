"""The scan in ordinary torch, for torch.func and for gradients of gradients.

Doubling (Hillis and Steele): after k rounds each step holds the last 2ᵏ in one, so there are log₂ T
rounds over all of time. Nothing is written in place, so that every transform can follow. Products
of coefficients over all of time must be finite: from a state of zero they may overflow alone, and
what comes out there is not a number.
"""

import torch
from torch import Tensor

from ropewalk.kernels.dtypes import wide
from ropewalk.kernels.linear_scan.problem import Problem


def composite_scan(problem: Problem) -> Tensor:
    """States; sequences that are packed are cut apart, which reads their lengths."""
    p = problem
    dtype = wide(p.b.dtype)
    a, b = p.a.to(dtype), p.b.to(dtype)
    if p.cu_seqlens is None:
        return _doubled(p, a, b, p.initial).to(p.b.dtype)
    lengths = p.cu_seqlens.diff().tolist()
    parts = []
    for i, (of_a, of_b) in enumerate(
        zip(a.split(lengths, dim=1), b.split(lengths, dim=1), strict=True)
    ):
        parts.append(_doubled(p, of_a, of_b, None if p.initial is None else p.initial[i : i + 1]))
    return torch.cat(parts, dim=1).to(p.b.dtype)


def _doubled(p: Problem, a: Tensor, b: Tensor, initial: Tensor | None) -> Tensor:
    time = b.shape[1]
    if time == 0:
        return b
    if p.reverse:
        a, b = a.flip(1), b.flip(1)
    if initial is not None:
        first = _times(p, a[:, :1], initial.to(b.dtype).unsqueeze(1)) + b[:, :1]
        b = torch.cat([first, b[:, 1:]], dim=1)
    reach = 1
    while reach < time:
        far = b[:, reach:] + _times(p, a[:, reach:], b[:, :-reach])
        a = torch.cat([a[:, :reach], _composed(p, a[:, reach:], a[:, :-reach])], dim=1)
        b = torch.cat([b[:, :reach], far], dim=1)
        reach *= 2
    return b.flip(1) if p.reverse else b


def _times(p: Problem, a: Tensor, x: Tensor) -> Tensor:
    if p.structure == "diagonal":
        return a * x
    if p.structure == "dense":
        return (a @ x.unsqueeze(-1)).squeeze(-1)
    return (a * x.unsqueeze(-3)).sum(-2)


def _composed(p: Problem, later: Tensor, earlier: Tensor) -> Tensor:
    if p.structure == "diagonal":
        return later * earlier
    if p.structure == "dense":
        return later @ earlier
    return (later.unsqueeze(-2) * earlier.unsqueeze(-4)).sum(-3)
