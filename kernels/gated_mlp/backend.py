"""Which implementation activates; see `ropewalk.kernels.backends`.

reference   torch's own kernels, tile by tile on a CPU (reference/)
triton      one launch each way (triton/)
auto        triton where it can run on a CUDA device, else reference, but on a CPU ordinary torch
            for little work (composite.py)

The products with the matrices are torch's in either case.
"""

from types import ModuleType

from torch import Tensor

from ropewalk.kernels import backends
from ropewalk.kernels.gated_mlp import reference


def implementation(x: Tensor, backend: str) -> ModuleType:
    """The module whose `forward` and `backward` do the work.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    return backends.implementation(x, backend, reference, "ropewalk.kernels.gated_mlp.triton")
