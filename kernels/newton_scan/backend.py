"""Which implementation computes a scan.

reference   Newton's method in windows, or steps, in torch; any device and dtype (reference/)
numba       compiled loops on a CPU (numba/)
triton      fused kernels: Newton's method in windows, or steps (triton/)
auto        triton where it can run on a CUDA device, numba on a CPU where it is installed, else
            reference

Which of the two algorithms is faster is known to each implementation.
"""

from types import ModuleType
from typing import Literal, get_args

from torch import Tensor

from ropewalk.kernels import backends
from ropewalk.kernels.newton_scan import reference

Backend = Literal["auto", "reference", "numba", "triton"]
BACKENDS: tuple[str, ...] = get_args(Backend)
PACKAGE = "ropewalk.kernels.newton_scan"


def implementation(inputs: Tensor, backend: str) -> ModuleType:
    """The module whose `forward` and `backward` do the work.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    return backends.implementation(
        inputs, backend, reference, f"{PACKAGE}.triton", numba=f"{PACKAGE}.numba"
    )
