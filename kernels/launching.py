"""What the host code of kernels that multiply matrices has in common."""

from typing import Any

import torch
from torch import Tensor

from ropewalk.kernels.interpreter import interpreted


def precision(dtype: torch.dtype) -> str:
    """How tensor cores multiply float32: to its full accuracy unless torch is told otherwise."""
    if dtype != torch.float32:
        return "tf32"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def arithmetic(dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time arguments of every product."""
    return {
        "UPCAST": interpreted() and dtype != torch.float32,
        "PRECISION": precision(dtype),
    }


def run(kernel: Any, grid: tuple[int, ...], near: Tensor, **arguments: Any) -> None:
    """Launches a kernel on the device of `near`."""
    with torch.cuda.device_of(near):
        kernel[grid](**arguments)
