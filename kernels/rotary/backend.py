"""Which implementation rotates queries and keys: Triton's kernels or the equation.

    reference   the equation in torch (reference.py); any device and dtype
    triton      one launch for both (triton/); CUDA devices, or Triton's interpreter
    auto        triton where it can run on a CUDA device, else reference: the result is the same

The choice is made where the operator runs and not while a compiler traces it, because it depends
on what is installed. Triton is imported only once it was chosen.
"""

from importlib.util import find_spec
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

from ropewalk.kernels.interpreter import interpreted
from ropewalk.kernels.rotary import reference

Backend = Literal["auto", "reference", "triton"]


def check_backend(backend: str) -> None:
    """Refuses a name that does not exist; whether it can run is known when the operator does."""
    if backend not in get_args(Backend):
        raise ValueError(
            f"backend: expected one of {', '.join(get_args(Backend))}, got {backend!r}"
        )


def implementation(x: Tensor, backend: str) -> ModuleType:
    """The module whose `forward` and `backward` do the work.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    if backend == "reference" or (backend == "auto" and x.device.type != "cuda"):
        return reference
    reason = _no_triton(x)
    if reason is None:
        from ropewalk.kernels.rotary import triton

        return triton
    if backend == "auto":
        return reference
    raise ValueError(f"backend 'triton' cannot run: {reason}")


def _no_triton(x: Tensor) -> str | None:
    if x.device.type != "cuda" and not interpreted():
        return (
            f"expected tensors on a CUDA device, got {x.device}; move them, use 'auto', or set "
            "TRITON_INTERPRET=1 before triton is imported to run the kernels in its interpreter"
        )
    if x.dtype == torch.float64:
        return "its kernels compute in float32, got float64 tensors; use .float() or 'reference'"
    if find_spec("triton") is None:
        return "triton is not installed; install ropewalk[gpu]"
    return None
