"""Which samples are computed together: a few small ones, or one that fills the caches by itself.

Between two operations of torch a run stays in the caches, so that memory is read once and written
once, as it is by a kernel.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.problem import Problem
from ropewalk.kernels.dtypes import statistics_dtype
from ropewalk.kernels.packing import check_numbers

ELEMENTS = 2**18
"""Of a run: what lies between operations, some such runs in float32, fits the caches of a core."""


class Run(NamedTuple):
    """Consecutive samples: their numbers, their rows of the batch, and their tokens."""

    samples: slice
    batch: slice
    tokens: slice

    def of(self, x: Tensor) -> Tensor:
        """Its part of (batch, tokens, …), a view."""
        return x[self.batch, self.tokens]


def runs(p: Problem) -> Iterator[Run]:
    """All samples, in order; packed ones without those of no tokens.

    Raises:
        ValueError: cumulative lengths that are none.
    """
    if p.cu_seqlens is not None:
        check_numbers("cu_seqlens", p.cu_seqlens, p.tokens)
        for sample, (start, stop) in enumerate(pairwise(p.cu_seqlens.tolist())):
            if stop > start:
                yield Run(slice(sample, sample + 1), slice(0, 1), slice(start, stop))
        return
    if p.tokens == 0:
        return
    together = max(1, ELEMENTS // (p.tokens * p.dim))
    for start in range(0, p.samples, together):
        samples = slice(start, min(start + together, p.samples))
        yield Run(samples, samples, slice(None))


def wide(x: Tensor) -> Tensor:
    """In what is computed in; the tensor itself if it is."""
    return x.to(statistics_dtype(x.dtype))


def wide_rows(p: Problem, rows: Tensor | None, otherwise: float) -> Tensor:
    """(samples, dim) in what is computed in, and where there are none a number in their place."""
    if rows is not None:
        return rows.to(statistics_dtype(p.x.dtype))
    one = torch.full((1, 1), otherwise, dtype=statistics_dtype(p.x.dtype), device=p.x.device)
    return one.expand(p.samples, p.dim)


def factor(p: Problem) -> Tensor:
    """(samples, dim) contiguous, what the normed values are multiplied by: weight · (1 + scale)."""
    one_and_scale = wide_rows(p, p.scale, 0.0) + 1
    return one_and_scale if p.weight is None else one_and_scale.mul_(p.weight)


def offset(p: Problem) -> Tensor | None:
    """(samples, dim), what is added then: bias · (1 + scale) + shift; none for 0."""
    if p.bias is None:
        return None if p.shift is None else wide_rows(p, p.shift, 0.0)
    offsets = (wide_rows(p, p.scale, 0.0) + 1).mul_(p.bias)
    return offsets if p.shift is None else offsets.add_(p.shift)
