"""A tensor as flat memory with strides, so that one piece of machine code serves every layout."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Flat(NamedTuple):
    """The memory between a tensor's first and last number.

    Attributes:
        memory: (numbers,), the tensor's own memory unless it had to be copied.
        strides: of all dimensions but the last, whose numbers are neighbours.
    """

    memory: np.ndarray
    strides: tuple[int, ...]


def flat(x: Tensor, dtype: torch.dtype) -> Flat:
    """A tensor with at least one number.

    It is copied only for another dtype, or if its last dimension is strided or broadcast. What is
    broadcast along other dimensions is never written out.

    Args:
        x: any strides.
        dtype: what the loop computes in.
    """
    thin = x.detach()
    for dim in range(x.ndim - 1):
        if x.stride(dim) == 0:
            thin = thin.narrow(dim, 0, 1)
    thin = thin.resolve_conj().resolve_neg().to(dtype)
    if thin.shape[-1] > 1 and thin.stride(-1) != 1:
        thin = thin.contiguous()
    whole = thin.expand(x.shape)
    strides = whole.stride()[:-1]
    span = sum((n - 1) * s for n, s in zip(whole.shape, strides, strict=False))
    return Flat(whole.as_strided((span + x.shape[-1],), (1,)).numpy(), strides)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Half precision is computed in float32, everything else in itself."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
