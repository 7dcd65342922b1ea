"""Which implementation merges; see `ropewalk.kernels.backends`.

reference   the equation in torch (reference/)
triton      kernels that read the logits once (triton/)
auto        triton where it can run on a CUDA device, else reference
"""

from types import ModuleType

from torch import Tensor

from ropewalk.kernels import backends
from ropewalk.kernels.context_merge import reference


def implementation(logits: Tensor, backend: str) -> ModuleType:
    """The module whose `merge` does the work.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    return backends.implementation(
        logits, backend, reference, "ropewalk.kernels.context_merge.triton"
    )
