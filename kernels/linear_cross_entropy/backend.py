"""Which implementation computes the loss; see `ropewalk.kernels.backends`.

reference   the equation in torch, a tile of logits at a time (reference/)
triton      kernels that never write the logits (triton/)
auto        triton where it can run on a CUDA device, else reference
"""

from types import ModuleType

from torch import Tensor

from ropewalk.kernels import backends
from ropewalk.kernels.linear_cross_entropy import reference


def implementation(hidden: Tensor, backend: str) -> ModuleType:
    """The module whose `statistics` and `gradients` do the work.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    kernels = "ropewalk.kernels.linear_cross_entropy.triton"
    return backends.implementation(hidden, backend, reference, kernels)
