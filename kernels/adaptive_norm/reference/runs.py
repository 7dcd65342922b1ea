"""Which samples are computed together: a few small ones, or one that fills the caches by itself.

Between two operations of torch a run stays in the caches, so that memory is read once and written
once, as it is by a kernel. A run is a problem of its own, and what it writes is views.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.problem import Problem
from ropewalk.kernels.dtypes import statistics_dtype

ELEMENTS = 2**20
"""Of a run of several samples: what lies between two operations fits the caches."""
ALONE = 2**17
"""Elements of a sample that is a run by itself: a layer norm does its modulation as well then."""


class Run(NamedTuple):
    """Consecutive samples: their numbers, their rows of the batch, and their tokens."""

    samples: slice
    batch: slice
    tokens: slice

    def part_of(self, x: Tensor) -> Tensor:
        """Its part of (batch, tokens, …), a view."""
        return x[self.batch, self.tokens]

    def stream(self, x: Tensor | None) -> Tensor | None:
        """The same of what may not be there."""
        return None if x is None else self.part_of(x)

    def rows(self, x: Tensor | None) -> Tensor | None:
        """Its part of (samples, …), a view."""
        return None if x is None else x[self.samples]

    def part(self, p: Problem) -> Problem:
        """Its samples as rows of a batch."""
        return p._replace(
            x=self.part_of(p.x),
            branch=self.stream(p.branch),
            gate=self.rows(p.gate),
            shift=self.rows(p.shift),
            scale=self.rows(p.scale),
            cu_seqlens=None,
        )


def is_one_run(p: Problem, *, in_place: bool = False) -> bool:
    """Whether all is computed together.

    Args:
        p: all of it.
        in_place: nothing lies between the operations but what they write in the end, unless they
            compute in another dtype.
    """
    if p.cu_seqlens is not None:
        return False
    if in_place and p.x.dtype == statistics_dtype(p.x.dtype):
        return True
    return p.samples <= 1 or p.x.numel() <= ELEMENTS


def runs(p: Problem) -> Iterator[Run]:
    """All samples, in order; packed ones without those of no tokens."""
    if p.cu_seqlens is not None:
        for sample, (start, stop) in enumerate(pairwise(p.cu_seqlens.tolist())):
            if stop > start:
                yield Run(slice(sample, sample + 1), slice(0, 1), slice(start, stop))
        return
    size = p.tokens * p.dim
    together = 1 if size >= ALONE else max(1, ELEMENTS // size)
    for start in range(0, p.samples, together):
        samples = slice(start, min(start + together, p.samples))
        yield Run(samples, samples, slice(None))


def wide(x: Tensor) -> Tensor:
    """In what is computed in; the tensor itself if it is."""
    return x.to(statistics_dtype(x.dtype))


def factor(p: Problem) -> Tensor | None:
    """The product weight · (1 + scale), what the normed values are multiplied by; none for 1.

    (samples, dim), or (dim,) where all samples share it, in what is computed in.
    """
    dtype = statistics_dtype(p.x.dtype)
    if p.scale is None:
        return None if p.weight is None else p.weight.to(dtype)
    one_and_scale = p.scale.to(dtype) + 1
    return one_and_scale if p.weight is None else one_and_scale.mul_(p.weight)


def offset(p: Problem) -> Tensor | None:
    """The sum bias · (1 + scale) + shift, what is added then; none for 0."""
    dtype = statistics_dtype(p.x.dtype)
    if p.bias is None:
        return None if p.shift is None else p.shift.to(dtype)
    bias = p.bias.to(dtype)
    if p.scale is not None:
        bias = torch.addcmul(bias, p.scale.to(dtype), bias)
    return bias if p.shift is None else bias + p.shift
