"""Which implementation computes a scan.

reference   chunks in torch, any device and dtype (reference/)
numba       a compiled loop on a CPU (numba/)
triton      kernels (triton/)
auto        triton where it can run on a CUDA device, numba on a CPU where it is installed, else
            reference
"""

from types import ModuleType
from typing import Literal, get_args

from torch import Tensor

from ropewalk.kernels import backends
from ropewalk.kernels.linear_scan import reference

Backend = Literal["auto", "reference", "numba", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
PACKAGE = "ropewalk.kernels.linear_scan"


def implementation(a: Tensor, backend: str) -> ModuleType:
    """The module whose `forward` and `backward` do the work.

    Args:
        a: the coefficients, whose dimensions tell the structure.
        backend: one of `BACKENDS`.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    return backends.implementation(
        a, backend, reference, f"{PACKAGE}.triton", numba=f"{PACKAGE}.numba"
    )
