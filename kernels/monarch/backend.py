"""Which implementation multiplies; see `ropewalk.kernels.backends`.

reference   batched products over views, through the caches by chunks of tokens (reference/)
triton      kernels that fold the permutation into a store (triton/)
dense       the merged matrix, then one product; ordinary torch, never an operator (dense.py)
auto        dense from the number of rows on that `merged_from` (break_even.py) gives, else triton
            where it can run on a CUDA device, else reference, for which few rows are batched
            products in ordinary torch
"""

from types import ModuleType
from typing import Literal, get_args

from torch import Tensor

from ropewalk.kernels import backends
from ropewalk.kernels.monarch import reference

Backend = Literal["auto", "reference", "triton", "dense"]
BACKENDS: tuple[str, ...] = get_args(Backend)


def implementation(x: Tensor, backend: str) -> ModuleType:
    """The module whose `forward` and `backward` do the work.

    Raises:
        ValueError: the backend that was asked for cannot do it; the message says why.
    """
    return backends.implementation(x, backend, reference, "ropewalk.kernels.monarch.triton")
