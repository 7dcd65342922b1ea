"""Which implementation computes; see `ropewalk.kernels.backends`.

reference   by samples through the caches, in torch (reference/)
triton      one launch forward, two backward (triton/)
auto        triton where it can run on a CUDA device, else reference
"""

from types import ModuleType

from torch import Tensor

from ropewalk.kernels import backends
from ropewalk.kernels.adaptive_norm import reference


def implementation(x: Tensor, backend: str) -> ModuleType:
    """The module whose `forward` and `backward` do the work.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    return backends.implementation(x, backend, reference, "ropewalk.kernels.adaptive_norm.triton")
