"""Launches the forward kernel on tensors of any strides."""

import torch

from ropewalk.kernels.adaptive_norm.problem import Outputs, Problem, Statistics
from ropewalk.kernels.adaptive_norm.triton.configurations import (
    configuration,
    part_tokens,
    searched,
)
from ropewalk.kernels.adaptive_norm.triton.forward_kernel import forward_kernel
from ropewalk.kernels.adaptive_norm.triton.layout import readable, rows, stream
from ropewalk.kernels.adaptive_norm.triton.parts import places
from ropewalk.kernels.launching import run


def forward(problem: Problem) -> Outputs:
    """The residual where there is a branch, and the modulated norm where there is a norm."""
    p = problem
    residual = None if p.branch is None else p.fresh()
    y, mean, rstd = None, None, None
    if p.norm is not None:
        shape = p.x.shape[:2]
        y, rstd = p.fresh(), p.x.new_empty(shape, dtype=torch.float32)
        mean = p.x.new_empty(shape, dtype=torch.float32) if p.norm == "layer" else None
    found = Outputs(residual, y, None if rstd is None else Statistics(mean, rstd))
    if p.x.numel() == 0:
        return found
    how = configuration("forward", p.dim, p.x.element_size())
    part = part_tokens("forward", how, p.samples, p.x.shape[0] * p.tokens, p.x.device)
    run(
        forward_kernel,
        (places(p.samples, p.tokens, part, p.cu_seqlens),),
        p.x,
        **stream("x", readable(p.x)),
        **stream("branch", readable(p.branch)),
        **rows("gate", p.gate),
        **rows("shift", p.shift),
        **rows("scale", p.scale),
        weight=None if p.weight is None else p.weight.contiguous(),
        bias=None if p.bias is None else p.bias.contiguous(),
        cu_seqlens=None if p.cu_seqlens is None else p.cu_seqlens.contiguous(),
        residual=residual,
        y=y,
        mean=mean,
        rstd=rstd,
        samples=p.samples,
        tokens=p.tokens,
        part=part,
        eps=p.eps,
        NORM=p.norm,
        SEARCHED=searched(p.cu_seqlens is not None),
        DIM=p.dim,
        **how.constants(),
    )
    return found
