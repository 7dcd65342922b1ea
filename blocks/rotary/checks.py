"""Checks of the numbers that rotary rules alone are made of."""

import torch
from torch import Tensor

from ropewalk.blocks.checks import mend, require_positive


def require_length(length: int | Tensor | None) -> None:
    """Raises unless `length` is None, an integer of at least 1 or a 0-d tensor of integers.

    A tensor's value is never looked at, because it may be traced.

    Raises:
        TypeError: it is not an integer, or a tensor of anything but integers.
        ValueError: it is below 1, or a tensor of several numbers.
    """
    if isinstance(length, Tensor):
        if length.ndim != 0:
            raise ValueError(
                f"length: expected one number, a 0-d tensor, got shape {tuple(length.shape)}"
            )
        if length.dtype == torch.bool or length.is_complex():
            raise TypeError(f"length: expected a tensor of one integer, got {length.dtype}")
    # A size of a traced tensor is a SymInt, positive by construction.
    elif length is not None and not isinstance(length, torch.SymInt):
        if isinstance(length, bool) or not isinstance(length, int):
            raise TypeError(
                "length: expected the tokens in the context, an integer ≥ 1 or a 0-d tensor, "
                f"got {length!r}{mend(length, 'int')}"
            )
        if length < 1:
            raise ValueError(f"length: expected an integer ≥ 1, got {length!r}")


def require_base(base: float) -> None:
    """Raises unless `base` (`rope_theta`) is a finite number above 1.

    Raises:
        TypeError: it is not a number.
        ValueError: it is not above 1, so that frequencies would not fall.
    """
    require_positive("rotary", base=base)
    if base <= 1:
        raise ValueError(f"rotary.base: expected a number > 1, such as 10000.0, got {base!r}")


def require_rotary_dim(rotary_dim: int, minimum: int = 2) -> None:
    """Raises unless `rotary_dim` is an even integer of at least `minimum`.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is odd or too small.
    """
    if isinstance(rotary_dim, bool) or not isinstance(rotary_dim, int):
        raise TypeError(f"rotary_dim: expected an even integer, got {rotary_dim!r}")
    if rotary_dim < minimum or rotary_dim % 2:
        raise ValueError(
            f"rotary_dim: expected an even integer ≥ {minimum} because dimensions are rotated in "
            f"pairs, got {rotary_dim}; choose head_dim and rotary_fraction so that their product "
            "is even"
        )
