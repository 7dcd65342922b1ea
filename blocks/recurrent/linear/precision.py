"""Parameters that half precision would ruin, and that therefore stay in float32.

|λ|^T of a slow eigenvalue, and its phase after T steps, amplify the rounding of ν and θ by T: in
bfloat16 a phase of π is known to 0.008 and is lost after a few hundred steps.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

HALVES = (torch.bfloat16, torch.float16)


class WideParameters(nn.Module):
    """A module of which the parameters named in `wide` ignore `.bfloat16()`, `.half()`, `.to`.

    They follow the module to devices and to float64.
    """

    wide: tuple[str, ...] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = [
            tensor
            for name in self.wide
            for tensor in (self.get_parameter(name), self.get_parameter(name).grad)
            if tensor is not None
        ]

        def widely(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if moved.dtype in HALVES and any(tensor is x for x in kept):
                return tensor.to(moved.device, torch.float32)
            return moved

        return super()._apply(widely, recurse)


def wide_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of wide parameters beside others in `dtype` (None: torch's default)."""
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return torch.float32 if dtype in HALVES else dtype
