"""The nearest factors of one layer: by its weight, or by its output on inputs that were seen."""

from typing import NamedTuple

import torch
from torch import Tensor

from ropewalk.blocks.monarch.conversion.moments import Moment, trusted
from ropewalk.blocks.monarch.conversion.weighted import (
    difference,
    fit,
    in_float64,
    relative_output_error,
    weight_error,
)
from ropewalk.blocks.monarch.projection import Decomposition, decompose
from ropewalk.blocks.monarch.shape import MonarchShape
from ropewalk.kernels.dtypes import statistics_dtype


class Fitted(NamedTuple):
    """Factors and how near they are.

    Attributes:
        right: R.
        left: L.
        shape: the sizes.
        relative_error: of the weight; in half precision that of the factors as they are rounded.
        output_error: of the output, likewise; None where no inputs were seen.
        plain: whether these are the factors nearest to the weight.
    """

    right: Tensor
    left: Tensor
    shape: MonarchShape
    relative_error: float
    output_error: float | None
    plain: bool

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
        error = found.relative_error(shape.rank)
        if _is_half(self.weight):
            error = weight_error(in_float64(self.weight), difference(self.weight, right, left))
        return Fitted(right, left, shape, error, None, True)

    def least_rank(self, shape: MonarchShape, error: float) -> int | None:
        """The least rank, with these blocks, that is no farther than `error`; None if none is."""
        squares = self.decomposition(shape).sigma.double().square().flatten(0, -2).sum(0)
        # Dropped at rank r: what follows it, summed from the small end.
        dropped = torch.cat([squares.flip(0).cumsum(0).flip(0), squares.new_zeros(1)])
        enough = dropped <= error**2 * dropped[0]
        least = max(1, int(enough.int().argmax()))
        if not _is_half(self.weight) or self.fitted(_of_rank(shape, least)).error <= error:
            return least
        # Rounding adds to the error; another rank takes off more than its own rounding adds.
        return _bisect(self, shape, error, least + 1, half=True)


class ByOutput:
    """The weighted projection, by a moment that is believed as far as its rows allow.

    Where rows are few, a fit to half of them is measured on the other half, which is the error that
    is told; if the plain projection is nearer there, it is what the layer gets.

    Args:
        weight: (out, in).
        moment: of the inputs, with a row at least.
    """

    def __init__(self, weight: Tensor, moment: Moment) -> None:
        self._plain = ByWeight(weight)
        self._seen = moment.mean()
        doubt = moment.doubt()
        self._moment = trusted(self._seen, doubt)
        self._halves: tuple[Tensor, Tensor] | None = None
        # One row is as good as none.
        self._nothing = moment.rows < 2
        if moment.few and not self._nothing:
            # Half of the rows leave twice the doubt.
            self._halves = trusted(moment.half(0), 2 * doubt), moment.half(1)
        self._last: Fitted | None = None

    def fitted(self, shape: MonarchShape) -> Fitted:
        """The nearest factors of a shape."""
        if self._last is None or self._last.shape != shape:
            self._last = self._fitted(shape)
        return self._last

    def _fitted(self, shape: MonarchShape) -> Fitted:
        weight, plain = self._plain.weight, self._plain.decomposition(shape)
        nearest = self._plain.fitted(shape)
        if self._nothing:
            return nearest._replace(output_error=_output_error(weight, nearest, self._seen))
        unseen = None
        if self._halves is not None:
            first, second = self._halves
            unseen = fit(weight, first, shape, plain=plain, measured=second).output_error
            error = _output_error(weight, nearest, second)
            if error <= unseen:
                return nearest._replace(output_error=error)
        found = fit(weight, self._moment, shape, plain=plain, measured=self._seen)
        error = found.output_error if unseen is None else unseen
        return Fitted(found.right, found.left, shape, found.relative_error, error, False)

    def least_rank(self, shape: MonarchShape, error: float) -> int | None:
        """The least rank by bisection: fitting is what tells the error of a rank."""
        return _bisect(self, shape, error, 1, half=_is_half(self._plain.weight))


def _bisect(
    fit: "ByWeight | ByOutput", shape: MonarchShape, error: float, low: int, *, half: bool
) -> int | None:
    """The least rank, from `low` on, whose factors, as they are stored, keep an error."""

    def keeps(rank: int) -> bool:
        return fit.fitted(_of_rank(shape, rank)).error <= error

    full = high = shape.full_rank
    while low < high:
        middle = (low + high) // 2
        if keeps(middle):
            high = middle
        else:
            low = middle + 1
    # At full rank there is no error but that of rounding.
    return None if half and high == full and not keeps(full) else high


def _is_half(weight: Tensor) -> bool:
    return statistics_dtype(weight.dtype) != weight.dtype


def _output_error(weight: Tensor, found: Fitted, moment: Tensor) -> float:
    wide = in_float64(weight)
    rest = difference(weight, found.right, found.left)
    return relative_output_error(wide, rest, in_float64(moment).to(wide.device))


def _of_rank(shape: MonarchShape, rank: int) -> MonarchShape:
    return MonarchShape.of(shape.in_features, shape.out_features, nblocks=shape.nblocks, rank=rank)
