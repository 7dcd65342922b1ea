"""Launches the backward kernel, and the sums of what its programs leave for each sample."""

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
from ropewalk.kernels.adaptive_norm.triton.backward_kernel import backward_kernel
from ropewalk.kernels.adaptive_norm.triton.configurations import (
    SUMMED_COLUMNS,
    SUMMED_PLACES,
    configuration,
    part_tokens,
    searched,
)
from ropewalk.kernels.adaptive_norm.triton.layout import readable, rows, stream
from ropewalk.kernels.adaptive_norm.triton.parts import places
from ropewalk.kernels.adaptive_norm.triton.sums_kernel import sums_kernel
from ropewalk.kernels.chips import most_registers
from ropewalk.kernels.launching import run
from ropewalk.kernels.sizes import ceil_divide


def backward(
    problem: Problem, statistics: Statistics | None, upstream: Upstream, needs: Needs
) -> Gradients:
    """Those that `needs` asks for; see `problem.Gradients` for what is none beside them."""
    p, normed = problem, upstream.y is not None
    made = needs.made(p.gate is not None, normed)
    wanted = needs.sums(p.bias is not None, normed)
    x_grad, branch_grad = (p.fresh() if make else None for make in made)
    sums = _fresh_sums(p, wanted)
    if p.x.numel() == 0:
        zeros = Sums(*(None if x is None else x.zero_() for x in sums))
        return Gradients(x_grad, branch_grad, *modulation_gradients(p, zeros, needs))
    if any(made) or any(wanted):
        _launch(p, statistics, upstream, x_grad, branch_grad, sums)
    return Gradients(x_grad, branch_grad, *modulation_gradients(p, sums, needs))


def _fresh_sums(p: Problem, wanted: SumsNeeded) -> Sums:
    """Memory in the gradients' own dtype, or float32 where more is done with the sums."""
    of = (p.scale, p.shift, p.gate)
    final = (p.weight is None and p.bias is None, p.bias is None, True)
    return Sums(
        *(
            torch.empty(
                (p.samples, p.dim),
                dtype=rows.dtype if own and rows is not None else torch.float32,
                device=p.x.device,
            )
            if needed
            else None
            for rows, own, needed in zip(of, final, wanted, strict=True)
        )
    )


def _launch(
    p: Problem,
    statistics: Statistics | None,
    upstream: Upstream,
    x_grad: Tensor | None,
    branch_grad: Tensor | None,
    sums: Sums,
) -> None:
    normed = upstream.y is not None and statistics is not None
    how = configuration("backward", p.dim, p.x.element_size())
    part = part_tokens("backward", how, p.samples, p.x.shape[0] * p.tokens, p.x.device)
    programs = places(p.samples, p.tokens, part, p.cu_seqlens)
    count = sum(x is not None for x in sums)
    partial = p.x.new_empty((programs, count, p.dim), dtype=torch.float32)
    cu_seqlens = None if p.cu_seqlens is None else p.cu_seqlens.contiguous()
    mean, rstd = statistics if normed and statistics is not None else (None, None)
    run(
        backward_kernel,
        (programs,),
        p.x,
        **stream("residual", readable(p.x) if normed else None),
        **stream("branch", None if sums.gate is None else readable(p.branch)),
        **stream("residual_grad", readable(upstream.residual)),
        **stream("y_grad", readable(upstream.y)),
        **rows("gate", p.gate),
        **rows("scale", p.scale if normed else None),
        weight=None if p.weight is None or not normed else p.weight.contiguous(),
        cu_seqlens=cu_seqlens,
        mean=None if mean is None else mean.contiguous(),
        rstd=None if rstd is None else rstd.contiguous(),
        x_grad=x_grad,
        branch_grad=branch_grad,
        partial=partial,
        samples=p.samples,
        tokens=p.tokens,
        part=part,
        NORMED=normed,
        LAYER=mean is not None,
        ALONG=int(sums.along is not None),
        STRAIGHT=int(sums.straight is not None),
        GATE=int(sums.gate is not None),
        SEARCHED=searched(p.cu_seqlens is not None),
        DIM=p.dim,
        **how.constants(),
    )
    if count == 0:
        return
    run(
        sums_kernel,
        (p.samples * ceil_divide(p.dim, SUMMED_COLUMNS),),
        p.x,
        partial=partial,
        along=sums.along,
        straight=sums.straight,
        gate=sums.gate,
        cu_seqlens=cu_seqlens,
        tokens=p.tokens,
        part=part,
        DIM=p.dim,
        SUMS=count,
        PLACES=SUMMED_PLACES,
        COLUMNS=SUMMED_COLUMNS,
        num_warps=4,
        maxnreg=most_registers(4),
    )
