"""Which implementation computes: Triton's kernels or the equation, a tile at a time.

    reference   the equation in torch (reference/); any device and dtype
    triton      kernels that never write the logits (triton/); CUDA devices, or the interpreter
    auto        triton where it can run on a CUDA device, else reference: the result is the same

The choice is made where the operator runs and not while a compiler traces it, because it depends
on what is installed. Triton is imported only once it was chosen.
"""

from types import ModuleType
from typing import Literal, get_args

from torch import Tensor

from ropewalk.kernels.backends import check_name, triton_unavailable
from ropewalk.kernels.linear_cross_entropy import reference

Backend = Literal["auto", "reference", "triton"]


def check_backend(backend: str) -> None:
    """Refuses a name that does not exist; whether it can run is known when the operator does."""
    check_name(backend, get_args(Backend))


def implementation(hidden: Tensor, backend: str) -> ModuleType:
    """The module whose `statistics` and `gradients` do the work.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    if backend == "reference" or (backend == "auto" and hidden.device.type != "cuda"):
        return reference
    reason = triton_unavailable(hidden)
    if reason is None:
        from ropewalk.kernels.linear_cross_entropy import triton

        reason = triton.unsupported(hidden)
        if reason is None:
            return triton
    if backend == "auto":
        return reference
    raise ValueError(f"backend 'triton' cannot run: {reason}")
