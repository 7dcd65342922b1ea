"""Strides that kernels are told, and what they can read as it is."""

import torch
from torch import Tensor

from ropewalk.kernels.adaptive_norm.triton.configurations import WIDEST
from ropewalk.kernels.chips import too_old

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INT32 = 2**31


def unsupported(x: Tensor) -> str | None:
    """Why the kernels cannot run on tensors like this one, or None."""
    if x.dtype not in DTYPES:
        return f"its kernels take float16, bfloat16 and float32, got {x.dtype}"
    if x.shape[-1] > WIDEST:
        return f"its kernels take rows of up to {WIDEST} numbers, got {x.shape[-1]}"
    return too_old(x)


def readable(x: Tensor | None) -> Tensor | None:
    """The tensor, or a copy where its columns lie too far apart for offsets of 32 bits."""
    if x is None or x.shape[-1] * x.stride(-1) < INT32:
        return x
    return x.contiguous()


def stream(name: str, x: Tensor | None) -> dict[str, Tensor | int | None]:
    """(batch, tokens, dim) or none, and its strides."""
    batch, token, column = (0, 0, 0) if x is None else x.stride()
    return {name: x, f"{name}_batch": batch, f"{name}_token": token, f"{name}_column": column}


def rows(name: str, x: Tensor | None) -> dict[str, Tensor | int | None]:
    """(samples, dim) or none, and its strides."""
    row, column = (0, 0) if x is None else x.stride()
    return {name: x, f"{name}_row": row, f"{name}_column": column}
