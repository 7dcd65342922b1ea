"""The nearest factors of one layer: by its weight, or by its output on inputs that were seen."""

from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.blocks.monarch.conversion.weighted import fit
from ropewalk.blocks.monarch.projection import Decomposition, decompose
from ropewalk.blocks.monarch.shape import MonarchShape


class Fitted(NamedTuple):
    """Factors and how near they are.

    Attributes:
        right: R.
        left: L.
        shape: the sizes.
        relative_error: of the weight.
        output_error: of the output; None where no inputs were seen.
    """

    right: Tensor
    left: Tensor
    shape: MonarchShape
    relative_error: float
    output_error: float | None

    @property
    def error(self) -> float:
        """What was made as small as possible."""
        return self.relative_error if self.output_error is None else self.output_error


class ByWeight:
    """The plain projection. Decomposes once for each number of blocks.

    Args:
        weight: (out, in).
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self._last: tuple[tuple[int, int], Decomposition] | None = None

    def decomposition(self, shape: MonarchShape) -> Decomposition:
        """Of the slices; that of the last blocks is kept."""
        if self._last is None or self._last[0] != shape.nblocks:
            self._last = None  # its memory first
            self._last = shape.nblocks, decompose(self.weight, shape)
        return self._last[1]

    def fitted(self, shape: MonarchShape) -> Fitted:
        """The nearest factors of a shape."""
        found = self.decomposition(shape)
        right, left = (factor.to(self.weight.dtype) for factor in found.factors(shape.rank))
        return Fitted(right, left, shape, found.relative_error(shape.rank), None)

    def least_rank(self, shape: MonarchShape, error: float) -> int:
        """The least rank, with these blocks, that is no farther than `error`."""
        squares = self.decomposition(shape).sigma.double().square().flatten(0, -2).sum(0)
        # Dropped at rank r: what follows it, summed from the small end.
        dropped = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
        enough = dropped <= error**2 * dropped[0]
        return max(1, int(enough.int().argmax()))


class ByOutput:
    """The weighted projection.

    Args:
        weight: (out, in).
        second_moment: of the inputs.
    """

    def __init__(self, weight: Tensor, second_moment: Tensor) -> None:
        self._plain = ByWeight(weight)
        self._moment = second_moment
        self._last: Fitted | None = None

    def fitted(self, shape: MonarchShape) -> Fitted:
        """The nearest factors of a shape."""
        if self._last is None or self._last.shape != shape:
            plain = self._plain.decomposition(shape)
            found = fit(self._plain.weight, self._moment, shape, plain=plain)
            self._last = Fitted(
                found.right, found.left, shape, found.relative_error, found.output_error
            )
        return self._last

    def least_rank(self, shape: MonarchShape, error: float) -> int:
        """The least rank by bisection: fitting is what tells the error of a rank."""
        low, high = 1, shape.full_rank  # at full rank there is no error
        while low < high:
            middle = (low + high) // 2
            if self.fitted(_of_rank(shape, middle)).error <= error:
                high = middle
            else:
                low = middle + 1
        return high


def _of_rank(shape: MonarchShape, rank: int) -> MonarchShape:
    return MonarchShape.of(shape.in_features, shape.out_features, nblocks=shape.nblocks, rank=rank)
