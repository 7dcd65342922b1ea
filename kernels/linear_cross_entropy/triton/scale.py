"""Keeps gradients of float16 within its range, without asking the device for a number.

A mean over 8192 tokens gives upstream gradients of 1/8192, and times a probability of 1/1000 that
is below what float16 can hold with any accuracy. So G is divided by a power of two near the
greatest upstream gradient before it is rounded, and the float32 sums of its products are multiplied
back. bfloat16 has float32's range and needs none of it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.kernels.linear_cross_entropy.problem import IGNORED, Problem, Upstream

LEAST_EXPONENT = -100
"""So that the inverse is a number too."""


class Scale(NamedTuple):
    """Powers of two, float32 scalars on the device."""

    factor: Tensor
    inverse: Tensor


def gradient_scale(problem: Problem, upstream: Upstream) -> Scale | None:
    """None where the dtype needs no scale."""
    p = problem
    if p.hidden.dtype != torch.float16:
        return None
    size = upstream.logsumexp.abs() + upstream.target_logit.abs()
    if upstream.logit_sum is not None and p.sum_weights is not None:
        size = size + upstream.logit_sum.abs() * p.sum_weights.abs().amax()
    greatest = size.masked_fill(p.targets == IGNORED, 0.0).amax() * abs(p.logit_scale)
    _, exponent = torch.frexp(greatest)
    factor = torch.ldexp(torch.ones_like(greatest), exponent.clamp(min=LEAST_EXPONENT))
    return Scale(factor, factor.reciprocal())
