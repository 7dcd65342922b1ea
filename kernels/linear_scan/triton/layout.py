"""What the kernels can read as it lies, and how they are told about it."""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.chips import too_old
from ropewalk.kernels.linear_scan.problem import Problem

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.complex64)
DENSE = 4
"""Dimensions of dense coefficients."""


def unsupported(x: Tensor) -> str | None:
    """Why the kernels cannot run on coefficients like these, or None."""
    if x.dtype not in DTYPES:
        return f"its kernels take float16, bfloat16, float32 and complex64, got {x.dtype}"
    if x.ndim == DENSE:
        return (
            "its kernels keep a state in registers, which a dense matrix mixes; use 'reference' "
            "for dense coefficients"
        )
    return too_old(x)


def structure_of(p: Problem) -> str:
    """As the kernels tell structures apart."""
    if p.structure == "block2":
        return "block2"
    return "complex" if p.b.is_complex() else "real"


def numbers(x: Tensor) -> Tensor:
    """The same, of complex numbers with pairs (real, imaginary) in place of channels."""
    return torch.view_as_real(x).flatten(-2) if x.is_complex() else x


def readable(x: Tensor) -> Tensor:
    """The same as real numbers whose channels are neighbours; what was expanded stays so."""
    if x.is_conj() or x.is_neg():
        x = x.resolve_conj().resolve_neg()
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        few = x
        for dim in range(x.ndim - 1):
            if x.stride(dim) == 0 and x.shape[dim] > 1:
                few = few.narrow(dim, 0, 1)
        x = few.contiguous().expand(x.shape)
    if x.is_complex() and x.shape[-1] == 1 and x.stride(-1) != 1:
        # One channel has no neighbours, but a number's parts are.
        x = x.as_strided(x.shape, (*x.stride()[:-1], 1))
    return numbers(x)


def coefficient_strides(a: Tensor) -> dict[str, Any]:
    """Of coefficients that are `readable`."""
    row, column = (a.stride(2), a.stride(3)) if a.ndim == 5 else (0, 0)
    return {"a_batch": a.stride(0), "a_time": a.stride(1), "a_row": row, "a_column": column}


def state_strides(x: Tensor, name: str) -> dict[str, Any]:
    """Of what has the shape of states and is `readable`."""
    part = x.stride(2) if x.ndim == 4 else 0
    return {f"{name}_batch": x.stride(0), f"{name}_time": x.stride(1), f"{name}_part": part}
