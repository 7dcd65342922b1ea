"""Matrices as the kernels read them, and what every launch that computes logits is told."""

from math import gcd
from typing import NamedTuple

from torch import Tensor

from ropewalk.kernels.chips import too_old

WIDEST = 2**22
"""Elements between two rows beyond which an offset within a tile may leave 32 bits."""


class Matrix(NamedTuple):
    """A matrix with a contiguous dimension.

    Attributes:
        tensor: two-dimensional.
        transposed: whether the first dimension is the contiguous one.
        stride: elements from a row to the next, or if transposed from a column, in units.
        unit: a power of two up to 16 elements; see tiles.py.
    """

    tensor: Tensor
    transposed: bool
    stride: int
    unit: int

    def rows(self, start: int, end: int) -> "Matrix":
        return self._replace(tensor=self.tensor[start:end])

    def turned(self) -> "Matrix":
        """The transposed matrix, in the same memory."""
        return self._replace(tensor=self.tensor.T, transposed=not self.transposed)


def matrix(x: Tensor) -> Matrix:
    """A copy only where neither dimension is contiguous, or rows overlap or lie very far apart."""
    for transposed in (False, True):
        view = x.T if transposed else x
        step, least = view.stride(0), max(view.shape[1], 1)
        if view.shape[0] <= 1:
            step = least
        if (view.shape[1] <= 1 or view.stride(1) == 1) and least <= step < WIDEST:
            unit = gcd(16, step)
            return Matrix(x, transposed, step // unit, unit)
    unit = gcd(16, max(x.shape[1], 1))
    return Matrix(x.contiguous(), False, max(x.shape[1], 1) // unit, unit)


def unsupported(hidden: Tensor) -> str | None:
    """Why the kernels cannot run where these hidden states are, or None."""
    return too_old(hidden)
